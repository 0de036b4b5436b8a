"""Settings from environment variables, read once, with errors that name the variable."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

PREFIX = "TALLYSTICK_"


class SettingError(Exception):
    """A variable is missing or holds what it cannot mean. The message names it and says what is expected."""


class Environment:
    """Typed look-ups of `TALLYSTICK_*` variables."""

    def __init__(self, variables: Mapping[str, str] = os.environ) -> None:
        self._variables = variables

    def text(self, name: str, default: str | None = None) -> str:
        """The variable's value, or the default when it is unset or empty.

        Raises:
            SettingError: it is unset and there is no default.
        """
        value = self._variables.get(PREFIX + name, "")
        if value:
            return value
        if default is None:
            message = (
                f"{PREFIX}{name} is not set. Set it, or start the whole stack with `tallystick up`."
            )
            raise SettingError(message)
        return default

    def integer(self, name: str, default: int, *, at_least: int = 0) -> int:
        """A whole number.

        Raises:
            SettingError: it is not a whole number, or below `at_least`.
        """
        value = self.text(name, str(default))
        if not value.lstrip("-").isdecimal() or int(value) < at_least:
            message = f"{PREFIX}{name} is {value!r}. Give a whole number of at least {at_least}."
            raise SettingError(message)
        return int(value)

    def address(self, name: str, default: str | None = None) -> str:
        """`host:port`.

        Raises:
            SettingError: it is not of that form.
        """
        value = self.text(name, default)
        host, _, port = value.rpartition(":")
        if not host or not port.isdecimal():
            message = f"{PREFIX}{name} is {value!r}. Give host:port, such as 127.0.0.1:50051."
            raise SettingError(message)
        return value

    def path(self, name: str) -> Path:
        """A file that exists.

        Raises:
            SettingError: there is no such file.
        """
        path = Path(self.text(name))
        if not path.is_file():
            message = f"{PREFIX}{name} is {str(path)!r}, which is not a file."
            raise SettingError(message)
        return path


@dataclass(frozen=True)
class Tls:
    """One service's identity: PEM files. The certificate's URI SAN is `spiffe://tallystick/{name}`."""

    certificate_file: Path
    key_file: Path
    ca_file: Path

    @classmethod
    def read(cls, environment: Environment) -> Tls:
        """Read `TLS_CERT_FILE`, `TLS_KEY_FILE` and `TLS_CA_FILE`."""
        return cls(
            environment.path("TLS_CERT_FILE"),
            environment.path("TLS_KEY_FILE"),
            environment.path("TLS_CA_FILE"),
        )
