"""B-3: server-sent events delivered per core, against a hand-written asyncio.Protocol.

    python bench/b3_sse.py [--readers 1000] [--rate 20] [--seconds 3] [--rounds 3]

Each round starts two servers, one after the other, in a process of their own: ours on the least
of stream engines, and the limit, a protocol class that formats the same event and writes it
straight to its transport.
Every reader follows a channel of its own; the server publishes `rate` records a second to each
from inside; engines are measured elsewhere (B-1, B-5). Printed: CPU
microseconds of the server per event delivered, and their ratio, which is events per core against
the limit. Nothing is counted that a client did not receive. Target: 0.6.

The sockets are on loopback; the load generator shares the machine with the server.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import anyio
import uvloop

from everturn.protocol.records import ChannelName, Record

TARGET = 0.6
KEY = "tr_dev_abcdefghijklmnopqrstuvwx"
BODY = b'{"data":{"type":"text-delta","id":"msg_01HZX8Q","delta":" word"},"id":"%07d"}'
#: Stands once in every record.
BODY_MARK = b"msg_01HZX8Q"


# --- the servers ---------------------------------------------------------------------------------


async def publish(count: int, rate: float, seconds: float, write: Callable[[int], Any]) -> int:
    """Call `write(n)` for each of `count` channels, `rate` times a second, evenly spread."""
    started, sent = time.monotonic(), 0
    while (elapsed := time.monotonic() - started) < seconds:
        due = int(elapsed * rate * count)
        while sent < due:
            found = write(sent % count)
            if found is not None:
                await found
            sent += 1
            if sent % 256 == 0:
                await asyncio.sleep(0)
        await asyncio.sleep(0.001)
    return sent


def say(**facts: Any) -> None:
    print(json.dumps(facts), flush=True)


async def read_line(reader: asyncio.StreamReader) -> str:
    return (await reader.readline()).decode().strip()


async def standard_input() -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    return reader


async def measure(options: argparse.Namespace, write: Callable[[int], Any]) -> None:
    """Wait for `go`, publish, let everything drain, tell what it cost."""
    commands = await standard_input()
    assert await read_line(commands) == "go"
    cpu = time.process_time()
    sent = await publish(options.readers, options.rate, options.seconds, write)
    say(sent=sent)
    # The client says when it has received everything (or given up).
    await read_line(commands)
    say(cpu_s=time.process_time() - cpu)
    await read_line(commands)


class Feed:
    """A place in a channel that holds what was put in until it is read: the least an engine does.

    What engines cost by themselves is measured in B-1 and B-5.
    """

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.cursor: int | None = None
        self.waiter: asyncio.Future[None] | None = None
        self.seq_num = 0

    @property
    def caught_up(self) -> bool:
        return not self.records

    def put(self, body: bytes) -> None:
        self.records.append(Record(self.seq_num, 1_776_900_000_000, (), body))
        self.seq_num += 1
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)

    async def next(self, *, records_max: int = 1000, bytes_max: int = 1 << 20) -> list[Record]:
        if not self.records:
            self.waiter = asyncio.get_running_loop().create_future()
            await self.waiter
        found, self.records = self.records, []
        self.cursor = found[-1].seq_num
        return found

    def close(self) -> None:
        pass


async def serve_everturn(options: argparse.Namespace) -> None:
    from everturn.clock import SystemClock
    from everturn.server.assembly import build
    from everturn.server.serving import calm_collector, serve
    from everturn.server.settings import Settings
    from everturn.storage.memory.streams import MemoryStreams

    feeds: dict[str, Feed] = {}

    class Feeds(MemoryStreams):
        def subscribe(self, channel: ChannelName, after: int | None) -> Any:
            return feeds.setdefault(channel.session, Feed())

    settings = Settings(secret_key=KEY, port=0)
    engine = Feeds(SystemClock())
    async with build(settings, streams=engine) as system, anyio.create_task_group() as tasks:
        parts = iter(range(1 << 62))

        def write(n: int) -> None:
            feeds.setdefault(f"c{n}", Feed()).put(BODY % (next(parts) % 10_000_000))

        def opened(url: str) -> None:
            say(port=int(url.rsplit(":", 1)[1]))

        async def run() -> None:
            calm_collector()  # as `everturn server` does
            await serve(system, opened=opened)

        tasks.start_soon(run)
        await measure(options, write)
        tasks.cancel_scope.cancel()


class LimitProtocol(asyncio.Protocol):
    """Answers a GET with an endless chunked body, and writes what it is told to."""

    def __init__(self, readers: dict[int, LimitProtocol]) -> None:
        self.readers = readers
        self.seq_num = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        n = int(data.split(b"/sessions/c", 1)[1].split(b"/", 1)[0])
        self.transport.write(  # type: ignore[attr-defined]
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
            b"transfer-encoding: chunked\r\n\r\n"
        )
        self.readers[n] = self

    def deliver(self, body: bytes) -> None:
        seq_num, self.seq_num = self.seq_num, self.seq_num + 1
        event = (
            b'event: batch\nid: %d,%d,%d\ndata: {"records":[{"seq_num":%d,"timestamp":%d,"body":%b}],'
            b'"tail":{"seq_num":%d,"timestamp":%d}}\n\n'
        ) % (
            seq_num,
            self.seq_num,
            seq_num * 90,
            seq_num,
            1_776_900_000_000,
            json.dumps(body.decode()).encode(),
            self.seq_num,
            1_776_900_000_000,
        )
        self.transport.write(b"%x\r\n%b\r\n" % (len(event), event))  # type: ignore[attr-defined]


async def serve_limit(options: argparse.Namespace) -> None:
    readers: dict[int, LimitProtocol] = {}
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: LimitProtocol(readers), "127.0.0.1", 0, backlog=8192)
    say(port=server.sockets[0].getsockname()[1])
    parts = iter(range(1 << 62))
    await measure(options, lambda n: readers[n].deliver(BODY % (next(parts) % 10_000_000)))
    server.close()


# --- the readers ---------------------------------------------------------------------------------


class ReaderProtocol(asyncio.Protocol):
    """Follows one channel and counts."""

    total = 0
    reads = 0

    def __init__(self, n: int) -> None:
        self.n = n

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.write(  # type: ignore[attr-defined]
            b"GET /realtime/v1/sessions/c%d/out HTTP/1.1\r\nhost: x\r\ntimeout-seconds: 600\r\n"
            b"authorization: Bearer %b\r\n\r\n" % (self.n, KEY.encode())
        )

    def data_received(self, data: bytes) -> None:
        # Cut marks are lost, which at the size of an event on loopback does not happen.
        ReaderProtocol.total += data.count(BODY_MARK)
        ReaderProtocol.reads += 1


async def run_one(kind: str, options: argparse.Namespace) -> tuple[float, int]:
    """CPU microseconds per event of one server, and how many events there were."""
    arguments = [
        sys.executable,
        __file__,
        "--serve",
        kind,
        *("--readers", str(options.readers), "--rate", str(options.rate)),
        *("--seconds", str(options.seconds)),
    ]
    process = await asyncio.create_subprocess_exec(
        *arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None

    async def told() -> dict[str, Any]:
        assert process.stdout is not None
        found: dict[str, Any] = json.loads(await process.stdout.readline())
        return found

    try:
        port = (await told())["port"]
        loop = asyncio.get_running_loop()
        ReaderProtocol.total = ReaderProtocol.reads = 0
        transports = []
        for n in range(options.readers):
            made = await loop.create_connection(lambda n=n: ReaderProtocol(n), "127.0.0.1", port)
            transports.append(made[0])
        await asyncio.sleep(1.0)  # every reader is following
        process.stdin.write(b"go\n")
        sent = (await told())["sent"]
        deadline = time.monotonic() + 5
        # A poll, because an event would cost the reading side a check per read.
        while ReaderProtocol.total < sent and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        process.stdin.write(b"drained\n")
        cpu_s = (await told())["cpu_s"]
        got = ReaderProtocol.total
        if got < 0.99 * sent:
            raise SystemExit(f"{kind}: only {got} of {sent} events arrived")
        for transport in transports:
            transport.abort()
        process.stdin.write(b"stop\n")
        return cpu_s / sent * 1e6, sent
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def compare(options: argparse.Namespace) -> None:
    ratios = []
    for number in range(options.rounds):
        limit, _ = await run_one("limit", options)
        ours, sent = await run_one("everturn", options)
        ratios.append(limit / ours)
        print(
            f"round {number + 1}: {sent} events; limit {limit:.1f} us, everturn {ours:.1f} us, "
            f"ratio {limit / ours:.2f}"
        )
    print(
        f"B-3 {options.readers} readers x {options.rate:g}/s: events per core "
        f"{statistics.median(ratios):.2f} of the limit (target {TARGET})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--readers", type=int, default=1000)
    parser.add_argument("--rate", type=float, default=20)
    parser.add_argument("--seconds", type=float, default=2)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--serve", choices=["everturn", "limit"])
    options = parser.parse_args()
    if options.serve == "everturn":
        uvloop.run(serve_everturn(options))
    elif options.serve == "limit":
        uvloop.run(serve_limit(options))
    else:
        uvloop.run(compare(options))


if __name__ == "__main__":
    main()
