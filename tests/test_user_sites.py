"""A vendor's sites, and what others may know of an account."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from uuid_utils import uuid4

from services.user.domain import site as site_rules
from tallystick.event.v1 import event_pb2
from tallystick.user.v1 import (
    party_service_pb2,
    party_service_pb2_grpc,
    site_service_pb2,
)
from tests.user_service import a_site, reason_of, refusal_of, serving_users


@pytest.fixture
async def users(tls_for, valkey_url, database_url, tmp_path):
    async with serving_users(tls_for, valkey_url, database_url("user"), tmp_path) as replica:
        yield replica


@pytest.fixture
async def vendor(users):
    return await users.approved("teashop", vendor=True)


@pytest.fixture
async def metadata(users, vendor):
    return await users.person("teashop")


def a_request(name="Tea by the station", request_id=None):
    return site_service_pb2.CreateSiteRequest(
        request_id=request_id or str(uuid4()), site=a_site(name)
    )


async def close(users, name, metadata):
    request = site_service_pb2.CloseSiteRequest(name=name)
    return (await users.sites.CloseSite(request, metadata=metadata)).site


async def test_a_vendor_opens_a_site(users, vendor, metadata):
    site = (await users.sites.CreateSite(a_request(), metadata=metadata)).site

    assert site.name.startswith(f"{vendor.name}/sites/")
    assert site.open
    found = await users.get_user(vendor.name, metadata)
    assert [each.display_name for each in found.sites] == ["Tea by the lake", "Tea by the station"]
    assert found.user.version == vendor.version + 1
    event = (await users.around.events())[-1]
    assert event.user_changed.change == event_pb2.UserChanged.CHANGE_SITES
    assert event.user_changed.user == found.user
    assert event.user_changed.sites == found.sites


async def test_the_same_request_sent_several_times_at_once_opens_one_site(users, vendor, metadata):
    request = a_request()

    answers = await asyncio.gather(
        *(users.sites.CreateSite(request, metadata=metadata) for _ in range(3))
    )

    assert all(answer == answers[0] for answer in answers)
    assert len((await users.get_user(vendor.name, metadata)).sites) == 2


async def test_a_request_id_with_another_body_is_refused(users, vendor, metadata):
    first = a_request()
    await users.sites.CreateSite(first, metadata=metadata)

    refusal = await refusal_of(
        users.sites.CreateSite(a_request("Elsewhere", first.request_id), metadata=metadata)
    )

    assert refusal.code is grpc.StatusCode.ALREADY_EXISTS
    assert refusal.reason == "REQUEST_ID_REUSED"


async def test_a_vendor_pending_approval_opens_no_site(users):
    await users.register("teashop", vendor=True)

    call = users.sites.CreateSite(a_request(), metadata=await users.person("teashop"))
    refusal = await refusal_of(call)

    assert refusal.reason == "USER_STATE_WRONG"
    assert refusal.metadata == {"state": "PENDING_APPROVAL", "needed": "ACTIVE"}


async def test_a_vendor_opens_no_more_sites_than_the_limit(users, vendor, metadata, monkeypatch):
    monkeypatch.setattr(site_rules, "OPEN_SITES_MAX", 2)
    await users.sites.CreateSite(a_request(), metadata=metadata)

    refusal = await refusal_of(users.sites.CreateSite(a_request(), metadata=metadata))

    assert refusal.code is grpc.StatusCode.FAILED_PRECONDITION
    assert (refusal.reason, refusal.metadata) == ("TOO_MANY_SITES", {"limit": "2"})


async def test_a_position_off_the_map_is_refused(users, vendor, metadata):
    request = a_request()
    request.site.position.latitude = float("nan")

    refusal = await refusal_of(users.sites.CreateSite(request, metadata=metadata))

    assert refusal.metadata == {"field": "site.position.latitude"}


async def test_a_payer_has_no_sites(users):
    await users.approved("asha")

    call = users.sites.CreateSite(a_request(), metadata=await users.person("asha"))

    assert await reason_of(call) == "CALLER_NOT_ALLOWED"


async def test_closing_a_site_keeps_it_on_record_and_closing_it_again_changes_nothing(
    users, vendor, metadata
):
    site = (await users.sites.CreateSite(a_request(), metadata=metadata)).site

    closed = await close(users, site.name, metadata)
    events = len(await users.around.events())
    again = await close(users, site.name, metadata)

    assert again == closed
    assert not closed.open
    assert len(await users.around.events()) == events
    found = await users.get_user(vendor.name, metadata)
    assert [each.open for each in found.sites] == [True, False]


async def test_a_site_that_is_not_ones_own_is_not_found(users, vendor, metadata):
    other = await users.approved("other", vendor=True)
    theirs = (await users.get_user(other.name, await users.admin())).sites[0].name
    nowhere = f"{vendor.name}/sites/{uuid4()}"

    for name in (theirs, nowhere):
        refusal = await refusal_of(close(users, name, metadata))
        assert refusal.code is grpc.StatusCode.NOT_FOUND
        assert (refusal.reason, refusal.metadata) == ("SITE_NOT_FOUND", {"name": name})


async def test_sites_are_listed_oldest_first_a_page_at_a_time(users, vendor, metadata):
    for number in range(4):
        await users.sites.CreateSite(a_request(f"Shop {number}"), metadata=metadata)
    request = site_service_pb2.ListSitesRequest(parent=vendor.name, page_size=2)
    pages = []
    while True:
        answer = await users.sites.ListSites(request, metadata=metadata)
        pages.append([site.display_name for site in answer.sites])
        if not answer.next_page_token:
            break
        request.page_token = answer.next_page_token

    assert pages == [["Tea by the lake", "Shop 0"], ["Shop 1", "Shop 2"], ["Shop 3"]]


async def test_an_admin_lists_any_vendors_sites_and_others_only_their_own(users, vendor, metadata):
    await users.approved("other", vendor=True)
    request = site_service_pb2.ListSitesRequest(parent=vendor.name)

    answer = await users.sites.ListSites(request, metadata=await users.admin())
    assert len(answer.sites) == 1
    refusal = await refusal_of(users.sites.ListSites(request, metadata=await users.person("other")))
    assert (refusal.reason, refusal.metadata) == ("USER_NOT_FOUND", {"name": vendor.name})
    request.parent = f"users/{uuid4()}"
    call = users.sites.ListSites(request, metadata=await users.admin())
    assert await reason_of(call) == "USER_NOT_FOUND"


async def test_a_page_token_of_another_vendors_list_is_refused(users, vendor, metadata):
    await users.sites.CreateSite(a_request(), metadata=metadata)
    request = site_service_pb2.ListSitesRequest(parent=vendor.name, page_size=1)
    token = (await users.sites.ListSites(request, metadata=metadata)).next_page_token
    other = await users.approved("other", vendor=True)

    request = site_service_pb2.ListSitesRequest(parent=other.name, page_token=token)

    call = users.sites.ListSites(request, metadata=await users.person("other"))
    assert await reason_of(call) == "PAGE_TOKEN_INVALID"


async def test_other_services_are_told_of_accounts_and_their_sites(users, vendor):
    asha = await users.register("asha")
    request = party_service_pb2.BatchGetPartiesRequest(
        names=[asha.name, vendor.name, f"users/{uuid4()}", asha.name]
    )

    async with users.around.calling(users.port, "payment") as calls:
        stub = party_service_pb2_grpc.PartyServiceStub(calls)
        answer = await stub.BatchGetParties(request)
        nobody = await stub.BatchGetParties(party_service_pb2.BatchGetPartiesRequest())

    parties = {party.user.name: party for party in answer.parties}
    assert len(answer.parties) == 2
    assert parties[asha.name].user == asha
    assert not parties[asha.name].sites
    assert parties[vendor.name].user == vendor
    assert len(parties[vendor.name].sites) == 1
    assert not nobody.parties


async def test_people_are_not_told_of_parties(users):
    call = users.parties.BatchGetParties(
        party_service_pb2.BatchGetPartiesRequest(), metadata=await users.admin()
    )

    assert await reason_of(call) == "CALLER_NOT_ALLOWED"
