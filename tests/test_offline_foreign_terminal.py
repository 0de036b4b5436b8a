"""A terminal in another language, from the documents and the contracts alone, sells and is paid."""

import ast
import json
from pathlib import Path

import pytest

from protocol import code as codes
from tests import foreign_terminal, offline_world
from tests.foreign_terminal import ForeignTerminal, Refused

VECTORS = json.loads((Path(__file__).parents[1] / "docs" / "offline-test-vectors.json").read_text())


@pytest.fixture
async def world(tmp_path):
    with offline_world.running(tmp_path) as stack:
        async with offline_world.visiting(stack) as visited:
            yield visited


async def test_a_terminal_written_from_the_documents_sells_and_is_paid(world):
    shop, payer = await world.person(vendor=True), await world.payer()
    whole, part, unspent = await world.codes(payer, 100_00, 50_00, 20_00)
    (site,) = await shop.client.sites()
    at = world.stack.endpoints
    till = ForeignTerminal(at.grpc, at.ca_file)
    try:
        await till.enroll(shop.username, shop.password, site.name)
        await till.fetch()
        key = till._bundle.code_keys[0]
        made_up = codes.make(
            7, key.keyset, 1, 20, key=bytes(32), issuer=till._bundle.issuer, currency="INR"
        )
        first = till.sell(whole.lower().replace("-", " "), 100_00, "INR")
        for shown, minor_units, reason in (
            (whole, 1_00, "SPENT_HERE"),
            (unspent[:-1] + ("0" if unspent[-1] != "0" else "1"), 1_00, "CHECK_SYMBOL"),
            (part, 50_01, "AMOUNT_OVER_VALUE"),
            (made_up.symbols(), 1_00, "TAG_WRONG"),
        ):
            with pytest.raises(Refused, match=reason):
                till.sell(shown, minor_units, "INR")
        second = till.sell(part, 30_00, "INR")

        results = await till.upload()
        await till.fetch()
        third = till.sell(unspent, 20_00, "INR")
        results |= await till.upload()
    finally:
        await till.close()

    assert results == {
        first: "REASON_SETTLED",
        second: "REASON_PARTIALLY_SETTLED",
        third: "REASON_SETTLED",
    }
    assert await world.balances(shop) == (150_00, 0, 0, 0)


def test_its_filter_is_the_published_one():
    data = bytes.fromhex(VECTORS["filter"]["data"])

    assert all(foreign_terminal.contains(data, key) for key in VECTORS["filter"]["keys"])
    assert not all(foreign_terminal.contains(data, key) for key in range(100, 110))


def test_it_shares_nothing_with_the_terminal_of_this_repository():
    source = ast.parse(Path(foreign_terminal.__file__).read_text())
    imported = {
        (node.module if isinstance(node, ast.ImportFrom) else node.names[0].name).split(".")[0]
        for node in ast.walk(source)
        if isinstance(node, ast.Import | ast.ImportFrom)
    }

    assert imported.isdisjoint({"pos", "protocol", "services", "cli", "tests", "bench"})
