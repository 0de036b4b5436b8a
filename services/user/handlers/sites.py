"""The places a vendor sells at."""

from __future__ import annotations

from sqlalchemy.ext.asyncio import AsyncConnection

from services import names, paging
from services.rpc import identity
from services.rpc import refusals as access_refusals
from services.rpc.server import Context
from services.user import messages
from services.user.domain import refusals
from services.user.domain import site as sites
from services.user.domain import user as users
from services.user.domain.site import Site
from services.user.domain.user import User
from services.user.events import Change, Circumstances
from services.user.handlers import answers
from services.user.handlers.recorder import Recorder
from services.user.handlers.users import page_position
from services.user.messages import site_message, site_messages
from services.user.store import requests as request_store
from services.user.store import users as user_store
from services.user.store.requests import Answered
from tallystick.user.v1 import site_service_pb2 as pb
from tallystick.user.v1 import site_service_pb2_grpc


class SiteService(site_service_pb2_grpc.SiteServiceServicer):
    """SiteService.

    Args:
        recorder: Transactions.
    """

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    async def CreateSite(
        self, request: pb.CreateSiteRequest, context: Context
    ) -> pb.CreateSiteResponse:
        caller = identity.caller()
        key = answers.request_key(caller.user_id, request.request_id)
        body_hash = answers.body_hash(request)

        async def work(connection: AsyncConnection) -> bytes:
            vendor = await user_store.lock_user(connection, caller.user_id)
            if vendor is None:
                raise access_refusals.unauthenticated()
            earlier = await request_store.find_answer(connection, key)
            if earlier is not None:
                if earlier.body_hash != body_hash:
                    raise refusals.request_id_reused(request.request_id)
                return earlier.answer
            existing = await user_store.list_sites(connection, vendor.user_id)
            sites.check_may_open(vendor, existing)
            now = self._recorder.now()
            site = Site(
                vendor.user_id,
                self._recorder.new_id(),
                request.site.display_name,
                messages.position(request.site.position),
                is_open=True,
                create_time=now,
            )
            await user_store.insert_site(connection, site)
            await self._sites_changed(connection, vendor, Circumstances(caller.subject, now))
            answer = pb.CreateSiteResponse(site=site_message(site)).SerializeToString()
            await request_store.save_answer(connection, key, Answered(body_hash, answer))
            return answer

        return pb.CreateSiteResponse.FromString(await self._recorder.change(work))

    async def ListSites(
        self, request: pb.ListSitesRequest, context: Context
    ) -> pb.ListSitesResponse:
        caller = identity.caller()
        vendor_id = names.last_id(request.parent)
        if not caller.is_admin and caller.user_id != vendor_id:
            raise refusals.user_not_found(request.parent)
        query = ("sites", request.parent)
        after = page_position(request.page_token, *query) if request.page_token else None
        size = paging.page_size(request.page_size)

        async def work(connection: AsyncConnection) -> list[Site]:
            if await user_store.find_user(connection, vendor_id) is None:
                raise refusals.user_not_found(request.parent)
            return await user_store.list_sites(connection, vendor_id, after=after, limit=size + 1)

        found = await self._recorder.read(work)
        page = found[:size]
        return pb.ListSitesResponse(
            sites=site_messages(page),
            next_page_token=paging.issue(page[-1].site_id.bytes, *query)
            if len(found) > size
            else "",
        )

    async def CloseSite(
        self, request: pb.CloseSiteRequest, context: Context
    ) -> pb.CloseSiteResponse:
        caller = identity.caller()
        site_id = names.last_id(request.name)
        if names.owner_id(request.name) != caller.user_id:
            raise refusals.site_not_found(request.name)

        async def work(connection: AsyncConnection) -> Site:
            vendor = await user_store.lock_user(connection, caller.user_id)
            if vendor is None:
                raise access_refusals.unauthenticated()
            site = await user_store.find_site(connection, vendor.user_id, site_id)
            if site is None:
                raise refusals.site_not_found(request.name)
            closed = sites.close(site)
            if closed != site:
                await user_store.update_site(connection, closed)
                now = self._recorder.now()
                await self._sites_changed(connection, vendor, Circumstances(caller.subject, now))
            return closed

        return pb.CloseSiteResponse(site=site_message(await self._recorder.change(work)))

    async def _sites_changed(
        self, connection: AsyncConnection, vendor: User, circumstances: Circumstances
    ) -> None:
        # A site is part of what others know of its vendor, so it moves the vendor's version.
        vendor = users.renew(vendor, now=circumstances.now)
        await user_store.update_user(connection, vendor)
        fact = await self._recorder.user_changed(
            connection, circumstances, Change.CHANGE_SITES, vendor
        )
        await self._recorder.record(connection, fact)
