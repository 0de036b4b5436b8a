"""Vouchers, journal entries, bundles, receipts: what is signed is what counts."""

import contextlib
import json
import random
from pathlib import Path

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import example, given
from hypothesis import strategies as st
from uuid_utils import UUID

from protocol import issued_filter, signed, voucher
from protocol.voucher import Spend, Voucher, VoucherInvalid
from tallystick.offline.v1 import journal_pb2, terminal_sync_service_pb2

ISSUER = Ed25519PrivateKey.from_private_bytes(bytes([1]) * 32)
DEVICE = Ed25519PrivateKey.from_private_bytes(bytes([2]) * 32)
TERMINAL = Ed25519PrivateKey.from_private_bytes(bytes([3]) * 32)
KEY_ID = signed.key_id(ISSUER.public_key().public_bytes_raw())
KEYS = {KEY_ID: ISSUER.public_key().public_bytes_raw()}
VECTORS = json.loads((Path(__file__).parents[1] / "docs" / "offline-test-vectors.json").read_text())


def a_voucher(**changes):
    fields = {
        "issuer": "tallystick",
        "currency": "INR",
        "scope": "main",
        "serial": 123456789,
        "keyset": 3,
        "tier": 4,
        "expiry_day": 14,
        "minor_units": 100_00,
        "device_key": DEVICE.public_key().public_bytes_raw(),
        "key_id": KEY_ID,
    }
    return Voucher(**fields | changes)


SPEND = Spend(UUID(int=7), UUID(int=8), 80_00, "INR", 1_795_000_000)


def test_a_voucher_reads_back_as_it_was_issued():
    data = voucher.issue(a_voucher(), ISSUER)

    assert voucher.verify(data, KEYS) == a_voucher()
    assert voucher.from_text("TSV1", voucher.to_text("TSV1", data)) == data


@given(st.text(max_size=40))
@example("é")
@example("ß")
@example("A")
def test_any_text_is_read_or_refused_and_not_stumbled_over(text):
    with contextlib.suppress(VoucherInvalid):
        voucher.decode(voucher.from_text("TSV1", f"TSV1:{text}"))
    with pytest.raises(VoucherInvalid, match="no TSV1 code"):
        voucher.from_text("TSV1", f"TSS1:{text}")


@given(st.data())
def test_a_voucher_changed_in_any_byte_is_refused(data):
    issued = bytearray(voucher.issue(a_voucher(), ISSUER))
    place = data.draw(st.integers(0, len(issued) - 1))
    issued[place] ^= data.draw(st.integers(1, 255))

    with pytest.raises(VoucherInvalid):
        voucher.verify(bytes(issued), KEYS)


@given(st.binary(max_size=300))
def test_any_bytes_are_refused_and_not_stumbled_over(data):
    with pytest.raises(VoucherInvalid):
        voucher.verify(data, KEYS)


def test_a_voucher_of_another_issuer_is_refused():
    other = Ed25519PrivateKey.from_private_bytes(bytes([9]) * 32)

    with pytest.raises(VoucherInvalid):
        voucher.verify(voucher.issue(a_voucher(), other), KEYS)
    with pytest.raises(VoucherInvalid, match="not the issuer's"):
        voucher.verify(voucher.issue(a_voucher(key_id="00" * 8), ISSUER), KEYS)


def test_a_spend_is_for_one_vendor_terminal_amount_and_time():
    data = voucher.issue(a_voucher(), ISSUER)
    signature = voucher.sign_spend(data, SPEND, DEVICE)
    voucher.verify_spend(data, SPEND, signature)

    others = [
        Spend(UUID(int=9), SPEND.terminal_id, 80_00, "INR", SPEND.sign_seconds),
        Spend(SPEND.vendor_id, UUID(int=9), 80_00, "INR", SPEND.sign_seconds),
        Spend(SPEND.vendor_id, SPEND.terminal_id, 90_00, "INR", SPEND.sign_seconds),
        Spend(SPEND.vendor_id, SPEND.terminal_id, 80_00, "KES", SPEND.sign_seconds),
        Spend(SPEND.vendor_id, SPEND.terminal_id, 80_00, "INR", SPEND.sign_seconds + 1),
    ]
    for other in others:
        with pytest.raises(VoucherInvalid):
            voucher.verify_spend(data, other, signature)
    with pytest.raises(VoucherInvalid):
        voucher.verify_spend(data, SPEND, voucher.sign_spend(data, SPEND, TERMINAL))
    another = voucher.issue(a_voucher(serial=1), ISSUER)
    with pytest.raises(VoucherInvalid):
        voucher.verify_spend(another, SPEND, signature)


def test_an_entry_is_what_its_terminal_signed():
    entry = journal_pb2.Entry(version=1, sequence=5, previous_hash=signed.GENESIS)
    travelling = signed.sign_entry(entry, TERMINAL)
    key = TERMINAL.public_key().public_bytes_raw()

    assert signed.verify_entry(travelling, key) == entry
    with pytest.raises(signed.SignatureWrong):
        signed.verify_entry(travelling, DEVICE.public_key().public_bytes_raw())
    travelling.content += b"\x00"
    with pytest.raises(signed.SignatureWrong):
        signed.verify_entry(travelling, key)
    nonsense = b"\xff\xff"
    forged = journal_pb2.SignedEntry(content=nonsense, signature=TERMINAL.sign(b"TSJ1" + nonsense))
    with pytest.raises(signed.Unreadable):
        signed.verify_entry(forged, key)


@given(st.binary(min_size=32, max_size=32), st.binary(max_size=300), st.integers(0, 64 * 8))
def test_signatures_are_checked_as_other_implementations_check_them(seed, content, flipped):
    signer = Ed25519PrivateKey.from_private_bytes(seed)
    message = b"TSJ1" + content
    signature = bytearray(signer.sign(message))
    if flipped < 64 * 8:  # else it stays as it was signed
        signature[flipped // 8] ^= 1 << flipped % 8
    try:
        signer.public_key().verify(bytes(signature), message)
        elsewhere = True
    except InvalidSignature:
        elsewhere = False
    travelling = journal_pb2.SignedEntry(content=content, signature=bytes(signature))
    try:
        signed.verify_entry(travelling, signer.public_key().public_bytes_raw())
        here = True
    except signed.SignatureWrong:
        here = False
    except signed.Unreadable:  # signed well, and no entry
        here = True

    assert here is elsewhere is (flipped == 64 * 8)


@pytest.mark.parametrize("length", [0, 1, 63, 65, 128])
def test_a_signature_of_another_length_is_none(length):
    travelling = journal_pb2.SignedEntry(content=b"", signature=bytes(length))

    with pytest.raises(signed.SignatureWrong):
        signed.verify_entry(travelling, TERMINAL.public_key().public_bytes_raw())


def test_a_message_of_one_kind_cannot_be_passed_off_as_another():
    bundle = signed.sign_bundle(terminal_sync_service_pb2.TrustBundle(version=1), ISSUER)
    as_receipt = terminal_sync_service_pb2.SignedReceipt(
        content=bundle.content, signature=bundle.signature, key_id=bundle.key_id
    )

    assert signed.verify_bundle(bundle, KEYS).version == 1
    with pytest.raises(signed.SignatureWrong):
        signed.verify_receipt(as_receipt, KEYS)
    with pytest.raises(signed.SignatureWrong):
        signed.verify_bundle(bundle, {})


@given(st.sets(st.integers(0, 2**64 - 1), max_size=400))
def test_a_filter_never_misses_what_it_was_built_from(keys):
    data = issued_filter.build(keys)

    assert all(issued_filter.contains(data, key) for key in keys)
    assert issued_filter.build(sorted(keys, reverse=True)) == data


def test_a_filter_takes_about_one_in_256_of_others():
    rng = random.Random(1)
    data = issued_filter.build([rng.getrandbits(64) for _ in range(20_000)])

    taken = sum(issued_filter.contains(data, rng.getrandbits(64)) for _ in range(50_000))

    assert len(data) < 20_000 * 10 / 8
    assert 0.5 < taken / (50_000 / 256) < 1.5
    assert not issued_filter.contains(b"", 1)


def test_the_published_vectors_hold():
    found = VECTORS["voucher"]
    data = voucher.issue(a_voucher(), ISSUER)

    assert data.hex() == found["data"]
    assert voucher.sign_spend(data, SPEND, DEVICE).hex() == found["spend_signature"]
    assert issued_filter.build(range(1, 6)).hex() == VECTORS["filter"]["data"]
    entry = bytes.fromhex(VECTORS["entry"]["content"])
    assert signed.entry_hash(entry).hex() == VECTORS["entry"]["hash"]
    assert TERMINAL.sign(b"TSJ1" + entry).hex() == VECTORS["entry"]["signature"]
