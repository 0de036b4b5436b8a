"""The payment service without the pause between groups: `python -m bench.unpaced`, for the reference of groups of one.

The pause makes groups larger. With groups of one there is nothing for it to make larger, and it would hold them to 50 a
second: the comparison would be with a pause, and not with commits of one.
"""

from __future__ import annotations

from services.payment import group
from services.payment.server import main

if __name__ == "__main__":
    assert group._PACE_SECONDS  # noqa: SLF001 - the service has no such setting, and nobody but this needs one
    group._PACE_SECONDS = 0.0  # noqa: SLF001
    main()
