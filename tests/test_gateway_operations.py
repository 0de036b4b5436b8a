"""What happens behind the gateway while clients call: failures, rotations, restarts. Real Envoy, real control plane."""

from __future__ import annotations

import asyncio
import http.client
import itertools
import socket
import threading
import time
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import timedelta

import grpc
import pytest
from envoy_data_plane.envoy.config.route import v3 as envoy_route
from envoy_data_plane.envoy.type.matcher import v3 as matcher
from envoy_data_plane.google.protobuf import Any
from google.rpc import error_details_pb2
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from services.gateway.domain import snapshot as snapshots
from services.gateway.domain.edge import Address
from services.gateway.server import assemble
from services.rpc import refusals
from tests.gateway import until
from tests.tokens import SigningKey

CODE = grpc.StatusCode
PAYMENTS = "/tallystick.payment.v1.PaymentService/"
CREATE = PAYMENTS + "CreatePayment"
WATCH_PAYMENTS = PAYMENTS + "WatchPayments"
USERS = "/tallystick.user.v1.UserService/"
# Takes an empty request and may be repeated by the gateway.
LIST_USERS = USERS + "ListUsers"
# Takes an empty request and may not.
ROTATE_KEYS = "/tallystick.user.v1.AuthService/RotateSigningKeys"
LIST_CASES = "/tallystick.admin.v1.ReviewService/ListCases"


@contextmanager
def behaving(gateway, service, path, behaviour):
    """Meanwhile, every replica of a service answers an RPC in its own way."""
    for backend in gateway.backends[service]:
        backend.behaviour[path] = behaviour
    try:
        yield
    finally:
        for backend in gateway.backends[service]:
            del backend.behaviour[path]


def refuses_once_then_answers(times):
    left = itertools.count(times, -1)

    async def behaviour(request, context):
        if next(left) > 0:
            raise refusals.dependency_unavailable("database")
        await context.abort(CODE.FAILED_PRECONDITION, "answered")

    return behaviour


def test_what_may_be_repeated_is_repeated_when_a_backend_is_unavailable(gateway):
    with behaving(gateway, "user", LIST_USERS, refuses_once_then_answers(2)):
        answer = gateway.call(LIST_USERS, token=gateway.token("ADMIN"))

    assert (answer.code, answer.message) == (CODE.FAILED_PRECONDITION, "answered")


@pytest.mark.parametrize(
    "asked",
    [
        [],
        [
            ("x-envoy-retry-grpc-on", "unavailable"),
            ("x-envoy-retry-on", "5xx"),
            ("x-envoy-max-retries", "5"),
        ],
    ],
    ids=["left alone", "asked for by the caller"],
)
def test_what_changes_something_is_never_repeated_by_the_gateway(gateway, asked):
    before = len(gateway.backends["user"][0].calls)
    with behaving(gateway, "user", ROTATE_KEYS, refuses_once_then_answers(1)):
        answer = gateway.call(ROTATE_KEYS, token=gateway.token("ADMIN"), metadata=asked)

    assert answer.code is CODE.UNAVAILABLE
    calls = gateway.backends["user"][0].calls[before:]
    assert len([call for call in calls if call.path == ROTATE_KEYS]) == 1


def test_a_deadline_is_kept_by_the_gateway_itself(gateway):
    async def sleeps(request, context):
        await asyncio.sleep(5)

    with behaving(gateway, "user", LIST_USERS, sleeps), gateway.web() as browser:
        begin = time.monotonic()
        answer = browser.call(
            LIST_USERS, token=gateway.token("ADMIN"), headers={"grpc-timeout": "200m"}
        )

    assert time.monotonic() - begin < 2
    # The gateway's, or the service's a moment earlier: it hears of the deadline too.
    assert answer.code is CODE.DEADLINE_EXCEEDED


def test_a_call_without_a_deadline_or_with_a_longer_one_gets_its_rpcs(gateway):
    async def sleeps(request, context):
        await asyncio.sleep(5)

    plane, good = gateway.plane, gateway.plane.discovery.snapshot
    short = [replace(route, timeout=timedelta(milliseconds=300)) for route in plane._routes]
    updates = gateway.stat("http.public.rds.public.update_success")

    publish(gateway, assemble(plane._settings, short, plane._inputs))
    with behaving(gateway, "user", LIST_USERS, sleeps), gateway.web() as browser:
        until(lambda: gateway.stat("http.public.rds.public.update_success") > updates)
        without = browser.call(LIST_USERS, token=gateway.token("ADMIN"))
        longer = gateway.call(LIST_USERS, token=gateway.token("ADMIN"), timeout=10)
    publish(gateway, good)

    assert without.code is longer.code is CODE.DEADLINE_EXCEEDED
    assert without.reason == ("gateway.tallystick", "CALL_TIMED_OUT")


def test_a_service_that_is_gone_is_unavailable_and_comes_back(gateway):
    (admin,) = gateway.backends["admin"]
    token = gateway.token("ADMIN")
    assert gateway.call(LIST_CASES, token=token).reached_the_service

    gateway.run(admin.stop())
    with gateway.web() as browser:
        gone = [gateway.call(LIST_CASES, token=token), browser.call(LIST_CASES, token=token)]
    gateway.run(admin.start())

    assert {answer.code for answer in gone} == {CODE.UNAVAILABLE}
    assert {answer.reason for answer in gone} == {("access.tallystick", "DEPENDENCY_UNAVAILABLE")}
    assert gone[0].detail(error_details_pb2.RetryInfo).retry_delay.seconds == 1
    until(lambda: gateway.call(LIST_CASES, token=token).reached_the_service)


def test_a_replica_that_says_not_serving_gets_no_more_calls_and_none_is_lost(gateway):
    leaving, staying = gateway.backends["payment"]
    with calling(gateway, WATCH_PAYMENTS) as answers:
        gateway.run(leaving.say_not_serving())
        until(lambda: gateway.stat("cluster.payment.membership_healthy") == 1)
        settled = len(leaving.calls)
        until(lambda: len(answers) > 50)
    assert {answer.code for answer in answers} == {CODE.OK}
    assert len(leaving.calls) == settled
    assert staying.calls

    gateway.run(leaving.stop())
    gateway.run(leaving.start())
    until(lambda: gateway.stat("cluster.payment.membership_healthy") == 2)


@contextmanager
def calling(gateway, path):
    """Calls one after the other, from many users, for as long as the block runs."""
    answers = []
    ended = threading.Event()

    def call():
        while not ended.is_set():
            answers.append(gateway.call(path, token=gateway.token("USER")))

    thread = threading.Thread(target=call)
    thread.start()
    try:
        yield answers
    finally:
        ended.set()
        thread.join()


# Two where the machine has nothing else to do; other tests run beside this one.
_KEY_SECONDS = 8


def test_a_new_signing_key_counts_within_seconds_and_the_old_one_goes_on(gateway):
    old, new = gateway.key, SigningKey()
    old_token = gateway.token("USER")
    assert gateway.call(CREATE, token=old_token).headers["x-ratelimit-remaining"] == "9"
    refused = gateway.call(WATCH_PAYMENTS, token=SigningKey().sign({}))
    assert refused.code is CODE.UNAUTHENTICATED

    gateway.rotated(new, old)

    new_token = gateway.token("USER")
    until(
        lambda: gateway.call(WATCH_PAYMENTS, token=new_token).code is CODE.OK, seconds=_KEY_SECONDS
    )
    # The same bucket as before, not a full one.
    assert gateway.call(CREATE, token=old_token).headers["x-ratelimit-remaining"] == "8"

    gateway.rotated(new)
    # Also a token that Envoy has verified before and remembers.
    until(
        lambda: gateway.call(WATCH_PAYMENTS, token=old_token).code is CODE.UNAUTHENTICATED,
        seconds=_KEY_SECONDS,
    )


def test_a_renewed_certificate_is_shown_to_new_clients_and_ends_no_call(gateway):
    before = gateway.certificate()

    with calling(gateway, WATCH_PAYMENTS) as answers:
        gateway.renew_certificate()
        until(lambda: gateway.certificate() != before)

    assert {answer.code for answer in answers} == {CODE.OK}


def test_a_restarted_control_plane_disturbs_nobody_and_takes_over(gateway):
    watched = gateway.token("USER")
    gateway.call(CREATE, token=watched)
    updates = gateway.stat("listener_manager.listener_modified")

    with calling(gateway, WATCH_PAYMENTS) as answers:
        gateway.run(gateway.restart_plane(away_seconds=0.5))
        until(lambda: gateway.stat("control_plane.connected_state") == 1)
        until(lambda: gateway.plane.discovery.envoys == 1)

    assert {answer.code for answer in answers} == {CODE.OK}
    assert gateway.stat("listener_manager.listener_modified") == updates
    assert gateway.call(CREATE, token=watched).headers["x-ratelimit-remaining"] == "8"
    gateway.rotated(SigningKey(), gateway.key)
    token = gateway.token("USER")
    until(lambda: gateway.call(WATCH_PAYMENTS, token=token).code is CODE.OK, seconds=5)


def test_a_configuration_that_envoy_rejects_is_surfaced_and_changes_nothing(gateway):
    good = gateway.plane.discovery.snapshot

    publish(gateway, with_bad_routes(good))

    until(lambda: gateway.plane.discovery.rejections)
    ((node, kind),) = gateway.plane.discovery.rejections
    assert (node, kind) == ("test", "RouteConfiguration")
    assert "missing ]" in gateway.plane.discovery.rejections[node, kind]
    assert gateway.call(WATCH_PAYMENTS, token=gateway.token("USER")).code is CODE.OK

    publish(gateway, good)
    until(lambda: not gateway.plane.discovery.rejections)


def publish(gateway, snapshot):
    async def on_its_loop():
        gateway.plane.discovery.publish(snapshot)

    gateway.run(on_its_loop())


def with_bad_routes(snapshot):
    table = envoy_route.RouteConfiguration(
        name="public",
        virtual_hosts=[
            envoy_route.VirtualHost(
                name="public",
                domains=["*"],
                routes=[
                    envoy_route.Route(
                        match=envoy_route.RouteMatch(safe_regex=matcher.RegexMatcher(regex="[")),
                        direct_response=envoy_route.DirectResponseAction(status=200),
                    )
                ],
            )
        ],
    )
    return {**snapshot, snapshots.ROUTES: snapshots.Resources.of({"public": Any.pack(table)})}


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps the spans it is sent."""

    def __init__(self):
        self.spans = []

    async def Export(self, request, context):
        for of_resource in request.resource_spans:
            for of_scope in of_resource.scope_spans:
                self.spans.extend(of_scope.spans)
        return trace_service_pb2.ExportTraceServiceResponse()


@pytest.fixture
def collector(gateway):
    """(the collector, its address), and the gateway traces every call to it."""
    kept = Collector()

    async def start():
        server = grpc.aio.server()
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(kept, server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        return server, port

    server, port = gateway.run(start())
    plane, good = gateway.plane, gateway.plane.discovery.snapshot
    edge = replace(plane._settings.edge, collector=Address("127.0.0.1", port), trace_percent=100.0)
    change_listener(
        gateway, assemble(replace(plane._settings, edge=edge), plane._routes, plane._inputs)
    )
    yield kept
    change_listener(gateway, good)
    gateway.run(server.stop(None))


def change_listener(gateway, snapshot):
    before = gateway.stat("listener_manager.listener_modified")
    publish(gateway, snapshot)
    until(lambda: gateway.stat("listener_manager.listener_modified") == before + 1)
    # Connections made before still use the listener, and the buckets, of then.
    gateway.reconnect()


def test_a_sampled_call_is_one_trace_from_the_gateway_to_the_service(gateway, collector):
    subject = "users/0c5cb6a2-8f6e-44dd-8c61-34ab32f0fd04"
    token = gateway.token("USER", subject=subject)
    forced = "00-11111111111111111111111111111111-2222222222222222-00"

    for _ in range(10):  # Envoy sends spans when it has a few.
        gateway.call(WATCH_PAYMENTS, token=token, metadata=[("traceparent", forced)])

    calls = [call for each in gateway.backends["payment"] for call in each.calls]
    arrived = [call.metadata["traceparent"] for call in calls if call.caller.subject == subject]
    # Sampled by us, whatever the caller asks for.
    assert {header[-2:] for header in arrived} == {"01"}
    assert "1" * 32 not in {header[3:35] for header in arrived}
    until(lambda: {span.trace_id.hex() for span in collector.spans} & {h[3:35] for h in arrived})


def test_envoy_shows_its_state_and_nothing_else_where_it_is_observed(gateway):
    def status(path, method="GET"):
        connection = http.client.HTTPConnection("127.0.0.1", gateway.observe_port, timeout=5)
        connection.request(method, path)
        with closing(connection):
            return connection.getresponse().status

    assert status("/ready") == 200
    assert status("/stats/prometheus") == 200
    assert status("/config_dump") == 404
    assert status("/quitquitquit") == 404
    assert status("/stats/prometheus", "POST") == 404


def test_a_port_that_somebody_else_has_is_an_error_and_not_shared(gateway):
    plane, good = gateway.plane, gateway.plane.discovery.snapshot
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        edge = replace(plane._settings.edge, listen=Address(*taken.getsockname()))
        settings = replace(plane._settings, edge=edge)

        publish(gateway, assemble(settings, plane._routes, plane._inputs))
        until(lambda: gateway.plane.discovery.rejections)

    assert "Address already in use" in gateway.plane.discovery.rejections["test", "Listener"]
    publish(gateway, good)
    until(lambda: not gateway.plane.discovery.rejections)
    assert gateway.call(WATCH_PAYMENTS, token=gateway.token("USER")).code is CODE.OK


def test_a_listener_that_changes_keeps_its_port_and_loses_no_call(gateway):
    plane = gateway.plane
    edge = replace(plane._settings.edge, rate_subjects_max=100_000)
    settings = replace(plane._settings, edge=edge)
    good = plane.discovery.snapshot

    with calling(gateway, WATCH_PAYMENTS) as answers:
        change_listener(gateway, assemble(settings, plane._routes, plane._inputs))
        change_listener(gateway, good)
        seen = len(answers)
        until(lambda: len(answers) > seen + 20)

    assert {answer.code for answer in answers} == {CODE.OK}
    assert gateway.plane.discovery.rejections == {}
