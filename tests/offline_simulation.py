"""Days of offline trade in one process: real terminals, real rules of settlement and ledger, one virtual clock.

Wallets, tills, partitions, kills, wrong clocks, lost and doubled messages come from a seed. What is real: `pos`
(journal on disk, decisions, sync), `protocol`, the rules in `services/offline/domain` and `services/payment/domain`.
What is made here: time, the network, and a server that keeps in dictionaries what the services keep in tables.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from unittest.mock import patch

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from uuid_utils import UUID

from pos import uploads
from pos.clock import TrustedClock
from pos.decision import Typed
from pos.errors import PosError
from pos.platform import SignedIn
from pos.terminal import Terminal, open_journal
from pos.vault import Identity, Vault
from protocol import code as codes
from protocol import issued_filter, signed
from services import names, sql
from services.money import Money
from services.offline.domain import journal, settlement
from services.offline.domain.code import Code, Release, revoke
from services.offline.domain.code import State as CodeState
from services.offline.domain.item import Entry, Proof, Reason, Spend, State, Work
from services.offline.domain.settlement import Paid
from services.payment.domain.book import SettledOffline
from services.payment.domain.payment import Decision
from services.payment.domain.payment import State as PaymentState
from services.refusal import Refusal
from tallystick.offline.v1 import terminal_sync_service_pb2
from tests.ledger_world import ASHA, BABU, SHOP, STALL, laws_hold
from tests.ledger_world import World as LedgerWorld

START = datetime(2026, 3, 2, tzinfo=UTC)
MASTER = bytes(range(32))
SCOPE, ISSUER, CURRENCY = "main", "tallystick", "INR"
KEY = codes.scope_key(MASTER, 1, SCOPE)
VALUES = (10_00, 50_00, 100_00)
SPEND_DAYS, UPLOAD = 3, timedelta(hours=96)
ISSUER_KEY = Ed25519PrivateKey.from_private_bytes(bytes([1]) * 32)
ISSUER_PUBLIC = ISSUER_KEY.public_key().public_bytes_raw()
_PAID = {
    PaymentState.SUCCESS: Paid.SUCCESS,
    PaymentState.FLAGGED: Paid.FLAGGED,
    PaymentState.FAILED: Paid.FAILED,
}


class Killed(BaseException):
    """The till's process is gone."""


class Server:
    """The issuer's side, with real rules."""

    def __init__(self, rng, clock):
        self.rng = rng
        self.clock = clock
        self.ledger = LedgerWorld().opened(ASHA, BABU, SHOP, STALL)
        self.codes = {}
        self.by_hash = {}
        self.known = {}
        self.entries = {}
        self.by_item = {}
        self.batches = {}
        self.requests = {}
        self.bundles = {}
        self.spender = {}
        self.payments = {}

    def issue(self, owner, value):
        """A code, its money reserved; its symbols, or None when the owner has not enough."""
        ledger = self.ledger
        ledger.do(ledger.top_up(owner, value))
        try:
            ledger.do(ledger.to_offline(owner, value))
            command = ledger.reserve(owner, value)
            ledger.do(command)
        except Refusal:
            return None
        (code_id,) = command.reservations()
        now = self.clock()
        day = codes.expiry_day(now, START, SPEND_DAYS)
        serial, tier = self.rng.getrandbits(32), VALUES.index(value)
        made = codes.make(serial, 1, tier, day, key=KEY, issuer=ISSUER, currency=CURRENCY)
        expire = codes.expire_time(START, day)
        self.codes[code_id] = Code(
            code_id=code_id,
            issue_id=code_id,
            owner_id=owner,
            value=Money(value, CURRENCY),
            hint="",
            scope=SCOPE,
            state=CodeState.ISSUED,
            release=Release.NONE,
            issue_time=now,
            expire_time=expire,
            release_time=expire + UPLOAD,
        )
        self.by_hash[made.symbols()] = code_id
        return made.symbols()

    def stop(self, symbols):
        code = self.codes[self.by_hash[symbols]]
        if code.state is CodeState.ISSUED:
            self.codes[code.code_id] = revoke(code, now=self.clock())

    def bundle(self, name):
        now = self.clock()
        bundle = terminal_sync_service_pb2.TrustBundle(
            version=sql.micros(now),
            terminal=name,
            issuer=ISSUER,
            scope=SCOPE,
            spend_days=SPEND_DAYS,
        )
        bundle.server_time.FromDatetime(now)
        for number, value in enumerate(VALUES):
            tier = bundle.tiers.add(number=number)
            tier.value.minor_units, tier.value.currency_code = value, CURRENCY
        key = bundle.code_keys.add(keyset=1, key=KEY)
        key.epoch_time.FromDatetime(START)
        bundle.issuer_keys.add(key_id=signed.key_id(ISSUER_PUBLIC), public_key=ISSUER_PUBLIC)
        marks = {CodeState.ISSUED: [], CodeState.REVOKED: []}
        for symbols, code_id in self.by_hash.items():
            code = self.codes[code_id]
            if code.state in marks and code.expire_time > now:
                marks[code.state].append(codes.filter_key(KEY, symbols))
        bundle.denied.extend(marks[CodeState.REVOKED])
        bundle.issued.data = issued_filter.build(marks[CodeState.ISSUED])
        bundle.issued.build_time.FromDatetime(now)
        limits = bundle.limits
        for each in (limits.payment_max, limits.stored_soft, limits.stored_hard):
            each.add(minor_units=1_000_00, currency_code=CURRENCY)
        limits.stored_count_soft, limits.stored_count_hard = 20, 40
        limits.minutes_soft, limits.minutes_hard = 24 * 60, 72 * 60
        self.bundles[name] = bundle.version
        return signed.sign_bundle(bundle, ISSUER_KEY)

    def submit(self, name, public_key, request):
        """Take entries: on record once, whoever sends them how often."""
        if request.request_id in self.requests:
            return self.requests[request.request_id]
        now = self.clock()
        read = [signed.verify_entry(entry, public_key) for entry in request.entries]
        arrivals = [
            journal.Arrival(
                place=place,
                sequence=entry.sequence,
                content_hash=signed.entry_hash(request.entries[place].content),
                previous_hash=entry.previous_hash,
                record_time=entry.record_time.ToDatetime(UTC),
                server_time=entry.server_time.ToDatetime(UTC),
                bundle_version=entry.bundle_version,
                item_id=UUID(entry.sale.item_id) if entry.HasField("sale") else None,
            )
            for place, entry in enumerate(read)
        ]
        known = self.known.setdefault(name, {})
        items = [each.item_id for each in arrivals if each.item_id is not None]
        taken = set(items) & self.by_item.keys()
        reception = journal.receive(
            arrivals, known, taken, bundle_version=self.bundles.get(name, 0), now=now
        )
        batch = f"batches/{UUID(int=len(self.batches) + 1)}"
        for placed in reception.fresh:
            self._put(name, batch, placed, read[placed.arrival.place].sale, now)
        self.batches[batch] = [self.by_item[item_id] for item_id in items]
        receipt = terminal_sync_service_pb2.Receipt(
            batch=batch,
            terminal=name,
            sequences=[entry.sequence for entry in read],
            entries_hash=signed.receipt_hash([each.content_hash for each in arrivals]),
        )
        answer = terminal_sync_service_pb2.SubmitBatchResponse(
            receipt=signed.sign_receipt(receipt, ISSUER_KEY)
        )
        answer.batch.name = batch
        self.requests[request.request_id] = answer
        return answer

    def _put(self, name, batch, placed, sale, now):
        arrival = placed.arrival
        entry_id = self.ledger.new_id()
        self.known[name].setdefault(arrival.sequence, []).append(
            journal.Known(
                arrival.content_hash, arrival.record_time, arrival.bundle_version, arrival.item_id
            )
        )
        if arrival.item_id is None:
            return
        self.by_item[arrival.item_id] = entry_id
        self.entries[entry_id] = Entry(
            entry_id=entry_id,
            vendor_id=names.owner_id(name),
            terminal_id=names.last_id(name),
            sequence=arrival.sequence,
            content_hash=arrival.content_hash,
            record_time=arrival.record_time,
            bundle_version=arrival.bundle_version,
            receive_time=now,
            batch_id=names.last_id(batch),
            place=arrival.place,
            item_id=arrival.item_id,
            amount=Money(sale.amount.minor_units, sale.amount.currency_code),
            proof=Proof.CODE,
            proof_hash=sale.code.encode(),
            doubt=placed.doubt,
            doubt_detail=placed.detail,
            state=State.RECEIVED,
            work=Work.DECIDE,
        )

    def waiting(self, work):
        return [entry for entry in self.entries.values() if entry.work is work]

    def decide(self, limit):
        """Step 1, for some items: one transaction."""
        for entry in self.waiting(Work.DECIDE)[:limit]:
            code = self.codes.get(self.by_hash.get(entry.proof_hash.decode()))
            first = None if code is None else self.spender.get(code.code_id)
            verdict = settlement.decide(
                entry,
                code,
                scope=SCOPE,
                terminal_revoke_time=None,
                vendor_active=True,
                spent_by_same_vendor=first is not None
                and self.entries[first].vendor_id == entry.vendor_id,
            )
            decided = replace(entry, state=verdict.state, reason=verdict.reason, work=Work.NOTHING)
            if verdict.state is State.RECEIVED:
                assert code.can_be_spent
                self.codes[code.code_id] = replace(code, state=CodeState.SPENT)
                self.spender[code.code_id] = entry.entry_id
                spend = Spend(code.code_id, code.owner_id, code.value.minor_units, code.issue_time)
                decided = replace(decided, spend=spend, work=Work.SETTLE)
            self.entries[entry.entry_id] = decided

    def settle(self, limit):
        """Steps 2 and 3; now and then the ledger's answer, or the process, is lost between them."""
        for entry in self.waiting(Work.SETTLE)[:limit]:
            risky = self.rng.random() < 0.05
            command = self.ledger.spend(
                self.ledger.book.reservations[entry.spend.code_id],
                entry.vendor_id,
                entry.money.minor_units,
                decision=Decision.REVIEW if risky else Decision.ALLOW,
                hold_reason=entry.reason.name if entry.reason else "",
                payment_id=entry.entry_id,
            )
            outcome = self.ledger.do(command)
            assert isinstance(outcome, SettledOffline)
            if self.rng.random() < 0.2:
                continue
            self.conclude(entry, outcome.payment)

    def conclude(self, entry, payment):
        verdict = settlement.conclude(entry, _PAID[payment.state], payment.risk.reasons)
        self.payments[entry.entry_id] = payment.payment_id
        watched = Work.WATCH if verdict.state is State.HELD else Work.NOTHING
        self.entries[entry.entry_id] = replace(
            entry, state=verdict.state, reason=verdict.reason, work=watched
        )

    def review(self):
        """A person decides what is held."""
        for entry in self.waiting(Work.WATCH):
            payment = self.ledger.book.payments[entry.entry_id]
            approve = self.rng.random() < 0.5
            outcome = self.ledger.do(self.ledger.resolve(payment, approve=approve))
            self.conclude(entry, outcome.payment)

    def sweep(self):
        """Give back what nobody uploaded in time, once nothing that arrived in time waits."""
        now = self.clock()
        undecided = {entry.proof_hash.decode() for entry in self.waiting(Work.DECIDE)}
        for symbols, code_id in self.by_hash.items():
            code = self.codes[code_id]
            if code.can_be_spent and code.release_time <= now and symbols not in undecided:
                ended = CodeState.REVOKED if code.is_stopped else CodeState.EXPIRED
                code = self.codes[code_id] = replace(code, state=ended, release=Release.DUE)
            if code.release is Release.DUE and self.rng.random() < 0.8:
                reservation = self.ledger.book.reservations[code_id]
                self.ledger.do(self.ledger.release(reservation))
                if self.rng.random() < 0.8:
                    self.codes[code_id] = replace(code, release=Release.DONE)


class Network:
    """The platform as one till reaches it: cut off, losing, doubling, or killing its caller."""

    def __init__(self, world, name, public_key):
        self.world = world
        self.name = name
        self.public_key = public_key
        self.is_cut = False

    def _pass(self, work):
        rng = self.world.rng
        if rng.random() < self.world.kill_chance:
            raise Killed
        if self.is_cut or rng.random() < self.world.loss_chance:
            raise PosError("UNREACHABLE", "cut off")
        answer = work()
        if rng.random() < 0.1:
            answer = work()
        if rng.random() < self.world.kill_chance:
            raise Killed
        if rng.random() < self.world.loss_chance:
            raise PosError("UNREACHABLE", "the answer was lost")
        return answer

    async def sign_in(self, _name, _key, _now):
        return self._pass(lambda: SignedIn((), self.world.clock()))

    async def trust_bundle(self, _who):
        return self._pass(lambda: self.world.server.bundle(self.name))

    async def submit(self, _who, request):
        return self._pass(lambda: self.world.server.submit(self.name, self.public_key, request))

    async def watch(self, _who, _batch):
        for nothing in ():
            yield nothing

    async def batch(self, _who, name):
        def found():
            answer = terminal_sync_service_pb2.GetBatchResponse()
            for entry_id in self.world.server.batches[name]:
                entry = self.world.server.entries[entry_id]
                answer.items.add(
                    name=names.item_name(entry.item_id),
                    state=int(entry.state),
                    reason=int(entry.reason),
                )
            return answer

        return self._pass(found)


@dataclass
class Till:
    """A till on a counter. Killed, it starts again with the clock it has by then."""

    world: object
    directory: object
    vendor: UUID
    number: int
    network: Network = field(init=False)
    skew: timedelta = timedelta()
    running: Terminal | None = None
    told: dict = field(default_factory=dict)

    def __post_init__(self):
        key = bytes([self.number]) * 32
        vault = Vault(self.directory)
        self.directory.mkdir()
        vault.write("secret", key + key)
        issuer = {signed.key_id(ISSUER_PUBLIC): ISSUER_PUBLIC.hex()}
        name = names.terminal_name(self.vendor, UUID(int=self.number))
        vault.save_identity(Identity(name, f"Till {self.number}", issuer))
        public = Ed25519PrivateKey.from_private_bytes(key).public_key().public_bytes_raw()
        self.network = Network(self.world, name, public)

    def start(self):
        vault = Vault(self.directory)
        identity = vault.identity()
        clock = TrustedClock(lambda: self.world.clock() + self.skew, self.world.monotonic)
        journal_file = open_journal(vault, identity)
        assert journal_file.flaws == [], "a kill leaves a journal whole"
        self.running = Terminal(
            vault,
            identity,
            journal_file,
            self.network,
            clock=clock,
            new_id=self.world.new_uuid,
        )

    def kill(self):
        if self.running is not None:
            self.running._journal.close()
            self.running = None

    def sell(self, symbols, minor_units):
        """What the payer is told: True when the code was taken."""
        if self.running is None:
            self.start()
        decision = self.running._accept(Typed(symbols), minor_units, CURRENCY, None, "")
        if decision.approved:
            self.told[decision.item_id] = (symbols, minor_units)
        return decision.approved

    async def sync(self):
        if self.running is None:
            self.start()
        try:
            await self.running.sync()
        except PosError as error:
            if error.reason != "UNREACHABLE":
                raise
            return False
        except Killed:
            self.kill()
            return False
        return True


class Simulation:
    """Some days, from a seed."""

    def __init__(self, seed, directory, *, days):
        self.rng = random.Random(seed)
        self.days = days
        self.now = START + timedelta(days=self.rng.randrange(3), minutes=self.rng.randrange(1440))
        self.kill_chance, self.loss_chance = 0.03, 0.15
        self.server = Server(self.rng, self.clock)
        self.tills = [
            Till(self, directory / f"till-{number}", vendor, number)
            for number, vendor in ((11, SHOP), (12, SHOP), (13, STALL))
        ]
        self.purse = []
        self.spent = []

    def clock(self):
        return self.now

    def monotonic(self):
        return (self.now - START).total_seconds()

    def new_uuid(self):
        return UUID(int=self.rng.getrandbits(128), version=4)

    async def run(self):
        with patch.object(uploads, "uuid4", self.new_uuid):
            for till in self.tills:
                while not await till.sync():
                    pass
            end = self.now + timedelta(days=self.days)
            while self.now < end:
                self.now += timedelta(seconds=self.rng.expovariate(1 / 3600))
                await self.step()
            await self.come_home()

    async def step(self):
        rng = self.rng
        till = rng.choice(self.tills)
        action = rng.choices(
            ("issue", "sell", "sync", "decide", "settle", "sweep", "review", "cut", "kill", "stop"),
            (4, 8, 4, 4, 4, 1, 1, 2, 1, 0.3),
        )[0]
        if action == "issue":
            symbols = self.server.issue(rng.choice((ASHA, BABU)), rng.choice(VALUES))
            self.purse += [symbols] if symbols else []
        elif action == "sell" and self.purse:
            self.sell(till)
        elif action == "sync":
            await till.sync()
        elif action == "decide":
            self.server.decide(rng.randrange(1, 20))
        elif action == "settle":
            self.server.settle(rng.randrange(1, 20))
        elif action in {"sweep", "review"}:
            getattr(self.server, action)()
        elif action == "cut":
            till.network.is_cut = rng.random() < 0.6
        elif action == "kill":
            till.kill()
            till.skew = timedelta(hours=rng.choice((0, 0, 0, -1, 3, -24 * 365, 24 * 365)))
        elif action == "stop" and self.purse:
            self.server.stop(rng.choice(self.purse))

    def sell(self, till):
        rng = self.rng
        # A payer who cheats shows a code that another till has taken.
        again = bool(self.spent) and rng.random() < 0.15
        symbols = rng.choice(self.spent if again else self.purse)
        value = self.server.codes[self.server.by_hash[symbols]].value.minor_units
        if till.sell(symbols, rng.randrange(1, value + 1)) and not again:
            self.purse.remove(symbols)
            self.spent.append(symbols)
        if rng.random() < 0.1:
            till.kill()

    async def come_home(self):
        """The network is back for good; everything is uploaded, settled, reviewed, and given back."""
        self.kill_chance = self.loss_chance = 0.0
        for till in self.tills:
            till.network.is_cut = False
            assert await till.sync()
        self.drain()
        self.now += timedelta(days=30)
        for _ in range(200):
            self.server.sweep()
        for till in self.tills:
            assert await till.sync()

    def drain(self):
        server = self.server
        while server.waiting(Work.DECIDE) or server.waiting(Work.SETTLE):
            server.decide(1000)
            server.settle(1000)
        server.review()

    def check(self):
        """Every law that this can break."""
        server = self.server
        laws_hold(server.ledger.book)
        assert not server.waiting(Work.DECIDE)
        assert not server.waiting(Work.SETTLE)
        paid = {}
        for entry in server.entries.values():
            assert entry.state in {State.SETTLED, State.REFUSED}
            # A clock that ran ahead costs the sales it dated a review, and no other.
            ahead = entry.record_time > entry.receive_time + journal.CLOCK_TOLERANCE
            assert entry.doubt is (Reason.CLOCK_IMPLAUSIBLE if ahead else Reason.NONE)
            if entry.entry_id in server.payments:
                assert paid.setdefault(entry.spend.code_id, entry.entry_id) == entry.entry_id
        told = {item: sale for till in self.tills for item, sale in till.told.items()}
        assert set(told) <= set(server.by_item), "what was approved has arrived"
        for item, (symbols, minor_units) in told.items():
            self.check_sale(server.entries[server.by_item[item]], symbols, minor_units, paid)
        for code in server.codes.values():
            spent = code.code_id in paid
            assert (code.state is CodeState.SPENT) == spent
            assert spent or code.release is Release.DONE
        for till in self.tills:
            assert till.running.status().stored_count == 0
            results = {sale.item_id: sale.reason for sale in till.running.sales()}
            for item in till.told:
                entry = server.entries[server.by_item[item]]
                assert results[str(item)] == entry.reason.name

    def check_sale(self, entry, symbols, minor_units, paid):
        code = self.server.codes[self.server.by_hash[symbols]]
        assert entry.money.minor_units == minor_units
        if entry.state is State.SETTLED:
            return
        # Law 9: what a till accepted is refused only for what a person, another sale, or time has done.
        if entry.reason is Reason.DUPLICATE_CODE:
            assert paid[code.code_id] != entry.entry_id
        elif entry.reason is Reason.REVOKED_BEFORE_SPEND:
            assert entry.record_time >= code.revoke_time
        elif entry.reason is Reason.LATE_UPLOAD:
            assert entry.receive_time >= code.release_time
        else:
            assert entry.reason is Reason.REVIEW_REJECTED

    def close(self):
        for till in self.tills:
            till.kill()


def digest(simulation):
    """What came of a simulation, to see that a seed reproduces."""
    said = repr(
        sorted(
            (str(entry.item_id), entry.state.name, entry.reason.name, entry.record_time)
            for entry in simulation.server.entries.values()
        )
    )
    return hashlib.sha256(said.encode()).hexdigest()
