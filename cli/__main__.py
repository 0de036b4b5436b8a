"""`tallystick`: the command line."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from bench import command as bench
from cli.databases import OWNERS, PROFILES
from cli.process import StartError
from cli.stack.layout import Layout
from pos import command as pos
from services.environment import SettingError

# Beside the checkout or wherever one works: the stack belongs to the directory it is started in.
_RUN = Path(".tallystick/run")
_DATA = Path(".tallystick/data")

_FAILED = 1
_MISUSED = 2
_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; answers the exit code: 1 when it failed, 2 when it was asked for wrongly."""
    options = _parser().parse_args(arguments)
    try:
        code: int = options.run(options)
    except SettingError as error:
        print(f"tallystick: {error}", file=sys.stderr)
        return _MISUSED
    except StartError as error:
        print(f"tallystick: {error}", file=sys.stderr)
        return _FAILED
    except KeyboardInterrupt:
        return _INTERRUPTED
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tallystick",
        description="Payments that keep working when the network does not.",
        epilog="`tallystick COMMAND --help` says more about each.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    up = _command(commands, "up", _up, "start the whole stack here; Ctrl-C stops it")
    _add_profile(up)
    _add_directories(up)
    up.add_argument(
        "--port",
        type=_port,
        default=0,
        help="where clients connect on 127.0.0.1; a free port when left out",
    )
    up.add_argument(
        "--payment-processes",
        type=_count,
        default=1,
        metavar="N",
        help="how many payment processes share the work (default: 1)",
    )

    serve = _command(
        commands, "serve", _serve, "run one service, with settings from the environment"
    )
    serve.add_argument(
        "service", metavar="SERVICE", choices=(*OWNERS, "gateway"), help="%(choices)s"
    )

    migrate = _command(
        commands, "migrate", _migrate, "bring every service's database to the current schema"
    )
    _add_profile(migrate)
    migrate.add_argument(
        "--data-dir",
        type=Path,
        default=_DATA,
        metavar="DIR",
        help="where profile dev keeps its files",
    )

    audit = _command(
        commands,
        "audit",
        _audit,
        "check the ledger's laws on a running stack; exit 1 if one is broken",
    )
    audit.add_argument(
        "--run-dir", type=Path, default=_RUN, metavar="DIR", help=f"the stack's (default: {_RUN})"
    )
    audit.add_argument("--json", type=Path, metavar="FILE", help="write what was found there too")

    pos.add_parser(commands)

    demo = _command(
        commands, "demo", _demo, "start a stack of its own, use it as real clients do, check, stop"
    )
    _add_profile(demo)

    bench.add_parser(commands)

    fraud = commands.add_parser(
        "fraud", help="how good the fraud checks are", description="How good the fraud checks are."
    )
    _add_fraud(fraud.add_subparsers(title="commands", metavar="COMMAND", required=True))
    return parser


def _add_fraud(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    evaluate = _command(
        commands,
        "evaluate",
        _evaluate,
        "replay labelled worlds through the shipped checks: recall, false positives, precision",
    )
    evaluate.add_argument(
        "--data",
        type=Path,
        required=True,
        metavar="DIR",
        help="with synccfd_tx and synccfd_places, overlay_tx and overlay_vendors (.parquet), or either pair",
    )
    evaluate.add_argument(
        "--label-delay",
        type=_duration,
        required=True,
        metavar="D",
        help="how long after a payment it is known whether it was fraud: 1d, 12h, 7d",
    )
    evaluate.add_argument(
        "--from-day",
        type=int,
        metavar="N",
        help="judge payments from this day on; earlier ones only build state (default: a world's eighth day)",
    )
    evaluate.add_argument("--json", type=Path, metavar="FILE", help="write the report there too")


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    run: Callable[[argparse.Namespace], int],
    summary: str,
) -> argparse.ArgumentParser:
    command = commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        allow_abbrev=False,
    )
    command.set_defaults(run=run)
    return command


def _add_profile(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--profile",
        choices=PROFILES,
        default=PROFILES[0],
        help="dev: SQLite files. mysql: the server of TALLYSTICK_MYSQL_URL, or a private MariaDB "
        "(default: %(default)s)",
    )


def _add_directories(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--run-dir",
        type=Path,
        metavar="DIR",
        help=f"for certificates, logs and endpoints.json (default: {_RUN})",
    )
    command.add_argument(
        "--data-dir",
        type=Path,
        metavar="DIR",
        help=f"for what outlives a run (default: {_DATA}, or data inside --run-dir)",
    )


def _up(options: argparse.Namespace) -> int:
    from cli.stack import up

    run = options.run_dir or _RUN
    data = options.data_dir or (_DATA if options.run_dir is None else run / "data")
    layout = Layout(run=run.absolute(), data=data.absolute() / options.profile)
    return up.run(layout, options.profile, options.port, options.payment_processes)


def _serve(options: argparse.Namespace) -> int:
    importlib.import_module(f"services.{options.service}.server").main()
    return 0


def _migrate(options: argparse.Namespace) -> int:
    from cli import migrate

    return migrate.run(options.profile, options.data_dir.absolute() / options.profile)


def _audit(options: argparse.Namespace) -> int:
    from cli import audit

    return audit.run(options.run_dir, options.json)


def _demo(options: argparse.Namespace) -> int:
    from cli.demo import run

    return run.run(options.profile)


def _evaluate(options: argparse.Namespace) -> int:
    from cli.fraud import evaluate

    return evaluate.run(options.data, options.label_delay, options.from_day, options.json)


def _duration(text: str) -> float:
    unit = {"d": 86_400.0, "h": 3_600.0, "m": 60.0, "s": 1.0}.get(text[-1:])
    if unit is None or not text[:-1].isdecimal():
        raise argparse.ArgumentTypeError(
            f"{text!r} is no duration. Give a whole number and d, h, m or s, such as 1d."
        )
    return int(text[:-1]) * unit


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) not in range(1, 65536):
        raise argparse.ArgumentTypeError(f"{text!r} is not a port. Give 1 to 65535.")
    return int(text)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of processes. Give 1 or more.")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
