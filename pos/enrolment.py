"""Makes a terminal: a key of its own, known to the platform, and the issuer's keys."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from uuid_utils import uuid4

from pos.errors import PosError
from pos.platform import Platform, SignedIn
from pos.terminal import BUNDLE, open_journal
from pos.terms import verified
from pos.vault import Identity, Vault
from tallystick.offline.v1 import terminal_sync_service_pb2
from tallystick.user.v1 import user_pb2


async def enroll(
    directory: Path,
    platform: Platform,
    vendor: SignedIn,
    *,
    site: str,
    display_name: str,
    scope: str = "",
) -> Identity:
    """Make a terminal: a key of its own, known to the platform, and the issuer's keys. A broken-off one is finished.

    Args:
        directory: Where it will live.
        platform: Where to enrol.
        vendor: Whose terminal it becomes.
        site: `users/{uuid}/sites/{uuid}` where it stands.
        display_name: What its vendor calls it.
        scope: The area whose codes it takes; empty means `main`.

    Raises:
        PosError: ALREADY_ENROLLED, ENROLMENT_PENDING, BUNDLE_UNTRUSTED, or the platform's refusal.
    """
    vault = Vault(directory)
    with vault.claim():
        if vault.is_enrolled():
            message = f"{directory} holds a terminal already. Name another directory."
            raise PosError("ALREADY_ENROLLED", message)
        key = vault.signing_key()
        # Stored before it is sent: when the answer is lost, the same request is sent again.
        pending = directory / "enrolling"
        if not pending.exists():
            vault.write("enrolling", str(uuid4()).encode())
        terminal = user_pb2.Terminal(
            display_name=display_name,
            site=site,
            scope=scope,
            public_key=key.public_key().public_bytes_raw(),
        )
        try:
            enrolled = await platform.enroll(vendor, terminal, pending.read_text())
        except PosError as error:
            if error.reason != "REQUEST_ID_REUSED":
                raise
            message = (
                f"Another enrolment was begun in {directory} and may have succeeded. Repeat it with the same site, "
                "name and scope, or name another directory."
            )
            raise PosError("ENROLMENT_PENDING", message) from error
        who = await platform.sign_in(enrolled.name, key, datetime.now(UTC))
        bundle = await platform.trust_bundle(who)
        # The first one names its own key: that it is the issuer's, the connection's certificate says.
        content = terminal_sync_service_pb2.TrustBundle.FromString(bundle.content)
        own = {each.key_id: each.public_key for each in content.issuer_keys}
        verified(bundle, own, enrolled.name)
        issuer_keys = {key_id: key.hex() for key_id, key in own.items()}
        identity = Identity(enrolled.name, display_name, issuer_keys)
        journal = open_journal(vault, identity)
        try:
            journal.keep(BUNDLE, bundle.SerializeToString())
        finally:
            journal.close()
        vault.save_identity(identity)
        pending.unlink()
        return identity
