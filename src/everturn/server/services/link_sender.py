"""The sending half of a link: one task, natural batching, slices between other frames.

Whatever was handed in while the last message was on its way travels in the next one; there is no
timer. A frame that is cut into slices lets others pass between them, one slice a message, so that
a large record does not hold up heartbeats. Frames of one *lane* (a subscription, a run's acks)
never overtake each other: while slices of a lane are waiting, its later frames queue behind them.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final

from everturn.protocol.link import Packer, ServerFrame
from everturn.rules import limits

#: Bytes that may wait to be sent before those who can wait are made to.
ROOM_BYTES: Final = 4 * limits.MIB
#: Bytes of one message, slices aside: a message is written whole before the next heartbeat.
_MESSAGE_BYTES: Final = 512 * limits.KIB


class Sender:
    """Queues frames and sends them. `run` is its one task."""

    def __init__(self, send: Callable[[bytes], Awaitable[None]]) -> None:
        self._send = send
        self._packer = Packer(limits.LINK_SLICE_BYTES_MAX)
        self._small: deque[bytes] = deque()
        self._sliced: deque[tuple[str, deque[bytes]]] = deque()
        self._behind: dict[str, int] = {}
        self._bytes = 0
        self._work = asyncio.Event()
        self._room = asyncio.Event()

    def send(self, frame: ServerFrame, lane: str = "") -> None:
        """Queue a frame; frames of one lane arrive in this order.

        Never waits: what must be bounded calls `room` first. Acks and wakes are bounded by what
        they answer.
        """
        items = self._packer.encode(frame)
        self._bytes += sum(map(len, items))
        if len(items) > 1 or (lane and lane in self._behind):
            self._behind[lane] = self._behind.get(lane, 0) + 1
            self._sliced.append((lane, deque(items)))
        else:
            self._small.append(items[0])
        self._work.set()

    async def room(self) -> None:
        """Wait until less than ROOM_BYTES are waiting: back-pressure of a slow worker."""
        while self._bytes >= ROOM_BYTES:
            self._room.clear()
            await self._room.wait()

    async def run(self) -> None:
        """Send until cancelled. Whatever the transport raises ends the link."""
        while True:
            await self._work.wait()
            self._work.clear()
            while items := self._next_message():
                await self._send(Packer.message(items))
                self._bytes -= sum(map(len, items))
                if self._bytes < ROOM_BYTES:
                    self._room.set()

    def _next_message(self) -> list[bytes]:
        items: list[bytes] = []
        size = 0
        while self._small and size < _MESSAGE_BYTES:
            items.append(self._small.popleft())
            size += len(items[-1])
        if self._sliced:
            lane, slices = self._sliced[0]
            items.append(slices.popleft())
            if not slices:
                self._sliced.popleft()
                self._behind[lane] -= 1
                if not self._behind[lane]:
                    del self._behind[lane]
        return items
