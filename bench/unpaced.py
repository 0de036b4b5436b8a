"""The payment service without the pause between groups: `python -m bench.unpaced`, for the reference of groups of one.

The pause makes groups larger. With groups of one there is nothing for it to make larger, and it would hold them to 50 a
second: the comparison would be with a pause, and not with commits of one.
"""

from __future__ import annotations

from services.payment import pace
from services.payment.server import main

if __name__ == "__main__":
    # The service has no such setting, and nobody but this needs one.
    pace.SECONDS_MIN = pace.SECONDS_MAX = 0.0
    main()
