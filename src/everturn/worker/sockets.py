"""What the link needs of a connection: the part of a WebSocket that it uses."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Protocol


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
