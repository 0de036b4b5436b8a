"""How the supervisor asks its programs whether they do their work."""

from __future__ import annotations

import asyncio
import http.client
import socket
import ssl
import time
from collections.abc import Callable
from pathlib import Path

_POLL_SECONDS = 0.02
# A gRPC message of no bytes: uncompressed, length 0.
_EMPTY_MESSAGE = bytes(5)


async def comes_true(question: Callable[[], bool], *, seconds: float) -> bool:
    """Ask, in a thread, every few milliseconds, until the answer is yes. False when it never was."""
    deadline = time.monotonic() + seconds
    while not await asyncio.to_thread(question):
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(_POLL_SECONDS)
    return True


def listens(port: int) -> bool:
    """Somebody accepts connections there."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
    except OSError:
        return False


class Envoy:
    """Envoy's own pages.

    Args:
        port: Where it serves them on 127.0.0.1.
    """

    def __init__(self, port: int) -> None:
        self._port = port

    def is_live(self) -> bool:
        """It has its listeners and clusters."""
        return self._ask("GET", "/ready") == "LIVE\n"

    def has_healthy(self, count: int) -> bool:
        """That many backends answer its health checks."""
        return self._ask("GET", "/clusters").count("::health_flags::healthy\n") >= count

    def drain(self) -> None:
        """Ask clients to leave (GOAWAY) and take no new connections."""
        self._ask("POST", "/drain_listeners?graceful&skip_exit")

    def connections(self) -> int:
        """How many clients are still connected."""
        lines = self._ask("GET", "/stats?filter=^listener\\..*downstream_cx_active$").splitlines()
        return sum(int(line.rpartition(" ")[2]) for line in lines if ".admin." not in line)

    def _ask(self, method: str, path: str) -> str:
        """What it answers; nothing when it does not answer well."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=1)
        try:
            connection.request(method, path)
            response = connection.getresponse()
            text = response.read().decode()
        except (OSError, http.client.HTTPException):
            return ""
        finally:
            connection.close()
        return text if response.status == http.HTTPStatus.OK else ""


def serves(port: int, ca_file: Path) -> bool:
    """A real call comes through the gateway: the signing keys, as a browser asks for them.

    gRPC-Web, because HTTP/1.1 is in Python's library: a gRPC client would double the supervisor.
    """
    context = ssl.create_default_context(cafile=str(ca_file))
    connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=2, context=context)
    try:
        connection.request(
            "POST",
            "/tallystick.user.v1.AuthService/GetSigningKeys",
            _EMPTY_MESSAGE,
            {"content-type": "application/grpc-web+proto", "x-grpc-web": "1"},
        )
        response = connection.getresponse()
        body = response.read()
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
    return response.status == http.HTTPStatus.OK and b'"keys"' in body
