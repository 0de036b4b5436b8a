"""What a deployment may set of the admin service."""

from __future__ import annotations

from dataclasses import dataclass

from services.environment import Environment, Tls


@dataclass(frozen=True)
class Settings:
    """The admin service's settings.

    Attributes:
        listen: `host:port`; port 0 takes a free one.
        database_url: Where cases live.
        redis_url: Where the event streams are.
        user_address: The user service, `host:port`.
        payment_address: The payment service, `host:port`.
        tls: Its certificate.
        sweep_ms: How often decisions that did not take effect yet are taken up again.
        drain_notice_ms: How long callers are given to notice NOT_SERVING before calls are ended.
        log_level: Least level logged.
    """

    listen: str
    database_url: str
    redis_url: str
    user_address: str
    payment_address: str
    tls: Tls
    sweep_ms: int
    drain_notice_ms: int
    log_level: str

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
            payment_address=environment.address("PAYMENT_ADDRESS"),
            tls=Tls.read(environment),
            sweep_ms=environment.integer("SWEEP_MS", 2_000, at_least=1),
            drain_notice_ms=environment.integer("DRAIN_NOTICE_MS", 1_000),
            log_level=environment.text("LOG_LEVEL", "INFO"),
        )
