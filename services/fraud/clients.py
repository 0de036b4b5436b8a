"""The service this one asks: user, about accounts that have not arrived by the event stream."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable

import grpc

from services.fraud import wire
from services.fraud.domain.assessment import Site
from services.fraud.domain.sites import VendorSites
from services.fraud.domain.tiers import Standing, Tier
from tallystick.access.v1 import access_pb2
from tallystick.user.v1 import party_service_pb2, user_pb2, user_service_pb2
from tallystick.user.v1.party_service_pb2_grpc import PartyServiceStub
from tallystick.user.v1.user_service_pb2_grpc import UserServiceStub

# What the contract lets one call ask for.
_NAMES_MAX = 500
_PAGE_MAX = 200


class Accounts:
    """Asks the user service for vendors and their sites, and for payers' tiers."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._parties = PartyServiceStub(channel)
        self._users = UserServiceStub(channel)

    async def vendors(
        self, names: Collection[str], *, deadline_seconds: float
    ) -> dict[str, VendorSites]:
        """The vendors among some names, with their sites. Everybody else is left out.

        Raises:
            AioRpcError: no answer within the deadline, or a refusal.
        """
        asked = sorted(names)
        answers = await asyncio.gather(
            *(
                self._parties.BatchGetParties(
                    party_service_pb2.BatchGetPartiesRequest(
                        names=asked[start : start + _NAMES_MAX]
                    ),
                    timeout=deadline_seconds,
                )
                for start in range(0, len(asked), _NAMES_MAX)
            )
        )
        return {
            party.user.name: vendor_sites(party.user, party.sites)
            for answer in answers
            for party in answer.parties
            if party.user.role == access_pb2.ROLE_VENDOR
        }

    async def above_basic(self, *, deadline_seconds: float) -> dict[str, Standing]:
        """Every account above the lowest tier.

        Who moves from one tier to another meanwhile may be missing, or there as before: the event
        stream tells of it, from wherever it stood when this was asked.

        Args:
            deadline_seconds: For each page.

        Raises:
            AioRpcError: no answer within the deadline, or a refusal.
        """
        found: dict[str, Standing] = {}
        for tier in Tier:
            if tier is Tier.BASIC:
                continue
            request = user_service_pb2.ListUsersRequest(page_size=_PAGE_MAX, tier=wire.TIERS[tier])
            while True:
                page = await self._users.ListUsers(request, timeout=deadline_seconds)
                found.update((user.name, standing(user)) for user in page.users)
                if not page.next_page_token:
                    break
                request.page_token = page.next_page_token
        return found


def vendor_sites(user: user_pb2.User, sites: Iterable[user_pb2.Site]) -> VendorSites:
    """A vendor's sites as the checks use them."""
    return VendorSites(
        user.version,
        tuple(
            Site(site.name, site.position.latitude, site.position.longitude, site.open)
            for site in sites
        ),
    )


def standing(user: user_pb2.User) -> Standing:
    """A payer's tier as the checks use it."""
    return Standing(user.version, wire.tier(user.tier))
