"""Plain tasks that wait, and write down each step they really do."""

import os
from pathlib import Path

from everturn import step, task, wait


def note(line: str) -> str:
    """One line in the file that a test counts."""
    with Path(os.environ["EVERTURN_TEST_LEDGER"]).open("a") as ledger:
        ledger.write(f"{line}\n")
    return line


@task("waits-for-time")
async def waits_for_time(payload):
    """A step, eight seconds of suspension, another step."""
    before = await step("before", lambda: note(f"before {payload['name']}"))
    await wait.for_(seconds=8)
    after = await step("after", lambda: note(f"after {payload['name']}"))
    return [before, after]


@task("child")
async def child(payload):
    """Takes long enough for its parent's process to die meanwhile."""
    await step("work", lambda: note(f"child {payload['name']}"))
    await wait.for_(seconds=6)
    return f"child of {payload['name']}"


@task("waits-for-child")
async def waits_for_child(payload):
    """A step, a child run, another step."""
    await step("before", lambda: note(f"before {payload['name']}"))
    answer = await child.trigger_and_wait(payload).unwrap()
    await step("after", lambda: note(f"after {payload['name']}"))
    return answer
