"""Stand-ins for whole services: every RPC of their contracts, over mutual TLS, on the server that services run."""

from __future__ import annotations

import asyncio
import importlib
from collections import defaultdict
from dataclasses import dataclass

from google.protobuf import message_factory

from services.gateway import contract
from services.rpc import identity
from services.rpc.revocations import Revocations
from services.rpc.server import Registration, Server


@dataclass(frozen=True)
class Call:
    """A call that reached a handler."""

    path: str
    request: object
    caller: identity.Caller
    metadata: dict


class Backend:
    """One replica of a service. Answers every RPC with an empty message, unless told otherwise.

    Attributes:
        calls: What reached it, in order. What the server's edge refuses, such as an empty request, does not.
        behaviour: By path: an async function of request and context that answers in its place.
    """

    def __init__(self, service, tls):
        self.service = service
        self.calls = []
        self.behaviour = {}
        self.port = 0
        self._tls = tls
        self._server = None

    @property
    def address(self):
        return f"127.0.0.1:{self.port}"

    async def start(self):
        """Serve; again on the same port after a stop."""
        described = [
            descriptor
            for descriptor in contract.services()
            if descriptor.full_name.split(".")[1] == self.service
        ]
        self._server = Server(
            self.service,
            f"127.0.0.1:{self.port}",
            self._tls,
            [self._registration(descriptor) for descriptor in described],
            Revocations(),
        )
        self.port = await self._server.start()

    async def say_not_serving(self):
        await self._server._health.enter_graceful_shutdown()

    async def stop(self):
        await self._server.stop(notice_seconds=0, grace_seconds=0)

    def _registration(self, descriptor):
        module = descriptor.file.name.removesuffix(".proto").replace("/", ".") + "_pb2_grpc"
        generated = importlib.import_module(module)
        handlers = {method.name: self._handler(descriptor, method) for method in descriptor.methods}
        servicer = type(f"Any{descriptor.name}", (), handlers)()
        add = getattr(generated, f"add_{descriptor.name}Servicer_to_server")
        return Registration(descriptor, add, servicer)

    def _handler(self, descriptor, method):
        path = f"/{descriptor.full_name}/{method.name}"
        answer_class = message_factory.GetMessageClass(method.output_type)

        def note(request, context):
            metadata = defaultdict(str, context.invocation_metadata())
            self.calls.append(Call(path, request, identity.caller(), metadata))

        async def unary(servicer, request, context):
            note(request, context)
            if path in self.behaviour:
                return await self.behaviour[path](request, context)
            return answer_class()

        async def stream(servicer, request, context):
            note(request, context)
            if path in self.behaviour:
                async for answer in self.behaviour[path](request, context):
                    yield answer
                return
            for _ in range(2):
                yield answer_class()
                await asyncio.sleep(0.01)

        return stream if method.server_streaming else unary
