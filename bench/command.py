"""`tallystick bench`: which figures there are, and what may be asked of each."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cli.databases import MYSQL, PROFILES

_FAILED = 1
# Where `all` leaves reports and plots.
_REPORTS = Path(".tallystick/bench")


@dataclass(frozen=True)
class _Figure:
    """One figure.

    Attributes:
        summary: What it measures.
        options: Adds what may be asked of it alone.
        run: Measures it; answers the exit code.
        of_all: What `bench all` asks of it.
        profiles: On which it can be measured; the first unless told otherwise.
    """

    summary: str
    options: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]
    of_all: tuple[str, ...] = ()
    profiles: tuple[str, ...] = PROFILES


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `bench` to the commands of `tallystick`."""
    summary = "measure on a stack of its own, beside references; exit 1 if the books do not match"
    parser = commands.add_parser("bench", help=summary, description=_sentence(summary))
    figures = parser.add_subparsers(title="figures", metavar="FIGURE", required=True)
    for name, figure in _FIGURES.items():
        own = figures.add_parser(
            name, help=figure.summary, description=_sentence(figure.summary), allow_abbrev=False
        )
        own.add_argument(
            "--profile",
            choices=figure.profiles,
            default=figure.profiles[0],
            help="dev: SQLite files. mysql: a private MariaDB (default: %(default)s)",
        )
        figure.options(own)
        own.add_argument("--json", type=Path, metavar="FILE", help="write the report there too")
        own.set_defaults(run=figure.run)
    every = "every figure, on profile mysql unless told otherwise; exit 1 if any books do not match"
    own = figures.add_parser("all", help=every, description=_sentence(every), allow_abbrev=False)
    own.add_argument("--profile", choices=PROFILES, default=MYSQL, help="default: %(default)s")
    own.add_argument(
        "--out",
        type=Path,
        default=_REPORTS,
        metavar="DIR",
        help="where reports and plots go (default: %(default)s)",
    )
    own.set_defaults(run=lambda options: _all(figures, options.profile, options.out))


def _all(
    figures: argparse._SubParsersAction[argparse.ArgumentParser], profile: str, out: Path
) -> int:
    failed = []
    for name, figure in _FIGURES.items():
        if profile not in figure.profiles:
            continue
        given = [*figure.of_all, "--profile", profile, "--json", str(out / f"{name}.json")]
        if "--plots" in figures.choices[name].format_usage():
            given += ["--plots", str(out)]
        print(f"\nbench {name} {' '.join(given)}", flush=True)  # noqa: T201 - a command line's job
        if figure.run(figures.choices[name].parse_args(given)) != 0:
            failed.append(name)
    _summarise(out)
    print(  # noqa: T201
        f"\nbench: the books of {', '.join(failed)} do not match."
        if failed
        else f"\nbench: all books match. Reports and plots are in {out}."
    )
    return _FAILED if failed else 0


def _summarise(out: Path) -> None:
    from bench import summary

    out.mkdir(parents=True, exist_ok=True)
    (out / "figures.md").write_text(summary.markdown(out))


def _sentence(summary: str) -> str:
    return f"{summary[0].upper()}{summary[1:]}."


def _online_options(parser: argparse.ArgumentParser) -> None:
    _add_load(parser, rate=1_000.0, seconds=60.0)
    parser.add_argument(
        "--payment-processes",
        type=_count,
        default=1,
        metavar="N",
        help="how many payment processes share the work (default: 1)",
    )
    parser.add_argument(
        "--no-references", action="store_true", help="measure the headline figure only"
    )
    parser.add_argument(
        "--overload",
        action="store_true",
        help="offer twice the capacity for 10 s too: who is refused, and how soon all is well again",
    )
    parser.add_argument(
        "--sweep",
        action="store_true",
        help="offer from a tenth of the rate to one and a half of it too, for latency by rate",
    )
    _add_plots(parser)


def _online(options: argparse.Namespace) -> int:
    from bench import online

    return online.run(
        online.Options(
            profile=options.profile,
            rate=options.rate,
            seconds=options.seconds,
            payment_processes=options.payment_processes,
            references=not options.no_references,
            overload=options.overload,
            sweep=options.sweep,
            json_file=options.json,
            plots=options.plots,
        )
    )


def _scale_options(parser: argparse.ArgumentParser) -> None:
    _add_load(parser, rate=500.0, seconds=10.0)
    parser.add_argument(
        "--wallets",
        type=_count,
        default=1_000_000,
        metavar="N",
        help="in the large ledger; the small one has 10,000 (default: %(default)s)",
    )
    parser.add_argument(
        "--payments",
        type=_count,
        default=1_000_000,
        metavar="N",
        help="stored in the large ledger before it is measured, as a multiple of its wallets; "
        "10 million take some minutes and 7 GB (default: %(default)s)",
    )
    parser.add_argument(
        "--soak",
        type=_number,
        default=60.0,
        metavar="SECONDS",
        help="for how long memory is watched, at most 600 (default: %(default)g)",
    )
    _add_plots(parser)


def _scale(options: argparse.Namespace) -> int:
    from bench import scale

    return scale.run(
        scale.Options(
            rate=options.rate,
            seconds=options.seconds,
            wallets=options.wallets,
            payments=options.payments,
            soak=options.soak,
            json_file=options.json,
            plots=options.plots,
        )
    )


def _fraud_options(parser: argparse.ArgumentParser) -> None:
    """Nothing more: it is measured one way."""


def _fraud(options: argparse.Namespace) -> int:
    from bench import fraud

    return fraud.run(options.json)


def _offline_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--items",
        type=_count,
        default=10_000,
        metavar="N",
        help="that ten terminals upload together (default: %(default)s)",
    )
    _add_plots(parser)


def _offline(options: argparse.Namespace) -> int:
    from bench import offline

    return offline.run(
        offline.Options(
            profile=options.profile,
            items=options.items,
            json_file=options.json,
            plots=options.plots,
        )
    )


def _add_load(parser: argparse.ArgumentParser, *, rate: float, seconds: float) -> None:
    parser.add_argument(
        "--rate",
        type=_number,
        default=rate,
        metavar="R",
        help="payments offered a second (default: %(default)g)",
    )
    parser.add_argument(
        "--seconds",
        type=_number,
        default=seconds,
        metavar="N",
        help="for how long they are offered, at most 600 (default: %(default)g)",
    )


def _add_plots(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--plots", type=Path, metavar="DIR", help="draw plots there, as SVG")


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above zero.")
    return value


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above zero.")
    return int(text)


# In the order `bench all` measures them. A new figure is one entry here.
_FIGURES = {
    "online": _Figure(
        "payments through the gateway, settled and durable",
        _online_options,
        _online,
        ("--sweep", "--overload"),
    ),
    "offline": _Figure(
        "what terminals bring back, settled: one terminal's backlog, and many terminals",
        _offline_options,
        _offline,
    ),
    "fraud": _Figure("what judging a payment costs", _fraud_options, _fraud),
    "scale": _Figure(
        "payments in a small and in a large ledger, to a hot vendor, by two replicas, for long",
        _scale_options,
        _scale,
        profiles=(MYSQL,),
    ),
}
