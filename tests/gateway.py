"""A real gateway: Envoy, its control plane, and stand-ins for the services behind it."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import http.client
import json
import socket
import ssl
import struct
import threading
import time
import urllib.request
from datetime import UTC, datetime
from urllib.parse import unquote

import grpc
from google.protobuf import message_factory
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from cli import pki, process
from services import streams
from services.environment import Environment
from services.gateway import contract
from services.gateway.domain.bootstrap import Bootstrap, bootstrap, envoy_command
from services.gateway.domain.edge import Address
from services.gateway.server import ControlPlane, read_settings
from tests.event_stream import an_event, publish
from tests.fakes.backends import Backend
from tests.tokens import SigningKey, claims_of, key_set

ORIGIN = "https://shop.example"
PUBLIC_BURST = 200


class Gateway:
    """All of it. The servers run in a thread of their own; tests call from theirs.

    Attributes:
        backends: By service; `payment` has two replicas.
        port: Where clients connect.
        key: The key that `token` signs with.
        keys: What the user service answers as its key set.
        plane: The control plane.
    """

    def __init__(self, directory, tls_for, redis_url):
        self._directory = directory
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._authority = pki.Authority(directory / "public", pki.PUBLIC, now=datetime.now(UTC))
        self._listener = self._authority.issue_listener()
        self._tls_for = tls_for
        self.redis_url = redis_url
        self.backends = {}
        self.port = process.free_port()
        self.admin_port = process.free_port()
        self.observe_port = process.free_port()
        self.log = directory / "envoy.log"
        self.key = SigningKey()
        self.keys = key_set(self.key)
        self.plane = None
        self.plane_port = 0
        self.envoy = None
        self.channel = None
        self._left = []

    def start(self):
        self._thread.start()
        services = ["payment", "payment", *sorted(self._routed() - {"payment"})]
        for service in services:
            backend = Backend(service, self._tls_for(service))
            self.backends.setdefault(service, []).append(backend)
            self.run(backend.start())
        for backend in self.backends["user"]:
            backend.behaviour["/tallystick.user.v1.AuthService/GetSigningKeys"] = self._answer_keys
        self.run(self._start_plane("127.0.0.1:0"))
        self._start_envoy()
        self.reconnect()

    def stop(self):
        for channel in (*self._left, self.channel):
            if channel is not None:
                channel.close()
        if self.envoy is not None:
            process.stop(self.envoy, grace_seconds=5)
        if self.plane is not None:
            self.run(self.plane.stop())
        for backends in self.backends.values():
            for backend in backends:
                self.run(backend.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def run(self, coroutine):
        """Run a coroutine where the servers run; answers what it does."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(30)

    def variables(self):
        tls = self._tls_for("gateway")
        addresses = {
            f"TALLYSTICK_{service.upper()}_ADDRESSES": ",".join(each.address for each in backends)
            for service, backends in self.backends.items()
        }
        return addresses | {
            "TALLYSTICK_PUBLIC_LISTEN": f"127.0.0.1:{self.port}",
            "TALLYSTICK_REDIS_URL": self.redis_url,
            "TALLYSTICK_TLS_CERT_FILE": str(tls.certificate_file),
            "TALLYSTICK_TLS_KEY_FILE": str(tls.key_file),
            "TALLYSTICK_TLS_CA_FILE": str(tls.ca_file),
            "TALLYSTICK_PUBLIC_TLS_CERT_FILE": str(self._listener.certificate_file),
            "TALLYSTICK_PUBLIC_TLS_KEY_FILE": str(self._listener.key_file),
            "TALLYSTICK_WEB_ORIGINS": ORIGIN,
            # All tests call from one address.
            "TALLYSTICK_RATE_PUBLIC": f"{PUBLIC_BURST}/1/1000",
        }

    async def restart_plane(self, *, away_seconds):
        """The control plane goes, and another comes in its place."""
        await self.plane.stop()
        await asyncio.sleep(away_seconds)
        await self._start_plane(f"127.0.0.1:{self.plane_port}")

    def renew_certificate(self):
        """Another certificate for clients lies on the disk; the control plane looks now and not in 15 s."""
        self._authority.issue_listener()
        self._loop.call_soon_threadsafe(self.plane._changed.set)

    def certificate(self):
        """What a new client is shown, DER."""
        context = ssl.create_default_context(cafile=str(self._listener.ca_file))
        with (
            socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection,
            context.wrap_socket(connection, server_hostname="127.0.0.1") as secured,
        ):
            assert secured.version() == "TLSv1.3"
            return secured.getpeercert(binary_form=True)

    def rotated(self, *keys):
        """The user service has these keys from now on, the first of them signs, and says so."""
        self.key, self.keys = keys[0], key_set(*keys)
        event = an_event("user", "keys", signing_key_rotated={"key_id": keys[0].key_id})
        self.run(self._publish(event))

    async def _publish(self, event):
        client = streams.connect(self.redis_url)
        await publish(client, event)
        await client.aclose()

    def token(self, *roles, **claims):
        """A good token."""
        return self.key.sign(claims_of(*roles, **claims))

    def reconnect(self):
        """Call over a new connection from now on; calls under way end over theirs."""
        if self.channel is not None:
            self._left.append(self.channel)
        credentials = grpc.ssl_channel_credentials(self._listener.ca_file.read_bytes())
        # Without an option of its own, a channel shares the connection of the one before.
        alone = [("grpc.use_local_subchannel_pool", 1)]
        self.channel = grpc.secure_channel(f"127.0.0.1:{self.port}", credentials, alone)

    def call(self, path, request=b"", *, token=None, timeout=10, metadata=()):
        """One gRPC call. Answers what came back, whatever it is."""
        headers = [*metadata]
        if token is not None:
            headers.append(("authorization", f"Bearer {token}"))
        # On the wire, one message is a stream of one.
        method = self.channel.unary_stream(path)
        rpc = method(_bytes(request), metadata=headers, timeout=timeout)
        messages = []
        with contextlib.suppress(grpc.RpcError):
            messages.extend(rpc)
        return Answer(
            rpc.code(),
            rpc.details() or "",
            {**dict(rpc.initial_metadata() or ()), **dict(rpc.trailing_metadata() or ())},
            messages,
            rpc_status.from_call(rpc) if rpc.code() is not grpc.StatusCode.OK else None,
        )

    def web(self, source_address="127.0.0.1"):
        """A browser, as far as gRPC-Web goes; the caller closes it."""
        return Browser(self.port, self._listener.ca_file, source_address)

    def stat(self, name):
        """One of Envoy's counters or gauges."""
        text = self.admin(f"/stats?filter=^{name}$&format=json")
        found = [stat["value"] for stat in json.loads(text)["stats"] if "value" in stat]
        return found[0] if found else 0

    def admin(self, path):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.admin_port}{path}", timeout=5) as page:
            return page.read().decode()

    def access_log(self):
        """Lines written so far, newest last."""
        return [
            json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")
        ]

    async def _start_plane(self, listen):
        variables = self.variables() | {"TALLYSTICK_LISTEN": listen}
        settings, routes = read_settings(Environment(variables))
        self.plane = ControlPlane(settings, routes)
        self.plane_port = await self.plane.start()

    def _routed(self):
        return {route.service for route in contract.routes(contract.services())}

    async def _answer_keys(self, request, context):
        path = "/tallystick.user.v1.AuthService/GetSigningKeys"
        answer = message_factory.GetMessageClass(_method(path).output_type)()
        answer.json_web_key_set = self.keys
        return answer

    def _start_envoy(self):
        tls = self._tls_for("gateway")
        given = Bootstrap(
            node_id="test",
            control_plane=Address("127.0.0.1", self.plane_port),
            certificate_file=tls.certificate_file,
            key_file=tls.key_file,
            ca_file=tls.ca_file,
            admin=Address("127.0.0.1", self.admin_port),
            observe=Address("127.0.0.1", self.observe_port),
        )
        file = self._directory / "envoy.json"
        file.write_text(json.dumps(bootstrap(given)))
        self.envoy = process.start(envoy_command(file, concurrency=2), log=self.log)
        process.wait_until(self._listening, self.envoy, name="Envoy", log=self.log)

    def _listening(self):
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return self.admin("/ready").strip() == "LIVE"
        except OSError:
            return False


class Answer:
    """What came back.

    Attributes:
        code: `grpc.StatusCode`.
        message: `grpc-message`.
        headers: Leading and trailing metadata.
        messages: Serialized.
        status: `google.rpc.Status`, where one came.
    """

    def __init__(self, code, message, headers, messages, status):
        self.code = code
        self.message = message
        self.headers = headers
        self.messages = messages
        self.status = status

    def __repr__(self):
        return f"{self.code.name} {self.message!r} {self.reason} {self.headers}"

    @property
    def reason(self):
        """(domain, reason) of the one ErrorInfo."""
        info = self.detail(error_details_pb2.ErrorInfo)
        return (info.domain, info.reason) if info is not None else None

    @property
    def reached_the_service(self):
        """Its handler, or the check of fields that comes just before it."""
        return self.code is grpc.StatusCode.OK or self.reason == (
            "access.tallystick",
            "FIELDS_INVALID",
        )

    def detail(self, kind):
        for packed in self.status.details if self.status is not None else ():
            if packed.Is(kind.DESCRIPTOR):
                found = kind()
                packed.Unpack(found)
                return found
        return None


class Browser:
    """Speaks gRPC-Web (application/grpc-web+proto) over HTTP/1.1 and TLS."""

    def __init__(self, port, ca_file, source_address):
        self._connection = http.client.HTTPSConnection(
            "127.0.0.1",
            port,
            timeout=10,
            source_address=(source_address, 0),
            context=ssl.create_default_context(cafile=str(ca_file)),
        )

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._connection.close()

    def send(self, method, path, headers=(), body=b""):
        """Any request; answers the HTTP response and its body."""
        self._connection.request(method, path, body=body, headers=dict(headers))
        response = self._connection.getresponse()
        return response, response.read()

    def call(self, path, request=b"", *, token=None, headers=(), body=None):
        """One call; messages of a stream are collected until it ends.

        With a body, that goes out as it is, in place of the request in its frame.
        """
        sent = {
            "content-type": "application/grpc-web+proto",
            "x-grpc-web": "1",
            "origin": ORIGIN,
            **dict(headers),
        }
        if token is not None:
            sent["authorization"] = f"Bearer {token}"
        response, body = self.send("POST", path, sent, frame(request) if body is None else body)
        assert response.status == 200, (response.status, body)
        received = {name.lower(): value for name, value in response.getheaders()}
        messages = []
        while body:
            flags, length = struct.unpack(">BI", body[:5])
            content, body = body[5 : 5 + length], body[5 + length :]
            if flags & 0x80:
                received |= _trailers(content)
            else:
                messages.append(content)
        details = received.get("grpc-status-details-bin")
        return Answer(
            _code(int(received["grpc-status"])),
            unquote(received.get("grpc-message", "")),
            received,
            messages,
            status_pb2.Status.FromString(_from_base64(details)) if details else None,
        )


@contextlib.contextmanager
def running_gateway(directory, tls_for, redis_url):
    """A gateway, from its start to its stop."""
    gateway = Gateway(directory, tls_for, redis_url)
    try:
        gateway.start()
        yield gateway
    finally:
        gateway.stop()


def until(holds, *, seconds=10.0):
    """Wait until `holds()` answers something true, and answer it.

    Raises:
        TimeoutError: it never did.
    """
    deadline = time.monotonic() + seconds
    while True:
        answer = holds()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise TimeoutError(holds)
        time.sleep(0.02)


def frame(request, *, compressed=False):
    """A message as it goes over the wire."""
    content = _bytes(request)
    return struct.pack(">BI", compressed, len(content)) + content


def _method(path):
    service, _, name = path[1:].partition("/")
    found = {descriptor.full_name: descriptor for descriptor in contract.services()}
    return found[service].methods_by_name[name]


def _bytes(request):
    return request if isinstance(request, bytes) else request.SerializeToString()


def _trailers(content):
    lines = content.decode().strip().split("\r\n")
    return {
        name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)
    }


def _code(number):
    return next(code for code in grpc.StatusCode if code.value[0] == number)


def _from_base64(text):
    return base64.b64decode(text + "=" * (-len(text) % 4))
