"""Records of `in` that nobody reads, and those that everybody has read long ago."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from itertools import islice
from typing import TYPE_CHECKING, Final

from everturn.errors import EverturnError, Unavailable
from everturn.rules.run_states import FINAL, RunState
from everturn.server.services.finishing import is_agent
from everturn.server.services.readback import open_input
from everturn.storage.ports.rows import Session

if TYPE_CHECKING:
    from everturn.server.services import Services

log = logging.getLogger("everturn.sweeps")

#: Channels looked at in one pass.
_CHANNELS_MAX: Final = 100_000


async def ensure_readers(services: Services) -> int:
    """After a start: sessions with a record whose run check a crash prevented (rulings §1.1).

    An agent's session needs a run when a message waits that nobody has decided, or a wake when
    its run is suspended. A raw task's needs a wake only; a new run starts with the next append
    (rulings §1.16).
    """

    async def ensure(session: Session) -> bool:
        needed = await _needs_check(services, session)
        if needed:
            await services.dispatch.ensure_run(session)
        return needed

    return await _each(await _recent_sessions(services), ensure)


async def repeat_checks(services: Services) -> int:
    """Run checks that failed while the store was away."""
    return await services.dispatch.repeat_failed_checks()


async def trim_all(services: Services) -> int:
    """Move the visible start of `in` behind the committed cursor (rulings §1.17)."""

    async def trim(session: Session) -> bool:
        return await services.outbox.trim_input(session, await services.outbox.committed(session))

    return await _each(await _recent_sessions(services), trim)


async def _each(sessions: list[Session], look: Callable[[Session], Awaitable[bool]]) -> int:
    """Look after sessions one after the other; for how many there was something to do.

    Raises Unavailable, which is everybody's trouble. Any other failure is of one session alone,
    whose log cannot be read, and must not hold up those behind it.
    """
    count = 0
    for session in sessions:
        try:
            count += await look(session)
        except Unavailable:
            raise
        except EverturnError as error:
            extra = {"session_id": session.id, "error": error.code}
            log.error("session.not_looked_after", extra=extra)
    return count


async def _needs_check(services: Services, session: Session) -> bool:
    run = None
    if session.current_run_id is not None:
        run = await services.state.run(session.environment_id, session.current_run_id)
    if run is not None and run.state not in FINAL:
        return run.state is RunState.SUSPENDED
    if not is_agent(await services.state.task(session.environment_id, session.task_id)):
        return False
    cursor = await services.outbox.committed(session)
    return (await open_input(services.streams, session, cursor)).first is not None


async def _recent_sessions(services: Services) -> list[Session]:
    now_ms = services.clock.now_ms()
    sessions = []
    for channel in islice(await services.streams.recent_channels(), _CHANNELS_MAX):
        if channel.io != "in":
            continue
        session = await services.state.session(channel.environment, channel.session)
        if session is not None and session.status(now_ms) == "ACTIVE":
            sessions.append(session)
    return sessions
