"""Keeping programs running, and not one longer than told."""

import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field

import pytest

from cli.process import StartError
from cli.stack.supervisor import Program, Supervisor
from tests.eventually import eventually
from tests.stacks import is_running


@dataclass
class Terminal:
    """What a person was told, and how often the endpoints changed."""

    sentences: list[str] = field(default_factory=list)
    changes: int = 0

    def changed(self):
        self.changes += 1


@pytest.fixture
def terminal():
    return Terminal()


@pytest.fixture
async def supervisor(terminal):
    made = Supervisor(terminal.sentences.append, terminal.changed)
    yield made
    made.kill()


@pytest.fixture
def program(tmp_path):
    def make(name, script, stop_seconds=5.0):
        command = [sys.executable, "-c", script]
        return Program(name, command, dict(os.environ), tmp_path / f"{name}.log", stop_seconds)

    return make


SLEEPS = "import time; print('up', flush=True); time.sleep(600)"


def says_up(program):
    return lambda: program.log.exists() and "up" in program.log.read_text()


async def test_a_program_that_is_killed_is_started_again_and_a_person_is_told(
    supervisor, terminal, program
):
    payment = program("payment", SLEEPS)
    await supervisor.start(payment, says_up(payment))
    first = supervisor.pids()["payment"]

    os.kill(first, signal.SIGKILL)

    await eventually(lambda: terminal.changes == 1)
    second = supervisor.pids()["payment"]
    assert second != first
    assert is_running(second)
    assert terminal.sentences == [
        f"payment was ended by SIGKILL; starting it again in 0.5 s. Its log: {payment.log}"
    ]


async def test_a_program_that_keeps_crashing_is_given_longer_and_longer(
    supervisor, terminal, program
):
    script = "import pathlib, sys, time; print('up', flush=True); time.sleep(0.2); sys.exit(3)"
    flaky = program("flaky", script)
    await supervisor.start(flaky, says_up(flaky))

    await eventually(lambda: len(terminal.sentences) == 3)

    assert [
        sentence.partition("again in ")[2].partition(".  ")[0][:5]
        for sentence in terminal.sentences
    ] == ["0.5 s", "1.0 s", "2.0 s"]


async def test_a_program_that_ends_before_it_is_ready_is_an_error_that_quotes_its_log(
    supervisor, program
):
    broken = program("broken", "import sys; sys.exit('no such database')")

    with pytest.raises(StartError, match=r"(?s)broken ended with code 1.*no such database"):
        await supervisor.start(broken, lambda: False)


async def test_a_program_that_ignores_sigterm_is_killed_and_a_person_is_told(
    supervisor, terminal, program
):
    script = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {SLEEPS}"
    deaf = program("deaf", script, stop_seconds=0.2)
    await supervisor.start(deaf, says_up(deaf))
    pid = supervisor.pids()["deaf"]

    await supervisor.stop(["deaf"])

    assert not is_running(pid)
    assert terminal.sentences == ["deaf did not end within 0 s and was killed."]
    assert supervisor.pids() == {}


async def test_a_program_that_is_told_to_stop_is_not_started_again(supervisor, terminal, program):
    asked = program("asked", SLEEPS)
    await supervisor.start(asked, says_up(asked))

    await supervisor.stop(["asked", "unknown"])

    assert terminal.sentences == []
    assert terminal.changes == 0


async def test_a_program_run_to_its_end_must_succeed(supervisor, program):
    await supervisor.run_once(program("fine", "pass"))
    with pytest.raises(StartError, match="once ended with code 1"):
        await supervisor.run_once(program("once", "raise SystemExit('out of order')"))


async def test_programs_do_not_outlive_a_supervisor_that_is_killed(tmp_path):
    # A program of its own, because the one that is killed must not be this one.
    parent = (
        "import pathlib, sys, time\n"
        "from cli import process\n"
        f"log = pathlib.Path({str(tmp_path / 'child.log')!r})\n"
        "child = process.start([sys.executable, '-c', 'import time; time.sleep(600)'], log=log)\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    command = [sys.executable, "-c", parent]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as supervisor:  # noqa: ASYNC220
        child = int(supervisor.stdout.readline())

        supervisor.kill()

    await eventually(lambda: not is_running(child))
