"""What the state port promises of lists of sessions, and of environments apart."""

from __future__ import annotations

import pytest

from everturn.errors import InvalidRequest
from everturn.storage.ports.rows import SessionFilter
from everturn.storage.ports.state import StateStore
from everturn.testing.contracts.state_scene import (
    NOW,
    environment,
    get_session,
    makes,
    new_session,
    open_chat,
)


class TestListingSessions:
    async def _five(self, state: StateStore, env: str) -> None:
        for n in range(5):
            await state.open_session(
                env,
                new_session(
                    f"session_c{n}",
                    external_id=f"chat-{n}",
                    tags=(f"tag{n}", "all"),
                    type="even" if n % 2 == 0 else "odd",
                    task_id=f"task{n}",
                    expires_at_ms=NOW + 50 if n == 1 else None,
                ),
                makes(f"run_c{n}"),
                # Two of the same millisecond keep the order they were made in.
                now_ms=NOW + n // 2,
            )
        await state.close_session(env, "chat-0", reason=None, now_ms=NOW)

    async def test_pages_run_newest_first_and_back_again(self, state: StateStore) -> None:
        env = await environment(state)
        await self._five(state, env)
        everything = SessionFilter()

        first = await state.sessions(env, everything, limit=2, now_ms=NOW)
        second = await state.sessions(env, everything, limit=2, after=first.next, now_ms=NOW)
        last = await state.sessions(env, everything, limit=2, after=second.next, now_ms=NOW)
        back = await state.sessions(env, everything, limit=2, before=last.previous, now_ms=NOW)
        top = await state.sessions(env, everything, limit=2, before=back.previous, now_ms=NOW)

        assert [[s.id[-1] for s in page.items] for page in (first, second, last)] == [
            ["4", "3"],
            ["2", "1"],
            ["0"],
        ]
        assert first.previous is None
        assert last.next is None
        assert back.items == second.items
        assert top.items == first.items
        assert top.previous is None
        assert top.next == "session_c3"

    @pytest.mark.parametrize(
        ("where", "found"),
        [
            (SessionFilter(types=("even",)), "420"),
            (SessionFilter(types=("even", "odd")), "43210"),
            (SessionFilter(tags=("tag1", "tag3")), "31"),
            (SessionFilter(task_ids=("task2",)), "2"),
            (SessionFilter(external_id="chat-3"), "3"),
            (SessionFilter(statuses=("CLOSED",)), "0"),
            (SessionFilter(statuses=("EXPIRED",)), "1"),
            (SessionFilter(statuses=("ACTIVE", "CLOSED")), "4320"),
            (SessionFilter(created_from_ms=NOW + 1), "432"),
            (SessionFilter(created_to_ms=NOW), "10"),
            (SessionFilter(types=("even",), tags=("all",), statuses=("ACTIVE",)), "42"),
        ],
    )
    async def test_filters_narrow_the_list(
        self, state: StateStore, where: SessionFilter, found: str
    ) -> None:
        env = await environment(state)
        await self._five(state, env)

        page = await state.sessions(env, where, limit=10, now_ms=NOW + 100)

        assert "".join(session.id[-1] for session in page.items) == found

    async def test_a_cursor_that_names_nothing_here_is_refused(self, state: StateStore) -> None:
        env = await environment(state)
        elsewhere = await environment(state, "prod")
        await open_chat(state, elsewhere)

        for cursor in ("session_cx", "session_c1"):
            with pytest.raises(InvalidRequest):
                await state.sessions(env, SessionFilter(), limit=5, after=cursor, now_ms=NOW)
            with pytest.raises(InvalidRequest):
                await state.sessions(env, SessionFilter(), limit=5, before=cursor, now_ms=NOW)


class TestSessionsOfOtherEnvironments:
    async def test_nothing_of_them_is_seen_or_changed(self, state: StateStore) -> None:
        """P-12."""
        mine = await environment(state)
        other = await environment(state, "prod")
        theirs = await open_chat(state, other)

        for key in ("chat-1", "session_c1"):
            assert await state.session(mine, key) is None
            assert await state.update_session(mine, key, now_ms=NOW, tags=["x"]) is None
            assert await state.close_session(mine, key, reason=None, now_ms=NOW) is None
        page = await state.sessions(mine, SessionFilter(), limit=5, now_ms=NOW)
        assert page.items == ()
        assert await get_session(state, other) == theirs.session

    async def test_an_external_id_names_a_session_in_each(self, state: StateStore) -> None:
        mine = await environment(state)
        other = await environment(state, "prod")
        await open_chat(state, other, "run_o")

        opened = await state.open_session(
            mine, new_session("session_c2"), makes("run_m"), now_ms=NOW
        )

        assert opened.created
        assert (await get_session(state, other)).id == "session_c1"
