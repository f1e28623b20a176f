"""A session whose history can never be read again, in a whole system."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio

from everturn.errors import StorageCorrupt
from everturn.rules import limits
from everturn.rules.run_states import RunState
from everturn.testing.checker import Turn
from everturn.testing.cluster import Cluster
from everturn.testing.virtual_loop import run_virtual
from everturn.worker.loading import load_app

APP = Path(__file__).parent.parent / "apps" / "simulated.py"


def test_boots_that_cannot_read_end_the_run_visibly_and_cost_other_sessions_nothing() -> None:
    """P-3, rulings §1.8: three attempts, then an error in the log, and no fourth."""
    app = load_app(str(APP))
    attempts: list[int] = []

    async def main() -> list[Turn]:
        cluster = Cluster(app, seed=5)
        broken = False
        read = cluster.streams.read

        async def maybe_read(channel: Any, **options: Any) -> Any:
            if broken and channel[1:] == ("sick", "out") and "include_trimmed" not in options:
                raise StorageCorrupt("streams.db: segment 3 of channel 1")
            return await read(channel, **options)

        cluster.streams.read = maybe_read  # type: ignore[method-assign]  # one file is damaged
        async with cluster.running():
            async with cluster.chat("eager", "sick") as sick, cluster.chat("eager", "well") as well:
                assert await (await sick.send_message("one")).text() == "answer 1"
                cluster.lives[0].kill()
                await anyio.sleep(10)
                broken = True
                stream = await sick.send_message("two")
                assert await stream.text() == ""
                assert stream.complete
                assert await (await well.send_message("one")).text() == "answer 1"
            attempts.extend(
                run.attempt for run in cluster.state._runs.values() if run.state is RunState.CRASHED
            )
            return await cluster.settled("sick")

    answered, failed = run_virtual(main)
    assert answered.text == "answer 1"
    assert failed.error == "The agent's process ended unexpectedly, several times."
    assert attempts == [limits.INTERRUPTIONS_MAX]
