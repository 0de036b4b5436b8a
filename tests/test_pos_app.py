"""The till on a screen, driven as a person drives it."""

from datetime import timedelta

import pytest
import segno
from textual.widgets import Input, Static
from uuid_utils import UUID

from pos.app.entry import Look, look_at
from pos.app.screens import PayRequest, Receipt, pay_request, qr_text
from pos.app.till import Till
from protocol import voucher
from tests.eventually import eventually
from tests.ledger_world import ASHA
from tests.offline_simulation import Simulation

SIZE = (120, 44)


@pytest.fixture
async def world(tmp_path):
    """A day of the simulation with a reliable network, and a till that has synced in it."""
    simulation = Simulation(1, tmp_path, days=1)
    simulation.kill_chance = simulation.loss_chance = 0.0
    await simulation.tills[0].sync()
    yield simulation
    simulation.close()


@pytest.fixture
def app(world):
    return Till(world.tills[0].running, "INR", automatic=False, now=world.clock)


def text(app, name):
    return str(app.query_one(f"#{name}", Static).content)


async def enter(pilot, amount, code):
    pilot.app.query_one("#amount", Input).value = amount
    pilot.app.query_one("#code", Input).focus()
    pilot.app.query_one("#code", Input).value = code
    await pilot.press("enter")
    await pilot.pause()


async def test_a_sale_from_the_pad_to_the_receipt(world, app):
    code = world.server.issue(ASHA, 100_00)
    async with app.run_test(size=SIZE) as pilot:
        for key in ("8", "0", "dot", "5", "0"):
            await pilot.click(f"#pad-{key}")
        assert app.query_one("#amount", Input).value == "80.50"
        app.query_one("#amount", Input).focus()
        await pilot.press("enter")
        app.query_one("#code", Input).value = code.lower()
        await pilot.pause()
        assert "belong together" in text(app, "look")
        await pilot.press("enter")
        await pilot.pause()

        assert isinstance(app.screen, Receipt)
        assert str(app.screen.query_one("#receipt-amount", Static).content) == "80.50 INR"
        await pilot.press("enter")
        assert "APPROVED OFFLINE (provisional)" in text(app, "answer")
        assert "Stored: 1 sale, 80.50 INR" in text(app, "stored")
        assert app.query_one("#amount", Input).value == ""


@pytest.mark.parametrize(
    ("amount", "changed", "answer"),
    [
        ("", False, "is no amount of INR"),
        ("1.005", False, "is no amount of INR"),
        ("1,50", False, "is no amount of INR"),
        ("9" * 30, False, "is no amount of INR"),
        ("900", False, "AMOUNT_OVER_VALUE"),
        ("10", True, "CHECK_SYMBOL"),
    ],
)
async def test_what_is_wrong_is_said_and_nothing_is_stored(world, app, amount, changed, answer):
    code = world.server.issue(ASHA, 100_00)
    if changed:
        code = ("1" if code[0] != "1" else "2") + code[1:]
    async with app.run_test(size=SIZE) as pilot:
        await enter(pilot, amount, code)

        assert answer in text(app, "answer")
        assert "Stored: 0 sales" in text(app, "stored")
        await pilot.press("escape")
        assert text(app, "answer") == ""


@pytest.mark.parametrize("typed", ["[/]", "[bold]0", "[", "TSS1:é", "TSS1:", "tss1:AAAA", "ß" * 8])
async def test_whatever_is_typed_or_scanned_is_answered(world, app, typed):
    async with app.run_test(size=SIZE) as pilot:
        await enter(pilot, "10", typed)

        assert app.query_one("#answer").has_class("refused")
        assert "Stored: 0 sales" in text(app, "stored")


async def test_an_amount_that_cannot_be_makes_no_voucher_request(app):
    async with app.run_test(size=SIZE) as pilot:
        app.query_one("#amount", Input).value = "9" * 30
        await pilot.press("f2")
        await pilot.pause()

        assert "is no amount of INR" in text(app, "answer")


async def test_it_says_whether_there_is_network_and_when_it_must_sync(world, app):
    async with app.run_test(size=SIZE):
        assert text(app, "state") == "ONLINE"
        world.tills[0].network.is_cut = True
        await world.tills[0].sync()
        world.now += timedelta(hours=3, minutes=12)
        app.show_state()
        assert text(app, "state") == "OFFLINE for 3 h 12 m"
        assert app.query_one("#state").has_class("offline")
        world.now += timedelta(hours=72)
        app.show_state()
        assert text(app, "state") == "MUST SYNC"
        assert app.query_one("#state").has_class("must-sync")


async def test_a_sync_tells_what_became_of_each_sale(world, app):
    code = world.server.issue(ASHA, 50_00)
    async with app.run_test(size=SIZE) as pilot:
        await enter(pilot, "50", code)
        await pilot.press("enter")
        await pilot.press("f5")
        await app.workers.wait_for_complete()
        world.server.decide(10)
        while world.server.waiting(2):
            world.server.settle(10)
        world.drain()
        await pilot.press("f5")
        await app.workers.wait_for_complete()
        await pilot.pause()

        assert "Stored: 0 sales" in text(app, "stored")
        news = "\n".join(line.text for line in app.query_one("#news").lines)
        assert "1 uploaded" in news
        assert "50.00 INR:" in news


async def test_guesses_lock_the_till_and_it_says_for_how_long(world, app):
    wrong = world.server.issue(ASHA, 100_00)
    for symbols in list(world.server.by_hash):
        del world.server.by_hash[symbols]
    world.now += timedelta(days=1)
    await world.tills[0].sync()
    assert wrong
    async with app.run_test(size=SIZE) as pilot:
        for _ in range(3):
            await enter(pilot, "1", wrong)
        assert "NOT_ISSUED" in text(app, "answer")
        assert "LOCKED for 10 s" in text(app, "state")


@pytest.mark.parametrize("size", [(80, 24), SIZE])
async def test_everything_fits_the_usual_terminal(world, app, size):
    async with app.run_test(size=size) as pilot:
        await enter(pilot, "900", world.server.issue(ASHA, 100_00))

        def is_whole(name):
            region = app.query_one(f"#{name}").region
            return region.height > 0 and region in app.query_one("#work").region

        names = ("pad-7", "pad-dot", "amount", "code", "look", "answer", "stored", "count-bar")
        await eventually(lambda: all(map(is_whole, names)))

        await enter(pilot, "100", world.server.issue(ASHA, 100_00))
        code = app.screen.query_one("#receipt-qr", Static)
        lines = str(code.content).splitlines()
        await eventually(lambda: code.size == (len(lines[0]), len(lines)))
        assert code.region in app.screen.region


def test_a_qr_code_is_drawn_module_by_module_with_its_quiet_zone():
    drawn = []
    for line in qr_text("TSR1:AAAA").splitlines():
        drawn.append([symbol in " ▄" for symbol in line])
        drawn.append([symbol in " ▀" for symbol in line])

    wanted = [[bool(module) for module in row] for row in segno.make("TSR1:AAAA", error="l").matrix]
    size = len(wanted)
    assert [row[4 : 4 + size] for row in drawn[4 : 4 + size]] == wanted
    quiet = (
        drawn[:4],
        drawn[4 + size : 8 + size],
        [row[:4] + row[-4:] for row in drawn[: 8 + size]],
    )
    assert not any(module for rows in quiet for row in rows for module in row)


async def test_a_bar_says_that_a_limit_is_near(world, app):
    async with app.run_test(size=SIZE):
        assert not app.query_one("#count-bar").has_class("near")
        for _ in range(21):
            assert world.tills[0].sell(world.server.issue(ASHA, 10_00), 10_00)
        app.show_state()
        assert app.query_one("#count-bar").has_class("near")


async def test_a_voucher_request_can_be_shown(app):
    async with app.run_test(size=SIZE) as pilot:
        app.query_one("#amount", Input).value = "12.50"
        await pilot.press("f2")
        await pilot.pause()

        assert isinstance(app.screen, PayRequest)


def test_a_voucher_request_says_who_what_and_when(world):
    content = pay_request(UUID(int=7), UUID(int=8), 12_50, "INR", world.clock())

    data = voucher.from_text("TSR1", content)
    assert data[:32] == UUID(int=7).bytes + UUID(int=8).bytes
    assert int.from_bytes(data[32:40], "big") == 12_50
    assert data[40:43] == b"INR"
    lines = qr_text(content).splitlines()
    assert len({len(line) for line in lines}) == 1


@pytest.mark.parametrize(
    ("typed", "look", "pretty"),
    [
        ("", Look.EMPTY, ""),
        ("00", Look.TYPING, "00"),
        ("0000-0", Look.TYPING, "0000-0"),
        ("0000u", Look.WRONG, "0000-U"),
        ("0" * 16, Look.WHOLE, "0000-0000-0000-0000"),
        ("o" * 16, Look.WHOLE, "0000-0000-0000-0000"),
        ("0" * 15 + "1", Look.WRONG, "0000-0000-0000-0001"),
        ("0" * 17, Look.WRONG, "0000-0000-0000-0000-0"),
    ],
)
def test_a_code_is_looked_at_as_it_is_typed(typed, look, pretty):
    entry = look_at(typed)

    assert (entry.look, entry.pretty) == (look, pretty)
    assert entry.hint
