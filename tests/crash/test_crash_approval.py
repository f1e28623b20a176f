"""The approval example, whose worker is killed between two decisions."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import anyio
import pytest

from everturn import runs, sessions
from everturn.client.config import configure
from everturn.testing.processes import System

pytestmark = [pytest.mark.anyio, pytest.mark.processes]

EXAMPLE = Path(__file__).parent.parent.parent / "examples" / "approval_flow.py"


@pytest.fixture
def approvals(tmp_path: Path) -> Iterator[System]:
    with System(tmp_path / "data", EXAMPLE) as running:
        configure(url=running.url, secret_key=running.key)
        yield running
        configure()


async def test_a_decision_that_was_made_is_not_asked_for_again_after_a_crash(
    approvals: System,
) -> None:
    """P-3 for a session without a chat; rulings §1.16 and the journal of steps."""
    started = await sessions.start(
        type="approval", task="expense-approval", trigger_config={"basePayload": {"amount": 7}}
    )
    handle = sessions.open(started.id)
    seen: list[tuple[str, str]] = []
    killed = False
    with anyio.fail_after(60):
        async for event in handle.out.read(timeout=50):
            seen.append((event["state"], event.get("for") or event.get("by") or ""))
            if seen[-1] == ("waiting", "manager"):
                await handle.in_.send({"approved": True})
            elif seen[-1] == ("waiting", "finance") and not killed:
                killed = True
                approvals.kill_worker()
                await anyio.to_thread.run_sync(partial(approvals.start_worker, wait=True))
                await handle.in_.send({"approved": True})
            elif event["state"] == "paid":
                break

    assert seen.count(("waiting", "manager")) == 1
    assert ("approved", "finance") in seen
    with anyio.fail_after(10):
        while (await runs.retrieve(started.run_id)).status != "COMPLETED":
            await anyio.sleep(0.05)
    assert (await runs.retrieve(started.run_id)).output == {"approved": True}
