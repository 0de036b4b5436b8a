"""The control plane as the process that deployments run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from cli import process
from services.gateway.domain import snapshot as snapshots
from tests.gateway import until
from tests.test_gateway_discovery import Envoy

GET_SIGNING_KEYS = "/tallystick.user.v1.AuthService/GetSigningKeys"


@pytest.fixture
def plane(gateway, tmp_path):
    """A function that starts one; answers (process, port, log)."""
    started = []

    def start(**other):
        port, log = process.free_port(), tmp_path / "gateway.log"
        variables = os.environ | gateway.variables() | {"TALLYSTICK_LISTEN": f"127.0.0.1:{port}"}
        child = process.start(
            [sys.executable, "-m", "services.gateway"], log=log, environment=variables | other
        )
        started.append(child)
        return child, port, log

    yield start
    for child in started:
        process.stop(child, grace_seconds=5)


def says_serving(port, tls):
    credentials = grpc.ssl_channel_credentials(
        tls.ca_file.read_bytes(), tls.key_file.read_bytes(), tls.certificate_file.read_bytes()
    )
    override = [("grpc.ssl_target_name_override", "gateway.tallystick.internal")]
    with grpc.secure_channel(f"127.0.0.1:{port}", credentials, override) as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(), timeout=1
            )
        except grpc.RpcError:
            return None
        return answer.status == health_pb2.HealthCheckResponse.SERVING


def test_envoy_is_told_nothing_until_the_signing_keys_are_known(gateway, plane, tls_for):
    tls = tls_for("gateway")
    (user,) = gateway.backends["user"]
    gateway.run(user.stop())
    try:
        child, port, log = plane()
        until(lambda: says_serving(port, tls) is False)
        envoy = Envoy(port, tls)
        envoy.say(snapshots.CLUSTERS)
    finally:
        gateway.run(user.start())

    answer = envoy.hear()

    assert {cluster.unpack().name for cluster in answer.resources} > {"payment", "user"}
    assert says_serving(port, tls) is True
    envoy.close()
    child.send_signal(signal.SIGTERM)
    assert child.wait(5) == 0
    assert "Traceback" not in log.read_text()


def test_two_control_planes_tell_envoy_the_same(gateway, plane, tls_for):
    tls = tls_for("gateway")
    _, port, _ = plane()
    until(lambda: says_serving(port, tls))
    envoy = Envoy(port, tls)

    versions = {
        kind: envoy.learn(kind, "public").version_info for kind in gateway.plane.discovery.snapshot
    }
    envoy.close()

    assert versions == {
        kind: resources.version for kind, resources in gateway.plane.discovery.snapshot.items()
    }


def test_a_missing_setting_ends_it_with_one_sentence(gateway):
    variables = os.environ | gateway.variables() | {"TALLYSTICK_LISTEN": "127.0.0.1:0"}
    del variables["TALLYSTICK_PAYMENT_ADDRESSES"]

    done = subprocess.run(
        [sys.executable, "-m", "services.gateway"],
        env=variables,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )

    assert done.returncode == 1
    assert "TALLYSTICK_PAYMENT_ADDRESSES is not set" in done.stderr
    assert "Traceback" not in done.stderr
