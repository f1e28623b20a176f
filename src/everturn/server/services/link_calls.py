"""The calls of the link: anything a run asks for that is not hot (`protocol/link.METHODS`).

A call names its run and fence; one under a lost fence fails with code `fenced`. A worker that
lost its connection sends open calls again under the same id, so the answers of calls that change
something are remembered for a while, and `trigger` uses the id as its request key, which holds
over a restart of the server too. All others are harmless to repeat.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec

from everturn.errors import (
    CursorTrimmed,
    EverturnError,
    Fenced,
    InvalidRequest,
    NotFound,
    ProtocolError,
    RunNotFound,
    Unavailable,
)
from everturn.protocol.link import Call, RecordFrame, Result
from everturn.protocol.records import ChannelName, InputCursor
from everturn.protocol.runs import RunOutcome
from everturn.rules import limits, metadata
from everturn.rules.run_states import FINAL, RunEvent, RunState
from everturn.server.services.finishing import is_agent
from everturn.server.services.results import run_result
from everturn.storage.ports.rows import Run, Session, Wait

if TYPE_CHECKING:
    from everturn.server.services import Services
    from everturn.server.services.link import Held, Link

log = logging.getLogger("everturn.link")
T = TypeVar("T")

#: Answers kept per worker.
_REMEMBERED_MAX: Final = 4_000
#: Journal entries of one attempt and bytes of one result (tasks-and-runs §29.4).
_JOURNAL_ENTRIES_MAX: Final = 10_000
_JOURNAL_BYTES_MAX: Final = 1 * limits.MIB


class CallMemory:
    """What the calls of one worker answered, over its connections. Bounded."""

    def __init__(self) -> None:
        self._results: OrderedDict[str, Result] = OrderedDict()

    def get(self, call_id: str) -> Result | None:
        return self._results.get(call_id)

    def keep(self, call: Call, result: Result) -> None:
        """Remember the answer of a call that must not be carried out twice."""
        if call.method not in _ONCE or (result.error or {}).get("code") == "unavailable":
            return
        self._results[call.id] = result
        if len(self._results) > _REMEMBERED_MAX:
            self._results.popitem(last=False)


class Context:
    """One call: its services, its run, its parameters."""

    def __init__(self, services: Services, link: Link, call: Call, held: Held) -> None:
        self.services = services
        self.link = link
        self.call = call
        self.held = held

    def param(self, name: str, kind: type[T]) -> T:
        """A parameter of the call. Raises InvalidRequest when missing or of another type."""
        try:
            return msgspec.convert(self.call.params.get(name), kind)
        except msgspec.ValidationError as error:
            raise InvalidRequest(f"{self.call.method}: {name}: {error}") from error

    async def run(self) -> Run:
        run = await self.services.state.run(self.link.environment.id, self.call.run_id)
        if run is None or run.fence != self.call.fence:
            raise Fenced(f"run {self.call.run_id} moved on", run_id=self.call.run_id)
        return run

    async def session(self) -> Session:
        row = None
        if self.held.session_id is not None:
            row = await self.services.state.session(self.link.environment.id, self.held.session_id)
        if row is None:
            raise InvalidRequest(f"run {self.call.run_id} has no session")
        return row


async def carry_out(services: Services, link: Link, call: Call) -> Result:
    """Do what a call asks and answer it; failures become the answer's error."""
    try:
        handler = _HANDLERS.get(call.method)
        if handler is None:
            raise ProtocolError(f"no call is named {call.method!r}")
        value = await handler(Context(services, link, call, link.held(call.run_id, call.fence)))
        return Result(call.id, value)
    except EverturnError as error:
        return Result(call.id, None, _described(error))
    except Exception:
        # The edge of the process towards a worker: a mistake of ours in one call must not take
        # the connection, and with it the runs of all others, down.
        log.exception("call.broken", extra={"method": call.method, "run_id": call.run_id})
        return Result(call.id, None, {"code": "internal", "message": "internal error"})


# --- waiting --------------------------------------------------------------------------------


async def _suspend(context: Context) -> dict[str, Any]:
    """State first, tail afterwards: a record that came meanwhile ends the wait at once."""
    services, call = context.services, context.call
    wait = context.param("wait", Wait)
    if wait.kind == "channel":
        wait = msgspec.structs.replace(wait, ref=context.held.session_key or "")
    if context.held.session_id is not None:
        services.links.not_live(context.held.session_id)
    run = await services.state.suspend_run(
        call.run_id, wait, fence=call.fence, now_ms=services.clock.now_ms()
    )
    if run is None:
        run = await context.run()
        if run.state not in (RunState.SUSPENDED, RunState.RESUMING):
            raise Fenced(f"run {run.id} is {run.state} and cannot suspend", run_id=run.id)
    if not await services.waits.wake_if_over(run):
        services.links.timer.moved(wait.until_ms)
    # A slot of its queue is free.
    services.wakeups.notify(f"queue/{context.link.environment.id}")
    return {}


async def _evict(context: Context) -> dict[str, Any]:
    """Let go of a parked run, unless a wake was faster (rulings §1.18)."""
    services = context.services
    run = await context.run()
    if run.state is not RunState.SUSPENDED:
        return {"evicted": False}
    parked = frozenset({RunState.SUSPENDED})
    task = await services.state.task(run.environment_id, run.task_id)
    if run.session_id is not None and is_agent(task):
        gone = await services.finishing.end(run, RunEvent.COMPLETE, only_from=parked) is not None
    else:
        let_go = await services.state.requeue_run(
            run.id,
            RunEvent.INTERRUPT,
            now_ms=services.clock.now_ms(),
            fence=run.fence,
            interruptions=run.interruptions,
            only_from=parked,
        )
        gone = let_go is not None
        if let_go is not None:
            await services.waits.wake_if_over(let_go)
    if gone:
        context.link.release(run.id, run.fence)
    return {"evicted": gone}


# --- endings --------------------------------------------------------------------------------


async def _finish(context: Context) -> dict[str, Any]:
    outcome = context.param("outcome", RunOutcome)
    try:
        await context.services.finishing.report(context.call.run_id, context.call.fence, outcome)
    except (Fenced, Unavailable):
        raise
    except EverturnError as error:
        # A session whose log cannot be read cannot be settled, by no repetition of the worker.
        if (await context.run()).state not in FINAL:
            raise
        log.error("run.unsettled", extra={"run_id": context.call.run_id, "error": error.code})
    context.link.release(context.call.run_id, context.call.fence)
    context.services.wakeups.notify(f"queue/{context.link.environment.id}")
    return {}


async def _continue(context: Context) -> dict[str, Any]:
    run_id, swapped = await context.services.dispatch.end_and_continue(
        await context.session(), context.call.run_id, context.param("reason", str), from_run=True
    )
    return {"runId": run_id, "swapped": swapped}


# --- the session's channels and blobs -------------------------------------------------------


async def _read(context: Context) -> dict[str, Any]:
    """Stored records after a cursor, or before one, newest first."""
    services, params = context.services, context.call.params
    if context.held.session_key is None:
        raise InvalidRequest(f"run {context.call.run_id} has no session")
    io = context.param("io", str)
    if io not in ("in", "out"):
        raise InvalidRequest(f"io is in or out, not {io!r}")
    limit = context.param("limit", int) if "limit" in params else limits.READ_RECORDS_MAX
    limit = max(1, min(limit, limits.READ_RECORDS_MAX))
    channel = ChannelName(
        context.link.environment.id, context.held.session_key, "in" if io == "in" else "out"
    )
    bounds = await services.streams.bounds(channel)
    if params.get("before") is not None:
        records = await services.streams.read_back(
            channel, before=context.param("before", int), records_max=limit
        )
    else:
        after = context.param("after", int) if params.get("after") is not None else None
        try:
            records = await services.streams.read(channel, after=after, records_max=limit)
        except CursorTrimmed as trimmed:
            records = await services.streams.read(
                channel, after=trimmed.first_seq_num - 1, records_max=limit
            )
    return {"records": [RecordFrame.of(record) for record in records], "tail": bounds.tail}


async def _snapshot_get(context: Context) -> dict[str, Any]:
    """The history, for a run that goes on from it: who ran before writes no more of it."""
    session = await context.session()
    stored = await context.services.histories.read(session, fence=context.call.fence)
    return {"data": stored.data, "patched": stored.patched_bytes, "part": stored.next_part}


async def _snapshot_put(context: Context) -> dict[str, Any]:
    await context.services.histories.rewrite(
        await _own_session(context),
        context.param("data", bytes),
        fence=context.call.fence,
        part=context.param("part", int),
    )
    return {}


async def _snapshot_patch(context: Context) -> dict[str, Any]:
    await context.services.histories.patch(
        await _own_session(context),
        context.param("data", bytes),
        fence=context.call.fence,
        part=context.param("part", int),
    )
    return {}


async def _consumed(context: Context) -> dict[str, Any]:
    """What a raw task has consumed of `in`, kept per session and task (rulings §1.16)."""
    run, session = await context.run(), await context.session()
    await context.services.state.set_cursor(
        session.id, InputCursor(context.param("seq_num", int)), task_id=run.task_id
    )
    return {}


async def _token(context: Context) -> dict[str, Any]:
    lifetime_s = max(1, min(context.param("ttl_s", int), limits.TOKEN_S_MAX))
    token = await context.services.tokens.mint(
        context.link.environment.id, context.param("scopes", list[str]), lifetime_s=lifetime_s
    )
    return {"token": token}


# --- other runs, and what a run knows of itself ---------------------------------------------


async def _trigger(context: Context) -> dict[str, Any]:
    options = dict(context.param("options", dict[str, Any]))
    options["payloadType"] = context.param("payload_type", str)
    if context.call.params.get("wait"):
        options["resumeParentOnCompletion"] = True
    body = {"payload": context.param("payload", bytes).decode(), "options": options}
    run, cached = await context.services.runs.trigger(
        context.link.environment,
        context.param("task_id", str),
        body,
        request_key=f"call:{context.call.run_id}:{context.call.id}",
        parent=await context.run(),
    )
    return {"runId": run.id, "isCached": cached}


async def _run_result(context: Context) -> Any:
    run = await context.services.state.run(
        context.link.environment.id, context.param("run_id", str)
    )
    if run is None:
        raise RunNotFound("Run not found")
    result = run_result(run)
    return None if result is None else msgspec.to_builtins(result, builtin_types=(bytes,))


async def _wait_token(context: Context) -> dict[str, Any]:
    """What a run that waits for a token gets: nothing yet, or its output."""
    found = await context.services.state.waitpoint(
        context.link.environment.id, context.param("token", str)
    )
    if found is None:
        raise NotFound("Waitpoint not found")
    return {
        "status": found.status,
        "output": found.output,
        "output_type": found.output_type,
    }


async def _run_cancel(context: Context) -> dict[str, Any]:
    run_id = context.param("run_id", str)
    run = await context.services.runs.cancel(
        context.link.environment.id, run_id, "Canceled by its parent run"
    )
    if run is None:
        raise RunNotFound("Run not found")
    return {}


async def _metadata(context: Context) -> dict[str, Any]:
    operations = context.param("operations", list[metadata.Operation])
    run = await context.services.state.set_metadata(
        context.link.environment.id,
        context.call.run_id,
        metadata.change(operations),
        now_ms=context.services.clock.now_ms(),
    )
    return {"metadata": (run.metadata if run is not None else None) or b"{}"}


async def _tags(context: Context) -> dict[str, Any]:
    tags = context.param("tags", list[str])
    await context.services.state.add_tags(
        context.link.environment.id,
        context.call.run_id,
        tags,
        now_ms=context.services.clock.now_ms(),
    )
    return {}


async def _journal_put(context: Context) -> dict[str, Any]:
    position, result = context.param("position", int), context.param("result", bytes)
    if not 0 <= position < _JOURNAL_ENTRIES_MAX:
        raise InvalidRequest(f"journal position {position}, at most {_JOURNAL_ENTRIES_MAX - 1}")
    if len(result) > _JOURNAL_BYTES_MAX:
        raise InvalidRequest(
            f"the step's result is {len(result)} bytes, at most {_JOURNAL_BYTES_MAX}: "
            "store the value and return a reference to it"
        )
    kept = await context.services.state.journal_put(
        context.call.run_id,
        position,
        context.param("key", str),
        result,
        fence=context.call.fence,
    )
    if not kept:
        raise Fenced(f"run {context.call.run_id} moved on", run_id=context.call.run_id)
    return {}


async def _own_session(context: Context) -> Session:
    """The session, for a run that is its current one.

    The fence of the history rises when a successor reads it; a run that was replaced a moment ago
    stores no more either.
    """
    session = await context.session()
    if session.current_run_id != context.call.run_id or session.fence > context.call.fence:
        raise Fenced(f"run {context.call.run_id} is not the session's current one")
    return session


def _described(error: EverturnError) -> dict[str, Any]:
    plain = {
        name: value
        for name, value in error.details.items()
        if value is None or isinstance(value, (str, int, float, bool))
    }
    return {"code": error.code, "message": error.message, "details": plain}


_HANDLERS: Final[Mapping[str, Callable[[Context], Awaitable[Any]]]] = {
    "suspend": _suspend,
    "finish": _finish,
    "evict": _evict,
    "read": _read,
    "snapshot.get": _snapshot_get,
    "snapshot.put": _snapshot_put,
    "snapshot.patch": _snapshot_patch,
    "token": _token,
    "continue": _continue,
    "trigger": _trigger,
    "run.result": _run_result,
    "run.cancel": _run_cancel,
    "wait.token": _wait_token,
    "metadata": _metadata,
    "tags": _tags,
    "journal.put": _journal_put,
    "consumed": _consumed,
}
#: Calls whose answer is remembered, because doing them twice would show.
_ONCE: Final = frozenset({"finish", "evict", "continue", "trigger", "metadata", "suspend"})
