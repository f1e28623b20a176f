"""What the state port promises of NUL: kept in every value, refused in every name."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from everturn.errors import InvalidRequest
from everturn.rules.run_states import RunEvent
from everturn.storage.ports.batches import NewBatch
from everturn.storage.ports.debouncing import Debounce
from everturn.storage.ports.rows import RunFilter, SessionFilter, Wait
from everturn.storage.ports.state import StateStore
from everturn.storage.ports.waitpoints import NewWaitpoint, WaitpointFilter
from everturn.testing.contracts.state_scene import (
    NOW,
    create,
    environment,
    get,
    makes,
    new_run,
    new_session,
    open_chat,
    register,
    start,
)

_NUL = "a\0b"
_JSON = b'{"a\\u0000":"\\u0000"}'
_RAW = b"\0"


async def _add_tags(state: StateStore, env: str) -> object:
    return await state.add_tags(env, "run_c1", [_NUL], now_ms=NOW)


async def _note_stream(state: StateStore, env: str) -> object:
    return await state.note_stream(env, "run_c1", _NUL, now_ms=NOW)


async def _journal(state: StateStore, env: str) -> object:
    return await state.journal_put("run_c1", 0, _NUL, b"1", fence=1)


async def _retag(state: StateStore, env: str) -> object:
    return await state.update_session(env, "chat-1", now_ms=NOW, tags=[_NUL])


async def _close(state: StateStore, env: str) -> object:
    return await state.close_session(env, "chat-1", reason=_NUL, now_ms=NOW)


async def _finish(state: StateStore, env: str) -> object:
    return await state.finish_run("run_c1", RunEvent.COMPLETE, now_ms=NOW, output_type=_NUL)


async def _suspend(state: StateStore, env: str) -> object:
    return await state.suspend_run("run_c1", Wait(kind="token", ref=_NUL), fence=1, now_ms=NOW)


async def _queues(state: StateStore, env: str) -> object:
    await register(state, env, queues={_NUL: 1})
    return None


async def _token(state: StateStore, env: str) -> object:
    new = NewWaitpoint(id="waitpoint_c1", idempotency_key=_NUL)
    return await state.create_waitpoint(env, new, now_ms=NOW)


async def _batch(state: StateStore, env: str) -> object:
    new = NewBatch(id="batch_c1", run_count=1, idempotency_key=_NUL)
    return await state.create_batch(env, new, now_ms=NOW)


async def _debounced(state: StateStore, env: str) -> object:
    new = new_run("run_c2", debounce=Debounce(key=_NUL, delay_ms=1), not_before_ms=NOW + 1)
    return await state.create_run(env, new, now_ms=NOW)


async def _page(state: StateStore, env: str) -> object:
    return await state.runs(env, RunFilter(), limit=1, after=_NUL)


async def _runs(state: StateStore, env: str) -> object:
    return await state.runs(env, RunFilter(tags=(_NUL,)), limit=1)


async def _sessions(state: StateStore, env: str) -> object:
    return await state.sessions(env, SessionFilter(types=(_NUL,)), limit=1, now_ms=NOW)


async def _tokens(state: StateStore, env: str) -> object:
    return await state.waitpoints(env, WaitpointFilter(tags=(_NUL,)), limit=1)


#: What is called, and the member that the refusal names.
_NAMES: dict[str, tuple[Callable[[StateStore, str], Awaitable[object]], str]] = {
    "tags of a run": (_add_tags, "tags"),
    "a stream": (_note_stream, "stream"),
    "a step": (_journal, "key"),
    "tags of a session": (_retag, "tags"),
    "why a session closed": (_close, "reason"),
    "the type of an output": (_finish, "output_type"),
    "a wait": (_suspend, "ref"),
    "a queue": (_queues, "queues"),
    "a token's key": (_token, "idempotency_key"),
    "a batch's key": (_batch, "idempotency_key"),
    "a debounce key": (_debounced, "key"),
    "a cursor": (_page, "after"),
    "a filter of runs": (_runs, "tags"),
    "a filter of sessions": (_sessions, "types"),
    "a filter of tokens": (_tokens, "tags"),
}
_OF_A_RUN = ("task_id", "queue", "concurrency_key", "idempotency_key", "machine", "payload_type")


class TestTexts:
    async def test_a_value_is_given_back_with_its_nul(self, state: StateStore) -> None:
        env = await environment(state)
        await register(state, env)
        config: dict[str, Any] = {"basePayload": {_NUL: _NUL}}
        opened = await open_chat(state, env, trigger_config=config, metadata={_NUL: [_NUL]})
        await state.finish_run("run_c1", RunEvent.COMPLETE, now_ms=NOW)
        made = await create(state, env, "run_c2", payload=_RAW, metadata=_JSON, boot_input=_JSON)
        run = await start(state)
        assert await state.journal_put(run.id, 0, "k", _RAW, fence=run.fence)
        assert list(await state.journal(run.id)) == [(0, "k", _RAW)]
        error = {"type": "STRING_ERROR", "raw": _NUL}
        await state.finish_run(run.id, RunEvent.FAIL, now_ms=NOW, output=_RAW, error=error)

        ended = await get(state, run.id)
        assert (ended.payload, ended.metadata, ended.boot_input) == (_RAW, _JSON, _JSON)
        assert (ended.output, ended.error) == (_RAW, error)
        assert (made.payload, made.metadata) == (_RAW, _JSON)
        session = await state.session(env, "chat-1")
        assert session is not None
        assert (session.trigger_config, session.metadata) == (config, {_NUL: [_NUL]})
        assert session == opened.session

    @pytest.mark.parametrize(("call", "member"), _NAMES.values(), ids=_NAMES.keys())
    async def test_a_name_with_a_nul_is_refused_by_its_member(
        self, state: StateStore, call: Callable[[StateStore, str], Awaitable[object]], member: str
    ) -> None:
        env = await environment(state)
        await open_chat(state, env)
        before = (await get(state, "run_c1"), await state.session(env, "chat-1"))

        with pytest.raises(InvalidRequest, match=f"^{member} holds a NUL"):
            await call(state, env)

        assert (await get(state, "run_c1"), await state.session(env, "chat-1")) == before

    @pytest.mark.parametrize("member", [*_OF_A_RUN, "tags"])
    async def test_a_run_is_not_made_with_a_nul_in_a_name(
        self, state: StateStore, member: str
    ) -> None:
        env = await environment(state)
        value: Any = (_NUL,) if member == "tags" else _NUL

        with pytest.raises(InvalidRequest, match=f"^{member} holds a NUL"):
            await state.create_run(env, new_run("run_c1", **{member: value}), now_ms=NOW)

        assert await state.run(env, "run_c1") is None

    async def test_a_session_is_not_made_with_a_nul_in_a_name(self, state: StateStore) -> None:
        env = await environment(state)

        with pytest.raises(InvalidRequest, match=r"^type holds a NUL"):
            await state.open_session(env, new_session(type=_NUL), makes("run_c1"), now_ms=NOW)
