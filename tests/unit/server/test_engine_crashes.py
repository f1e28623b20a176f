"""A crash at every store call of an ending: what is left is repaired, and nothing happens twice.

The nth call of the server into its stores fails, either before it took effect or after it did but
before the answer came, and with it the server. A new server over the same stores sweeps, and the
promises are looked at. Then the next call, until the whole ending outruns the fault.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest
from engine_kit import Kit, chunk, cursors_in, errors_in, in_state

from everturn.protocol.runs import RunInfo, RunOutcome
from everturn.rules.run_states import FINAL, RunState
from everturn.server.services import Services
from everturn.server.sweeps import AT_START, OFTEN, sweep_once
from everturn.storage.ports.rows import Session

pytestmark = pytest.mark.anyio


class Crash(Exception):
    """The server is gone; nothing of ours catches this."""


class Faults:
    """Counts calls over several ports and crashes at one of them."""

    def __init__(self, nth: int, *, took_effect: bool) -> None:
        self.left = nth
        self.took_effect = took_effect
        self.fired = False

    def around(self, port: Any) -> Any:
        return _Port(self, port)


class _Port:
    def __init__(self, faults: Faults, port: Any) -> None:
        self._faults = faults
        self._port = port

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._port, name)
        if not inspect.iscoroutinefunction(method):
            return method

        async def call(*args: Any, **options: Any) -> Any:
            faults = self._faults
            faults.left -= 1
            if faults.left != 0:
                return await method(*args, **options)
            faults.fired = True
            if faults.took_effect:
                await method(*args, **options)
            raise Crash

        return call


Ending = Callable[[Services, Kit, RunInfo], Awaitable[object]]


async def fails(services: Services, kit: Kit, info: RunInfo) -> None:
    outcome = RunOutcome(kind="failed", error={"type": "STRING_ERROR", "raw": "x"}, turns=1)
    await services.finishing.report(info.run_id, info.fence, outcome)


async def is_cancelled(services: Services, kit: Kit, info: RunInfo) -> None:
    await services.runs.cancel(kit.environment.id, info.run_id, "no")


async def loses_its_worker(services: Services, kit: Kit, info: RunInfo) -> None:
    await services.recovery.worker_gone("worker_1")


async def dies_the_last_time(services: Services, kit: Kit, info: RunInfo) -> None:
    run = await services.state.run(None, info.run_id)
    if run is not None and run.interruptions < 2 and run.state is RunState.RUNNING:
        kit.state._runs[run.id] = _with_deaths(run)  # the two deaths before this one
    await services.recovery.worker_gone("worker_1")


def _with_deaths(run: Any) -> Any:
    return msgspec.structs.replace(run, interruptions=2)


@pytest.mark.parametrize("took_effect", [False, True])
@pytest.mark.parametrize(
    ("ending", "closes"),
    [(fails, True), (is_cancelled, True), (dies_the_last_time, True), (loses_its_worker, False)],
)
async def test_an_ending_survives_a_crash_at_every_store_call(
    ending: Ending, closes: bool, took_effect: bool
) -> None:
    """rulings §1.1, §1.8-§1.10, P-3"""
    for nth in itertools.count(1):
        kit, session, info = await _in_mid_turn()
        faults = Faults(nth, took_effect=took_effect)
        plain = kit.state, kit.streams
        kit.state, kit.streams = faults.around(kit.state), faults.around(kit.streams)
        doomed = kit.new_server()
        kit.state, kit.streams = plain
        try:
            await ending(doomed, kit, info)
        except Crash:
            pass
        restarted = kit.new_server()
        await _sweep_until_quiet(restarted)
        await ending(restarted, kit, info)
        await _sweep_until_quiet(restarted)
        await _check(kit, session, info, closes)
        if not faults.fired:
            assert nth > 3
            return


async def _in_mid_turn() -> tuple[Kit, Session, RunInfo]:
    """A run that has written half an answer to the first of two messages."""
    kit = await Kit().open()
    session = await kit.session()
    for text in ("first", "second"):
        await kit.say(session, text)
    async with kit.worker(credit=1) as worker:
        info = await worker.claim()
        await in_state(kit, info.run_id, RunState.RUNNING)
        await worker.write(info, 0, chunk("half"))
    return kit, session, info


async def _sweep_until_quiet(services: Services) -> None:
    for _ in range(10):
        if not await sweep_once(services, {**OFTEN, **AT_START}):
            return
    raise AssertionError("the sweeps find something to repair for ever")


async def _check(kit: Kit, session: Session, info: RunInfo, closes: bool) -> None:
    """The first message is answered once; somebody will answer the second."""
    out = await kit.out(session)
    assert cursors_in(out) == ([0] if closes else [])
    assert len(errors_in(out)) == (1 if closes else 0)
    current = await kit.current(session)
    assert current.state is RunState.QUEUED
    assert (current.id == info.run_id) is not closes
    old = await kit.run(info.run_id)
    assert (old.state in FINAL) is closes
    runs = [run for run in kit.state._runs.values() if run.session_id == session.id]
    assert len(runs) == (2 if closes else 1)
