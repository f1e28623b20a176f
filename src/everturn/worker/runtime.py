"""`RunRuntime` over the link: what one run can ask of the world.

Suspending, step by step. Metadata and appends are made durable first. Then the call `suspend`
names what is waited for; its answer means that the slot is gone, and from there the run is parked
until a Wake comes. A Wake may overtake that answer (the wait was over already, and frames and
answers take different ways through the server); then the run never lets go of its slot. Either
way nothing of the author's code runs between the two.

A run ends here in one of four ways besides its own: cancelled from outside, drained, its lease
lost (nothing may be written any more), or evicted while parked.
"""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any, Final, Protocol

import anyio
import msgspec

from everturn.clock import Clock
from everturn.errors import ConcurrentWaitError, EverturnError, Fenced, LeaseLost, Unavailable
from everturn.ids import Ids
from everturn.protocol import link as frames
from everturn.protocol.records import InputCursor, Io, NewRecord, Record
from everturn.protocol.runs import RunInfo, RunResult, TokenResult
from everturn.tasks.runtime import StoredSnapshot, TailReader, Woken
from everturn.tasks.signals import Signal
from everturn.worker.link import CALL_TRIES, Link
from everturn.worker.outbound import Outbound
from everturn.worker.parking import Evicted
from everturn.worker.tails import LinkTail


class Host(Protocol):
    """The worker, as a run sees it."""

    @property
    def draining(self) -> Signal:
        """Aborted when the worker would like all its runs to park or end soon."""
        ...

    def parked(self, run: LinkRuntime) -> None:
        """The run's slot is free; it waits."""
        ...

    def woken(self, run: LinkRuntime) -> None:
        """The run has a slot again."""
        ...

    def tail_opened(self, tail: LinkTail, sub: int) -> None: ...

    def tail_closed(self, sub: int) -> None: ...


#: Called before a run suspends: what has to be durable first (metadata).
BeforeSuspend = Callable[[], Awaitable[None]]
_EVICT: Final = "evict"


class LinkRuntime:
    """One claimed run, from its claim to its report."""

    __slots__ = (
        "__weakref__",
        "_awake",
        "_cancelled",
        "_clock",
        "_evicted",
        "_history_part",
        "_host",
        "_ids",
        "_info",
        "_link",
        "_lost",
        "_out",
        "_parked",
        "_tails",
        "_wait",
        "_waiting",
        "_wake",
        "before_suspend",
        "cursor",
        "on_parked",
        "turns",
    )

    def __init__(self, info: RunInfo, link: Link, host: Host, *, clock: Clock, ids: Ids) -> None:
        self._info = info
        self._link = link
        self._host = host
        self._clock = clock
        self._ids = ids
        self._cancelled = Signal()
        self._out = Outbound(info.run_id, info.fence)
        self._tails: dict[int, LinkTail] = {}
        self._waiting = False
        self._parked = False
        self._wait: Mapping[str, Any] | None = None
        self._awake: anyio.Event | None = None
        self._wake: frames.Wake | None = None
        self._evicted = False
        #: Why the run is not this worker's any more.
        self._lost: Fenced | LeaseLost | None = None
        #: Numbers what this fence stores of the history.
        self._history_part = 0
        self.before_suspend: BeforeSuspend | None = None
        self.on_parked: Callable[[bool], None] | None = None
        self.cursor = InputCursor()
        self.turns = 0

    @property
    def info(self) -> RunInfo:
        return self._info

    @property
    def run_id(self) -> str:
        return self._info.run_id

    @property
    def clock(self) -> Clock:
        return self._clock

    @property
    def ids(self) -> Ids:
        return self._ids

    @property
    def cancelled(self) -> Signal:
        return self._cancelled

    @property
    def draining(self) -> Signal:
        return self._host.draining

    @property
    def is_parked(self) -> bool:
        return self._parked

    @property
    def evicted(self) -> bool:
        """True once the server agreed to let go of it: nothing is reported any more."""
        return self._evicted

    def report(self, *, cursor: InputCursor | None = None, turns: int | None = None) -> None:
        """Remember what the outcome will carry: the committed cursor, and turns started."""
        if cursor is not None:
            self.cursor = cursor
        if turns is not None:
            self.turns = turns

    # --- channels ------------------------------------------------------------------------------

    def append(self, records: Sequence[NewRecord]) -> Awaitable[Sequence[int]]:
        frame, receipt = self._out.add(records)
        if frame is not None:
            self._link.send(frame)
        return receipt

    async def room(self) -> None:
        await self._out.room()

    async def flush(self) -> None:
        await self._out.flush()

    def part_id(self) -> str:
        return f"{self._info.fence}-{self._out.next_part}"

    async def read(
        self, io: Io, *, after: int | None = None, before: int | None = None, limit: int = 1000
    ) -> Sequence[Record]:
        params: dict[str, Any] = {"io": io, "limit": limit}
        if after is not None:
            params["after"] = after
        if before is not None:
            params["before"] = before
        value = await self._call("read", params)
        found = msgspec.convert(value["records"], list[frames.RecordFrame])
        return [frame.record() for frame in found]

    def tail(self, io: Io, after: int | None) -> TailReader:
        return LinkTail(self, io, after)

    def send(self, frame: frames.WorkerFrame) -> None:
        self._link.send(frame)

    def open_tail(self, tail: LinkTail) -> int:
        sub = self._link.next_sub()
        self._tails[sub] = tail
        self._host.tail_opened(tail, sub)
        return sub

    def close_tail(self, sub: int) -> None:
        self._tails.pop(sub, None)
        self._host.tail_closed(sub)

    # --- waiting -------------------------------------------------------------------------------

    # Not `async`: a coroutine that only awaits another is one more frame in each parked run.

    def suspend_on_input(
        self, after: int | None, *, until_ms: int | None
    ) -> Coroutine[Any, Any, Woken]:
        return self._suspend("channel", self._info.session_key or "", after, until_ms)

    def suspend_until(self, until_ms: int) -> Coroutine[Any, Any, Woken]:
        return self._suspend("until", "", None, until_ms)

    def suspend_on_run(
        self, run_id: str, *, until_ms: int | None = None
    ) -> Coroutine[Any, Any, Woken]:
        return self._suspend("run", run_id, None, until_ms)

    async def suspend_on_token(self, token_id: str) -> Woken:
        return await self._suspend("token", token_id, None, None)

    async def _suspend(self, kind: str, ref: str, after: int | None, until_ms: int | None) -> Woken:
        if self._waiting:
            raise ConcurrentWaitError("this run waits already: one wait at a time")
        self._waiting = True
        try:
            if self.before_suspend is not None:
                await self.before_suspend()
            await self._out.flush()
            wait = {"kind": kind, "ref": ref, "after": after, "until_ms": until_ms}
            self._wait = wait
            await self._ask_to_suspend({"wait": wait})
            return _woken(await self._park())
        finally:
            self._waiting = False
            self._wait = None
            self._awake = None
            self._wake = None

    async def _ask_to_suspend(self, params: dict[str, Any]) -> None:
        """Return once the server suspended the run, or woke it before saying so."""
        info = self._info
        call_id = self._link.next_call_id()
        for attempt in itertools.count(1):
            # One event for both, so that neither can slip in between two waits.
            self._wake = None
            self._awake = anyio.Event()
            call = self._link.open_call(
                info.run_id, info.fence, "suspend", params, self._awake, call_id
            )
            try:
                await self._awake.wait()
                if self._wake is None:
                    call.value()
                return
            except Unavailable:
                if attempt >= CALL_TRIES:
                    raise
            finally:
                self._link.forget(call)
            await self._link.back_off(attempt)

    async def _park(self) -> frames.Wake:
        if self._wake is None:
            self._awake = anyio.Event()
            self._parked = True
            self._host.parked(self)
            if self.on_parked is not None:
                self.on_parked(True)
            try:
                await self._awake.wait()
            finally:
                if self._parked:
                    self._unpark()
        if self._evicted:
            raise Evicted(self.run_id)
        assert self._wake is not None
        return self._wake

    def _unpark(self) -> None:
        self._parked = False
        self._host.woken(self)
        if self.on_parked is not None:
            self.on_parked(False)

    def wake(self, frame: frames.Wake) -> None:
        """The wait is over.

        The server repeats a Wake that a lost connection may have swallowed. A repeated one, one
        for a run that is not suspended, and the echo of a wait before this one mean nothing.
        """
        if frame.fence != self._info.fence or self._awake is None or self._wake is not None:
            return
        if self._wait is None or not _fits(frame, self._wait):
            return
        self._wake = frame
        if self._parked:
            # The slot counts from here, not from when the loop gets to the coroutine.
            self._unpark()
        self._awake.set()

    async def evict(self) -> bool:
        """Let go of the run while it is parked, if the server agrees (rulings §1.18)."""
        if not self._parked or self._evicted:
            return False
        try:
            answer = await self._call(_EVICT, {})
        except EverturnError:
            return False
        if not answer["evicted"]:
            return False
        self._evicted = True
        if self._awake is not None:
            self._awake.set()
        return True

    # --- everything else -----------------------------------------------------------------------

    async def load_snapshot(self) -> StoredSnapshot:
        answer = await self._call("snapshot.get", {})
        self._history_part = int(answer["part"])
        return StoredSnapshot(answer["data"], int(answer["patched"]))

    async def save_snapshot(self, data: bytes) -> None:
        await self._store_history("snapshot.put", data)

    async def patch_snapshot(self, data: bytes) -> None:
        await self._store_history("snapshot.patch", data)

    async def _store_history(self, method: str, data: bytes) -> None:
        await self._call(method, {"data": data, "part": self._history_part})
        self._history_part += 1

    async def mint_token(self, scopes: Sequence[str], ttl_s: int) -> str:
        answer = await self._call("token", {"scopes": list(scopes), "ttl_s": ttl_s})
        return str(answer["token"])

    async def end_and_continue(self, reason: str) -> bool:
        return bool((await self._call("continue", {"reason": reason}))["swapped"])

    async def trigger(
        self, task_id: str, payload: bytes, payload_type: str, options: Mapping[str, Any]
    ) -> tuple[str, bool]:
        wire = dict(options)
        wait = bool(wire.pop("wait", False))
        # The call's id names the request to the server: a recovered run asks with the same one.
        call_id = wire.pop("requestKey", None)
        params = {
            "task_id": task_id,
            "payload": payload,
            "payload_type": payload_type,
            "options": wire,
            "wait": wait,
        }
        answer = await self._call("trigger", params, call_id)
        return str(answer["runId"]), bool(answer["isCached"])

    async def run_result(self, run_id: str) -> RunResult | None:
        value = await self._call("run.result", {"run_id": run_id})
        return None if value is None else msgspec.convert(value, RunResult)

    async def cancel_run(self, run_id: str) -> None:
        await self._call("run.cancel", {"run_id": run_id})

    async def token_result(self, token_id: str) -> TokenResult:
        return msgspec.convert(await self._call("wait.token", {"token": token_id}), TokenResult)

    async def change_metadata(
        self, operations: Sequence[Mapping[str, Any]], key: str | None = None
    ) -> None:
        await self._call("metadata", {"operations": [dict(one) for one in operations]}, key)

    async def add_tags(self, tags: Sequence[str]) -> None:
        await self._call("tags", {"tags": list(tags)})

    async def set_consumed(self, seq_num: int) -> None:
        await self._call("consumed", {"seq_num": seq_num})

    async def journal_put(self, position: int, key: str, result: bytes) -> None:
        await self._call("journal.put", {"position": position, "key": key, "result": result})

    async def finish(self, outcome: Mapping[str, Any]) -> None:
        """Report how the attempt ended; a repeat is answered the same.

        Tries for as long as the caller lets it: a report that is given up leaves a run that the
        server takes for running, until this process goes.
        """
        info, call_id = self._info, self._link.next_call_id()
        params = {"outcome": dict(outcome)}
        while True:
            try:
                # Also for a run that may do nothing else any more: its code did not end.
                await self._link.call(info.run_id, info.fence, "finish", params, call_id)
            except Unavailable:
                await self._link.back_off(CALL_TRIES)
            else:
                return

    async def _call(
        self, method: str, params: Mapping[str, Any], call_id: str | None = None
    ) -> Any:
        info = self._info
        if self._lost is not None:
            raise self._lost
        return await self._link.call(info.run_id, info.fence, method, params, call_id)

    # --- from the worker -----------------------------------------------------------------------

    def acked(self, frame: frames.Acked) -> None:
        if frame.fence == self._info.fence:
            self._out.acked(frame.first_part, frame.seq_nums)

    def reconnected(self) -> None:
        """Say again what was not acknowledged, and follow channels from where they stand."""
        for frame in self._out.frames():
            self._link.send(frame)
        for tail in list(dict.fromkeys(self._tails.values())):
            tail.open()

    def lost(self, error: Fenced | LeaseLost) -> None:
        """The run belongs to somebody else: every wait and write of it ends with an error."""
        self._lost = error
        self._out.fail(error)
        self._link.fail_calls(error, held=frames.HeldRun(self.run_id, self._info.fence))
        for tail in list(self._tails.values()):
            tail.fail(error)

    def abandon(self, reason: str) -> None:
        """Let the server look after the run: the next connection does not name it."""
        self._link.reconnect(reason)

    def close(self) -> None:
        """Forget tails the author left open."""
        for tail in list(self._tails.values()):
            tail.close()


def _fits(frame: frames.Wake, wait: Mapping[str, Any]) -> bool:
    """Whether a Wake may answer this wait; records the run has seen, or another run, do not.

    When in doubt it does: whoever waits looks at what it got and waits again, while a Wake that
    is wrongly dropped would be waited for in vain.
    """
    if frame.timed_out:
        return True
    if wait["kind"] == "channel":
        after = -1 if wait["after"] is None else wait["after"]
        return any(record.seq_num > after for record in frame.records)
    if wait["kind"] == "run":
        return frame.result is not None and frame.result.get("run_id") == wait["ref"]
    return not frame.records


def _woken(frame: frames.Wake) -> Woken:
    return Woken(
        timed_out=frame.timed_out,
        records=tuple(record.record() for record in frame.records),
        result=None if frame.result is None else msgspec.convert(frame.result, RunResult),
    )
