"""A whole stack: it comes up, tells where it is, survives crashes, and leaves nothing behind."""

import json
import os
import re
import signal
import stat
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from cli import mariadb, valkey
from cli.demo.client import Gateway, Operator
from cli.demo.wording import inr
from tests import stacks
from tests.eventually import eventually, served
from tests.stacks import TALLYSTICK, is_running

# A start takes about five seconds of two cores, so tests that harm nothing share one.
PASSWORD = "a long enough password"


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    with stacks.running(tmp_path_factory.mktemp("stack")) as running:
        yield running


@pytest.fixture
async def gateway(stack):
    async with Gateway(stack.endpoints.grpc, Path(stack.endpoints.ca_file)) as connected:
        yield connected


@pytest.fixture
async def operator(stack, gateway):
    endpoints = stack.endpoints
    return Operator.of(await gateway.sign_in(endpoints.admin_user, endpoints.admin_password))


def test_the_endpoints_file_tells_where_everything_is(stack):
    file = stack.directory / "run" / "endpoints.json"
    content = json.loads(file.read_text())

    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert re.fullmatch(r"127\.0\.0\.1:\d+", content["grpc"])
    assert content["grpc_web"] == f"https://{content['grpc']}"
    assert content["profile"] == "dev"
    assert content["admin_user"] == "admin"
    assert Path(content["ca_file"]).read_text().startswith("-----BEGIN CERTIFICATE-----")
    assert stat.S_IMODE(Path(content["admin_password_file"]).stat().st_mode) == 0o600
    assert set(content["services"]) == {"user", "payment", "fraud", "offline", "admin", "gateway"}
    for name, service in content["services"].items():
        assert re.fullmatch(r"127\.0\.0\.1:\d+", service["address"])
        assert service["pid"] == content["processes"][name]
        assert is_running(service["pid"])
        assert Path(service["log_file"]).is_file()
    assert content["services"]["payment"]["database_url"].startswith("sqlite+aiosqlite:////")
    assert set(content["processes"]) - set(content["services"]) == {"supervisor", "valkey", "envoy"}


def test_a_stack_says_in_one_line_that_it_is_ready(stack):
    # What other tests of this stack make it say goes to standard error, and starts in lower case.
    said = [line for line in stack.output.splitlines() if not line.startswith("tallystick: ")]

    assert len(said) == 1
    assert re.fullmatch(
        r"Tallystick is ready after \d+\.\d s: 127\.0\.0\.1:\d+ \(gRPC and gRPC-Web, TLS\), "
        r"\S+/endpoints\.json\. Ctrl-C stops it\.",
        said[0],
    )


def test_what_a_stack_writes_is_for_its_owner_only(stack):
    run = stack.directory / "run"
    assert stat.S_IMODE(run.stat().st_mode) == 0o700
    assert stat.S_IMODE((run / "data" / "dev").stat().st_mode) == 0o700
    for secret in (*run.glob("pki/*.key"), run / "data/dev/key-encryption-key"):
        assert stat.S_IMODE(secret.stat().st_mode) == 0o600


async def test_the_first_admin_can_sign_in(operator):
    assert (await operator.me()).display_name == "Administrator"


async def test_a_second_stack_in_the_same_directory_is_refused(stack):
    refused = await _tallystick("up", "--run-dir", str(stack.directory / "run"))

    assert refused.returncode == 1
    pid = stack.endpoints.processes["supervisor"]
    assert f"A stack is running in {stack.directory / 'run'} (process {pid})" in refused.stderr
    assert "--run-dir" in refused.stderr
    assert is_running(pid)
    assert stack.endpoints.grpc  # its file is still there


async def test_a_second_stack_on_the_same_data_is_refused(stack, tmp_path):
    data = str(stack.directory / "run" / "data")
    refused = await _tallystick("up", "--run-dir", str(tmp_path), "--data-dir", data)

    assert refused.returncode == 1
    assert f"A stack is running in {data}/dev" in refused.stderr


async def test_a_stack_whose_port_is_taken_says_so_and_leaves_nothing(stack, tmp_path):
    port = stack.endpoints.grpc.rpartition(":")[2]

    refused = await _tallystick("up", "--run-dir", str(tmp_path), "--port", port)

    assert refused.returncode == 1
    assert f"Port {port} of 127.0.0.1 is in use" in refused.stderr
    assert not (tmp_path / "endpoints.json").exists()


async def test_a_payment_process_that_is_killed_comes_back_and_serves(stack, gateway, operator):
    payer = await gateway.register_payer("crash.payer", PASSWORD, "Payer")
    await operator.decide((await operator.open_case(payer.name)).name, approve=True, reason="ok")
    client = await gateway.sign_in("crash.payer", PASSWORD)
    before = stack.endpoints.services["payment"]

    os.kill(before.pid, signal.SIGKILL)

    after = await eventually(
        lambda: (now := stack.endpoints.services["payment"]).pid != before.pid and now,
        seconds=30,
    )
    assert after.address == before.address
    assert "payment was ended by SIGKILL; starting it again in 0.5 s. Its log: " in stack.output

    wallet = await served(client.wallet, client.wallet_name("INR"))
    assert wallet.online == inr(0)


@pytest.mark.parametrize("name", ["envoy", "valkey", "gateway", "user"])
async def test_whatever_is_killed_comes_back(stack, operator, name):
    before = stack.endpoints.processes[name]

    os.kill(before, signal.SIGKILL)

    await eventually(lambda: stack.endpoints.processes[name] != before, seconds=30)
    await served(operator.me)


async def test_ctrl_c_ends_every_process_and_the_next_start_finds_the_data(tmp_path):
    stack = stacks.start(tmp_path)
    first = stack.endpoints

    assert stack.stop() == 0

    assert not [name for name, pid in first.processes.items() if is_running(pid)]
    assert not (tmp_path / "run" / "endpoints.json").exists()
    assert stack.output.endswith("tallystick: stopping; Ctrl-C again kills.\n")
    with stacks.running(tmp_path) as again:
        second = again.endpoints
        assert second.admin_password == first.admin_password
        async with Gateway(second.grpc, Path(second.ca_file)) as gateway:
            await gateway.sign_in(second.admin_user, second.admin_password)

        again.supervisor.kill()
        again.supervisor.wait()

        # What it started ends with it, without anybody to tell it to.
        await eventually(lambda: not [pid for pid in second.processes.values() if is_running(pid)])


async def test_a_second_ctrl_c_kills_what_does_not_stop(tmp_path):
    stack = stacks.start(tmp_path)
    processes = stack.endpoints.processes
    os.kill(processes["fraud"], signal.SIGSTOP)  # it will not hear SIGTERM

    stack.supervisor.send_signal(signal.SIGINT)
    await eventually(lambda: "stopping" in stack.output)
    stack.supervisor.send_signal(signal.SIGINT)

    assert stack.supervisor.wait(10) == 130
    assert not [name for name, pid in processes.items() if is_running(pid)]


async def test_a_stack_uses_the_servers_it_is_given(tmp_path):
    with mariadb.running() as mysql_url, valkey.running() as port:
        environment = {
            "TALLYSTICK_MYSQL_URL": mysql_url.rstrip("/"),
            "TALLYSTICK_REDIS_URL": valkey.url(port),
        }
        options = ("--profile", "mysql", "--payment-processes", "2")
        with stacks.running(tmp_path, *options, environment=environment) as stack:
            endpoints = stack.endpoints
            async with Gateway(endpoints.grpc, Path(endpoints.ca_file)) as gateway:
                await gateway.sign_in(endpoints.admin_user, endpoints.admin_password)

    assert endpoints.redis_url == valkey.url(port)
    assert endpoints.services["user"].database_url == f"{mysql_url}tallystick_user"
    assert not {"mariadb", "valkey"} & set(endpoints.processes)
    assert {"payment", "payment-2"} < set(endpoints.services)
    assert endpoints.services["payment-2"].database_url == f"{mysql_url}tallystick_payment"


async def test_a_service_that_does_not_start_ends_the_stack_and_its_log_is_quoted(tmp_path):
    unknown = {"TALLYSTICK_CURRENCIES": "INR,XXX"}

    refused = await _tallystick("up", "--run-dir", str(tmp_path), environment=unknown)

    assert refused.returncode == 1
    # Two services know money's decimals; which of them ends first is nobody's promise.
    assert re.search("(payment|offline) ended with code 1", refused.stderr)
    assert "TALLYSTICK_CURRENCIES names XXX" in refused.stderr
    assert not (tmp_path / "endpoints.json").exists()


async def _tallystick(
    *arguments: str, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: ASYNC221 - nothing else runs meanwhile
        [*TALLYSTICK, *arguments],
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
