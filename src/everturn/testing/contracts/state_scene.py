"""What the state contract's tests set their scenes with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from everturn.rules.run_states import RunEvent
from everturn.storage.ports.rows import (
    MakeRun,
    NewRun,
    NewSession,
    OpenedSession,
    Run,
    Session,
    TaskVersion,
    Wait,
    Worker,
)
from everturn.storage.ports.state import StateStore

#: The time of a test; verbs get it handed in, so nothing ever waits.
NOW = 1_700_000_000_000
LEASE = NOW + 30_000
ON_INPUT = Wait(kind="channel", ref="chat-1", after=3)


async def environment(state: StateStore, slug: str = "dev") -> str:
    return (await state.ensure_environment(slug, now_ms=NOW)).id


async def register(
    state: StateStore,
    environment_id: str,
    worker_id: str = "w1",
    *,
    version: str = "v1",
    tasks: tuple[str, ...] = ("chat",),
    queues: Mapping[str, int | None] | None = None,
    lease_until_ms: int = LEASE,
) -> None:
    worker = Worker(
        id=worker_id,
        environment_id=environment_id,
        version=version,
        server_id="s1",
        lease_until_ms=lease_until_ms,
        registered_at_ms=NOW,
    )
    declared = [TaskVersion(task_id=task) for task in tasks]
    await state.register_worker(worker, declared, queues or {}, now_ms=NOW)


def new_run(run_id: str, **fields: Any) -> NewRun:
    task_id = fields.pop("task_id", "chat")
    values = {"payload": b"{}", "queue": f"task/{task_id}", **fields}
    return NewRun(id=run_id, task_id=task_id, **values)


def makes(run_id: str, **fields: Any) -> MakeRun:
    """Makes a run of that id, whatever the session."""

    def make(session: Session, previous: str | None) -> NewRun:
        return new_run(run_id, session_id=session.id, previous_run_id=previous, **fields)

    return make


def new_session(session_id: str = "session_c1", **fields: Any) -> NewSession:
    values = {"external_id": "chat-1", "type": "chat.agent", "task_id": "chat", **fields}
    values.setdefault("trigger_config", {"basePayload": {"n": 1}})
    return NewSession(id=session_id, **values)


async def open_chat(
    state: StateStore, environment_id: str, run_id: str = "run_c1", **fields: Any
) -> OpenedSession:
    """A session (`session_c1`, external id `chat-1`) with a run."""
    return await state.open_session(
        environment_id, new_session(**fields), makes(run_id), now_ms=NOW
    )


async def create(state: StateStore, environment_id: str, run_id: str, **fields: Any) -> Run:
    created_ms = fields.pop("now_ms", NOW)
    run, made = await state.create_run(environment_id, new_run(run_id, **fields), now_ms=created_ms)
    assert made
    return run


async def claim(state: StateStore, worker_id: str = "w1", *, now_ms: int = NOW) -> Run:
    """The one run there is to claim."""
    [run] = await state.claim_runs(worker_id, limit=1, now_ms=now_ms)
    return run


async def start(state: StateStore, worker_id: str = "w1", *, now_ms: int = NOW) -> Run:
    """Claim a run and confirm it: RUNNING."""
    run = await claim(state, worker_id, now_ms=now_ms)
    assert await state.start_run(run.id, fence=run.fence, now_ms=now_ms)
    return await get(state, run.id)


async def suspend(state: StateStore, run: Run, wait: Wait = ON_INPUT) -> Run:
    suspended = await state.suspend_run(run.id, wait, fence=run.fence, now_ms=NOW)
    assert suspended is not None
    return suspended


async def finish(
    state: StateStore, run_id: str, event: RunEvent = RunEvent.COMPLETE, **fields: Any
) -> Run:
    ended = await state.finish_run(run_id, event, now_ms=NOW, **fields)
    assert ended is not None
    return ended


async def get(state: StateStore, run_id: str) -> Run:
    run = await state.run(None, run_id)
    assert run is not None
    return run


async def get_session(state: StateStore, environment_id: str, key: str = "chat-1") -> Session:
    session = await state.session(environment_id, key)
    assert session is not None
    return session
