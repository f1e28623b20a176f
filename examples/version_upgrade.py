"""A long conversation moves to newer code, between two turns.

    everturn dev examples/version_upgrade.py
    everturn chat upgrading                   # say something; then: echo 2 > deployed.txt; go on

A run goes on with the code it was started with, for as long as it lives: also when it has waited
for a week. `chat.request_upgrade()` in `on_turn_start` hands the message that is about to be
answered to a new run, on the newest version that a worker serves. The client notices nothing; the
message is answered once. What says that there is something newer is up to you: a flag, a row, a
file that your deployment writes.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from everturn import chat

DEPLOYED = Path(os.environ.get("DEPLOYED_FILE", "deployed.txt"))


@dataclass
class Code:
    """What a run was started with."""

    version: str


started_with = chat.local("started_with", Code)


def deployed() -> str:
    return DEPLOYED.read_text().strip() if DEPLOYED.exists() else "1"


@chat.agent("upgrading")
async def upgrading(turn: chat.Turn):
    return f"answered by version {started_with.version}"


@upgrading.on_boot
def remember(event: chat.BootEvent):
    started_with.init(Code(deployed()))


@upgrading.on_turn_start
def go_where_it_is_newer(event: chat.TurnStartEvent):
    if started_with.version != deployed():
        chat.request_upgrade()
