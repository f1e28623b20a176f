"""Durable appends: the SQLite stream engine against the disk itself, in the same run.

    python bench/b1_appends.py [--seconds 3] [--rounds 3]

For 100 and 1,000 appenders, each on a channel of its own with one record in flight, prints
records per second of the engine (compaction on), of the limit, and their ratio. The limit is a
raw append-only file with group fdatasync, fed by the same closed loop: a thread that writes
everything queued with one write and one sync, and tells the loop once. Rates do not travel from
one disk to another; ratios do. Targets: 0.85 and 0.65.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import queue
import resource
import statistics
import struct
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NamedTuple

import uvloop

from everturn.clock import SystemClock
from everturn.protocol.records import ChannelName, NewRecord
from everturn.storage.sqlite import SqliteStreams

TARGETS = {100: 0.85, 1000: 0.65}

Append = Callable[[int, int, bytes], Awaitable[object]]


class Figure(NamedTuple):
    """What one run measured."""

    records_per_s: float
    p50_ms: float
    p99_ms: float
    cpu_us_per_record: float


class RawLog:
    """The limit: one file, one thread, one fdatasync for everything that was queued."""

    def __init__(self, path: Path) -> None:
        self._loop = asyncio.get_running_loop()
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._header = struct.Struct("<IQ")
        self._queue: queue.SimpleQueue[tuple[asyncio.Future[None], bytes] | None]
        self._queue = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def append(self, channel: int, seq: int, body: bytes) -> asyncio.Future[None]:
        future = self._loop.create_future()
        self._queue.put((future, self._header.pack(channel, seq) + body))
        return future

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            items = [item]
            while not self._queue.empty() and len(items) < 2000:
                item = self._queue.get()
                if item is None:
                    return
                items.append(item)
            os.write(self._fd, b"".join([data for _, data in items]))
            os.fdatasync(self._fd)
            self._loop.call_soon_threadsafe(_done, [future for future, _ in items])

    def close(self) -> None:
        self._queue.put(None)
        self._thread.join()
        os.close(self._fd)


def _done(futures: list[asyncio.Future[None]]) -> None:
    for future in futures:
        if not future.done():
            future.set_result(None)


def chunk(seq: int) -> bytes:
    """A token delta as an agent sends it: 77 bytes."""
    return b'{"type":"text-delta","id":"msg_01HZX8Q","delta":" word%06d","ts":176379248}' % (
        seq % 1_000_000
    )


async def closed_loop(append: Append, appenders: int, seconds: float) -> Figure:
    """Every appender waits for its record before it sends the next."""
    latencies: list[float] = []
    end = time.perf_counter() + seconds

    async def appender(number: int) -> None:
        seq = 0
        while (begun := time.perf_counter()) < end:
            await append(number, seq, chunk(seq))
            latencies.append(time.perf_counter() - begun)
            seq += 1

    cpu, begun = _cpu_s(), time.perf_counter()
    await asyncio.gather(*[appender(number) for number in range(appenders)])
    elapsed, cpu = time.perf_counter() - begun, _cpu_s() - cpu
    latencies.sort()
    count = len(latencies)
    return Figure(
        count / elapsed,
        latencies[count // 2] * 1e3,
        latencies[count * 99 // 100] * 1e3,
        cpu / count * 1e6,
    )


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


async def measure_limit(folder: Path, appenders: int, seconds: float) -> Figure:
    log = RawLog(folder / "raw.log")
    try:
        return await closed_loop(log.append, appenders, seconds)
    finally:
        log.close()


async def measure_engine(folder: Path, appenders: int, seconds: float) -> Figure:
    streams = await SqliteStreams.open(folder / "streams.db", SystemClock())
    channels = [ChannelName("env_bench", f"session_{n}", "out") for n in range(appenders)]

    async def append(number: int, seq: int, body: bytes) -> object:
        return await streams.append(channels[number], (NewRecord(body),), fence=1, first_part=seq)

    try:
        return await closed_loop(append, appenders, seconds)
    finally:
        await streams.close()


def once(
    measure: Callable[[Path, int, float], Awaitable[Figure]], appenders: int, seconds: float
) -> Figure:
    async def main() -> Figure:
        with tempfile.TemporaryDirectory(prefix="b1-") as folder:
            return await measure(Path(folder), appenders, seconds)

    return uvloop.run(main())


def median(figures: list[Figure]) -> Figure:
    return Figure(*(statistics.median(column) for column in zip(*figures, strict=True)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3, help="measurements per row; median")
    options = parser.parse_args()
    for appenders, target in TARGETS.items():
        limits, figures = [], []
        for _ in range(options.rounds):
            limits.append(once(measure_limit, appenders, options.seconds))
            figures.append(once(measure_engine, appenders, options.seconds))
        limit, figure = median(limits), median(figures)
        ratio = figure.records_per_s / limit.records_per_s
        print(
            f"B-1 {appenders} appenders: {figure.records_per_s:,.0f} records/s "
            f"(p50 {figure.p50_ms:.1f} ms, p99 {figure.p99_ms:.1f} ms, "
            f"{figure.cpu_us_per_record:.1f} us CPU a record), "
            f"limit {limit.records_per_s:,.0f} "
            f"(p50 {limit.p50_ms:.1f}, p99 {limit.p99_ms:.1f}, "
            f"{limit.cpu_us_per_record:.1f} us), "
            f"ratio {ratio:.2f}, target {target:.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
