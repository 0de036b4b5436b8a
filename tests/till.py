"""A till as a program of its own, to be killed: takes some codes, then syncs until everything has its result.

`python -m tests.till DIRECTORY ADDRESS CA_FILE MINOR_UNITS CODE…`; exit code 0 when every code was taken and settled.
Started again after a kill, it goes on where it was.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from pos.decision import Refusal, Typed
from pos.errors import PosError
from pos.terminal import Terminal


async def main(directory, address, ca_file, minor_units, *codes):
    async with Terminal.open(Path(directory), address, Path(ca_file)) as till:
        for code in codes:
            decision = await till.accept(Typed(code), int(minor_units), "INR")
            if not decision.approved and decision.refusal is not Refusal.SPENT_HERE:
                sys.stderr.write(f"{decision.refusal} {decision.message}\n")
                return 2
        try:
            await till.sync()
        except PosError as error:
            sys.stderr.write(f"{error.reason} {error}\n")
            return 1
        # A code that was taken and whose entry never came to disk would be missing here.
        states = [sale.state for sale in till.sales()]
        if states == ["SETTLED"] * len(codes):
            return 0
        for sale in till.sales():
            sys.stderr.write(f"{sale.state or 'no result'} {sale.reason} {sale.detail}\n")
        return 1


if __name__ == "__main__":
    sys.exit(asyncio.run(main(*sys.argv[1:])))
