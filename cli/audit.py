"""`tallystick audit`: the laws of ledger and codes on a running stack."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cli.stack.endpoints import Endpoints
from cli.stack.endpoints import read as read_endpoints
from services import sql
from services.audit_finding import Finding
from services.offline import audit as offline_audit
from services.payment import audit as payment_audit
from services.payment.backings import Backings

# Two databases are not read at one moment: what was on its way between them has this long to arrive.
_PAUSE_SECONDS = 1.0


def run(run_directory: Path, json_file: Path | None) -> int:
    """Check the stack of a run directory, print a table, write JSON where asked; 1 when a law is broken.

    Raises:
        StartError: no stack runs there.
    """
    endpoints = read_endpoints(run_directory / "endpoints.json")
    findings = asyncio.run(audit_stack(endpoints))
    show(findings, Console())
    if json_file is not None:
        json_file.write_text(json.dumps(as_json(findings), indent=2) + "\n")
    return 0 if all(finding.holds for finding in findings.values()) else 1


async def audit_stack(endpoints: Endpoints) -> dict[int, Finding]:
    """Check every law on what a stack has stored; by law number."""
    ledger = sql.create_engine(endpoints.services["payment"].database_url)
    codes = sql.create_engine(endpoints.services["offline"].database_url)
    try:
        findings = await payment_audit.check(ledger)
        both = await offline_audit.check(
            codes, Backings(ledger), pause=lambda: asyncio.sleep(_PAUSE_SECONDS)
        )
    finally:
        await ledger.dispose()
        await codes.dispose()
    # A law that the ledger alone keeps is broken there first.
    return findings | {number: found for number, found in both.items() if findings[number].holds}


def as_json(findings: Mapping[int, Finding]) -> dict[str, Any]:
    """`{"laws": {"1": {"holds": true, "first_broken": null, …}}}`."""
    laws = {
        str(number): {"holds": finding.holds, **dataclasses.asdict(finding)}
        for number, finding in findings.items()
    }
    return {"laws": laws}


def show(findings: Mapping[int, Finding], console: Console) -> None:
    """A table, and what is broken below it."""
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
    table.add_column("law")
    table.add_column("looked at", justify="right")
    table.add_column("holds")
    for finding in findings.values():
        verdict = Text("yes", style="green") if finding.holds else Text("NO", style="bold red")
        table.add_row(finding.law, f"{finding.checked:,}", verdict)
    console.print(table)
    for number, finding in findings.items():
        if not finding.holds:
            console.print(Text(f"Law {number} is broken first by {finding.first_broken}", "red"))
