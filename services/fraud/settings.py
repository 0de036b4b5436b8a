"""What a deployment may set of the fraud service."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from itertools import pairwise
from pathlib import Path

from services.environment import Environment, SettingError, Tls
from services.fraud.domain.assessment import Limits
from services.fraud.labels import Patience

# What a payer on a higher tier may pay without a look, against the lowest tier's limit, unless it is set.
_STANDARD_TIMES, _PLUS_TIMES = 2, 5


@dataclass(frozen=True)
class Settings:
    """The fraud service's settings.

    Attributes:
        listen: `host:port`; port 0 takes a free one.
        database_url: Where its copy of the vendors' sites and the payers' tiers lives.
        redis_url: Where the event streams are.
        user_address: The user service, `host:port`.
        tls: Its certificate.
        limits: Where payments stop passing unseen.
        decline_share_max: Of recent payments, what one rule may decline before it only reviews.
        model_directory: Where the model is; None: the one that is shipped.
        drafts_directory: Where the folders of draft models are; None: there are none to try.
        history_seconds: How long counters and profiles are waited for.
        patience: When silence counts as honesty, and how long assessments are kept.
        drain_notice_ms: How long callers are given to notice NOT_SERVING before calls are ended.
        log_level: Least level logged.
    """

    listen: str
    database_url: str
    redis_url: str
    user_address: str
    tls: Tls
    limits: Limits
    drain_notice_ms: int
    log_level: str
    decline_share_max: float = 0.05
    model_directory: Path | None = None
    drafts_directory: Path | None = None
    history_seconds: float = 0.06
    patience: Patience = field(default_factory=Patience)

    @classmethod
    def read(cls, environment: Environment) -> Settings:
        """Read them from the environment.

        Raises:
            SettingError: one is missing or cannot be meant.
        """
        return cls(
            listen=environment.address("LISTEN", "127.0.0.1:0"),
            database_url=environment.text("DATABASE_URL"),
            redis_url=environment.text("REDIS_URL"),
            user_address=environment.address("USER_ADDRESS"),
            tls=Tls.read(environment),
            limits=_limits(environment),
            drain_notice_ms=environment.integer("DRAIN_NOTICE_MS", 1_000),
            log_level=environment.text("LOG_LEVEL", "INFO"),
            decline_share_max=environment.integer("DECLINE_SHARE_MAX_PERCENT", 5) / 100,
            model_directory=_directory(environment, "MODEL_DIR"),
            drafts_directory=_directory(environment, "MODEL_DRAFTS_DIR"),
            history_seconds=environment.integer("HISTORY_BUDGET_MS", 60, at_least=1) / 1_000,
            patience=Patience(
                undisputed=timedelta(days=environment.integer("UNDISPUTED_DAYS", 7, at_least=1)),
                kept=timedelta(days=environment.integer("ASSESSMENTS_KEPT_DAYS", 120, at_least=1)),
            ),
        )


def _directory(environment: Environment, name: str) -> Path | None:
    said = environment.text(name, "")
    return Path(said) if said else None


def _limits(environment: Environment) -> Limits:
    default = Limits()
    review = environment.integer("REVIEW_LIMIT_MINOR_UNITS", default.review_minor_units)
    hard = environment.integer("HARD_LIMIT_MINOR_UNITS", default.hard_minor_units)
    # Unless they are set, higher tiers keep their distance from the lowest one, wherever that is put.
    standard = environment.integer(
        "REVIEW_LIMIT_STANDARD_MINOR_UNITS", min(_STANDARD_TIMES * review, hard)
    )
    plus = environment.integer(
        "REVIEW_LIMIT_PLUS_MINOR_UNITS", max(standard, min(_PLUS_TIMES * review, hard))
    )
    if review > hard:
        raise SettingError(
            f"TALLYSTICK_REVIEW_LIMIT_MINOR_UNITS is {review}, above "
            f"TALLYSTICK_HARD_LIMIT_MINOR_UNITS, {hard}: nothing would ever "
            "be reviewed for its amount. Lower the first or raise the second."
        )
    rising = {
        "REVIEW_LIMIT_MINOR_UNITS": review,
        "REVIEW_LIMIT_STANDARD_MINOR_UNITS": standard,
        "REVIEW_LIMIT_PLUS_MINOR_UNITS": plus,
        "HARD_LIMIT_MINOR_UNITS": hard,
    }
    for (lower, low), (higher, high) in pairwise(rising.items()):
        if low > high:
            raise SettingError(
                f"TALLYSTICK_{lower} is {low}, above TALLYSTICK_{higher}, {high}: a higher tier "
                "must not be held earlier than a lower one, nor later than at the hard limit. "
                "Lower the first or raise the second."
            )
    return Limits(
        distance_meters=float(
            environment.integer("DISTANCE_LIMIT_METERS", round(default.distance_meters))
        ),
        position_floor_minor_units=environment.integer(
            "POSITION_FLOOR_MINOR_UNITS", default.position_floor_minor_units
        ),
        review_minor_units=review,
        hard_minor_units=hard,
        standard_review_minor_units=standard,
        plus_review_minor_units=plus,
    )
