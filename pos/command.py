"""The options of `tallystick pos`. What the commands do is in `pos.shell`, which takes half a second to load."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

DEFAULT_DIRECTORY = Path("tallystick-pos")

_Add = Callable[[argparse.ArgumentParser], None]


def add_parser(commands: Any) -> None:
    """Add `pos` and its commands to a program's."""
    parser = commands.add_parser(
        "pos",
        help="be a point-of-sale terminal",
        description="Be a point-of-sale terminal that sells without network.",
    )
    within = parser.add_subparsers(dest="pos_command", metavar="COMMAND", required=True)
    for name, text, add in _COMMANDS:
        command = within.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        command.add_argument(
            "--directory",
            type=Path,
            default=DEFAULT_DIRECTORY,
            metavar="DIR",
            help="where the terminal keeps its key and its journal (default: %(default)s)",
        )
        command.add_argument(
            "--address", default="127.0.0.1:8443", metavar="HOST:PORT", help="the platform"
        )
        command.add_argument(
            "--ca-file", type=Path, metavar="FILE", help="who signed the platform's certificate"
        )
        command.add_argument(
            "--json", action="store_true", help="answer with one JSON object on the last line"
        )
        add(command)
        command.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from pos.shell import run

    return run(options)


def _no_more(_command: argparse.ArgumentParser) -> None:
    pass


def _add_sign_in(command: argparse.ArgumentParser, *, required: bool) -> None:
    command.add_argument("--username", required=required, help="the vendor's")
    command.add_argument("--password-file", type=Path, metavar="FILE", help="else it is asked for")


def _add_enroll(command: argparse.ArgumentParser) -> None:
    _add_sign_in(command, required=True)
    command.add_argument("--site", required=True, metavar="NAME", help="users/…/sites/…")
    command.add_argument("--name", required=True, help="what to call the terminal")
    command.add_argument("--scope", default="", help="the area whose codes it takes")


def _add_accept(command: argparse.ArgumentParser) -> None:
    shown = command.add_mutually_exclusive_group(required=True)
    shown.add_argument("--code", help="as typed: XXXX-XXXX-XXXX-XXXX")
    shown.add_argument("--spend", help="what the payer's device shows: TSS1:…")
    command.add_argument("--amount", required=True, help="such as 120.50")
    command.add_argument("--currency", required=True, metavar="CODE", help="such as INR")
    command.add_argument("--reference", default="", help="an order number")


def _add_sync(command: argparse.ArgumentParser) -> None:
    _add_sign_in(command, required=False)


def _add_app(command: argparse.ArgumentParser) -> None:
    command.add_argument("--currency", default="INR", metavar="CODE", help="such as INR")


def _add_status(command: argparse.ArgumentParser) -> None:
    command.add_argument("--online", action="store_true", help="sync first")


def _add_transfer(command: argparse.ArgumentParser) -> None:
    command.add_argument("file", type=Path, metavar="FILE")
    command.add_argument(
        "--passphrase-file", type=Path, metavar="FILE", help="else it is asked for"
    )


def _add_import(command: argparse.ArgumentParser) -> None:
    _add_transfer(command)
    command.add_argument("--note", default="", help="what this installation calls itself")


_COMMANDS: tuple[tuple[str, str, _Add], ...] = (
    ("enroll", "make a terminal, with a key of its own", _add_enroll),
    ("accept", "take a code, without network", _add_accept),
    ("list", "show the journal's sales and what became of them", _no_more),
    ("sync", "upload what is stored; fetch keys, lists and results", _add_sync),
    ("status", "show the terminal at a glance", _add_status),
    ("app", "be a till, full screen", _add_app),
    ("export", "move the terminal to a file, for another installation", _add_transfer),
    ("import", "make a terminal from such a file", _add_import),
)
