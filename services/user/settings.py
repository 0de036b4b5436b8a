"""What the environment decides about this service."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from services.environment import Environment, Tls


@dataclass(frozen=True)
class Settings:
    """Settings of one process.

    Attributes:
        listen: `host:port`; port 0 takes a free one.
        database_url: `sqlite+aiosqlite:///…` or `mysql+aiomysql://…`.
        redis_url: Where the event streams are.
        tls: This service's certificate.
        key_encryption_key_file: What signing keys are sealed with: 32 random bytes in base64 on each line.
        key_publish: How long a signing key is in the key set before it signs; longer than a gateway takes to learn it.
        key_age_max: When a signing key is replaced by itself.
        password_threads: How many passwords are hashed at once.
        log_level: A name of `logging`.
        drain_notice_ms: How long the gateway is given to notice NOT_SERVING before calls are ended.
    """

    listen: str
    database_url: str
    redis_url: str
    tls: Tls
    key_encryption_key_file: Path
    key_publish: timedelta = timedelta(seconds=10)
    key_age_max: timedelta = timedelta(days=30)
    password_threads: int = 1
    log_level: str = "INFO"
    drain_notice_ms: int = 1_000

    @classmethod
    def read(cls, environment: Environment) -> Settings:
        """Read `TALLYSTICK_*`.

        Raises:
            SettingError: a variable is missing or holds what it cannot mean.
        """
        threads = max(1, (os.cpu_count() or 1) // 2)
        return cls(
            listen=environment.address("LISTEN", "127.0.0.1:0"),
            database_url=environment.text("DATABASE_URL"),
            redis_url=environment.text("REDIS_URL"),
            tls=Tls.read(environment),
            key_encryption_key_file=environment.path("KEK_FILE"),
            key_publish=timedelta(seconds=environment.integer("KEY_PUBLISH_SECONDS", 10)),
            key_age_max=timedelta(days=environment.integer("KEY_DAYS_MAX", 30, at_least=1)),
            password_threads=environment.integer("PASSWORD_THREADS", threads, at_least=1),
            log_level=environment.text("LOG_LEVEL", "INFO"),
            drain_notice_ms=environment.integer("DRAIN_NOTICE_MS", 1_000),
        )
