"""Forgetting what is over: runs with their streams, wait tokens, batches, packets and keys.

Kept for `Settings.retention_days` after their end, and longer while something alive needs them
(`storage/ports/retention.py`). What a row leads to goes before the row: a crash in between leaves
the row, and the next pass does it again. Of several servers one does it.

Streams of runs are deleted whole: nobody finds them without their run, and its id never comes
again. A run's journal went with its end. Part ids of records live as long as their records.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

from everturn.protocol.records import ChannelName
from everturn.server.services.run_streams import channels_of

if TYPE_CHECKING:
    from everturn.server.services import Services

#: Rows of one transaction, and how many of them one pass takes of each kind.
_BITE: Final = 200
_BITES_MAX: Final = 50
#: How often it is done; a little less than how often it is tried.
_EVERY_MS: Final = 9 * 60 * 1000
_DAY_MS: Final = 24 * 3600 * 1000


async def forget_old(services: Services) -> int:
    """Forget what ended long enough ago; how many rows."""
    now_ms, days = services.clock.now_ms(), services.settings.retention_days
    state = services.state
    if not await state.take_chore("retention", now_ms=now_ms, every_ms=_EVERY_MS):
        return 0
    forgotten = await _bites(lambda: state.forget_keys(now_ms=now_ms, limit=_BITE))
    if days <= 0:
        return forgotten
    before_ms = now_ms - days * _DAY_MS
    # Runs first: batches and packets are kept as long as runs have them.
    forgotten += await _bites(lambda: _runs(services, before_ms))
    forgotten += await _bites(
        lambda: state.forget_batches(created_before_ms=before_ms, now_ms=now_ms, limit=_BITE)
    )
    forgotten += await _bites(
        lambda: state.forget_waitpoints(completed_before_ms=before_ms, now_ms=now_ms, limit=_BITE)
    )
    return forgotten + await _bites(lambda: _packets(services, before_ms))


async def _bites(bite: Callable[[], Awaitable[int]]) -> int:
    """Bite by bite until one is not full; what is left comes with the next pass."""
    total = 0
    for _ in range(_BITES_MAX):
        taken = await bite()
        total += taken
        if taken < _BITE:
            break
    return total


async def _runs(services: Services, before_ms: int) -> int:
    runs = await services.state.forgettable_runs(
        finished_before_ms=before_ms, now_ms=services.clock.now_ms(), limit=_BITE
    )
    channels = {run.id: frozenset(channels_of(run)) for run in runs}
    streams = sorted(frozenset[ChannelName]().union(*channels.values()))
    gone = await services.streams.forget(streams) if streams else frozenset()
    # A run whose stream is read just now, or could not be deleted, stays until the next pass.
    empty = [run_id for run_id, names in channels.items() if names <= gone]
    if empty:
        await services.state.forget_runs(empty)
    return len(empty)


async def _packets(services: Services, before_ms: int) -> int:
    packets = await services.state.forgettable_packets(noted_before_ms=before_ms, limit=_BITE)
    for packet in packets:
        await services.packets.forget(packet, before_ms)
    return len(packets)
