"""What is no gRPC call at all, or one that is out to harm the next caller, through the real Envoy."""

import base64
import contextlib
import gzip
import json
import socket
import ssl
import zlib
from pathlib import Path
from urllib.request import urlopen

import grpc
import h2.config
import h2.connection
import h2.events
import pytest
from grpc import StatusCode

from tallystick.payment.v1 import payment_service_pb2 as pb
from tests.gateway import frame
from tests.outsider import LOGIN, PAY, PAYMENTS

FIELDS_INVALID = (StatusCode.INVALID_ARGUMENT, ("access.tallystick", "FIELDS_INVALID"))
ENCODING_UNSUPPORTED = (StatusCode.UNIMPLEMENTED, ("gateway.tallystick", "ENCODING_UNSUPPORTED"))
MESSAGE_TOO_LARGE = (StatusCode.RESOURCE_EXHAUSTED, ("gateway.tallystick", "MESSAGE_TOO_LARGE"))
# gRPC's own answers, before a service sees anything: they carry no details.
TOO_LARGE = (StatusCode.RESOURCE_EXHAUSTED, None)
BROKEN = (StatusCode.INTERNAL, None)
# A string of 64 MiB as a payment's reference: 64 kB once compressed.
BOMB = b"\x32\x80\x80\x80\x20" + bytes(64 << 20)


def said(answer):
    return answer.code, answer.reason


@pytest.fixture
def browser(outsider):
    with outsider.web() as found:
        yield found


@pytest.fixture
def a_second_caller(outsider):
    """Holds a test to having harmed nobody: calls go on, and no connection behind the gateway was lost."""
    before = upstream(outsider)
    yield
    for path, token in ((PAY, outsider.payers[1].token), (LOGIN, None)):
        for compression in (None, grpc.Compression.Gzip, grpc.Compression.Deflate):
            answer = outsider.ask(path, b"", token, compression=compression, timeout=7.5)
            assert said(answer) == FIELDS_INVALID
    assert upstream(outsider) == before


def upstream(outsider):
    """What Envoy counts of calls and connections that services ended."""
    query = "cluster\\.(payment|user)\\.(upstream_cx_destroy|upstream_rq_rx_reset|upstream_rq_5xx)$"
    page = f"{outsider.stack.endpoints.envoy_admin}/stats?format=json&filter={query}"
    with urlopen(page) as counters:  # noqa: S310 - of Envoy on this machine
        return json.load(counters)


@pytest.mark.parametrize(
    "content",
    [
        b"\xff" * 40,
        b"\x0a\xff\xff\xff\xff\x0f",  # a string longer than everything
        b"\x0a\x02\xc3\x28",  # no UTF-8
        b"\x0a\x24" + b"\xed\xa0\x80" * 12,  # UTF-16 surrogates in UTF-8
        b"\x1a" * 1_000,  # messages within messages, and no end
        b"\x1b" * 1_000,  # groups within groups, and no end
        b"\x1b\x1c" * 100_000,  # groups nobody asked for
        b"\x00\x00",  # field number 0
    ],
    ids=lambda content: content[:4].hex(),
)
def test_bytes_that_are_no_request_are_refused(outsider, browser, unchanged, *, content):
    token = outsider.payer.token

    for answer in (outsider.ask(PAY, content, token), browser.call(PAY, content, token=token)):
        assert said(answer) == FIELDS_INVALID
    assert said(outsider.ask(LOGIN, content)) == FIELDS_INVALID


def test_a_request_cut_off_anywhere_pays_nothing(outsider, unchanged):
    request = outsider.a_payment()
    request.ClearField("position")  # without it a payment is whole, and held for review
    content = request.SerializeToString()

    for length in range(len(content)):
        answer = outsider.ask(PAY, content[:length], outsider.payer.token)
        assert said(answer) == FIELDS_INVALID, length


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        pytest.param(b"", FIELDS_INVALID, id="nothing"),
        pytest.param(b"\0\0\0", FIELDS_INVALID, id="half of a head"),
        pytest.param(b"\0\0\0\0\x64abc", FIELDS_INVALID, id="a part of a message"),
        pytest.param(b"\0\xff\xff\xff\xffabc", TOO_LARGE, id="four gigabytes promised"),
        pytest.param(frame(b"abc", compressed=True), BROKEN, id="compressed, and not said how"),
    ],
)
@pytest.mark.usefixtures("a_second_caller", "unchanged")
def test_a_call_without_a_whole_message_is_refused_at_once(outsider, browser, *, body, expected):
    token = outsider.payer.token

    for path, who in ((PAY, token), (LOGIN, None), (PAYMENTS + "WatchPayments", token)):
        assert said(browser.call(path, token=who, body=body)) == expected


@pytest.mark.usefixtures("a_second_caller", "unchanged")
def test_a_message_that_is_too_large_is_refused_before_it_is_read(outsider, browser):
    large = b"\x32\x80\x80\x80\x03" + bytes(6 << 20)

    for path, token in ((PAY, outsider.payer.token), (LOGIN, None)):
        assert said(outsider.ask(path, large, token)) == MESSAGE_TOO_LARGE
        assert said(browser.call(path, large, token=token)) == MESSAGE_TOO_LARGE


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
@pytest.mark.usefixtures("a_second_caller", "unchanged")
def test_a_message_that_is_too_large_once_unpacked_is_refused_before_it_is_all_there(
    outsider, compression
):
    before = {name: peak_memory(outsider, name) for name in ("payment", "user")}

    pays = outsider.ask(PAY, BOMB, outsider.payer.token, compression=compression)
    signs_in = outsider.ask(LOGIN, BOMB, compression=compression)

    assert said(pays) == said(signs_in) == TOO_LARGE
    for name, bytes_before in before.items():
        assert peak_memory(outsider, name) - bytes_before < len(BOMB)


def peak_memory(outsider, name):
    """The most bytes that a process ever had in memory."""
    pid = outsider.stack.endpoints.processes[name]
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


@pytest.mark.parametrize("pack", [gzip.compress, zlib.compress], ids=["gzip", "deflate"])
@pytest.mark.usefixtures("a_second_caller")
def test_a_compressed_message_is_a_message_like_any_other(outsider, browser, pack):
    name = "gzip" if pack is gzip.compress else "deflate"
    request = outsider.a_payment()
    body = frame(pack(request.SerializeToString()), compressed=True)

    answer = browser.call(
        PAY, token=outsider.payer.token, body=body, headers={"grpc-encoding": name}
    )

    paid = pb.CreatePaymentResponse.FromString(answer.messages[0]).payment
    assert paid.request_id == request.request_id


@pytest.mark.usefixtures("a_second_caller", "unchanged")
def test_a_message_that_is_not_compressed_as_it_says_is_refused(outsider, browser):
    body = frame(b"this is no gzip", compressed=True)

    answer = browser.call(
        PAY, token=outsider.payer.token, body=body, headers={"grpc-encoding": "gzip"}
    )

    assert said(answer) == BROKEN


@pytest.mark.parametrize("encoding", ["snappy", "gzip, deflate", "GZIP", "", "zz\xff"])
@pytest.mark.usefixtures("a_second_caller", "unchanged")
def test_an_encoding_that_services_do_not_read_is_refused_by_name(outsider, browser, encoding):
    for path, token in ((PAY, outsider.payer.token), (LOGIN, None)):
        answer = browser.call(path, token=token, headers={"grpc-encoding": encoding})
        assert said(answer) == ENCODING_UNSUPPORTED


@pytest.mark.parametrize(
    ("content_type", "status"),
    [
        ("application/json", 415),
        ("text/html", 415),
        ("", 415),
        ("application/grpc-web+json", 200),
        ("application/grpc-web-texts", 200),
        ("application/grpcx", 200),
    ],
)
@pytest.mark.usefixtures("a_second_caller", "unchanged")
def test_a_content_that_services_do_not_read_is_refused(outsider, browser, content_type, status):
    for path, token in ((PAY, outsider.payer.token), (LOGIN, None)):
        headers = {"content-type": content_type, "authorization": f"Bearer {token}"}

        response, _ = browser.send("POST", path, headers, b"{}")

        assert response.status == status
        if status == 200:  # who asks nearly like gRPC is answered nearly like gRPC
            assert response.getheader("grpc-status") == str(StatusCode.UNIMPLEMENTED.value[0])


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "TRACE", "OPTIONS", "CONNECT"])
@pytest.mark.usefixtures("a_second_caller", "unchanged")
def test_what_is_no_post_reaches_no_service(outsider, browser, method):
    for path, token in ((PAY, outsider.payer.token), (LOGIN, "")):
        for headers in (
            {"content-type": "application/grpc-web+proto", "x-grpc-web": "1"},
            {"origin": "https://evil.example", "access-control-request-method": "POST"},
        ):
            sent = {**headers, "authorization": f"Bearer {token}"}
            response, _ = browser.send(method, path, sent, frame(b""))
            said = response.getheader("grpc-status")
            assert response.status in {400, 403, 415} or said in {"7", "16"}, (
                response.status,
                said,
            )


def test_a_browser_that_sends_text_is_served_and_one_that_sends_garbage_is_not(outsider, browser):
    text = {"content-type": "application/grpc-web-text"}

    good = browser.call(LOGIN, body=base64.b64encode(frame(b"")), headers=text)
    bad = browser.call(LOGIN, body=b"!!!!", headers=text)

    assert said(good) == FIELDS_INVALID
    assert said(bad) == (StatusCode.INVALID_ARGUMENT, ("gateway.tallystick", "REQUEST_MALFORMED"))


# A header that gRPC itself reads and cannot: grpcio 1.85 then refuses that header in every later call on the same
# connection, and all callers of a service share one.
POISON = [
    ("grpc-timeout", "zz"),
    ("grpc-timeout", "99999999H"),
    ("grpc-previous-rpc-attempts", "zz"),
    ("grpc-retry-pushback-ms", "zz"),
    ("grpc-status", "zz"),
    ("grpc-accept-encoding", "zz"),
    ("grpc-trace-bin", "!!!"),
    ("grpc-tags-bin", "!!!"),
    ("anything-bin", "!!!"),
    ("te", "zz"),
    ("content-encoding", "gzip"),
    ("traceparent", "zz"),
    ("user-agent", "zz\xff"),
    ("host", "another.example"),
]


@pytest.mark.parametrize(("name", "value"), POISON, ids=repr)
@pytest.mark.usefixtures("a_second_caller", "unchanged")
def test_a_header_that_cannot_be_read_harms_nobody_else(outsider, browser, name, value):
    for path, token in ((PAY, outsider.payer.token), (LOGIN, None)):
        answer = browser.call(path, token=token, headers={name: value})
        assert said(answer) == FIELDS_INVALID


@pytest.mark.parametrize(
    ("name", "value"),
    [(name, value) for name, value in POISON if name.startswith("grpc-") or name.endswith("-bin")],
    ids=repr,
)
@pytest.mark.usefixtures("a_second_caller", "unchanged")
def test_nor_does_one_that_comes_behind_the_message(outsider, name, value):
    for path, token in ((PAY, outsider.payer.token), (LOGIN, None)):
        answer = http2(outsider, path, token, trailers=[(name, value)])
        assert answer["grpc-status"] == str(StatusCode.INVALID_ARGUMENT.value[0])


@pytest.mark.parametrize(
    "headers",
    [
        [("x-long", "y" * 13_000)],
        [("x-long", "y" * 60_000)],
        [(f"x-{number}", "y") for number in range(200)],
        [("x_y", "1")],
        [("x-y", "a\0b")],
        [("Upper", "1")],
        [("connection", "close")],
        [("content-length", "1")],
    ],
    ids=lambda headers: f"{len(headers)} {headers[0][0]} {len(headers[0][1])}",
)
@pytest.mark.usefixtures("a_second_caller", "unchanged")
def test_headers_that_nobody_takes_end_that_call_alone(outsider, headers):
    # Over HTTP/2 the stream or the connection is reset, and there is no telling why; nothing reached a service.
    for path, token in ((PAY, outsider.payer.token), (LOGIN, None)):
        assert http2(outsider, path, token, headers=headers) == {}


def test_as_much_as_services_take_in_headers_gets_through(outsider):
    answer = outsider.ask(LOGIN, b"", metadata=[("x-long", "y" * 10_000)])

    assert said(answer) == FIELDS_INVALID


def http2(outsider, path, token, *, headers=(), trailers=()):
    """One call by hand, over a connection of its own. Answers its headers and trailers; nothing when it was reset."""
    at = outsider.stack.endpoints
    host, _, port = at.grpc.rpartition(":")
    context = ssl.create_default_context(cafile=at.ca_file)
    context.set_alpn_protocols(["h2"])
    settings = h2.config.H2Configuration(
        header_encoding="utf-8",
        validate_outbound_headers=False,
        normalize_outbound_headers=False,
    )
    connection = h2.connection.H2Connection(settings)
    connection.initiate_connection()
    sent = [
        (":method", "POST"),
        (":scheme", "https"),
        (":authority", at.grpc),
        (":path", path),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
        *headers,
    ]
    if token:
        sent.append(("authorization", f"Bearer {token}"))
    connection.send_headers(1, sent)
    connection.send_data(1, frame(b""), end_stream=not trailers)
    if trailers:
        connection.send_headers(1, trailers, end_stream=True)
    with (
        socket.create_connection((host, int(port)), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname=host) as secured,
        contextlib.suppress(ConnectionError),
    ):
        secured.sendall(connection.data_to_send())
        found = {}
        while received := secured.recv(65_536):
            for event in connection.receive_data(received):
                if isinstance(event, h2.events.ResponseReceived | h2.events.TrailersReceived):
                    found.update(event.headers)
                if isinstance(event, h2.events.StreamEnded):
                    return found
                if isinstance(event, h2.events.StreamReset | h2.events.ConnectionTerminated):
                    return {}
            secured.sendall(connection.data_to_send())
    return {}


@pytest.mark.usefixtures("a_second_caller", "unchanged")
def test_a_time_to_answer_in_that_has_passed_is_refused(outsider, browser):
    answer = browser.call(PAY, token=outsider.payer.token, headers={"grpc-timeout": "0m"})

    assert said(answer) == (
        StatusCode.DEADLINE_EXCEEDED,
        ("gateway.tallystick", "CALL_TIMED_OUT"),
    )
