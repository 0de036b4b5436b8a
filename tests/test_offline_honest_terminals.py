"""Honest terminals, of the library, on the whole stack: cold starts, wrong clocks, moves, guesses."""

import asyncio
import os
import signal
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from pos import transfer
from pos.decision import Refusal, Typed, VoucherShown
from pos.enrolment import enroll
from pos.errors import PosError
from pos.terminal import Terminal
from protocol import code as codes
from protocol import voucher
from protocol.voucher import Spend
from tests.eventually import eventually
from tests.test_offline_end_to_end import shop, stack, world

__all__ = ["shop", "stack", "world"]


@pytest.fixture
def opens(world, tmp_path):
    """`opens(vendor)`: an honest terminal, of the library."""

    async def terminal(vendor, name="till"):
        (site,) = await vendor.client.sites()
        signed_in = await world.platform.sign_in_vendor(vendor.username, vendor.password)
        await enroll(tmp_path / name, world.platform, signed_in, site=site.name, display_name=name)
        return tmp_path / name

    return terminal


def honest(world, directory):
    at = world.stack.endpoints
    ca_file = world.gateway.ca_file
    return Terminal.open(directory, at.grpc, ca_file)


async def test_an_honest_terminal_sells_cold_without_network_and_settles_everything(
    world, shop, opens
):
    device = Ed25519PrivateKey.generate()
    payer = await world.payer()
    directory = await opens(shop)
    typed = await world.codes(payer, 100_00, 50_00)
    (issued,) = await payer.client.issue_codes(
        [200_00], "INR", device=device.public_key().public_bytes_raw()
    )
    # Nobody listens there.
    async with Terminal.open(directory, "127.0.0.1:9", world.gateway.ca_file) as till:
        with pytest.raises(PosError) as refused:
            await till.sync()
        assert refused.value.reason == "UNREACHABLE"
        for code, minor_units in zip(typed, (100_00, 30_00), strict=True):
            assert (await till.accept(Typed(code), minor_units, "INR")).approved
        seconds = int(datetime.now(UTC).timestamp())
        said = Spend(till.identity.vendor_id, till.identity.terminal_id, 200_00, "INR", seconds)
        shown = VoucherShown(
            issued.voucher, seconds, voucher.sign_spend(issued.voucher, said, device)
        )
        assert (await till.accept(shown, 200_00, "INR")).approved
        again = await till.accept(Typed(issued.symbols), 10_00, "INR")
        assert again.refusal.value == "SPENT_HERE"
        assert till.status().stored_count == 3

    async with honest(world, directory) as till:
        report = await till.sync()
        assert report.uploaded == 3
        assert sorted(sale.reason for sale in report.items) == [
            "PARTIALLY_SETTLED",
            "SETTLED",
            "SETTLED",
        ]
        assert till.status().stored_count == 0
        assert (await till.sync()).items == []
    assert await world.balances(shop) == (330_00, 0, 0, 0)


async def test_a_terminal_syncs_by_itself_when_the_network_is_back(world, shop, opens):
    payer = await world.payer()
    (code,) = await world.codes(payer)
    directory = await opens(shop)
    envoy = world.stack.endpoints.processes["envoy"]
    async with honest(world, directory) as till:
        os.kill(envoy, signal.SIGKILL)
        told = []
        syncing = asyncio.create_task(
            till.keep_synced(lambda text, sale: told.append(sale or text), jitter=lambda: 0.0)
        )
        assert (await till.accept(Typed(code), 100_00, "INR")).approved

        await eventually(lambda: [sale.state for sale in till.sales()] == ["SETTLED"], seconds=60)
        syncing.cancel()
        await asyncio.gather(syncing, return_exceptions=True)
    assert any(getattr(sale, "reason", "") == "SETTLED" for sale in told)


async def test_a_terminal_whose_clock_is_a_year_off_syncs_and_sells(world, shop, opens):
    payer = await world.payer()
    directory = await opens(shop)
    at = world.stack.endpoints
    for off in (timedelta(days=365), timedelta(days=-365)):
        (code,) = await world.codes(payer)
        async with Terminal.open(
            directory,
            at.grpc,
            world.gateway.ca_file,
            wall=lambda off=off: datetime.now(UTC) + off,
        ) as till:
            await till.sync()
            assert (await till.accept(Typed(code), 100_00, "INR")).approved
            (sale,) = (await till.sync()).items
            assert sale.reason == "SETTLED"


async def test_a_moved_terminal_goes_on_elsewhere_and_nowhere_else(world, shop, opens, tmp_path):
    payer = await world.payer()
    first, second = await world.codes(payer, 100_00, 100_00)
    directory = await opens(shop)
    async with honest(world, directory) as till:
        assert (await till.accept(Typed(first), 100_00, "INR")).approved
        await transfer.export(till, directory, tmp_path / "till.tsx", "correct horse")
        moved = await till.accept(Typed(second), 100_00, "INR")
        assert moved.refusal.value == "MOVED"
    with pytest.raises(PosError) as refused:
        await asyncio.to_thread(
            transfer.restore, tmp_path / "new", tmp_path / "till.tsx", "wrong horse"
        )
    assert refused.value.reason == "PASSPHRASE_WRONG"

    await asyncio.to_thread(
        transfer.restore, tmp_path / "new", tmp_path / "till.tsx", "correct horse"
    )
    async with honest(world, tmp_path / "new") as till:
        await till.note_import("New counter")
        assert (await till.accept(Typed(second), 100_00, "INR")).approved
        report = await till.sync()
    assert [sale.reason for sale in report.items] == ["SETTLED", "SETTLED"]
    assert await world.balances(shop) == (200_00, 0, 0, 0)


async def test_wrong_codes_reach_the_platform_though_nothing_is_sold(world, shop, opens):
    payer = await world.payer()
    directory = await opens(shop)
    (code,) = await world.codes(payer)
    guess = without_its_tag(code)
    async with honest(world, directory) as till:
        for _ in range(3):
            assert (await till.accept(Typed(guess), 1, "INR")).refusal is Refusal.TAG_WRONG
        assert (await till.accept(Typed(code), 1, "INR")).refusal is Refusal.LOCKED

        report = await till.sync()

        assert (report.uploaded, till.sales()) == (1, [])
        assert (await till.sync()).uploaded == 0
        assert till.status().locked_for is not None


def without_its_tag(code):
    """The same record with another tag, and the check symbol that goes with it."""
    record = codes.parse(code)
    return replace(record, tag=record.tag ^ 1).symbols()
