"""Reading the streams of a run, and sending to its input streams (wire-protocol §13)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx2
import msgspec

from everturn.client import wire
from everturn.client.api import Api
from everturn.client.follow import Follower
from everturn.protocol import paths
from everturn.protocol.records import Io


class _RunStreamApi(Api):
    """The same server; what it opens is the stream of a run instead of a session's channel."""

    def __init__(self, api: Api, stream: str, template: str = paths.RUN_STREAM) -> None:
        super().__init__(api.target, clock=api.clock, ids=api.ids)
        self._stream = stream
        self._template = template

    async def open_stream(
        self,
        session: str,
        io: Io,
        *,
        after: int | None,
        timeout_s: int | None = None,
        peek_settled: bool = False,
        base_url: str | None = None,
    ) -> httpx2.Response:
        path = paths.fill(self._template, run=session, stream=self._stream)
        return await self.open_events(
            path, after=after, timeout_s=timeout_s, subject="run", base_url=base_url
        )


async def read(
    run_id: str,
    stream: str = "default",
    *,
    start_index: int = 0,
    timeout_s: int = 60,
    api: Api | None = None,
) -> AsyncIterator[Any]:
    """What a run wrote to a stream, from the beginning, and what it writes from now on.

    Ends when nothing came for `timeout_s` seconds (1 to 600); reconnects from where it was.
    Raises RunNotFound.
    """
    after = start_index - 1 if start_index > 0 else None
    opened = _RunStreamApi(api or Api(), stream)
    follower = Follower(opened, run_id, "out", after=after, timeout_s=timeout_s)
    try:
        while (arrived := await follower.next()) is not None:
            yield arrived.data
    finally:
        await follower.aclose()


async def read_input(
    run_id: str,
    stream: str = "default",
    *,
    start_index: int = 0,
    timeout_s: int = 60,
    api: Api | None = None,
) -> AsyncIterator[Any]:
    """What was sent to an input stream of a run, from the beginning, and what comes from now on.

    Ends when nothing came for `timeout_s` seconds (1 to 600); reconnects from where it was.
    Raises RunNotFound.
    """
    after = start_index - 1 if start_index > 0 else None
    opened = _RunStreamApi(api or Api(), stream, paths.RUN_STREAM_INPUT)
    follower = Follower(opened, run_id, "in", after=after, timeout_s=timeout_s)
    try:
        while (arrived := await follower.next()) is not None:
            # Input is kept as the JSON text that was sent (§13).
            yield msgspec.json.decode(arrived.data) if isinstance(arrived.data, str) else None
    finally:
        await follower.aclose()


async def send_input(run_id: str, stream: str, data: Any, *, api: Api | None = None) -> None:
    """Send one value to an input stream of a run. Raises RunNotFound and InvalidRequest."""
    await (api or Api()).send_run_input(run_id, stream, {"data": wire.plain(data)})
