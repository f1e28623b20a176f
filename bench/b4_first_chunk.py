"""B-4: a client sends, the first chunk comes back; warm run, worker in its own process.

The limit is the p50 of one fsynced append on the same disk in the same run.
Target: p50 <= 2.5x + 2 ms.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import tempfile
import time
from pathlib import Path

from load import Connection, channel, message, percentile, start

from everturn.testing.processes import System

ROUNDS = 300


def fsynced_append(folder: Path) -> list[float]:
    """Milliseconds of one 128-byte append and its fdatasync."""
    times = []
    with (folder / "limit").open("wb", buffering=0) as file:
        for _ in range(ROUNDS):
            started = time.perf_counter()
            file.write(b"x" * 128)
            os.fdatasync(file.fileno())
            times.append((time.perf_counter() - started) * 1000)
    return times


async def first_chunks(system: System) -> list[float]:
    connection = Connection(system)
    await connection.post("/api/v1/sessions", start("b4", "ping"))
    arrivals: asyncio.Queue[tuple[str, float]] = asyncio.Queue()

    async def read() -> None:
        async for record in connection.follow(channel("b4", "out")):
            body = record.get("body", "")
            if '"text-delta"' in body:
                arrivals.put_nowait(("chunk", time.perf_counter()))
            elif record.get("headers", [["", ""]])[0][1] == "turn-complete":
                arrivals.put_nowait(("end", time.perf_counter()))

    reader = asyncio.create_task(read())
    times = []
    for n in range(ROUNDS + 20):
        sent = time.perf_counter()
        await connection.post(channel("b4", "in") + "/append", message("b4", str(n)), f"p{n}")
        kind, at = await asyncio.wait_for(arrivals.get(), 20)
        assert kind == "chunk"
        if n >= 20:
            times.append((at - sent) * 1000)
        while kind != "end":
            kind, _ = await asyncio.wait_for(arrivals.get(), 20)
        await asyncio.sleep(0.005)  # the idle system: the turn's snapshot is written
    reader.cancel()
    connection.close()
    return times


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        limit = statistics.median(fsynced_append(Path(folder)))
        with System(Path(folder) / "data", Path(__file__).parent / "apps.py") as system:
            times = asyncio.run(first_chunks(system))
    p50, p99 = statistics.median(times), percentile(times, 0.99)
    print(f"one fsynced append, p50       {limit:7.2f} ms")
    print(f"first chunk, p50 / p99        {p50:7.2f} / {p99:.2f} ms")
    print(f"target, p50                <= {2.5 * limit + 2:7.2f} ms")


if __name__ == "__main__":
    main()
