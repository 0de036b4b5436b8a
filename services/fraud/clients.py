"""The service this one asks: user, about vendors that have not arrived by the event stream."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable

import grpc

from services.fraud.domain.assessment import Site
from services.fraud.domain.sites import VendorSites
from tallystick.access.v1 import access_pb2
from tallystick.user.v1 import party_service_pb2, user_pb2
from tallystick.user.v1.party_service_pb2_grpc import PartyServiceStub

# What the contract lets one call ask for.
_NAMES_MAX = 500


class Parties:
    """Asks the user service for vendors and their sites."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = PartyServiceStub(channel)

    async def find(
        self, vendors: Collection[str], *, deadline_seconds: float
    ) -> dict[str, VendorSites]:
        """The vendors among some names, with their sites. Everybody else is left out.

        Raises:
            AioRpcError: no answer within the deadline, or a refusal.
        """
        asked = sorted(vendors)
        answers = await asyncio.gather(
            *(
                self._stub.BatchGetParties(
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


def vendor_sites(user: user_pb2.User, sites: Iterable[user_pb2.Site]) -> VendorSites:
    """A vendor's sites as the checks use them."""
    return VendorSites(
        user.version,
        tuple(
            Site(site.name, site.position.latitude, site.position.longitude, site.open)
            for site in sites
        ),
    )
