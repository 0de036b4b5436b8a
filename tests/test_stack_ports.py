"""Ports that are chosen before their servers start."""

import socket

import pytest

from cli.process import Ports, is_free


@pytest.fixture
def ports():
    with Ports() as held:
        yield held


def bound(port, *, reuse):
    """A socket bound as a server does it."""
    server = socket.socket()
    try:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, int(reuse))
        server.bind(("127.0.0.1", port))
    except OSError:
        server.close()
        raise
    return server


def test_no_port_is_given_twice(ports):
    with Ports() as others:
        taken = [each.take() for _ in range(200) for each in (ports, others)]

    assert len(set(taken)) == 400
    assert all(20_000 <= port < 32_000 for port in taken)


def test_a_server_can_listen_on_a_held_port_and_again_after_a_crash(ports):
    port = ports.take()
    for _ in range(2):
        with bound(port, reuse=True) as server:
            server.listen()
            with socket.create_connection(("127.0.0.1", port)):
                assert not is_free(port)
        assert is_free(port)


def test_a_port_is_free_again_afterwards():
    with Ports() as held:
        port = held.take()
        with pytest.raises(OSError, match="in use"):
            bound(port, reuse=False)

    bound(port, reuse=False).close()
