"""A small HTTP/1.1 client for load: keep-alive connections on asyncio streams, nothing else.

A general client would cost more than the server it measures.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote

from everturn.testing.processes import System


class Connection:
    """One keep-alive connection; one request at a time."""

    def __init__(self, system: System) -> None:
        self._port = system.port
        self._key = system.key
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port, limit=1 << 22)
        return self._streams

    async def post(self, path: str, body: Any, part_id: str | None = None) -> dict[str, Any]:
        reader, writer = await self.open()
        data = json.dumps(body).encode()
        part = f"X-Part-Id: {part_id}\r\n" if part_id else ""
        writer.write(
            f"POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {self._key}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n{part}\r\n".encode()
            + data
        )
        status, length = await _head(reader)
        answer = await reader.readexactly(length)
        if status >= 300:
            raise RuntimeError(f"{path}: {status} {answer[:200]!r}")
        return json.loads(answer)  # type: ignore[no-any-return]

    async def follow(self, path: str, after: int | None = None) -> AsyncIterator[dict[str, Any]]:
        """Records of an event stream, as they come, from a connection of its own."""
        async for line in self.lines(path, after):
            for record in json.loads(line[6:])["records"]:
                yield record

    async def lines(self, path: str, after: int | None = None) -> AsyncIterator[bytes]:
        """The `data:` lines with records of an event stream, undecoded."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port, limit=1 << 22)
        last = f"Last-Event-ID: {after}\r\n" if after is not None else ""
        writer.write(
            f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {self._key}\r\n"
            f"Accept: text/event-stream\r\nTimeout-Seconds: 60\r\n{last}\r\n".encode()
        )
        try:
            status, _ = await _head(reader)
            if status != 200:
                raise RuntimeError(f"{path}: {status}")
            while line := await reader.readline():
                if line.startswith(b'data: {"records"'):
                    yield line
        finally:
            writer.close()

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()


async def _head(reader: asyncio.StreamReader) -> tuple[int, int]:
    head = (await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")
    length = 0
    for line in head:
        if line.lower().startswith(b"content-length:"):
            length = int(line[15:])
    return int(head[0].split()[1]), length


def channel(session: str, io: str) -> str:
    return f"/realtime/v1/sessions/{quote(session, safe='')}/{io}"


def message(chat: str, text: str) -> dict[str, Any]:
    """The body of an append that sends one user message."""
    return {
        "kind": "message",
        "payload": {
            "chatId": chat,
            "trigger": "submit-message",
            "message": {
                "id": f"m-{text}",
                "role": "user",
                "parts": [{"type": "text", "text": text}],
            },
        },
    }


def start(chat: str, agent: str) -> dict[str, Any]:
    """The body that creates a chat session."""
    return {
        "type": "chat.agent",
        "externalId": chat,
        "taskIdentifier": agent,
        "triggerConfig": {"basePayload": {"chatId": chat, "trigger": "preload"}},
    }


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]
