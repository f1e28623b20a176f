"""B-9: what a turn costs in a long conversation: turn 1,000 against turn 10.

    python bench/b9_history.py [TURNS=1000]

Processor time of server and worker together, and the bytes they write, for windows of turns of
one session. The limit is the first window itself. Target: the last costs <= 1.2 times as much.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import psutil
from load import Connection, channel, message, start

from everturn.testing.processes import System

WINDOW = 40
TEXT = "A question of ordinary length, such as people ask an assistant all day long. " * 3


class Cost(NamedTuple):
    cpu_ms: float
    written_kib: float


class Meter:
    """What both processes used since the last look."""

    def __init__(self, system: System) -> None:
        assert system.server is not None
        self._processes = [psutil.Process(p.pid) for p in (system.server, *system.workers)]
        self.look()

    def look(self) -> Cost:
        cpu = sum(sum(p.cpu_times()[:2]) for p in self._processes) * 1000
        written = sum(p.io_counters().write_chars for p in self._processes) / 1024
        before, self._seen = getattr(self, "_seen", Cost(cpu, written)), Cost(cpu, written)
        return Cost(cpu - before.cpu_ms, written - before.written_kib)


async def converse(system: System, turns: int) -> dict[int, Cost]:
    """The cost per turn of each window, by the number of its first turn."""
    connection = Connection(system)
    await connection.post("/api/v1/sessions", start("b9", "echo"))
    ends: asyncio.Queue[None] = asyncio.Queue()

    async def read() -> None:
        async for record in connection.follow(channel("b9", "out")):
            if record.get("headers", [["", ""]])[0][1] == "turn-complete":
                ends.put_nowait(None)

    reader = asyncio.create_task(read())
    meter = Meter(system)
    costs: dict[int, Cost] = {}
    begins = {10, *(n for n in range(100, turns, 100)), turns - WINDOW}
    began: int | None = None
    for n in range(turns):
        if n in begins:
            meter.look()
            began = n
        await connection.post(channel("b9", "in") + "/append", message("b9", f"{n} {TEXT}"), f"{n}")
        await asyncio.wait_for(ends.get(), 20)
        await asyncio.sleep(0.01)  # the snapshot of the turn is written
        if began is not None and n + 1 == began + WINDOW:
            used = meter.look()
            costs[began] = Cost(used.cpu_ms / WINDOW, used.written_kib / WINDOW)
            began = None
    reader.cancel()
    connection.close()
    return costs


def main() -> None:
    turns = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    with (
        tempfile.TemporaryDirectory() as folder,
        System(Path(folder) / "data", Path(__file__).parent / "apps.py") as system,
    ):
        costs = asyncio.run(converse(system, turns))
    first = costs[min(costs)]
    print(f"{'turn':>6} {'CPU ms':>8} {'ratio':>6} {'written KiB':>12} {'ratio':>6}")
    for began, cost in sorted(costs.items()):
        print(
            f"{began:>6} {cost.cpu_ms:8.2f} {cost.cpu_ms / first.cpu_ms:6.2f} "
            f"{cost.written_kib:12.1f} {cost.written_kib / first.written_kib:6.2f}"
        )


if __name__ == "__main__":
    main()
