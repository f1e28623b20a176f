"""What the load tests do to a real server: raw connections by the thousand, and bad machines."""

from __future__ import annotations

import asyncio
import json
import mmap
import os
import socket
import struct
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import anyio
import psutil

from everturn.testing.processes import System

MIB = 1 << 20
HERE = Path(__file__).parent
#: For all that is done at once; a loaded machine takes its time.
DEADLINE_S = float(os.environ.get("EVERTURN_LOAD_DEADLINE_S", "90"))


def build_hostile(folder: Path) -> Path:
    """Compile `hostile.c`."""
    built = folder / "hostile.so"
    command = ["cc", "-Wall", "-Werror", "-shared", "-fPIC", "-O1", str(HERE / "hostile.c")]
    subprocess.run([*command, "-o", str(built), "-ldl", "-lpthread"], check=True)
    return built


class Hostile:
    """Steers the machine under processes started with `environment`; see `hostile.c`."""

    def __init__(self, library: Path, words: Path, root: Path) -> None:
        words.write_bytes(bytes(32))
        with words.open("r+b") as file:
            self._words = mmap.mmap(file.fileno(), 32)
        self.environment = {
            "LD_PRELOAD": str(library),
            "EVERTURN_HOSTILE": str(words),
            "EVERTURN_HOSTILE_ROOT": str(root.resolve()),
        }

    def _set(self, which: int, value: int) -> None:
        self._words[which * 8 : which * 8 + 8] = struct.pack("q", value)

    def clock_ahead(self, seconds: float) -> None:
        self._set(0, round(seconds * 1000))

    def slow_sync(self, ms: int) -> None:
        self._set(1, ms)

    def disk_full(self, full: bool) -> None:
        self._set(2, int(full))

    def read_only(self, only: bool) -> None:
        self._set(3, int(only))


class Reply(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Server:
    """Requests to a system's server over connections of one's own, kept open by each caller."""

    def __init__(self, system: System) -> None:
        self.system = system

    @property
    def rss(self) -> int:
        """Bytes of memory the server process holds."""
        assert self.system.server is not None
        return int(psutil.Process(self.system.server.pid).memory_info().rss)

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.system.port)
        try:
            yield Connection(self.system.key, reader, writer)
        finally:
            writer.close()

    async def create(self, key: str, task: str = "echo") -> Reply:
        async with self.connection() as connection:
            return await connection.create(key, task)

    async def append(self, key: str, body: bytes, part_id: str) -> Reply:
        async with self.connection() as connection:
            return await connection.append(key, body, part_id)


class Connection:
    """One HTTP/1.1 connection: a request, its answer, the next request."""

    def __init__(
        self, key: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._key = key
        self._reader = reader
        self._writer = writer

    async def request(self, method: str, path: str, body: bytes = b"", **headers: str) -> Reply:
        lines = [
            f"{method} {path} HTTP/1.1",
            "host: localhost",
            f"authorization: Bearer {self._key}",
            f"content-length: {len(body)}",
            *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items()),
        ]
        self._writer.write("\r\n".join([*lines, "", ""]).encode() + body)
        # The server may answer before it has read everything, and close.
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *rest = head.strip().split("\r\n")
        found = {name.lower(): value for name, value in (line.split(": ", 1) for line in rest)}
        content = await self._reader.readexactly(int(found.get("content-length", 0)))
        return Reply(int(first.split()[1]), found, content)

    async def create(self, key: str, task: str = "echo") -> Reply:
        body = {"type": "chat.agent", "externalId": key, "taskIdentifier": task}
        body |= {"triggerConfig": {"basePayload": {}}}
        return await self.request(
            "POST", "/api/v1/sessions", json.dumps(body).encode(), content_type="application/json"
        )

    async def append(self, key: str, body: bytes, part_id: str) -> Reply:
        path = f"/realtime/v1/sessions/{quote(key, safe='')}/in/append"
        return await self.request("POST", path, body, x_part_id=part_id)


class Tap:
    """A reader of a channel on a bare socket. It takes nothing before it is told to.

    `taken` counts the records that arrived; their numbers are checked to rise by one.
    """

    def __init__(self, system: System, key: str, io: str, *, buffer_bytes: int = 4096) -> None:
        self._system = system
        self._path = f"/realtime/v1/sessions/{quote(key, safe='')}/{io}"
        self._buffer_bytes = buffer_bytes
        self._socket = socket.socket()
        self._held = b""
        self.next_seq = 0
        self.status = 0

    async def open(self) -> None:
        """Ask, and read nothing but the head of the answer."""
        loop = asyncio.get_running_loop()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._buffer_bytes)
        self._socket.setblocking(False)
        await loop.sock_connect(self._socket, ("127.0.0.1", self._system.port))
        head = (
            f"GET {self._path} HTTP/1.1\r\nhost: localhost\r\naccept: text/event-stream\r\n"
            f"authorization: Bearer {self._system.key}\r\ntimeout-seconds: 600\r\n\r\n"
        )
        await loop.sock_sendall(self._socket, head.encode())
        answer = b""
        while b"\r\n\r\n" not in answer:
            piece = await loop.sock_recv(self._socket, 4096)
            assert piece, answer
            answer += piece
        self.status = int(answer.split(b" ", 2)[1])
        self._held = answer.split(b"\r\n\r\n", 1)[1]

    async def take(self, upto_seq: int) -> None:
        """Read until the record of that number has arrived. Each is there once, in order."""
        loop = asyncio.get_running_loop()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, MIB)
        self._scan()
        while self.next_seq <= upto_seq:
            piece = await loop.sock_recv(self._socket, MIB)
            assert piece, f"ended after record {self.next_seq - 1}"
            self._held += piece
            self._scan()

    def _scan(self) -> None:
        *lines, self._held = self._held.split(b"\n")
        for line in lines:
            if line.startswith(b'data: {"records"'):
                for record in json.loads(line[6:])["records"]:
                    assert record["seq_num"] == self.next_seq
                    self.next_seq += 1

    def close(self) -> None:
        self._socket.close()


@asynccontextmanager
async def opened(taps: Sequence[Tap]) -> AsyncIterator[None]:
    """All of them connected, a hundred at a time."""
    limiter = anyio.Semaphore(100)

    async def open_one(tap: Tap) -> None:
        async with limiter:
            await tap.open()

    try:
        with anyio.fail_after(DEADLINE_S):
            async with anyio.create_task_group() as tasks:
                for tap in taps:
                    tasks.start_soon(open_one, tap)
        yield
    finally:
        for tap in taps:
            tap.close()


async def in_parallel(works: Sequence[Any]) -> None:
    """Await them all, within the deadline."""
    with anyio.fail_after(DEADLINE_S):
        async with anyio.create_task_group() as tasks:
            for work in works:
                tasks.start_soon(work)
