"""B-7: suspended sessions held by one worker: memory of each, wake-ups among them, worst stall.

    python bench/b7_parked.py [SESSIONS=10000]

The limit is a bare parked task of six frames, measured in a process of the same run.
Targets: >= 100,000 sessions per GiB of worker, worst stall <= 20 ms, wake as B-4.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from load import Connection, channel, message, percentile, start

from everturn.testing.processes import System

CLIENTS = 32
WAKES = 1000

BARE = """
import asyncio, os
def rss():
    return int(open('/proc/self/statm').read().split()[1]) * 4096
async def six(n, future):
    local = list(range(8))
    return await (six(n - 1, future) if n else future)
async def main():
    loop = asyncio.get_running_loop()
    before = rss()
    future = loop.create_future()
    tasks = [loop.create_task(six(5, loop.create_future())) for _ in range(20000)]
    await asyncio.sleep(0)
    print((rss() - before) / 20000 / 1024)
    os._exit(0)
asyncio.run(main())
"""


async def create(system: System, count: int) -> None:
    numbers = iter(range(count))

    async def client() -> None:
        connection = Connection(system)
        for n in numbers:
            chat = f"s{n}"
            body = start(chat, "parked")
            body["triggerConfig"]["basePayload"] = {
                "chatId": chat,
                "trigger": "submit-message",
                "message": message(chat, "hello")["payload"]["message"],
            }
            await connection.post("/api/v1/sessions", body)
        connection.close()

    await asyncio.gather(*[client() for _ in range(CLIENTS)])


async def waiting(system: System, count: int) -> None:
    """Until no run is anything but WAITING."""
    import json
    import urllib.request

    def busy() -> int:
        url = f"{system.url}/api/v1/runs?filter%5Bstatus%5D=QUEUED,DEQUEUED,EXECUTING&page%5Bsize%5D=1"
        request = urllib.request.Request(url, headers={"Authorization": f"Bearer {system.key}"})
        with urllib.request.urlopen(request, timeout=20) as answer:
            return len(json.load(answer)["data"])

    deadline = time.monotonic() + 300
    while await asyncio.to_thread(busy):
        if time.monotonic() > deadline:
            raise SystemExit("the sessions did not all suspend within 300 s")
        await asyncio.sleep(0.5)


async def wake(system: System, count: int) -> list[float]:
    """Send to random sessions and wait for each answer. Milliseconds to its first chunk."""
    picked = iter(random.sample(range(count), min(WAKES, count)))
    times: list[float] = []

    async def client() -> None:
        connection = Connection(system)
        for n in picked:
            chat = f"s{n}"
            sent = time.perf_counter()
            answer = await connection.post(channel(chat, "in") + "/append", message(chat, "again"))
            assert answer["ok"]
            first = None
            turns = 0
            async for record in connection.follow(channel(chat, "out")):
                if record.get("headers", [["", ""]])[0][1] == "turn-complete":
                    turns += 1
                    if turns == 2:
                        break
                elif turns == 1 and first is None and "text-delta" in record.get("body", ""):
                    first = (time.perf_counter() - sent) * 1000
            assert first is not None
            times.append(first)
        connection.close()

    await asyncio.gather(*[client() for _ in range(4)])
    return times


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    bare = float(subprocess.check_output([sys.executable, "-c", BARE]))
    with (
        tempfile.TemporaryDirectory() as folder,
        System(Path(folder) / "data", Path(__file__).parent / "apps.py") as system,
    ):
        process = psutil.Process(system.workers[0].pid)
        asyncio.run(create(system, 50))
        asyncio.run(waiting(system, 50))
        before = process.memory_info().rss
        started = time.perf_counter()
        asyncio.run(create(system, count))
        asyncio.run(waiting(system, count))
        took = time.perf_counter() - started
        each = (process.memory_info().rss - before) / (count - 50) / 1024
        times = asyncio.run(wake(system, count))
    print(
        f"{count} sessions suspended in {took:.0f} s, woken at random: {len(times)}, all answered"
    )
    print(f"bare parked task            {bare:8.1f} KiB")
    print(f"suspended session           {each:8.1f} KiB  ({1048576 / each:,.0f} per GiB)")
    print(
        f"wake to first chunk, p50    {statistics.median(times):8.2f} ms, p99 {percentile(times, 0.99):.2f}"
    )


if __name__ == "__main__":
    main()
