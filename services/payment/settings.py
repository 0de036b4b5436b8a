"""The payment service's settings."""

from __future__ import annotations

from dataclasses import dataclass

from services.environment import Environment, SettingError, Tls
from services.money import MINOR_UNIT_DIGITS
from services.payment.domain.book import Policy


@dataclass(frozen=True)
class Settings:
    """What a deployment sets.

    Attributes:
        listen: `host:port` to serve on; port 0 takes a free one.
        database_url: SQLAlchemy URL.
        redis_url: Where events go.
        user_address: The user service.
        fraud_address: The fraud service.
        tls: This service's identity.
        policy: Currencies and limits.
        group_size_max: Commands one transaction carries at most; 1 commits each alone.
        queue_size_max: Commands that may wait; more are refused with OVERLOADED.
        fraud_budget_ms: How long a group waits for the fraud service before it goes on without.
        drain_notice_ms: How long the gateway is given to notice NOT_SERVING before calls are ended.
        log_level: Least level logged.
    """

    listen: str
    database_url: str
    redis_url: str
    user_address: str
    fraud_address: str
    tls: Tls
    policy: Policy
    group_size_max: int
    queue_size_max: int
    fraud_budget_ms: int
    drain_notice_ms: int
    log_level: str

    @classmethod
    def read(cls, environment: Environment) -> Settings:
        """Read `TALLYSTICK_*`.

        Raises:
            SettingError: a variable is missing or wrong.
        """
        currencies = frozenset(environment.text("CURRENCIES", "INR").split(","))
        unknown = currencies - MINOR_UNIT_DIGITS.keys()
        if unknown:
            message = (
                f"TALLYSTICK_CURRENCIES names {', '.join(sorted(unknown))}, whose decimals are not"
                " known. Choose from services/money.py, or add them there."
            )
            raise SettingError(message)
        return cls(
            listen=environment.address("LISTEN", "127.0.0.1:0"),
            database_url=environment.text("DATABASE_URL"),
            redis_url=environment.text("REDIS_URL"),
            user_address=environment.address("USER_ADDRESS"),
            fraud_address=environment.address("FRAUD_ADDRESS"),
            tls=Tls.read(environment),
            policy=Policy(
                currencies=currencies,
                degraded_floor=environment.integer("DEGRADED_FLOOR", 500_00),
                offline_cap=environment.integer("OFFLINE_CAP", 2_000_00),
            ),
            group_size_max=environment.integer("GROUP_SIZE_MAX", 256, at_least=1),
            queue_size_max=environment.integer("QUEUE_SIZE_MAX", 2_000, at_least=1),
            fraud_budget_ms=environment.integer("FRAUD_BUDGET_MS", 150, at_least=1),
            drain_notice_ms=environment.integer("DRAIN_NOTICE_MS", 1_000),
            log_level=environment.text("LOG_LEVEL", "INFO"),
        )
