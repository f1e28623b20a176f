"""B-5: delay from an agent's write to a client's read, everything durable before it is visible.

500 sessions at 25 tokens a second and 1,000 at 20, against the same build with the sync switched
off (`EVERTURN_UNSAFE_NO_SYNC=1`, which exists for this row only). Target: p99 <= 6x.
"""

from __future__ import annotations

import asyncio
import re
import sys
import tempfile
import time
from pathlib import Path

from load import Connection, channel, message, percentile, start

from everturn.testing.processes import System

SECONDS = 6
STAMP = re.compile(r'"delta":"([0-9.]+) "')


async def one(system: System, chat: str, rate: int, delays: list[float]) -> None:
    connection = Connection(system)
    await connection.post("/api/v1/sessions", start(chat, "paced"))
    text = f"{rate} {rate * SECONDS}"
    await connection.post(channel(chat, "in") + "/append", message(chat, text))
    async for record in connection.follow(channel(chat, "out")):
        found = STAMP.search(record.get("body", "").replace('\\"', '"'))
        if found:
            # The worker's loop clock is the machine's monotonic clock, as is ours.
            delays.append((time.monotonic() - float(found[1])) * 1000)
        elif record.get("headers", [["", ""]])[0][1] == "turn-complete":
            break
    connection.close()


async def load(system: System, sessions: int, rate: int) -> list[float]:
    delays: list[float] = []
    await asyncio.gather(*[one(system, f"c{n}", rate, delays) for n in range(sessions)])
    # The first second is the start of every session at once, not the paced load.
    return delays[len(delays) // SECONDS :]


def measure(sessions: int, rate: int, environment: dict[str, str]) -> tuple[float, float]:
    with tempfile.TemporaryDirectory() as folder:
        app = Path(__file__).parent / "apps.py"
        with System(Path(folder) / "data", app, environment=environment) as system:
            delays = asyncio.run(load(system, sessions, rate))
    return percentile(delays, 0.5), percentile(delays, 0.99)


def main() -> None:
    shapes = [(500, 25), (1000, 20)] if "--quick" not in sys.argv else [(100, 25)]
    print(f"{'sessions x tokens/s':<22}{'durable p50 / p99 ms':>24}{'no sync':>18}{'ratio':>8}")
    for sessions, rate in shapes:
        p50, p99 = measure(sessions, rate, {})
        base50, base99 = measure(sessions, rate, {"EVERTURN_UNSAFE_NO_SYNC": "1"})
        print(
            f"{f'{sessions} x {rate}':<22}{f'{p50:.1f} / {p99:.1f}':>24}"
            f"{f'{base50:.1f} / {base99:.1f}':>18}{p99 / base99:>8.1f}"
        )


if __name__ == "__main__":
    main()
