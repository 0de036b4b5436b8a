"""The one service the control plane itself calls."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from grpc.aio import AioRpcError

from services.environment import Tls
from services.rpc.channel import connect
from tallystick.user.v1 import auth_service_pb2, auth_service_pb2_grpc

log = logging.getLogger(__name__)

_DEADLINE_SECONDS = 2.0


class SigningKeys:
    """The user service, for the keys that verify tokens.

    Args:
        addresses: `host:port` of its replicas.
        tls: The gateway's certificate.
    """

    def __init__(self, addresses: Sequence[str], tls: Tls) -> None:
        self._channels = [connect(address, "user", tls) for address in addresses]
        self._away = False

    async def fetch(self) -> str | None:
        """The JSON Web Key Set as it is now, from the first replica that answers; None when none does."""
        cause = "no address"
        for channel in self._channels:
            stub = auth_service_pb2_grpc.AuthServiceStub(channel)
            request = auth_service_pb2.GetSigningKeysRequest()
            try:
                answer = await stub.GetSigningKeys(request, timeout=_DEADLINE_SECONDS)
            except AioRpcError as error:
                cause = f"{error.code().name}: {error.details()}"
                continue
            self._away = False
            return answer.json_web_key_set
        if not self._away:  # once, however often we ask
            log.warning("the user service does not tell its keys", extra={"cause": cause})
        self._away = True
        return None

    async def close(self) -> None:
        """Close the channels."""
        for channel in self._channels:
            await channel.close()
