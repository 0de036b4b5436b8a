"""From the contract and the settings to what Envoy is told, without Envoy."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.environment import Environment, SettingError
from services.gateway import contract
from services.gateway.domain import refusals as gateway_refusals
from services.gateway.domain import replies, snapshot
from services.gateway.domain.access import Bucket, LimitError, Route, check_buckets
from services.gateway.domain.bootstrap import Bootstrap, bootstrap, envoy_command
from services.gateway.domain.edge import Address, Credentials, Edge, Identity
from services.gateway.server import encode, read_settings
from services.rpc import errors, server
from services.rpc.contract import rules
from tallystick.gateway.v1 import error_reason_pb2

ROOT = Path(__file__).parent.parent
PAY = Bucket(10, 1, timedelta(seconds=6))


def a_route(**other):
    facts = {
        "path": "/tallystick.payment.v1.PaymentService/CreatePayment",
        "service": "payment",
        "roles": ("USER",),
        "rate_class": "PAYMENT",
        "rate_cost": 1,
        "idempotent": False,
        "timeout": timedelta(seconds=15),
        "streams": False,
    }
    return Route(**{**facts, **other})


def an_edge(**other):
    facts = {
        "listen": Address("127.0.0.1", 8443),
        "web_origins": ("https://shop.example",),
        "buckets": contract.buckets(),
        "rate_subjects_max": 1000,
        "trusted_proxies": 0,
        "collector": None,
        "trace_percent": 1.0,
    }
    return Edge(**{**facts, **other})


IDENTITY = Identity("certificate", "key")
CREDENTIALS = Credentials(IDENTITY, IDENTITY, "authority")


def told(routes=None, edge=None, key_set='{"keys": []}', credentials=CREDENTIALS, backends=None):
    routes = contract.routes(contract.services()) if routes is None else routes
    backends = backends or {route.service: [Address("127.0.0.1", 50051)] for route in routes}
    return snapshot.snapshot(
        routes,
        edge or an_edge(),
        backends,
        json_web_key_set=key_set,
        credentials=credentials,
        encode=encode,
    )


def changed(before, after):
    return {kind for kind in before if before[kind].version != after[kind].version}


@pytest.fixture
def variables(tls_for):
    tls = tls_for("gateway")
    services = {route.service for route in contract.routes(contract.services())}
    return {f"TALLYSTICK_{name.upper()}_ADDRESSES": "127.0.0.1:50051" for name in services} | {
        "TALLYSTICK_LISTEN": "127.0.0.1:0",
        "TALLYSTICK_REDIS_URL": "redis://127.0.0.1:6379/0",
        "TALLYSTICK_TLS_CERT_FILE": str(tls.certificate_file),
        "TALLYSTICK_TLS_KEY_FILE": str(tls.key_file),
        "TALLYSTICK_TLS_CA_FILE": str(tls.ca_file),
    }


def test_every_rpc_of_every_contract_has_an_access_option():
    found = rules(contract.services())

    protos = (ROOT / "protos" / "tallystick").rglob("*.proto")
    written = sum(
        line.startswith("  rpc ") for proto in protos for line in proto.read_text().splitlines()
    )
    assert len(found) == written > 30


def test_only_services_with_a_route_get_a_cluster():
    clusters = told()[snapshot.CLUSTERS].by_name

    assert "payment" in clusters
    routed = {route.service for route in contract.routes(contract.services())}
    assert set(clusters) == routed | {"otlp-collector"}
    internal = {rule.path for rule in rules(contract.services()) if not rule.at_gateway}
    assert internal.isdisjoint(route.path for route in contract.routes(contract.services()))


def test_the_same_contract_makes_the_same_snapshot():
    assert changed(told(), told()) == set()


def test_a_new_signing_key_changes_nothing_but_the_filter_that_verifies_tokens():
    assert changed(told(), told(key_set='{"keys": [1]}')) == {snapshot.FILTERS}


def test_a_new_certificate_changes_nothing_but_secrets():
    renewed = replace(CREDENTIALS, public=Identity("newer", "key"))

    assert changed(told(), told(credentials=renewed)) == {snapshot.SECRETS}


def test_a_new_replica_changes_nothing_but_endpoints_and_the_room_for_calls():
    one = told([a_route()], backends={"payment": [Address("127.0.0.1", 1)]})
    two = told([a_route()], backends={"payment": [Address("127.0.0.1", n) for n in (1, 2)]})

    assert changed(one, two) == {snapshot.ENDPOINTS, snapshot.CLUSTERS}


def test_a_changed_rpc_changes_nothing_but_routes_so_that_buckets_stay():
    stricter = a_route(roles=("ADMIN",), rate_cost=5, timeout=timedelta(seconds=3), idempotent=True)

    assert changed(told([a_route()]), told([stricter])) == {snapshot.ROUTES}


@pytest.mark.parametrize("text", ["127.0.0.1:1", "[::1]:1", "payment.example:50051"])
def test_an_address_is_written_as_it_is_read(text):
    assert str(Address.parse(text)) == text


def test_services_known_by_a_name_are_found_by_dns():
    found = told([a_route()], backends={"payment": [Address("payment.example", 50051)]})

    assert "payment" not in found[snapshot.ENDPOINTS].by_name
    assert b"payment.example" in found[snapshot.CLUSTERS].by_name["payment"].value


@given(
    cost=st.integers(1, 100),
    tokens=st.integers(1, 100),
    milliseconds=st.integers(50, 3_600_000),
)
def test_after_retry_after_an_empty_bucket_holds_what_the_call_draws(cost, tokens, milliseconds):
    bucket = Bucket(1000, tokens, timedelta(milliseconds=milliseconds))
    wait = a_route(rate_cost=cost).retry_after(bucket)

    assert wait // bucket.fill_interval * tokens >= cost
    assert wait >= timedelta(seconds=1)
    assert wait % timedelta(seconds=1) == timedelta(0)
    # And not longer than it takes, by more than a second.
    enough = -(-cost // tokens) * bucket.fill_interval
    assert wait < enough + timedelta(seconds=1) or wait == timedelta(seconds=1)


@pytest.mark.parametrize(
    ("bucket", "says"),
    [
        (Bucket(9, 1, timedelta(seconds=6)), "9 tokens.*draws 10"),
        (Bucket(10, 0, timedelta(seconds=6)), "0 tokens every"),
        (Bucket(10, 1, timedelta(milliseconds=49)), "50 ms"),
    ],
)
def test_a_bucket_that_could_never_serve_a_call_is_an_error(bucket, says):
    with pytest.raises(LimitError, match=f"PAYMENT .*{says}"):
        check_buckets([a_route(rate_cost=10)], {"PAYMENT": bucket})
    check_buckets([a_route(rate_cost=10)], {"PAYMENT": PAY})


def test_a_class_without_a_bucket_is_an_error():
    with pytest.raises(LimitError, match="Rate class ODD"):
        check_buckets([a_route(rate_class="ODD")], {"PAYMENT": PAY})


def test_a_deployment_may_change_a_bucket(variables):
    settings, _ = read_settings(Environment(variables | {"TALLYSTICK_RATE_PAYMENT": "50/5/1500"}))

    assert settings.edge.buckets["PAYMENT"] == Bucket(50, 5, timedelta(milliseconds=1500))
    assert settings.edge.buckets["READ"] == contract.buckets()["READ"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("RATE_PAYMENT", "10 a minute"),
        ("RATE_PAYMENT", "10/1"),
        ("RATE_PAYMENT", "5/1/6000"),
        ("RATE_PAYMENT", "10/1/10"),
        ("PAYMENT_ADDRESSES", "payment"),
        ("PAYMENT_ADDRESSES", "127.0.0.1:1,payment:"),
        ("PAYMENT_ADDRESSES", ""),
        ("PAYMENT_ADDRESSES", " , "),
        ("WEB_ORIGINS", "*"),
        ("WEB_ORIGINS", "https://shop.example/"),
        ("WEB_ORIGINS", "shop.example"),
        ("PUBLIC_LISTEN", "shop.example:443"),
        ("TRACE_PERCENT", "101"),
        ("TRACE_PERCENT", "-1"),
        ("TRACE_PERCENT", "nan"),
        ("RATE_SUBJECTS_MAX", "0"),
        ("TRUSTED_PROXIES", "-1"),
        ("OTLP_ADDRESS", "collector"),
        ("LISTEN", "18000"),
    ],
)
def test_a_setting_that_means_nothing_is_named(variables, name, value):
    with pytest.raises(SettingError, match=f"TALLYSTICK_(RATE_…|{name})"):
        read_settings(Environment(variables | {f"TALLYSTICK_{name}": value}))


def test_the_gateway_refuses_in_no_other_ways_than_its_contract_lists():
    ways = [
        gateway_refusals.rate_limited("READ", timedelta(seconds=1)),
        gateway_refusals.method_unknown(),
        gateway_refusals.message_too_large(1),
        gateway_refusals.request_malformed(),
        gateway_refusals.encoding_unsupported(),
        gateway_refusals.call_timed_out(),
    ]

    written = {
        name.removeprefix("ERROR_REASON_")
        for name, number in error_reason_pb2.ErrorReason.items()
        if number
    }
    assert {refusal.reason for refusal in ways} == written
    assert all(errors.status(refusal, "gateway").code for refusal in ways)
    # `grpc-message` carries them as they are.
    assert all(refusal.message.isascii() and "%" not in refusal.message for refusal in ways)


def test_the_gateway_takes_messages_as_large_as_services_do():
    assert replies.MESSAGE_BYTES_MAX == server.MESSAGE_BYTES_MAX


def an_envoy(tls, **other):
    facts = {
        "node_id": "envoy",
        "control_plane": Address("127.0.0.1", 18000),
        "certificate_file": tls.certificate_file,
        "key_file": tls.key_file,
        "ca_file": tls.ca_file,
        "admin": Address("127.0.0.1", 9901),
    }
    return Bootstrap(**{**facts, **other})


@pytest.mark.parametrize(
    "other",
    [{}, {"observe": Address("127.0.0.1", 9902)}, {"control_plane": Address("gateway", 18000)}],
    ids=["least", "observed", "control plane by name"],
)
def test_envoy_takes_its_bootstrap(tls_for, tmp_path, other):
    file = tmp_path / "envoy.json"
    file.write_text(json.dumps(bootstrap(an_envoy(tls_for("gateway"), **other))))

    done = subprocess.run(
        [*envoy_command(file, concurrency=1), "--mode", "validate"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert "deprecated" not in done.stderr
    assert "no configured limit" not in done.stderr


def test_the_bootstrap_for_containers_is_up_to_date():
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "envoy_bootstrap.py")],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )

    written = (ROOT / "deploy" / "envoy" / "bootstrap.json").read_text()
    assert written == done.stdout, "tools/envoy_bootstrap.py > deploy/envoy/bootstrap.json"
