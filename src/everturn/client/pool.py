"""One pool of connections per event loop, closed when the loop ends.

Connections belong to the loop that opened them, and a program may have several loops: one after
another (`asyncio.run` twice), or at once (the blocking facade beside an application's own). Nobody
calls a `close` for them. Instead each pool is held by an asynchronous generator that waits at its
`yield`: an event loop closes such generators in its own orderly shutdown, which is exactly the
moment at which sockets can still be closed properly.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Final

import httpx2

#: Connecting, and waiting for response headers of a stream (chat-agent §1.5).
CONNECT_S: Final = 30.0
#: A server pings a stream at least every 15 s; without a byte for this long it is gone.
READ_S: Final = 60.0
#: Idle connections kept for the next call. How many are open at once, the callers decide: each
#: open stream needs its own, and a cap would make the last one wait for another to end.
IDLE_CONNECTIONS_MAX: Final = 32

_Key = tuple[asyncio.AbstractEventLoop, httpx2.AsyncBaseTransport | None]
_pools: dict[_Key, tuple[httpx2.AsyncClient, AsyncGenerator[None]]] = {}


async def client(transport: httpx2.AsyncBaseTransport | None = None) -> httpx2.AsyncClient:
    """The pool of this event loop for `transport` (None: real connections)."""
    key = (asyncio.get_running_loop(), transport)
    pool = _pools.get(key)
    if pool is None:
        made = httpx2.AsyncClient(
            transport=transport,
            follow_redirects=False,
            timeout=httpx2.Timeout(READ_S, connect=CONNECT_S, pool=CONNECT_S),
            limits=httpx2.Limits(
                max_connections=None, max_keepalive_connections=IDLE_CONNECTIONS_MAX
            ),
        )
        # Stored before the first await: two calls at once must not both open a pool.
        keeper = _keep(key, made)
        _pools[key] = pool = (made, keeper)
        await anext(keeper)
    return pool[0]


async def _keep(key: _Key, made: httpx2.AsyncClient) -> AsyncGenerator[None]:
    try:
        yield
    finally:
        _pools.pop(key, None)
        await made.aclose()
