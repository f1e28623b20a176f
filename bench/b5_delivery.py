"""B-5: delay from an agent's write to a client's read, everything durable before it is visible.

    python bench/b5_delivery.py [SESSIONSxRATE …]

500 sessions at 25 tokens a second and 1,000 at 20, against the same build with the sync switched
off (`EVERTURN_SYNC=false`). Target: p99 <= 6x. Beside the delays stands the CPU time of server,
worker and load generator per chunk: when they come to two cores together, what is measured is a
queue, not everturn.
"""

from __future__ import annotations

import asyncio
import re
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import psutil
import uvloop
from load import Connection, channel, message, percentile, start

from everturn.testing.processes import System

SECONDS = 6
SHAPES = [(500, 25), (1000, 20)]
STAMP = re.compile(rb'"delta\\*":\\*"([0-9.]+) ')
DONE = b'"turn-complete"'


class Figure(NamedTuple):
    """What one run measured. CPU of server, worker and load generator in microseconds a chunk."""

    p50_ms: float
    p99_ms: float
    cpu_us: tuple[float, float, float]


async def one(system: System, chat: str, rate: int, delays: list[float]) -> None:
    connection = Connection(system)
    await connection.post("/api/v1/sessions", start(chat, "paced"))
    text = f"{rate} {rate * SECONDS}"
    await connection.post(channel(chat, "in") + "/append", message(chat, text))
    # Looked at as bytes: decoding would cost the load generator more than all the rest.
    async for line in connection.lines(channel(chat, "out")):
        now = time.monotonic()
        # The worker's loop clock is the machine's monotonic clock, as is ours.
        delays.extend([(now - float(at)) * 1000 for at in STAMP.findall(line)])
        if DONE in line:
            break
    connection.close()


async def load(system: System, sessions: int, rate: int) -> list[float]:
    delays: list[float] = []
    await asyncio.gather(*[one(system, f"c{n}", rate, delays) for n in range(sessions)])
    return delays


def cpu_s(process: psutil.Process) -> float:
    """CPU time of a process and its children so far."""
    return sum(sum(p.cpu_times()[:2]) for p in [process, *process.children(recursive=True)])


def measure(sessions: int, rate: int, environment: dict[str, str]) -> Figure:
    with tempfile.TemporaryDirectory() as folder:
        app = Path(__file__).parent / "apps.py"
        with closing(System(Path(folder) / "data", app, environment=environment)) as system:
            started = system.start_server(), system.start_worker(concurrency=sessions + 1)
            processes = [psutil.Process(process.pid) for process in started]
            before = [*map(cpu_s, processes), time.process_time()]
            delays = uvloop.run(load(system, sessions, rate))
            after = [*map(cpu_s, processes), time.process_time()]
    server, worker, client = [
        (b - a) / len(delays) * 1e6 for a, b in zip(before, after, strict=True)
    ]
    # The first second is the start of every session at once, not the paced load.
    settled = delays[len(delays) // SECONDS :]
    return Figure(percentile(settled, 0.5), percentile(settled, 0.99), (server, worker, client))


def row(name: str, figure: Figure, ratio: str) -> str:
    delay = f"{figure.p50_ms:.1f} / {figure.p99_ms:.1f}"
    cpu = " / ".join(f"{us:.0f}" for us in figure.cpu_us)
    return f"{name:<24}{delay:>16}{cpu:>32}{ratio:>8}"


def main() -> None:
    shapes = [tuple(map(int, text.split("x"))) for text in sys.argv[1:]] or SHAPES
    print(f"{'sessions x tokens/s':<24}{'p50 / p99 ms':>16}{'us server/worker/load':>32}{'p99':>8}")
    for sessions, rate in shapes:
        durable = measure(sessions, rate, {})
        print(row(f"{sessions} x {rate} durable", durable, ""), flush=True)
        floor = measure(sessions, rate, {"EVERTURN_SYNC": "false"})
        ratio = f"{durable.p99_ms / floor.p99_ms:.1f}x"
        print(row(f"{sessions} x {rate} no sync", floor, ratio), flush=True)


if __name__ == "__main__":
    main()
