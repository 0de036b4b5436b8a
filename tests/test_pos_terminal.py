"""A terminal and what happens to it: the platform's faults, retired keys, wrong clocks, full disks."""

import asyncio
from datetime import timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from uuid_utils import UUID

from pos import uploads
from pos.decision import Refusal, Typed
from pos.enrolment import enroll
from pos.errors import PosError
from pos.platform import SignedIn
from pos.status import Network
from pos.terminal import Terminal
from pos.vault import Vault
from protocol import signed
from services.offline.domain.item import Reason
from tallystick.offline.v1 import terminal_sync_service_pb2 as sync_pb
from tallystick.user.v1 import user_pb2
from tests.ledger_world import ASHA
from tests.offline_simulation import ISSUER_KEY, Simulation

NAME = f"users/{UUID(int=7)}/terminals/{UUID(int=8)}"
OTHER_KEY = Ed25519PrivateKey.from_private_bytes(bytes([9]) * 32)


@pytest.fixture
async def world(tmp_path):
    """A server and tills that have synced, with a network that loses nothing until a test cuts it."""
    simulation = Simulation(1, tmp_path, days=1)
    simulation.kill_chance = simulation.loss_chance = 0.0
    await simulation.tills[0].sync()
    yield simulation
    simulation.close()


@pytest.fixture
def till(world):
    return world.tills[0]


def sell(world, till, count):
    """Sales that wait to be uploaded; their item ids."""
    for _ in range(count):
        assert till.sell(world.server.issue(ASHA, 10_00), 10_00)
    return [sale.item_id for sale in till.running.sales() if not sale.is_received]


def resume(till):
    """The till's process ends and starts again."""
    till.kill()
    till.start()
    return till.running


class Faulty:
    """The network, with a server that says no to some uploads."""

    def __init__(self, network, fault):
        self._network = network
        self._fault = fault
        self.requests = []

    def __getattr__(self, name):
        return getattr(self._network, name)

    async def submit(self, who, request):
        self.requests.append(request)
        contents = [entry.content for entry in request.entries]
        reason = self._fault(contents)
        if reason:
            raise PosError(reason, "Something broke.")
        return await self._network.submit(who, request)


async def sync_with(till, fault):
    """Sync once through a server with a fault; what was sent, and what was told."""
    faulty, told = Faulty(till.network, fault), []
    till.running._platform = faulty
    await till.running.sync(lambda text, sale: told.append(text))
    till.running._platform = till.network
    return faulty.requests, told


async def test_uploads_are_small_and_each_has_an_id_of_its_own(world, till, monkeypatch):
    monkeypatch.setattr(uploads, "UPLOAD_SIZE", 4)
    sell(world, till, 10)

    requests, told = await sync_with(till, lambda _: None)

    assert [len(request.entries) for request in requests] == [4, 4, 2]
    assert len({request.request_id for request in requests}) == 3
    assert till.running.status().stored_count == 0
    assert "2 entries received by the platform." in told


async def test_no_sale_is_given_up_because_the_platform_is_broken(world, till):
    sell(world, till, 3)

    _, told = await sync_with(till, lambda _: "INTERNAL")

    assert till.running.status().stored_count == 3
    assert [sale.state for sale in till.running.sales()] == ["", "", ""]
    assert "Entry 2 is tried again at the next sync." in told
    running = resume(till)
    await running.sync()
    assert running.status().stored_count == 0
    assert len(world.server.entries) == 3


async def test_an_entry_that_breaks_the_platform_stops_none_of_the_others(world, till):
    poison = sell(world, till, 5)[2].encode()

    def breaks_on_it(contents):
        return "INTERNAL" if any(poison in content for content in contents) else None

    await sync_with(till, breaks_on_it)
    assert [sale.is_received for sale in till.running.sales()] == [True, True, False, True, True]
    sell(world, till, 1)
    await sync_with(till, breaks_on_it)
    assert till.running.status().stored_count == 1
    await sync_with(till, lambda _: None)
    assert till.running.status().stored_count == 0


async def test_an_entry_the_platform_will_never_take_is_marked_and_stops_no_other(world, till):
    poison = sell(world, till, 3)[1].encode()

    await sync_with(
        till,
        lambda contents: "FIELDS_INVALID" if any(poison in each for each in contents) else None,
    )

    assert [(sale.state, sale.reason) for sale in till.running.sales()] == [
        ("", ""),
        ("REFUSED", "FIELDS_INVALID"),
        ("", ""),
    ]
    assert len(world.server.entries) == 2


async def test_a_request_id_that_is_taken_is_replaced(world, till):
    sell(world, till, 1)
    refusals = iter(["REQUEST_ID_REUSED", None])

    requests, _ = await sync_with(till, lambda _: next(refusals))

    assert requests[0].request_id != requests[1].request_id
    assert till.running.status().stored_count == 0


@pytest.mark.parametrize("reason", ["QUEUE_FULL", "TERMINAL_REVOKED", "UNREACHABLE"])
async def test_a_refusal_of_everything_ends_the_sync_and_the_same_request_goes_next(
    world, till, reason
):
    sell(world, till, 2)
    sent = Faulty(till.network, lambda _: reason)
    till.running._platform = sent
    with pytest.raises(PosError) as refused:
        await till.running.sync()
    assert refused.value.reason == reason
    assert till.running.status().network is Network.OFFLINE
    resume(till)

    requests, _ = await sync_with(till, lambda _: None)

    assert requests == sent.requests
    assert till.running.status().network is Network.ONLINE


@pytest.mark.parametrize(
    "change",
    [
        lambda answer, receipt: receipt.sequences.append(99),
        lambda answer, receipt: setattr(receipt, "terminal", "users/other/terminals/other"),
        lambda answer, receipt: setattr(receipt, "batch", "batches/other"),
        lambda answer, receipt: setattr(receipt, "entries_hash", bytes(32)),
        lambda answer, receipt: setattr(answer.receipt, "signature", bytes(64)),
    ],
    ids=["more entries", "another terminal", "another batch", "other entries", "forged"],
)
async def test_a_receipt_for_something_else_is_none(world, till, change):
    sell(world, till, 2)
    take = world.server.submit

    def answer(*arguments):
        answer = sync_pb.SubmitBatchResponse()
        answer.CopyFrom(take(*arguments))
        receipt = sync_pb.Receipt.FromString(answer.receipt.content)
        change(answer, receipt)
        if answer.receipt.signature != bytes(64):
            answer.receipt.CopyFrom(signed.sign_receipt(receipt, ISSUER_KEY))
        return answer

    world.server.submit = answer
    with pytest.raises(PosError) as refused:
        await till.running.sync()

    assert refused.value.reason == "RECEIPT_WRONG"
    assert till.running.status().stored_count == 2, "they count as stored until there is proof"


def bundle(world, till, key, names=(), **changes):
    """A bundle signed by a key, that names keys."""
    content = sync_pb.TrustBundle.FromString(world.server.bundle(till.network.name).content)
    del content.issuer_keys[:]
    for each in names:
        public = each.public_key().public_bytes_raw()
        content.issuer_keys.add(key_id=signed.key_id(public), public_key=public)
    for name, value in changes.items():
        setattr(content, name, value)
    return signed.sign_bundle(content, key)


async def test_the_issuer_changes_its_key_and_a_restarted_terminal_follows(world, till):
    code = world.server.issue(ASHA, 10_00)
    for key, names in (
        (ISSUER_KEY, (ISSUER_KEY, OTHER_KEY)),
        (OTHER_KEY, (OTHER_KEY,)),
        (OTHER_KEY, (OTHER_KEY,)),
    ):
        world.now += timedelta(minutes=1)
        travelling = bundle(world, till, key, names)
        world.server.bundle = lambda _, travelling=travelling: travelling
        await resume(till).sync()
        del world.server.bundle

    running = resume(till)
    assert (await running.accept(Typed(code), 10_00, "INR")).approved
    world.server.bundle = lambda _: bundle_of_before
    bundle_of_before = signed.sign_bundle(sync_pb.TrustBundle(version=1 << 60), ISSUER_KEY)
    with pytest.raises(PosError) as refused:
        await running.sync()
    assert refused.value.reason == "BUNDLE_UNTRUSTED"


@pytest.mark.parametrize(
    "travelling",
    [
        lambda world, till: bundle(world, till, OTHER_KEY, (OTHER_KEY,)),
        lambda world, till: bundle(world, till, ISSUER_KEY, (ISSUER_KEY,), terminal="users/other"),
        lambda world, till: sync_pb.SignedTrustBundle(
            content=b"\xff",
            signature=ISSUER_KEY.sign(b"TSB1\xff"),
            key_id=signed.key_id(ISSUER_KEY.public_key().public_bytes_raw()),
        ),
    ],
    ids=["another key", "another terminal", "unreadable"],
)
async def test_a_bundle_that_is_not_the_issuers_changes_nothing(world, till, travelling):
    before = till.running.status().terms
    forged = travelling(world, till)
    world.server.bundle = lambda _: forged

    with pytest.raises(PosError) as refused:
        await till.running.sync()

    assert refused.value.reason == "BUNDLE_UNTRUSTED"
    assert till.running.status().terms == before


async def test_a_bundle_older_than_the_one_in_force_is_passed_over(world, till):
    old = world.server.bundle(till.network.name)
    world.now += timedelta(minutes=1)
    await till.running.sync()
    newer = till.running.status().terms.version
    world.server.bundle = lambda _: old

    await till.running.sync()

    assert till.running.status().terms.version == newer


@pytest.mark.parametrize(
    "said",
    [{"reference": "x" * 141}, {"position": (91.0, 0.0, 5.0)}, {"position": (0.0, 0.0, -1.0)}],
    ids=["long reference", "off the earth", "negative accuracy"],
)
async def test_what_the_platform_would_refuse_later_is_refused_at_the_counter(world, till, said):
    code = world.server.issue(ASHA, 10_00)

    with pytest.raises(PosError) as refused:
        await till.running.accept(Typed(code), 10_00, "INR", **said)

    assert refused.value.reason == "SALE_INVALID"
    assert till.running.sales() == []
    assert (await till.running.accept(Typed(code), 10_00, "INR", reference="x" * 140)).approved


async def test_a_full_disk_approves_nothing_and_loses_nothing(world, till):
    sell(world, till, 1)
    database = till.running._journal._database
    (pages,) = database.execute("PRAGMA page_count").fetchone()
    database.execute(f"PRAGMA max_page_count = {pages}")
    code, refused = "", None
    for _ in range(100):
        code = world.server.issue(ASHA, 10_00)
        try:
            assert (
                await till.running.accept(Typed(code), 10_00, "INR", reference="x" * 140)
            ).approved
        except PosError as error:
            refused = error
            break
    assert refused is not None
    assert refused.reason == "STORAGE_FAILED"
    count = len(till.running.sales())
    assert till.running.status().stored_count == count

    database.execute("PRAGMA max_page_count = 1000000")
    assert (await till.running.accept(Typed(code), 10_00, "INR")).approved
    assert resume(till)._journal.flaws == []
    assert len(till.running.sales()) == count + 1


async def test_a_lock_passes_though_the_clock_is_a_year_behind(world, till):
    wrong = world.server.issue(ASHA, 10_00)
    del world.server.by_hash[wrong]
    world.now += timedelta(days=1)
    await till.running.sync()
    till.skew = timedelta(days=-365)
    running = resume(till)
    for _ in range(3):
        assert (await running.accept(Typed(wrong), 1, "INR")).refusal is Refusal.NOT_ISSUED
    assert (await running.accept(Typed(wrong), 1, "INR")).refusal is Refusal.LOCKED

    world.now += timedelta(seconds=11)

    assert running.status().locked_for is None
    assert running.status().since_sync == timedelta(seconds=11)


async def test_wrong_codes_that_no_sale_tells_of_are_told_by_the_next_sync(world, till):
    wrong = world.server.issue(ASHA, 10_00)
    del world.server.by_hash[wrong]
    world.now += timedelta(days=1)
    await till.running.sync()
    for _ in range(3):
        assert (await till.running.accept(Typed(wrong), 1, "INR")).refusal is Refusal.NOT_ISSUED

    await till.running.sync()
    told = till.running._journal.last_entry()
    await till.running.sync()

    assert (told.WhichOneof("body"), told.wrong_codes) == ("guesses", 3)
    assert till.running._journal.last_entry() == told, "once"
    assert till.running.status().locked_for is not None, "nobody is forgiven for it"
    assert till.running.sales() == []
    world.now += timedelta(seconds=11)
    sell(world, till, 1)
    assert till.running._journal.last_entry().wrong_codes == 0


async def test_a_terminal_that_never_restarts_must_sync_though_its_clock_is_behind(world, till):
    till.skew = timedelta(days=-365)
    running = resume(till)
    code = world.server.issue(ASHA, 10_00)

    world.now += timedelta(hours=72, seconds=1)

    assert running.status().network is Network.MUST_SYNC
    assert (await running.accept(Typed(code), 1, "INR")).refusal is Refusal.MUST_SYNC


async def test_the_server_corrects_a_clock_that_dated_a_sale_ahead(world, till):
    till.skew = timedelta(hours=20)
    resume(till)
    sell(world, till, 1)
    world.now += timedelta(minutes=1)
    await till.running.sync()
    till.skew = timedelta()

    assert till.running._clock() == world.now
    assert resume(till)._clock() == world.now, "the sale's date does not come back"


async def test_a_clock_that_ran_ahead_costs_the_sales_it_dated_and_none_after_the_sync(world, till):
    till.skew = timedelta(hours=20)
    resume(till)
    sell(world, till, 1)
    world.now += timedelta(minutes=1)
    # The bundle is lost on its way: under the old one the clock stays as it was, and sales in their order.
    till.running._platform.trust_bundle = lost
    with pytest.raises(PosError):
        await till.running.sync()
    assert till.running._clock() > world.now + timedelta(hours=19)
    del till.running._platform.trust_bundle
    await till.running.sync()
    world.now += timedelta(minutes=1)
    sell(world, till, 1)
    await till.running.sync()
    world.server.decide(2)

    first, second = world.server.entries.values()
    assert (first.doubt, second.doubt) == (Reason.CLOCK_IMPLAUSIBLE, Reason.NONE)


async def lost(_who):
    raise PosError("UNREACHABLE", "cut off")


async def test_a_sync_does_not_show_offline_while_it_runs(world, till):
    shown = []

    await till.running.sync(lambda _text, _sale: shown.append(till.running.status().network))

    assert shown
    assert set(shown) == {Network.ONLINE}


async def test_a_journal_that_moved_is_not_dated_by_a_clock_ahead(world, till):
    till.skew = timedelta(days=365)
    running = resume(till)

    await running.note_import("the new one")

    assert running._journal.last_entry().record_time.ToDatetime(world.now.tzinfo) == world.now


async def test_two_at_once_take_a_code_once(world, till):
    code = world.server.issue(ASHA, 10_00)

    decisions = await asyncio.gather(
        *(till.running.accept(Typed(code), 10_00, "INR") for _ in range(8))
    )

    assert [decision.approved for decision in decisions].count(True) == 1
    assert {each.refusal for each in decisions} == {None, Refusal.SPENT_HERE}


async def test_a_sale_whose_caller_is_cancelled_is_whole_before_anything_else_is_written(
    world, till
):
    codes = [world.server.issue(ASHA, 10_00) for _ in range(20)]
    for code in codes:
        selling = asyncio.create_task(till.running.accept(Typed(code), 10_00, "INR"))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        selling.cancel()
        (cancelled,) = await asyncio.gather(selling, return_exceptions=True)
        assert isinstance(cancelled, asyncio.CancelledError)

    for code in codes:
        again = await till.running.accept(Typed(code), 10_00, "INR")
        assert again.approved or again.refusal is Refusal.SPENT_HERE
    assert len(till.running.sales()) == len(codes)
    assert resume(till)._journal.flaws == []


class Office:
    """The platform as it enrols one terminal."""

    def __init__(self, world, refusals=()):
        self.world = world
        self.refusals = list(refusals)
        self.asked = []

    async def enroll(self, _vendor, terminal, request_id):
        self.asked.append((request_id, terminal.public_key))
        if self.refusals:
            raise PosError(self.refusals.pop(0), "No.")
        return user_pb2.Terminal(name=NAME)

    async def sign_in(self, _name, _key, _now):
        return SignedIn((), self.world.clock())

    async def trust_bundle(self, _who):
        return self.world.server.bundle(NAME)


def enrolling(world, office, directory):
    return enroll(
        directory, office, SignedIn((), None), site="users/a/sites/b", display_name="Till 9"
    )


async def test_an_enrolment_that_was_broken_off_is_the_same_when_repeated(world, tmp_path):
    office = Office(world, ["UNREACHABLE"])
    with pytest.raises(PosError, match="No"):
        await enrolling(world, office, tmp_path / "new")

    identity = await enrolling(world, office, tmp_path / "new")

    assert office.asked[0] == office.asked[1], "the same request id and the same key"
    assert identity.name == NAME
    async with Terminal.open(tmp_path / "new", "127.0.0.1:1", wall=world.clock) as till:
        code = world.server.issue(ASHA, 10_00)
        assert (await till.accept(Typed(code), 10_00, "INR")).approved, "without another sync"
    with pytest.raises(PosError) as refused:
        await enrolling(world, office, tmp_path / "new")
    assert refused.value.reason == "ALREADY_ENROLLED"


async def test_an_enrolment_with_other_details_than_the_one_begun_says_so(world, tmp_path):
    with pytest.raises(PosError) as refused:
        await enrolling(world, Office(world, ["REQUEST_ID_REUSED"]), tmp_path / "new")

    assert refused.value.reason == "ENROLMENT_PENDING"


async def test_a_first_bundle_that_its_own_keys_did_not_sign_enrols_nothing(world, till, tmp_path):
    forged = bundle(world, till, OTHER_KEY, (ISSUER_KEY,), terminal=NAME)
    world.server.bundle = lambda _: forged

    with pytest.raises(PosError) as refused:
        await enrolling(world, Office(world), tmp_path / "new")

    assert refused.value.reason == "BUNDLE_UNTRUSTED"
    assert not Vault(tmp_path / "new").is_enrolled()
