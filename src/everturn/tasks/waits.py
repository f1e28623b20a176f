"""Waiting inside a run: `wait.for_`, `wait.until`, for a child run, and for a token.

Up to five seconds a wait is a plain sleep that keeps its slot. A longer one suspends the run: it
frees its slot, its `max_duration` clock stands still, and it costs memory only. The deadline is
journalled before the run suspends, so a recovered run waits for what is left of it and not for
the whole again. Hooks `on_wait` and `on_resume` fire around suspensions only.

A token is made by `create_token`, by a run or from outside, and completed by whoever holds it
(`client/wait.py`). A run that makes one journals its id, so that a recovered run waits for the
token it had handed out instead of making another.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import msgspec

from everturn.client.results import Err, Ok
from everturn.errors import InvalidRequest, WaitTimeoutError
from everturn.protocol.runs import RunResult, TokenResult
from everturn.rules import durations
from everturn.tasks import bridge, codec
from everturn.tasks import runtime as runtimes
from everturn.tasks import scope as scopes
from everturn.tasks.bridge import either
from everturn.tasks.results import PendingOutput

# The HTTP client is resolved on first use: most runs never need it, and every worker imports this.
if TYPE_CHECKING:
    from everturn.client.paging import Listing
    from everturn.client.wait import TokenState, WaitToken

#: Waits up to this long keep their slot (tasks-and-runs §12.1).
IN_PROCESS_S_MAX: Final = 5.0
_CREATE: Final = "wait:create_token"


@either
async def for_(
    duration: durations.Duration | None = None,
    *,
    seconds: float | None = None,
    minutes: float | None = None,
    hours: float | None = None,
    days: float | None = None,
    weeks: float | None = None,
    months: float | None = None,
    years: float | None = None,
) -> None:
    """Wait for a duration: `wait.for_(minutes=10)` or `wait.for_("1h30m")`.

    Raises:
        NotInRunError: called outside a run.
        InvalidRequest: not exactly one duration.
        ConcurrentWaitError: this run waits for something else already.
    """
    units = {
        "seconds": seconds,
        "minutes": minutes,
        "hours": hours,
        "days": days,
        "weeks": weeks,
        "months": months,
        "years": years,
    }
    if duration is not None:
        if any(count is not None for count in units.values()):
            raise InvalidRequest("give a duration or one unit, not both")
        wait_s = durations.parse(duration)
    else:
        wait_s = durations.of_units(**units)
    runtime = runtimes.current()
    if wait_s <= IN_PROCESS_S_MAX:
        await runtime.clock.sleep(wait_s)
        return
    await _until(runtime.clock.now_ms() + round(wait_s * 1000), "wait:for")


@either
async def until(date: datetime, *, raise_if_past: bool = False) -> None:
    """Wait until an instant. A naive datetime counts as UTC; a past one returns at once.

    Raises:
        InvalidRequest: the instant is past, and `raise_if_past`.
        NotInRunError: called outside a run.
        ConcurrentWaitError: this run waits for something else already.
    """
    runtime = runtimes.current()
    at = date if date.tzinfo is not None else date.replace(tzinfo=UTC)
    until_ms = round(at.timestamp() * 1000)
    left_s = (until_ms - runtime.clock.now_ms()) / 1000
    if left_s <= 0 and raise_if_past:
        raise InvalidRequest(f"{date.isoformat()} is in the past")
    await _until(until_ms, "wait:until")


for_duration = for_


@either
async def sleep(duration: timedelta) -> None:
    """`for_` with a timedelta."""
    await for_(duration)


async def _until(until_ms: int, key: str) -> None:
    """Wait for an instant, which an interrupted attempt may have settled already."""
    runtime = runtimes.current()
    scope = scopes.of(runtime)
    place, stored = scope.journal.take(key)
    if stored is not None:
        until_ms = int(stored)
    left_s = (until_ms - runtime.clock.now_ms()) / 1000
    if left_s > IN_PROCESS_S_MAX:
        if stored is None:
            await scope.journal.put(runtime, place, key, str(until_ms).encode())
        at = datetime.fromtimestamp(until_ms / 1000, UTC)
        async with suspending({"type": "duration", "date": at}):
            await runtime.suspend_until(until_ms)
        return
    if stored is None:
        await scope.journal.put(runtime, place, key, str(until_ms).encode())
    if left_s > 0:
        await runtime.clock.sleep(left_s)


async def for_run(run_id: str) -> RunResult:
    """Wait until a run is final; at once when it is. Child failure does not raise."""
    runtime = runtimes.current()
    result = await runtime.run_result(run_id)
    if result is not None:
        return result
    async with suspending({"type": "task", "run_id": run_id}):
        while result is None:
            woken = await runtime.suspend_on_run(run_id)
            result = woken.result or await runtime.run_result(run_id)
    return result


# --- tokens ---------------------------------------------------------------------------------


@either
async def create_token(
    *,
    timeout: durations.Duration | datetime | None = None,
    tags: str | Sequence[str] | None = None,
    idempotency_key: str | Sequence[str] | None = None,
    idempotency_key_ttl: str | None = None,
) -> WaitToken:
    """Make a token to wait for; inside a run the same call of a recovered run finds it again.

    The arguments are those of `client.wait.create_token`.
    """
    from everturn.client import wait as tokens

    runtime = runtimes.current_or_none()
    place, stored, name = "", None, idempotency_key
    if runtime is not None:
        journal = scopes.of(runtime).journal
        place, stored = journal.take(_CREATE)
        if stored is not None:
            return msgspec.json.decode(stored, type=tokens.WaitToken)
        if name is None:
            # For the moment between making it and noting it: the same call asks for the same one.
            name = ("token", await journal.name(runtime), place)
    made = await tokens.create_token(
        timeout=timeout, tags=tags, idempotency_key=name, idempotency_key_ttl=idempotency_key_ttl
    )
    if runtime is not None:
        journal = scopes.of(runtime).journal
        await journal.put(runtime, place, _CREATE, msgspec.json.encode(made))
    return made


@either
async def complete_token(token: str | WaitToken | TokenState, data: Any = None) -> None:
    """Complete a token, with data or without; the first completion counts. Raises NotFound."""
    from everturn.client import wait as tokens

    await tokens.complete_token(token, data)


@either
async def retrieve_token(token: str | WaitToken | TokenState) -> TokenState:
    """A token as it stands, with its output. Raises NotFound."""
    from everturn.client import wait as tokens

    return await tokens.retrieve_token(token)


def list_tokens(**filters: Any) -> Listing[TokenState]:
    """Tokens, newest first; the filters are those of `client.wait.list_tokens`."""
    from everturn.client import wait as tokens

    return tokens.list_tokens(**filters)


def for_token(token: str | WaitToken, output_type: Any = Any) -> PendingOutput[Any]:
    """Suspend until a token is completed; at once when it is.

    `await` gives `Ok(output)`, or `Err(error)` when the token timed out; `await ….unwrap()` gives
    the output or raises WaitTimeoutError. `output_type` checks the output. In a sync task it
    blocks, and returns the `Ok` or `Err` itself.

    Raises:
        NotInRunError: awaited outside a run.
        NotFound: there is no such token.
        ConcurrentWaitError: this run waits for something else already.
    """
    token_id = token if isinstance(token, str) else token.id

    async def wait() -> Any:
        return await _token(token_id, output_type)

    if bridge.blocking():
        return bridge.run(wait())
    return PendingOutput(wait)


async def _token(token_id: str, output_type: Any) -> Ok[Any] | Err:
    runtime = runtimes.current()
    found = await runtime.token_result(token_id)
    if found.status == "WAITING":
        async with suspending({"type": "token", "token": token_id}):
            await runtime.suspend_on_token(token_id)
        found = await runtime.token_result(token_id)
    return _outcome(token_id, found, output_type)


def _outcome(token_id: str, found: TokenResult, output_type: Any) -> Ok[Any] | Err:
    if found.status == "TIMED_OUT":
        return Err(WaitTimeoutError(f"{token_id} was not completed in time", token_id=token_id))
    assert found.status == "COMPLETED", "a wake for a token comes when it is over"
    if found.output is None:
        return Ok(None)
    output = codec.decode_packet(found.output, found.output_type or codec.JSON)
    return Ok(codec.validator(output_type)(output))


@asynccontextmanager
async def suspending(wait: dict[str, Any]) -> AsyncIterator[None]:
    """Around a suspension: one at a time, with the task's hooks before and after."""
    scope = scopes.of(runtimes.current())
    scope.begin_wait()
    try:
        if scope.on_wait is not None:
            await scope.on_wait(wait)
        yield
        if scope.on_resume is not None:
            await scope.on_resume(wait)
    finally:
        scope.end_wait()
