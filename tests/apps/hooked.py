"""An agent with every hook of §3.5, which writes each call down in a file."""

import asyncio
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from hook_orders import hooked

#: One file for each chat, and a file `<chat>.go` that lets its long answers go on.
FOLDER = Path(os.environ["EVERTURN_TEST_LEDGER"])


def note(name: str, chat_id: str) -> None:
    with (FOLDER / chat_id).open("a") as file:
        file.write(f"{name}\n")


async def pause(chat_id: str) -> None:
    note("paused", chat_id)
    while not (FOLDER / f"{chat_id}.go").exists():
        await asyncio.sleep(0.02)


hooked_agent = hooked("hooked", note, pause=pause)
larger_agent = hooked("hooked-larger", note, oom_machine="large-1x")
hydrating_agent = hooked("hydrating", note, hydrates=True)
short_agent = hooked("hooked-short", note, pause=pause, idle_timeout=0)
