"""Servers that a test stops and starts again, and a line to a database that breaks at the worst moment."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from contextlib import asynccontextmanager

from sqlalchemy.engine import make_url

from cli import mariadb, process, valkey


class _Stoppable:
    """A server with a port and a directory that outlive it."""

    def __init__(self, directory):
        self.directory = directory
        self.port = process.free_port()
        self._server = None

    async def start(self):
        """Start it, and wait until it answers."""
        log = self.directory / f"{self.name}.log"
        # In this thread, which lasts: the kernel ends the server with the thread that started it.
        self._server = process.start(self.command(), log=log)
        await asyncio.to_thread(
            process.wait_until, self.answers, self._server, name=self.name, log=log
        )

    async def stop(self):
        """Kill it, with all it had not written."""
        if self._server is not None:
            self._server.kill()
            await asyncio.to_thread(self._server.wait)
            self._server = None

    def hang(self):
        """Let it hold its connections and answer nothing, until `go_on`."""
        self._server.send_signal(signal.SIGSTOP)

    def go_on(self):
        self._server.send_signal(signal.SIGCONT)


class Mariadb(_Stoppable):
    """A MariaDB of a test's own."""

    name = "mariadb"

    def __init__(self, directory):
        super().__init__(directory)
        self._data, self._accounts = directory / "data", directory / "accounts.sql"
        account = mariadb.Account("tests", "secret")
        mariadb.install(self._data)
        mariadb.write_accounts(self._accounts, [account])
        self._url = mariadb.url(self.port, account)

    def url(self, database):
        return make_url(self._url).set(database=database).render_as_string(hide_password=False)

    def command(self):
        return mariadb.command(self.port, self._data, self._accounts, durable=True)

    def answers(self):
        return mariadb.answers(self.port)


class Valkey(_Stoppable):
    """A Valkey of a test's own; what it acknowledged survives unless `forget` is called."""

    name = "valkey"

    @property
    def url(self):
        return valkey.url(self.port)

    def command(self):
        return valkey.command(self.port, self.directory, persistent=True)

    def answers(self):
        return valkey.answers(self.port)


@asynccontextmanager
async def running(server):
    """The server, from its start; stopped at the end whatever became of it."""
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


class Line:
    """A line to a MySQL server that can be cut around the commit of a transaction that writes to a table.

    Attributes:
        url: The database, by way of this line.
        cut_after: How many of the next commits are carried out, and their answers lost with the connection.
        cut_before: How many of the next commits are lost on their way, with the connection.
    """

    def __init__(self, url, table):
        self._target = make_url(url)
        self._writes = f"INSERT INTO {table} ".encode()
        self._server = None
        self._talks = set()
        self.url = ""
        self.cut_after = 0
        self.cut_before = 0

    async def open(self):
        self._server = await asyncio.start_server(self._talk, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        self.url = self._target.set(port=port).render_as_string(hide_password=False)

    async def close(self):
        self._server.close()
        for talk in list(self._talks):
            talk.cancel()
        await asyncio.gather(*self._talks, return_exceptions=True)

    async def _talk(self, from_client, to_client):
        self._talks.add(asyncio.current_task())
        address = (self._target.host, self._target.port)
        from_server, to_server = await asyncio.open_connection(*address)
        answering = asyncio.create_task(_pass_on(from_server, to_client))
        try:
            writes = False
            while data := await from_client.read(65536):
                writes = writes or self._writes in data
                if writes and _is_commit(data):
                    writes = False
                    if self.cut_before:
                        self.cut_before -= 1
                        return
                    if self.cut_after:
                        self.cut_after -= 1
                        answering.cancel()
                        await asyncio.wait([answering])
                        to_server.write(data)
                        await from_server.read(65536)  # it is done
                        return
                to_server.write(data)
                await to_server.drain()
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self._talks.discard(asyncio.current_task())
            answering.cancel()
            for writer in (to_client, to_server):
                writer.transport.abort()


async def _pass_on(reader, writer):
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


def _is_commit(data):
    # Three bytes of length, a sequence number, COM_QUERY.
    return data[4:] == b"\x03COMMIT"


@asynccontextmanager
async def line_to(url, table):
    """A line to the database behind a URL."""
    line = Line(url, table)
    await line.open()
    try:
        yield line
    finally:
        await line.close()
