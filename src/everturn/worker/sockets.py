"""What the link needs of a connection: the part of a WebSocket that it uses, and real ones."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Final, Protocol
from urllib.parse import urlsplit

from websockets.asyncio.client import connect
from websockets.exceptions import (
    ConnectionClosed,
    InvalidStatus,
    InvalidUpgrade,
    NegotiationError,
)
from websockets.typing import Subprotocol

from everturn.errors import NotAuthenticated, ProtocolError
from everturn.protocol import link as frames
from everturn.rules import limits

OPEN_S_MAX: Final = 10.0
#: Frames a server sends with a closing code for a key it does not accept, or revoked.
_CLOSED_AUTH: Final = frozenset({1008, 4401, 4403})
_CLOSED_PROTOCOL: Final = frozenset({1002, 4400})


class Socket(Protocol):
    """What the link needs of a connection.

    It ends with the exceptions of `websockets`: `ConnectionClosed`, or OSError before it stands.
    """

    @property
    def subprotocol(self) -> str | None: ...

    async def send(self, message: bytes) -> None: ...

    async def recv(self) -> str | bytes: ...

    async def close(self, code: int = 1000, reason: str = "") -> None: ...

    def __aiter__(self) -> AsyncIterator[str | bytes]: ...


#: Opens one connection to the server. A system in one process gives its own (`testing/cluster.py`).
Dial = Callable[[], AbstractAsyncContextManager[Socket]]


def websocket(address: str, key: str) -> connect:
    """A connection to a server's link, not opened yet."""
    return connect(
        address,
        additional_headers={"Authorization": f"Bearer {key}"},
        subprotocols=[Subprotocol(frames.SUBPROTOCOL)],
        compression=None,
        max_size=limits.LINK_MESSAGE_BYTES_MAX,
        ping_interval=None,  # beats find a dead connection, and renew the lease besides
        open_timeout=OPEN_S_MAX,
        close_timeout=1.0,
        proxy=None if is_loopback(address) else True,
    )


def reason_of(error: Exception, url: str) -> str:
    """Why a connection ended, in words, when trying again may help.

    Only what a whole answer says is believed to last: a server that dies in the middle of a
    handshake, or a proxy in front of one, answers anything.

    Raises:
        NotAuthenticated: the server does not accept the key.
        ProtocolError: it speaks another version of the link, or none.
    """
    if isinstance(error, InvalidStatus):
        return _refused(error.response.status_code, url)
    if isinstance(error, InvalidUpgrade | NegotiationError):
        raise ProtocolError(f"{url} does not speak the worker link: {error}") from None
    if isinstance(error, ConnectionClosed) and error.rcvd is not None:
        if error.rcvd.code in _CLOSED_AUTH:
            raise NotAuthenticated(f"{url} does not accept this secret key") from None
        if error.rcvd.code in _CLOSED_PROTOCOL:
            raise ProtocolError(
                f"{url} ended the link: {error.rcvd.reason or error.rcvd.code}"
            ) from None
    return str(error) or type(error).__name__


def _refused(status: int, url: str) -> str:
    if status in (401, 403):
        raise NotAuthenticated(f"{url} does not accept this secret key")
    if status in (400, 404, 426):
        raise ProtocolError(f"{url} answered {status}: it does not offer {frames.SUBPROTOCOL}")
    return f"HTTP {status}"


def is_loopback(address: str) -> bool:
    """Whether an address is of this machine: no proxy is asked then."""
    host = urlsplit(address).hostname or ""
    return host == "localhost" or host.startswith("127.") or host == "::1"
