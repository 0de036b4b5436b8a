"""A terminal as this service knows it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from uuid_utils import UUID

from services.names import terminal_name


@dataclass(frozen=True, slots=True)
class Terminal:
    """A terminal of a vendor.

    Attributes:
        terminal_id: Its id.
        vendor_id: Whose.
        site_id: Where it stands.
        scope: The area it sells in.
        public_key: Ed25519, 32 bytes.
        revoke_time: When it was revoked; None while it is enrolled.
        version: The user service's; a greater one is newer.
        bundle_version: Of the newest trust bundle it was given; 0 for none.
        head_sequence: The highest number of its journal that arrived; 0 for none.
        head_hash: That entry's.
    """

    terminal_id: UUID
    vendor_id: UUID
    site_id: UUID
    scope: str
    public_key: bytes
    revoke_time: datetime | None
    version: int
    bundle_version: int = 0
    head_sequence: int = 0
    head_hash: bytes = bytes(32)

    @property
    def name(self) -> str:
        """`users/{uuid}/terminals/{uuid}`."""
        return terminal_name(self.vendor_id, self.terminal_id)
