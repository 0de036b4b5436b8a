"""Brings a journal in: uploads that are sent until there is a receipt, and the results that come of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from uuid_utils import uuid4

from pos.errors import PosError
from pos.journal import Journal, Upload
from pos.platform import Platform, SignedIn
from pos.status import Progress, Report
from protocol import signed
from tallystick.offline.v1 import offline_pb2, terminal_sync_service_pb2

UPLOAD_SIZE = 500


class Uploads:
    """The uploads of one journal.

    Args:
        journal: Whose entries are brought in.
        name: The terminal's.
        turn: Held while the journal is used.
        issuer_keys: Public keys that receipts may be signed with now, by id.
    """

    def __init__(
        self,
        journal: Journal,
        name: str,
        turn: asyncio.Lock,
        issuer_keys: Callable[[], Mapping[str, bytes]],
    ) -> None:
        self._journal = journal
        self._name = name
        self._turn = turn
        self._issuer_keys = issuer_keys

    async def send(
        self, platform: Platform, who: SignedIn, report: Report, progress: Progress
    ) -> None:
        """Upload what waits, a part at a time, until nothing is left that can be sent now.

        Raises:
            PosError: UNREACHABLE, RECEIPT_WRONG, …; what was received before it stays so.
        """
        put_off: set[str] = set()
        while True:
            async with self._turn:
                waiting = [
                    upload
                    for upload in self._journal.open_uploads()
                    if upload.request_id not in put_off
                ]
                if not waiting:
                    fresh = self._journal.begin_upload(str(uuid4()), size=UPLOAD_SIZE)
                    waiting = [] if fresh is None else [fresh]
            if not waiting:
                return
            for upload in waiting:
                if not await self._upload(platform, who, upload, report, progress):
                    put_off.add(upload.request_id)

    async def _upload(
        self,
        platform: Platform,
        who: SignedIn,
        upload: Upload,
        report: Report,
        progress: Progress,
    ) -> bool:
        """Send an upload. False when it can only be sent again at another time."""
        request = terminal_sync_service_pb2.SubmitBatchRequest(
            request_id=upload.request_id,
            terminal=self._name,
            entries=[entry for _, entry in upload.entries],
        )
        try:
            answer = await platform.submit(who, request)
        except PosError as error:
            if error.reason not in {"FIELDS_INVALID", "INTERNAL", "REQUEST_ID_REUSED"}:
                raise
            async with self._turn:
                goes_on = self._isolate(upload, error)
            if not goes_on:
                progress(f"Entry {upload.entries[0][0]} is tried again at the next sync.", None)
            return goes_on
        refused = {
            upload.entries[result.index][0]: (
                offline_pb2.Reason.Name(result.refusal).removeprefix("REASON_"),
                result.detail,
            )
            for result in answer.entries
            if result.refusal
        }
        self._check_receipt(upload, answer, refused)
        async with self._turn:
            receipt = answer.receipt.SerializeToString()
            self._journal.receive(upload, answer.batch.name, receipt, refused)
        report.uploaded += len(upload.entries) - len(refused)
        progress(f"{len(upload.entries)} entries received by the platform.", None)
        return True

    def _isolate(self, upload: Upload, error: PosError) -> bool:
        """Something in an upload cannot be taken: halve it until it stands alone. False when it does, and must wait."""
        if len(upload.entries) > 1:
            self._journal.split_upload(upload, [str(uuid4()), str(uuid4())])
        elif error.reason == "REQUEST_ID_REUSED":
            self._journal.split_upload(upload, [str(uuid4())])
        elif error.reason == "INTERNAL" and upload.entries:
            # The platform's fault, which may pass. A sale is never given up for it.
            return False
        else:
            self._journal.give_up(upload, error.reason, str(error))
        return True

    def _check_receipt(
        self,
        upload: Upload,
        answer: terminal_sync_service_pb2.SubmitBatchResponse,
        refused: Mapping[int, object],
    ) -> None:
        taken = [(number, entry) for number, entry in upload.entries if number not in refused]
        hashes = [signed.entry_hash(entry.content) for _, entry in taken]
        try:
            receipt = signed.verify_receipt(answer.receipt, self._issuer_keys())
        except (signed.SignatureWrong, signed.Unreadable) as error:
            raise PosError(
                "RECEIPT_WRONG", "The receipt is not the platform's. Sync again."
            ) from error
        said = (receipt.batch, receipt.terminal, list(receipt.sequences), receipt.entries_hash)
        numbers = [number for number, _ in taken]
        if said != (answer.batch.name, self._name, numbers, signed.receipt_hash(hashes)):
            raise PosError("RECEIPT_WRONG", "The receipt is for other entries. Sync again.")

    async def bring_results(
        self, platform: Platform, who: SignedIn, report: Report, progress: Progress
    ) -> None:
        """Fetch what became of sales whose result may still change.

        Raises:
            PosError: UNREACHABLE, …; what was stored before it stays so.
        """
        for batch in self._journal.undecided_batches():
            async for message in platform.watch(who, batch):
                if message.items:
                    await self._take_results(list(message.items), batch, report, progress)
            whole = await platform.batch(who, batch)
            await self._take_results(list(whole.items), batch, report, progress, final=True)

    async def _take_results(
        self,
        items: list[offline_pb2.Item],
        batch: str,
        report: Report,
        progress: Progress,
        *,
        final: bool = False,
    ) -> None:
        States = offline_pb2.Item.State  # noqa: N806 - a type
        results = [
            (
                item.name.removeprefix("items/"),
                States.Name(item.state).removeprefix("STATE_"),
                offline_pb2.Reason.Name(item.reason).removeprefix("REASON_"),
                item.detail,
                item.returned.minor_units,
            )
            for item in items
            if item.state != States.STATE_RECEIVED
        ]
        # A held item may still change, and one without a result has it to come.
        settled = {States.STATE_SETTLED, States.STATE_REFUSED}
        done = final and all(item.state in settled for item in items)
        async with self._turn:
            news = self._journal.save_results(results, batch, done=done)
        for sale in news:
            report.items.append(sale)
            progress(sale.reason, sale)
