"""Ending an author's generator that is left half-way.

A stopped turn, or a chunk that is refused, leaves a generator where it stands. Its `finally` blocks
are where a connection is closed and a sub-agent let go, so they run here and now, and may await:
shielded, because the turn may be being cancelled, and bounded, because it has to end whatever the
author wrote. What a generator does that will not be ended is told to the log and is no failure of
its turn: the answer is over as far as anybody was to see it.
"""

from __future__ import annotations

import logging
from typing import Any, Final

import anyio

log = logging.getLogger("everturn.chat")

CLOSE_S_MAX: Final = 15.0


async def close_iterator(iterator: Any) -> None:
    """End an async generator; does nothing for an iterator that has no end of its own.

    Raises what its cleanup raises.
    """
    if getattr(iterator, "aclose", None) is None:
        return
    with anyio.move_on_after(CLOSE_S_MAX, shield=True) as scope:
        try:
            await iterator.aclose()
        except RuntimeError as error:
            if not _goes_on(iterator):
                raise
            # Python asks once. Nobody reads from it any more, so it goes no further.
            log.error("stream.unclosed: %s goes on: %s", _name_of(iterator), error)
    if scope.cancelled_caught:
        log.error(
            "stream.unclosed: the cleanup of %s took more than %g s and was cancelled",
            _name_of(iterator),
            CLOSE_S_MAX,
        )


def _goes_on(iterator: Any) -> bool:
    """Whether a generator has yielded instead of ending."""
    return getattr(iterator, "ag_frame", None) is not None


def _name_of(iterator: Any) -> str:
    """The function that an author looks for, and where it is."""
    code = getattr(iterator, "ag_code", None)
    if code is None:
        return type(iterator).__qualname__
    return f"{iterator.__qualname__} ({code.co_filename}:{code.co_firstlineno})"
