"""What the state port promises of sessions."""

from __future__ import annotations

import anyio
import pytest

from everturn.errors import SessionClosedError
from everturn.protocol.records import InputCursor
from everturn.rules.run_states import RunEvent, RunState
from everturn.storage.ports.rows import OpenedSession, Run, Session, SessionFilter
from everturn.storage.ports.state import StateStore
from everturn.testing.contracts.state_scene import (
    NOW,
    create,
    environment,
    finish,
    get,
    get_session,
    makes,
    new_session,
    open_chat,
    register,
    start,
    suspend,
)


class TestOpeningASession:
    async def test_a_new_session_comes_with_its_first_run(self, state: StateStore) -> None:
        env = await environment(state)
        new = new_session(tags=("a", "b"), metadata={"k": [1]}, expires_at_ms=NOW + 5)

        opened = await state.open_session(
            env, new, makes("run_c1", boot_input=b"hi", tags=("chat:1",)), now_ms=NOW
        )

        assert (opened.created, opened.run_created) == (True, True)
        assert opened.session == Session(
            id="session_c1",
            environment_id=env,
            external_id="chat-1",
            type="chat.agent",
            task_id="chat",
            trigger_config={"basePayload": {"n": 1}},
            tags=("a", "b"),
            metadata={"k": [1]},
            created_at_ms=NOW,
            updated_at_ms=NOW,
            expires_at_ms=NOW + 5,
            current_run_id="run_c1",
        )
        assert opened.session == await get_session(state, env)
        assert opened.run == await get(state, "run_c1")
        assert (opened.run.state, opened.run.boot_input) == (RunState.QUEUED, b"hi")
        assert opened.run.session_id == "session_c1"

    async def test_a_hit_replaces_the_trigger_config_and_nothing_else(
        self, state: StateStore
    ) -> None:
        env = await environment(state)
        first = await open_chat(state, env, tags=("old",), metadata={"old": 1})
        other = new_session(
            "session_c2",
            type="other",
            task_id="other",
            trigger_config={"basePayload": {"n": 2}},
            tags=("new",),
            metadata={"new": 1},
            expires_at_ms=NOW + 1000,
        )

        again = await state.open_session(env, other, makes("run_c2"), now_ms=NOW + 1)

        assert (again.created, again.run_created) == (False, False)
        assert again.run.id == "run_c1"
        assert again.session.trigger_config == {"basePayload": {"n": 2}}
        assert again.session.updated_at_ms == NOW + 1
        kept = ("id", "type", "task_id", "tags", "metadata", "expires_at_ms", "created_at_ms")
        for name in kept:
            assert getattr(again.session, name) == getattr(first.session, name)
        assert await get_session(state, env) == again.session

    async def test_a_hit_on_a_final_run_makes_the_next_from_the_updated_row(
        self, state: StateStore
    ) -> None:
        env = await environment(state)
        await open_chat(state, env)
        await finish(state, "run_c1")
        changed = new_session(trigger_config={"basePayload": {"n": 2}})
        seen: list[tuple[Session, str | None]] = []

        def make(session: Session, previous: str | None):  # type: ignore[no-untyped-def]
            seen.append((session, previous))
            return makes("run_c2")(session, previous)

        opened = await state.open_session(env, changed, make, now_ms=NOW + 1)

        assert (opened.created, opened.run_created) == (False, True)
        assert opened.run.id == opened.session.current_run_id == "run_c2"
        assert opened.run.previous_run_id == "run_c1"
        assert seen[-1][0].trigger_config == {"basePayload": {"n": 2}}
        assert seen[-1][1] == "run_c1"

    async def test_without_an_external_id_every_call_makes_a_session(
        self, state: StateStore
    ) -> None:
        env = await environment(state)
        first = await open_chat(state, env, "run_c1", external_id=None)
        second = await open_chat(state, env, "run_c2", session_id="session_c2", external_id=None)

        assert first.created
        assert second.created
        assert first.session.key == "session_c1"
        assert await state.session(env, "session_c2") == second.session

    @pytest.mark.parametrize("how", ["closed", "expired"])
    async def test_a_closed_or_expired_session_refuses(self, state: StateStore, how: str) -> None:
        env = await environment(state)
        await open_chat(state, env, expires_at_ms=NOW + 10 if how == "expired" else None)
        if how == "closed":
            await state.close_session(env, "chat-1", reason="done", now_ms=NOW)

        with pytest.raises(SessionClosedError, match=how):
            await state.open_session(env, new_session(), makes("run_c2"), now_ms=NOW + 10)

        assert await state.run(env, "run_c2") is None

    async def test_twenty_callers_at_once_get_one_session_and_one_run(
        self, state: StateStore
    ) -> None:
        """P-11."""
        env = await environment(state)
        answers: list[OpenedSession] = []

        async def open_one(n: int) -> None:
            new = new_session(f"session_c{n}")
            answers.append(await state.open_session(env, new, makes(f"run_c{n}"), now_ms=NOW))

        async with anyio.create_task_group() as callers:
            for n in range(20):
                callers.start_soon(open_one, n)

        assert len({answer.session.id for answer in answers}) == 1
        assert len({answer.run.id for answer in answers}) == 1
        assert sum(answer.created for answer in answers) == 1
        assert sum(answer.run_created for answer in answers) == 1
        found = [await state.run(env, f"run_c{n}") for n in range(20)]
        assert sum(run is not None for run in found) == 1

    async def test_twenty_callers_that_find_a_final_run_make_one_successor(
        self, state: StateStore
    ) -> None:
        env = await environment(state)
        await open_chat(state, env, "run_first")
        await finish(state, "run_first")
        answers: list[OpenedSession] = []

        async def open_one(n: int) -> None:
            answers.append(
                await state.open_session(env, new_session(), makes(f"run_c{n}"), now_ms=NOW)
            )

        async with anyio.create_task_group() as callers:
            for n in range(20):
                callers.start_soon(open_one, n)

        assert sum(answer.run_created for answer in answers) == 1
        assert len({answer.run.id for answer in answers}) == 1


class TestContinuingASession:
    async def test_the_next_run_replaces_a_final_one(self, state: StateStore) -> None:
        env = await environment(state)
        await open_chat(state, env)
        await finish(state, "run_c1")

        answer = await state.continue_session(
            "session_c1",
            replacing="run_c1",
            make_run=makes("run_c2"),
            reason="continuation",
            now_ms=NOW + 1,
        )

        assert answer is not None
        session, run = answer
        assert session == await get_session(state, env)
        assert run == await get(state, "run_c2")
        assert session.current_run_id == "run_c2"
        assert (run.previous_run_id, run.created_at_ms) == ("run_c1", NOW + 1)

    async def test_a_continuation_waits_until_the_old_run_is_final(self, state: StateStore) -> None:
        env = await environment(state)
        await open_chat(state, env)

        answer = await state.continue_session(
            "session_c1",
            replacing="run_c1",
            make_run=makes("run_c2"),
            reason="continuation",
            now_ms=NOW,
        )

        assert answer is None
        assert (await get_session(state, env)).current_run_id == "run_c1"
        assert await state.run(env, "run_c2") is None

    @pytest.mark.parametrize("reason", ["upgrade", "manual"])
    async def test_a_swap_leaves_a_live_run_as_it_is_superseded(
        self, state: StateStore, reason: str
    ) -> None:
        env = await environment(state)
        await register(state, env)
        await open_chat(state, env)
        running = await start(state)

        answer = await state.continue_session(
            "session_c1",
            replacing="run_c1",
            make_run=makes("run_c2"),
            reason=reason,  # type: ignore[arg-type]  # a parameter is a str to mypy
            now_ms=NOW,
        )

        assert answer is not None
        assert await get(state, "run_c1") == running
        assert (await get_session(state, env)).current_run_id == "run_c2"

    @pytest.mark.parametrize("reason", ["continuation", "upgrade", "manual"])
    async def test_nothing_changes_when_somebody_was_faster(
        self, state: StateStore, reason: str
    ) -> None:
        env = await environment(state)
        await open_chat(state, env)
        await finish(state, "run_c1")
        winners: list[tuple[Session, Run]] = []

        async def continue_one(n: int) -> None:
            answer = await state.continue_session(
                "session_c1",
                replacing="run_c1",
                make_run=makes(f"run_n{n}"),
                reason=reason,  # type: ignore[arg-type]  # a parameter is a str to mypy
                now_ms=NOW,
            )
            if answer is not None:
                winners.append(answer)

        async with anyio.create_task_group() as callers:
            for n in range(10):
                callers.start_soon(continue_one, n)

        [(session, run)] = winners
        assert session.current_run_id == run.id
        assert await get_session(state, env) == session
        found = [await state.run(env, f"run_n{n}") for n in range(10)]
        assert sum(made is not None for made in found) == 1

    @pytest.mark.parametrize("how", ["closed", "expired", "unknown"])
    async def test_a_session_that_takes_no_input_is_not_continued(
        self, state: StateStore, how: str
    ) -> None:
        env = await environment(state)
        await open_chat(state, env, expires_at_ms=NOW if how == "expired" else None)
        await finish(state, "run_c1")
        if how == "closed":
            await state.close_session(env, "chat-1", reason=None, now_ms=NOW)

        answer = await state.continue_session(
            "session_none" if how == "unknown" else "session_c1",
            replacing="run_c1",
            make_run=makes("run_c2"),
            reason="manual",
            now_ms=NOW,
        )

        assert answer is None
        assert await state.run(env, "run_c2") is None


class TestChangingASession:
    async def test_tags_and_metadata_are_replaced(self, state: StateStore) -> None:
        env = await environment(state)
        await open_chat(state, env, tags=("a",), metadata={"a": 1})

        await state.update_session(env, "chat-1", now_ms=NOW + 1, tags=["b"])
        changed = await state.update_session(env, "session_c1", now_ms=NOW + 2, metadata={})

        assert changed is not None
        assert (changed.tags, changed.metadata, changed.updated_at_ms) == (("b",), {}, NOW + 2)
        assert changed == await get_session(state, env)
        page = await state.sessions(env, SessionFilter(tags=("a",)), limit=5, now_ms=NOW)
        assert page.items == ()

    async def test_metadata_is_cleared_only_on_request(self, state: StateStore) -> None:
        env = await environment(state)
        await open_chat(state, env, metadata={"a": 1})

        kept = await state.update_session(env, "chat-1", now_ms=NOW)
        cleared = await state.update_session(env, "chat-1", now_ms=NOW, clear_metadata=True)

        assert kept is not None
        assert kept.metadata == {"a": 1}
        assert cleared is not None
        assert cleared.metadata is None
        assert await state.update_session(env, "nobody", now_ms=NOW) is None

    async def test_the_first_close_wins(self, state: StateStore) -> None:
        env = await environment(state)
        await open_chat(state, env)

        first = await state.close_session(env, "chat-1", reason="done", now_ms=NOW + 1)
        second = await state.close_session(env, "chat-1", reason="again", now_ms=NOW + 2)

        assert first == second == await get_session(state, env)
        assert first is not None
        assert (first.closed_at_ms, first.closed_reason) == (NOW + 1, "done")
        assert first.status(NOW) == "CLOSED"
        assert await state.close_session(env, "nobody", reason=None, now_ms=NOW) is None


class TestCursors:
    async def test_a_committed_cursor_never_goes_back(self, state: StateStore) -> None:
        env = await environment(state)
        await open_chat(state, env)

        await state.set_cursor("session_c1", InputCursor(5, frozenset({7, 9})))
        await state.set_cursor("session_c1", InputCursor(4))

        assert (await get_session(state, env)).cursor == InputCursor(5, frozenset({7, 9}))

    async def test_what_a_raw_task_consumed_is_kept_per_task_and_may_go_back(
        self, state: StateStore
    ) -> None:
        env = await environment(state)
        await open_chat(state, env)

        await state.set_cursor("session_c1", InputCursor(5), task_id="a")
        await state.set_cursor("session_c1", InputCursor(2), task_id="a")

        assert await state.consumed("session_c1", "a") == 2
        assert await state.consumed("session_c1", "b") is None
        assert (await get_session(state, env)).cursor == InputCursor()


class TestUncheckedSessions:
    async def test_a_final_current_run_leaves_its_session_unchecked(
        self, state: StateStore
    ) -> None:
        env = await environment(state)
        await open_chat(state, env)
        assert await state.unchecked_sessions(limit=10) == ()

        await finish(state, "run_c1")

        assert [s.id for s in await state.unchecked_sessions(limit=10)] == ["session_c1"]
        assert await state.is_unchecked("session_c1", "run_c1")
        assert not await state.is_unchecked("session_c1", "run_other")
        assert not await state.is_unchecked("session_none", "run_c1")
        await state.checked("session_c1", "run_other")
        assert len(await state.unchecked_sessions(limit=10)) == 1
        await state.checked("session_c1", "run_c1")
        assert await state.unchecked_sessions(limit=10) == ()
        assert not await state.is_unchecked("session_c1", "run_c1")

    async def test_a_successor_ends_it(self, state: StateStore) -> None:
        env = await environment(state)
        await open_chat(state, env)
        await finish(state, "run_c1")

        await open_chat(state, env, "run_c2")

        assert await state.unchecked_sessions(limit=10) == ()

    async def test_a_superseded_run_leaves_nothing_to_check(self, state: StateStore) -> None:
        env = await environment(state)
        await open_chat(state, env)
        await state.continue_session(
            "session_c1",
            replacing="run_c1",
            make_run=makes("run_c2"),
            reason="upgrade",
            now_ms=NOW,
        )

        await finish(state, "run_c1")

        assert await state.unchecked_sessions(limit=10) == ()

    async def test_no_more_than_the_limit_are_returned(self, state: StateStore) -> None:
        env = await environment(state)
        for n in range(3):
            await open_chat(state, env, f"run_c{n}", session_id=f"session_c{n}", external_id=None)
            await finish(state, f"run_c{n}")

        assert len(await state.unchecked_sessions(limit=2)) == 2


class TestARunThatEndsWhileItsSessionIsOpened:
    async def test_somebody_always_sees_the_other(self, state: StateStore) -> None:
        """Either the opener makes the successor, or the session is left to be checked."""
        env = await environment(state)
        await register(state, env)
        for n in range(10):
            key = f"race-{n}"
            new = new_session(f"session_r{n}", external_id=key)
            await state.open_session(env, new, makes(f"run_r{n}"), now_ms=NOW)
            run = await suspend(state, await start(state))

            async def end(run_id: str = run.id) -> None:
                await finish(state, run_id, RunEvent.COMPLETE)

            async def reopen(n: int = n, key: str = key) -> None:
                again = new_session(f"session_x{n}", external_id=key)
                await state.open_session(env, again, makes(f"run_s{n}"), now_ms=NOW)

            async with anyio.create_task_group() as both:
                both.start_soon(end)
                both.start_soon(reopen)

            session = await get_session(state, env, key)
            unchecked = {s.id for s in await state.unchecked_sessions(limit=100)}
            successor = session.current_run_id == f"run_s{n}"
            assert successor != (session.id in unchecked)
            if successor:
                await finish(state, f"run_s{n}")
            await state.checked(session.id, session.current_run_id or "")

    async def test_a_run_without_a_session_leaves_no_session_unchecked(
        self, state: StateStore
    ) -> None:
        env = await environment(state)
        await create(state, env, "run_c1")

        await finish(state, "run_c1", RunEvent.CANCEL)

        assert await state.unchecked_sessions(limit=5) == ()
