"""What a boot reads, and what it does when it cannot (chat-agent §2.2, R-023; P-3, P-9).

A read that fails (after the tries of the link beneath) is not the same as a read that finds
nothing. Taken for empty, `.out` would hide that a message was answered, which would be answered
twice; `.in` would hide a message, which would be lost. So the attempt gives up: it ends
interrupted, and the run is queued again. It says why, so that it is counted: what can never be
read ends the run after three attempts, visibly, and not never (rulings §1.8). A store that is
away altogether costs nothing: the server cannot count then either, and waits.

The snapshot is different in one case. While `.out` is whole from its first record, everything a
snapshot could say can be replayed, and a boot goes on without it. Once something was trimmed,
only the snapshot holds it, and a boot without it would forget history for good with its next
trim. A snapshot that is missing, does not parse or is of another version counts as none either
way: waiting would not bring it back.
"""

from __future__ import annotations

import logging
from typing import Final

from everturn.chat.state import ChatRun
from everturn.chat.transcript import Snapshot
from everturn.errors import CursorTrimmed, EverturnError, Fenced, LeaseLost
from everturn.protocol.records import TURN_COMPLETE, Io, Record
from everturn.protocol.runs import RunOutcome
from everturn.rules import limits
from everturn.tasks.failures import AttemptFailed, internal_error

log = logging.getLogger("everturn.chat")

#: Above every seq_num: reading back from it starts at the newest record.
_FROM_THE_TAIL: Final = 1 << 62
#: How long a boot that cannot read holds on to its run before it gives up: the next attempt
#: begins at once, and a store that is in trouble should not be asked without pause.
PAUSE_S: Final = 1.0


async def snapshot(run: ChatRun) -> Snapshot | None:
    """The stored history; None when there is none, or when `.out` can be replayed whole.

    Raises AttemptFailed (interrupted) when it cannot be read and holds what was trimmed.
    """
    try:
        return await run.transcript.load()
    except (Fenced, LeaseLost):
        raise
    except (EverturnError, OSError) as error:
        if await _is_trimmed(run):
            raise await _gives_up(run, "the snapshot") from error
        log.warning("boot.read_failed: the snapshot; replaying without it", exc_info=True)
        return None


async def everything(run: ChatRun, io: Io, after: int | None, found: list[Record]) -> None:
    """Add everything stored after a cursor to `found`.

    Raises AttemptFailed (interrupted) when it cannot be read.
    """
    while True:
        try:
            page = await run.runtime.read(io, after=after, limit=limits.READ_RECORDS_MAX)
        except CursorTrimmed as trimmed:
            after = trimmed.first_seq_num - 1 if trimmed.first_seq_num > 0 else None
            continue
        except (Fenced, LeaseLost):
            raise
        except (EverturnError, OSError) as error:
            raise await _gives_up(run, io) from error
        if not page:
            return
        found.extend(page)
        after = page[-1].seq_num


async def back_to_commit(run: ChatRun) -> list[Record]:
    """The newest turn-complete of `.out` and what follows it, oldest first.

    Raises AttemptFailed (interrupted) when it cannot be read.
    """
    found: list[Record] = []
    before = _FROM_THE_TAIL
    while True:
        try:
            page = await run.runtime.read("out", before=before, limit=100)
        except (Fenced, LeaseLost):
            raise
        except (EverturnError, OSError) as error:
            raise await _gives_up(run, "out") from error
        found.extend(page)
        if not page or any(record.control == TURN_COMPLETE for record in page):
            break
        before = page[-1].seq_num
    found.reverse()
    commits = [n for n, record in enumerate(found) if record.control == TURN_COMPLETE]
    return found[commits[-1] :] if commits else found


async def _is_trimmed(run: ChatRun) -> bool:
    """Whether the visible start of `.out` lies above its first record."""
    try:
        first = await run.runtime.read("out", limit=1)
    except CursorTrimmed:
        return True
    except (Fenced, LeaseLost):
        raise
    except (EverturnError, OSError) as error:
        raise await _gives_up(run, "out") from error
    return bool(first) and first[0].seq_num > 0


async def _gives_up(run: ChatRun, what: str) -> AttemptFailed:
    """The exception that ends the attempt interrupted, after a pause."""
    log.warning("boot.read_failed: %s; the run is queued again", what, exc_info=True)
    await run.runtime.clock.sleep(PAUSE_S)
    error = internal_error("TASK_RUN_CRASHED", f"a boot could not read {what}")
    return AttemptFailed(RunOutcome(kind="interrupted", error=error))
