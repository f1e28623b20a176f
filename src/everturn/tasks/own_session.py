"""`sessions.open(own session)` inside a run: the run's own handle (chat-agent §6.2, §6.3).

A handle over HTTP could not write under the run's fence, know what the run has consumed, or
suspend. So whoever runs an author's code wraps it into `own_session`, and `sessions.open` answers
with this handle when it is asked for the run's session by either of its ids.

What a raw task has consumed is remembered by the server and given to its next attempt or run as
the cursor to read from (rulings §1.16). A record counts as consumed when the author asks for the
next one, or returns: an attempt that dies in between gets it again. A chat's turn loop keeps its
own cursor; there the handle is a second reader, which shows what arrives from its opening on.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import anyio
from anyio.abc import TaskGroup

from everturn.client import binding
from everturn.tasks.channel_output import SessionOutput
from everturn.tasks.channels import SessionInput, decode_data
from everturn.tasks.runtime import RunRuntime


class OwnInput(SessionInput[Any]):
    """The `.in` of the run's own session."""

    def __init__(
        self, runtime: RunRuntime, tasks: TaskGroup, *, after: int | None, remember: bool
    ) -> None:
        super().__init__(runtime, tasks, decode=decode_data, after=after, remember=remember)
        self._key = runtime.info.session_key or ""

    async def send(self, value: Any) -> int | None:
        """Append one record as a client does: text as it is, anything else as JSON.

        Raises SessionClosedError, TooLarge.
        """
        from everturn.client.api import Api
        from everturn.client.channels import InputChannel

        return await InputChannel(Api(), self._key).send(value)


class OwnHandle(NamedTuple):
    """The two channels of the run's own session."""

    id: str
    in_: OwnInput
    out: SessionOutput


class OwnSession:
    """Makes the handle when it is first asked for: a parked chat that never asks has none."""

    __slots__ = ("_after", "_handle", "_remember", "_runtime", "_tasks")

    def __init__(
        self,
        runtime: RunRuntime,
        tasks: TaskGroup,
        *,
        after: Callable[[], int | None] | None = None,
    ) -> None:
        """`tasks` carries the tail of `.in`; whoever owns it cancels it when the run ends.

        Args:
            after: where reading begins, asked when the handle is made. Left out, it is what the
                task consumed before, and what it consumes from here on is remembered.
        """
        self._runtime = runtime
        self._tasks = tasks
        self._after = after
        self._remember = after is None
        self._handle: OwnHandle | None = None

    def find(self, session: str) -> OwnHandle | None:
        """The handle, if `session` names the run's own session; for `client.binding.bound`."""
        info = self._runtime.info
        if session not in (info.session_id, info.session_key):
            return None
        if self._handle is None:
            after = info.consumed if self._after is None else self._after()
            in_ = OwnInput(self._runtime, self._tasks, after=after, remember=self._remember)
            self._handle = OwnHandle(info.session_id or session, in_, SessionOutput(self._runtime))
        return self._handle

    async def settle(self) -> None:
        """The author's code has returned: what it was given last is consumed too."""
        if self._handle is not None:
            await self._handle.in_.settle()


@asynccontextmanager
async def own_session(runtime: RunRuntime) -> AsyncIterator[OwnSession | None]:
    """Answer `sessions.open` from this run inside the block; None for a run without a session.

    Exceptions leave as they were raised, not in a group, because the callers tell outcomes apart
    by type.
    """
    if runtime.info.session_key is None:
        yield None
        return
    try:
        async with anyio.create_task_group() as tasks:
            own = OwnSession(runtime, tasks)
            with binding.bound(own.find):
                yield own
            tasks.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        raise _first(group) from None


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
