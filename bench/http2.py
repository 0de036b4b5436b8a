"""gRPC over TLS and HTTP/2 by hand: just what a cheap client needs, no more.

A generated client costs about 200 µs of CPU a call; framing by hand costs less than half. Headers are sent as literals
that no table remembers, and the peer is told to remember none either (SETTINGS_HEADER_TABLE_SIZE 0), so every header
block stands for itself. Source: RFC 9113 (HTTP/2), RFC 7541 (HPACK), gRPC's PROTOCOL-HTTP2.md.
"""

from __future__ import annotations

import socket
import ssl
import struct
from dataclasses import dataclass, field

import hpack

# Of a call that ended without a gRPC status, or not at all.
NO_STATUS = -1

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
_CONTINUATION = 9
_END_STREAM, _END_HEADERS, _ACK = 1, 4, 1
_HEADER_TABLE_SIZE, _MAX_CONCURRENT_STREAMS, _INITIAL_WINDOW_SIZE = 1, 3, 4
_WINDOW_MAX = 2**31 - 1
_WINDOW_FIRST = 65_535
# Of the window for everything a connection receives, this much may be used before it is opened again.
_WINDOW_USED_MAX = 2**30
# Calls in flight on one connection, where the server allows as many.
_STREAMS_MAX = 900
# What one call may send: it must fit into the window the server gives a stream.
MESSAGE_BYTES_MAX = 4_096
_UNSENT_BYTES_MAX = 1 << 20
_READ_BYTES = 1 << 18
_WRITE_BYTES = 1 << 16
_CONNECT_SECONDS = 5.0
_BLOCKS_REMEMBERED = 1_000
_FRAME_HEAD = 9


@dataclass(slots=True)
class Call:
    """One call.

    Attributes:
        number: The caller's name for it.
        status: Its gRPC status once it has ended; NO_STATUS when it ended without.
        body: The bytes of its answer, gRPC's five first.
    """

    number: int
    status: int = NO_STATUS
    body: bytearray = field(default_factory=bytearray)

    @property
    def message(self) -> bytes:
        """The answer's message, serialized."""
        return bytes(self.body[5:])


class Connection:
    """One connection, non-blocking but for its start. The caller closes it.

    Args:
        address: Host and port.
        ca_file: Who signed the server's certificate.
        server_name: The name in it.

    Raises:
        OSError: nobody answers there, or shows another certificate.
    """

    def __init__(self, address: tuple[str, int], *, ca_file: str, server_name: str) -> None:
        context = ssl.create_default_context(cafile=ca_file)
        context.set_alpn_protocols(["h2"])
        raw = socket.create_connection(address, timeout=_CONNECT_SECONDS)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            self.socket = context.wrap_socket(raw, server_hostname=server_name)
        except OSError:
            raw.close()
            raise
        self.socket.settimeout(0)
        ours = struct.pack(">HIHI", _HEADER_TABLE_SIZE, 0, _INITIAL_WINDOW_SIZE, _WINDOW_MAX)
        self._out = bytearray(_PREFACE + _frame(_SETTINGS, 0, 0, ours))
        self._open_window(_WINDOW_MAX - _WINDOW_FIRST)
        self._in = bytearray()
        self._window = _WINDOW_FIRST
        self._received = 0
        self._streams_max = _STREAMS_MAX
        # Flags and bytes so far of a header block larger than a frame: only its own frames follow until it ends.
        self._begun: tuple[int, bytes] = (0, b"")
        self._next_stream = 1
        self._statuses: dict[bytes, int] = {}
        self.calls: dict[int, Call] = {}
        # False once the server has said goodbye: what is in flight may still end, nothing new begins.
        self.takes_calls = True

    @property
    def has_room(self) -> bool:
        """Another call may be made now."""
        return (
            self.takes_calls
            and len(self.calls) < self._streams_max
            and self._window > MESSAGE_BYTES_MAX
            and len(self._out) < _UNSENT_BYTES_MAX
        )

    @property
    def wants_to_write(self) -> bool:
        """Something waits to be sent."""
        return bool(self._out)

    def call(self, headers: bytes, message: bytes, call: Call) -> None:
        """Make a call, when there `has_room`.

        Args:
            headers: From `literal`, and whole.
            message: Serialized, at most MESSAGE_BYTES_MAX less five.
            call: `receive` answers it when it has ended.
        """
        stream, self._next_stream = self._next_stream, self._next_stream + 2
        self.calls[stream] = call
        body = b"\x00" + len(message).to_bytes(4, "big") + message
        self._window -= len(body)
        self._out += _frame(_HEADERS, _END_HEADERS, stream, headers)
        self._out += _frame(_DATA, _END_STREAM, stream, body)

    def flush(self) -> None:
        """Send what the socket takes."""
        try:
            while self._out:
                sent = self.socket.send(self._out[:_WRITE_BYTES])
                del self._out[:sent]
        except (ssl.SSLWantWriteError, ssl.SSLWantReadError):
            return
        except OSError:  # `receive` finds it closed, after what came before that
            self._out.clear()
            self.takes_calls = False

    def receive(self) -> list[Call]:
        """Read what is there; answers the calls that ended, on a lost connection all of them."""
        ended: list[Call] = []
        closed = self._read()
        position, size, pending = 0, len(self._in), self._in
        while position + _FRAME_HEAD <= size:
            length = int.from_bytes(pending[position : position + 3], "big")
            end = position + _FRAME_HEAD + length
            if end > size:
                break
            stream = int.from_bytes(pending[position + 5 : position + 9], "big") & _WINDOW_MAX
            payload = bytes(pending[position + _FRAME_HEAD : end])
            self._handle(pending[position + 3], pending[position + 4], stream, payload, ended)
            position = end
        del pending[:position]
        if closed:
            self.takes_calls = False
            ended += self.calls.values()
            self.calls.clear()
        return ended

    def close(self) -> None:
        """Leave, whatever is in flight."""
        self.socket.close()

    def _read(self) -> bool:
        try:
            while data := self.socket.recv(_READ_BYTES):
                self._in += data
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return False
        except OSError:
            return True
        return True

    def _handle(
        self, kind: int, flags: int, stream: int, payload: bytes, ended: list[Call]
    ) -> None:
        if kind == _HEADERS and not flags & _END_HEADERS:
            self._begun = flags, payload
        elif kind == _CONTINUATION:
            first, block = self._begun
            self._handle(_HEADERS, first | flags, stream, block + payload, ended)
        elif kind in {_HEADERS, _DATA, _RST_STREAM}:
            self._handle_call(kind, flags, stream, payload, ended)
        elif kind == _WINDOW_UPDATE and stream == 0:
            self._window += int.from_bytes(payload, "big")
        elif kind == _SETTINGS and not flags & _ACK:
            for key, value in struct.iter_unpack(">HI", payload):
                if key == _MAX_CONCURRENT_STREAMS:
                    self._streams_max = min(_STREAMS_MAX, value)
            self._out += _frame(_SETTINGS, _ACK, 0, b"")
        elif kind == _PING and not flags & _ACK:
            self._out += _frame(_PING, _ACK, 0, payload)
        elif kind == _GOAWAY:
            self.takes_calls = False
            last = int.from_bytes(payload[:4], "big") & _WINDOW_MAX
            unseen = [number for number in self.calls if number > last]
            ended += [self.calls.pop(number) for number in unseen]

    def _handle_call(
        self, kind: int, flags: int, stream: int, payload: bytes, ended: list[Call]
    ) -> None:
        if kind == _DATA:
            self._received += len(payload)
            if self._received > _WINDOW_USED_MAX:
                self._open_window(self._received)
                self._received = 0
        call = self.calls.get(stream)
        if call is None:  # ended already
            return
        if kind == _DATA:
            call.body += payload
        elif kind == _HEADERS and flags & _END_STREAM:
            call.status = self._grpc_status(payload)
        if kind == _RST_STREAM or flags & _END_STREAM:
            ended.append(self.calls.pop(stream))

    def _grpc_status(self, block: bytes) -> int:
        # A block means the same whenever it comes, so one that was seen before is not decoded again: nearly all are
        # the same few bytes that say OK.
        status = self._statuses.get(block)
        if status is None:
            headers = hpack.Decoder(max_header_list_size=1 << 20).decode(block, raw=True)
            found = next((value for name, value in headers if name == b"grpc-status"), NO_STATUS)
            if len(self._statuses) > _BLOCKS_REMEMBERED:  # blocks that hold a time or an id
                self._statuses.clear()
            status = self._statuses[block] = int(found)
        return status

    def _open_window(self, size: int) -> None:
        self._out += _frame(_WINDOW_UPDATE, 0, 0, size.to_bytes(4, "big"))


def request_headers(path: str, authority: str) -> bytes:
    """The block every gRPC call over TLS begins with; `literal` adds what is its own."""
    # From HPACK's static table: ":method: POST", ":scheme: https".
    fixed = b"\x83\x87" + literal(":path", path) + literal(":authority", authority)
    return fixed + literal("content-type", "application/grpc") + literal("te", "trailers")


def literal(name: str, value: str) -> bytes:
    """A header that is not to be remembered (RFC 7541, section 6.2.2), not Huffman-coded."""
    return b"\x00" + _string(name) + _string(value)


def _string(text: str) -> bytes:
    data = text.encode()
    return bytes(hpack.hpack.encode_integer(len(data), 7)) + data


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    head = len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big")
    return head + payload
