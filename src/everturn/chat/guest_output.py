"""Writing to a chat from a run that is not its own: a task called as a tool (chat-agent §4.11.5).

The chat's run holds the fence of `.out`; whoever else writes there is a guest, over HTTP, with a
part id of its own for each chunk, so that a repeated request adds nothing (rulings §1.3). Chunks
go out as they are written, in order, several at a time when they come faster than requests.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import anyio

from everturn.chat.chunks import check_chunk
from everturn.chat.output import Chunk, Writer
from everturn.chat.streamables import items_of
from everturn.client.api import Api
from everturn.errors import EverturnError

#: Chunks of one request, and chunks that may wait before a merged source is held back.
BATCH_CHUNKS: Final = 100


class GuestOutlet:
    """An `Outlet` that posts to another run's chat."""

    def __init__(self, api: Api, chat_id: str) -> None:
        self._api = api
        self._chat_id = chat_id
        self._waiting: deque[dict[str, Any]] = deque()
        self._changed = anyio.Event()
        self._sending = False
        self._error: EverturnError | None = None

    def write(self, chunk: Chunk) -> None:
        """Write one chunk; raises for what is none, and what an earlier one met with."""
        if self._error is not None:
            raise self._error
        part_id = self._api.ids.part()
        check_chunk(chunk, part_id=part_id)
        self._waiting.append({"data": chunk, "partId": part_id})
        self._notify()

    async def write_all(self, source: Any) -> None:
        """Write every chunk of a source as it comes."""
        async for chunk in items_of(source):
            if not isinstance(chunk, dict):
                raise TypeError(f"expected a chunk, not {type(chunk).__name__}")
            while len(self._waiting) >= BATCH_CHUNKS and self._error is None:
                await self._changed.wait()
            self.write(chunk)

    async def send(self) -> None:
        """Post what is written until cancelled, or until a post fails for good."""
        while self._error is None:
            if not self._waiting:
                await self._changed.wait()
                continue
            count = min(len(self._waiting), BATCH_CHUNKS)
            batch = [self._waiting.popleft() for _ in range(count)]
            self._sending = True
            try:
                await self._api.write_records(self._chat_id, batch)
            except EverturnError as error:
                self._error = error
            self._sending = False
            self._notify()

    async def drained(self) -> None:
        """Return when everything written is stored. Raises what a post met with."""
        while (self._waiting or self._sending) and self._error is None:
            await self._changed.wait()
        if self._error is not None:
            raise self._error

    def _notify(self) -> None:
        changed, self._changed = self._changed, anyio.Event()
        changed.set()


@asynccontextmanager
async def guest_writer(chat_id: str, api: Api | None = None) -> AsyncIterator[Writer]:
    """A writer to a chat's `.out`; on leaving the block everything it wrote is durable.

    Raises what posting met with: ApiError, NotAllowed, SessionClosedError.
    """
    outlet = GuestOutlet(api if api is not None else Api(), chat_id)
    failed: Exception | None = None
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(outlet.send)
        writer = Writer(outlet, None)
        try:
            yield writer
            await writer.flush()
            await outlet.drained()
        except Exception as error:  # raised again outside the group, which would wrap it
            failed = error
        tasks.cancel_scope.cancel()
    if failed is not None:
        raise failed
