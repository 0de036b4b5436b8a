"""The people of the demo's story."""

from __future__ import annotations

from dataclasses import dataclass

from cli.demo.client import Client
from cli.demo.wording import CURRENCY


@dataclass
class Person:
    """An account in the story."""

    display_name: str
    username: str
    password: str
    client: Client

    @property
    def wallet_name(self) -> str:
        """`users/{uuid}/wallets/INR`."""
        return self.client.wallet_name(CURRENCY)
