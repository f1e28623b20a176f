"""Tries, pauses, errors and streams against a server that plays a script (wire-protocol §17)."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest

from everturn import errors
from everturn.client import pool
from everturn.client.api import Api
from everturn.client.config import Target
from everturn.client.follow import Arrived, Follower
from everturn.protocol import sse
from everturn.protocol.records import Record, data_body
from everturn.testing.asgi import AsgiTransport

pytestmark = pytest.mark.anyio


class FastClock:
    """Sleeping takes no time and is written down."""

    def __init__(self) -> None:
        self.slept: list[float] = []
        self._s = 1_000.0

    def now_ms(self) -> int:
        return int(self._s * 1000)

    def monotonic(self) -> float:
        return self._s

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self._s += seconds


class HalfIds:
    """Randomness that is always in the middle."""

    def __init__(self) -> None:
        self._parts = 0

    def new(self, prefix: str) -> str:
        return f"{prefix}_c0"

    def part(self, length: int = 21) -> str:
        self._parts += 1
        return f"part{self._parts}"

    def uniform(self, low: float, high: float) -> float:
        return (low + high) / 2


Answer = tuple[int, dict[str, str], list[bytes] | bytes]


class Script:
    """An application that gives one answer after another. A list of pieces that ends in
    `b"cut"` breaks the connection after the pieces before it."""

    def __init__(self, *answers: Answer) -> None:
        self._answers = deque(answers)
        self.requests: list[dict[str, Any]] = []
        self.clock = FastClock()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        body = (await receive())["body"]
        self.requests.append({**scope, "headers": headers, "body": body})
        status, extra, pieces = self._answers.popleft()
        raw = [(name.encode(), value.encode()) for name, value in extra.items()]
        await send({"type": "http.response.start", "status": status, "headers": raw})
        for piece in pieces if isinstance(pieces, list) else [pieces]:
            if piece == b"cut":
                raise ConnectionAbortedError("as the script says")
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    @property
    def left(self) -> int:
        return len(self._answers)


@asynccontextmanager
async def serving(*answers: Answer) -> AsyncIterator[tuple[Script, Api]]:
    script = Script(*answers)
    async with AsgiTransport(script) as transport:
        target = Target("http://test", "tr_dev_x", None, transport)
        yield script, Api(target, clock=script.clock, ids=HalfIds())
    assert script.left == 0


def json(status: int, body: bytes, **headers: str) -> Answer:
    return status, {name.replace("_", "-"): value for name, value in headers.items()}, body


OK = json(200, b'{"ok":true,"seq":4}')


class TestCalls:
    async def test_failures_of_the_server_are_tried_again_with_growing_pauses(self) -> None:
        answers = [json(status, b"{}") for status in (500, 408, 409, 503)]
        async with serving(*answers, OK) as (script, api):
            assert await api.append("c/1", "in", "x", part_id="p") == 4
        assert script.clock.slept == pytest.approx([1.0, 1.6, 2.56, 4.096])
        assert {r["headers"]["x-part-id"] for r in script.requests} == {"p"}

    async def test_the_fifth_failure_is_raised_with_status_and_body(self) -> None:
        answers = [json(503, b'{"error":"busy"}')] * 5
        async with serving(*answers) as (_, api):
            with pytest.raises(errors.ApiError, match="busy") as caught:
                await api.retrieve_session("c")
        assert caught.value.status == 503
        assert caught.value.body == {"error": "busy"}

    async def test_the_server_can_forbid_and_ask_for_another_try(self) -> None:
        async with serving(json(500, b"{}", x_should_retry="false")) as (_, api):
            with pytest.raises(errors.ApiError):
                await api.retrieve_run("run_1")
        run = json(200, b'{"id":"run_1"}')
        async with serving(json(404, b"{}", x_should_retry="true"), run) as (_, api):
            assert await api.retrieve_run("run_1") == {"id": "run_1"}

    async def test_a_rate_limit_is_waited_for_until_it_resets(self) -> None:
        limited = {"x_ratelimit_limit": "1", "x_ratelimit_remaining": "0"}
        soon = json(429, b"{}", **limited, x_ratelimit_reset="1005000")
        async with serving(soon, OK) as (script, api):
            await api.append("c", "in", "x", part_id="p")
        assert script.clock.slept == [5.5]
        late = json(429, b"{}", **limited, x_ratelimit_reset="9999000")
        async with serving(late) as (script, api):
            with pytest.raises(errors.ApiError):
                await api.append("c", "in", "x", part_id="p")
        assert script.clock.slept == []

    async def test_a_lost_answer_is_asked_for_again_with_the_same_keys(self) -> None:
        lost = (200, {}, [b"{", b"cut"])
        async with serving(lost, json(200, b'{"id":"run_1"}')) as (script, api):
            await api.trigger("t/1", {})
        first, second = script.requests
        assert first["raw_path"] == b"/api/v1/tasks/t%2F1/trigger"
        name = "x-trigger-request-idempotency-key"
        assert first["headers"][name] == second["headers"][name]

    async def test_no_answer_at_all_is_an_error_without_a_status(self) -> None:
        async with serving(*[(200, {}, [b"cut"])] * 5) as (_, api):
            with pytest.raises(errors.ApiError, match="no answer") as caught:
                await api.retrieve_session("c")
        assert caught.value.status is None

    @pytest.mark.parametrize(
        ("status", "body", "error"),
        [
            (400, b'{"error":"Validation error"}', errors.InvalidRequest),
            (400, b'{"ok":false,"error":"Cannot append to a closed session"}', "closed"),
            (400, b'{"ok":false,"error":"Cannot append to an expired session"}', "closed"),
            (401, b'{"error":"Invalid API key"}', errors.NotAuthenticated),
            (403, b'{"error":{"message":"Unauthorized"}}', errors.NotAllowed),
            (404, b"Session not found", errors.SessionNotFound),
            (413, b"{}", errors.TooLarge),
            (422, b"{}", errors.Unprocessable),
            (409, b'{"code":"session_closed","closedReason":"done","error":"x"}', "closed"),
            (418, b"\xff", errors.ApiError),
        ],
    )
    async def test_each_refusal_has_its_exception(
        self, status: int, body: bytes, error: Any
    ) -> None:
        kind = errors.SessionClosedError if error == "closed" else error
        async with serving(json(status, body, x_should_retry="false")) as (_, api):
            with pytest.raises(kind, match=f"HTTP {status}") as caught:
                await api.append("c", "in", "x", part_id="p")
        if b"closedReason" in body:
            assert caught.value.details["reason"] == "done"

    async def test_what_is_missing_is_named_by_its_kind(self) -> None:
        gone = json(404, b"{}")
        async with serving(gone, gone) as (_, api):
            with pytest.raises(errors.RunNotFound):
                await api.cancel_run("run_1")
            with pytest.raises(errors.TaskNotFound):
                await api.trigger("t", {})

    async def test_a_good_answer_that_is_no_object_is_a_protocol_error(self) -> None:
        for body in (b"hello", b"[]"):
            async with serving(json(200, body)) as (_, api):
                with pytest.raises(errors.ProtocolError):
                    await api.retrieve_session("c")

    async def test_without_a_key_nothing_is_sent_and_the_message_says_what_to_do(self) -> None:
        api = Api(Target("http://nowhere.test", None, None, None))
        with pytest.raises(errors.NotAuthenticated, match="EVERTURN_SECRET_KEY"):
            await api.retrieve_session("c")

    async def test_the_pool_of_a_loop_is_shared_and_a_closed_port_is_an_api_error(self) -> None:
        assert await pool.client() is await pool.client()
        api = Api(Target("http://127.0.0.1:9", "k", None, None), clock=FastClock(), tries=2)
        with pytest.raises(
            errors.ApiError, match=r"cannot reach the server at http://127\.0\.0\.1:9"
        ):
            await api.retrieve_session("c")


def record(seq: int, part: str | None = None, data: bytes = b"1") -> Record:
    return Record(seq, seq, body=data_body(data, part if part is not None else f"p{seq}"))


def batch(*records: Record) -> bytes:
    return sse.encode_batch(records, sent_records=1, sent_bytes=1, tail=None)


def stream(*pieces: bytes, **headers: str) -> Answer:
    extra = {name.replace("_", "-"): value for name, value in headers.items()}
    return 200, {"x-stream-version": "v2", **extra}, list(pieces)


async def seqs(follower: Follower) -> list[int]:
    return [record.seq_num async for record in follower]


async def opened(follower: Follower) -> AsyncIterator[Arrived]:
    while (item := await follower.next()) is not None:
        yield item


class TestFollowing:
    async def test_it_asks_for_what_was_not_seen(self) -> None:
        async with serving(stream(batch(record(5)), sse.DONE)) as (script, api):
            follower = Follower(api, "c/1", after=4, timeout_s=120, peek_settled=True)
            assert await seqs(follower) == [5]
        headers = script.requests[0]["headers"]
        assert headers["last-event-id"] == "4"
        assert headers["timeout-seconds"] == "120"
        assert headers["x-peek-settled"] == "1"
        assert headers["accept"] == "text/event-stream"
        assert script.requests[0]["raw_path"] == b"/realtime/v1/sessions/c%2F1/out"

    async def test_an_abrupt_end_is_resumed_after_the_last_record(self) -> None:
        cut = stream(batch(record(0), record(1)), batch(record(2))[:40], b"cut")
        async with serving(cut, stream(batch(record(2)), sse.DONE)) as (script, api):
            assert await seqs(Follower(api, "c")) == [0, 1, 2]
        assert "last-event-id" not in script.requests[0]["headers"]
        assert script.requests[1]["headers"]["last-event-id"] == "1"
        assert script.clock.slept == pytest.approx([0.075])

    async def test_a_server_in_trouble_is_asked_for_ever_with_bounded_pauses(self) -> None:
        trouble = [json(503, b"")] * 9 + [json(429, b""), stream(b"cut")]
        async with serving(*trouble, stream(batch(record(0)))) as (script, api):
            assert await seqs(Follower(api, "c")) == [0]
        assert script.clock.slept[:3] == pytest.approx([0.075, 0.15, 0.3])
        assert max(script.clock.slept) == pytest.approx(3.75)
        assert len(script.clock.slept) == 11

    async def test_an_event_resets_the_pause(self) -> None:
        busy = [json(503, b"")] * 4
        cut = stream(sse.encode_ping(1, None), b"cut")
        async with serving(*busy, cut, stream(batch(record(0)))) as (script, api):
            assert await seqs(Follower(api, "c")) == [0]
        assert script.clock.slept[-1] == pytest.approx(0.075)

    @pytest.mark.parametrize(
        ("status", "error"),
        [
            (400, errors.InvalidRequest),
            (401, errors.NotAuthenticated),
            (403, errors.NotAllowed),
            (404, errors.SessionNotFound),
            (409, errors.Conflict),
            (410, errors.ApiError),
            (422, errors.Unprocessable),
        ],
    )
    async def test_a_refusal_ends_it(self, status: int, error: type[Exception]) -> None:
        async with serving(json(status, b"no")) as (_, api):
            follower = Follower(api, "c")
            with pytest.raises(error):
                await anext(follower)
            assert await seqs(follower) == []

    async def test_an_orderly_end_ends_it_when_nobody_waits(self) -> None:
        async with serving(stream(batch(record(0)))) as (_, api):
            assert await seqs(Follower(api, "c")) == [0]

    async def test_an_early_orderly_end_is_followed_again_up_to_five_times_in_a_row(self) -> None:
        empty = [stream(sse.DONE)] * 3
        async with serving(*empty, stream(batch(record(0))), *[stream()] * 5) as (_, api):
            assert await seqs(Follower(api, "c", waiting=lambda: True)) == [0]

    async def test_an_end_for_silence_is_the_end_even_if_somebody_waits(self) -> None:
        async with serving(stream(batch(record(0)))) as (script, api):
            follower = Follower(api, "c", timeout_s=10, waiting=lambda: True)
            await anext(follower)
            await script.clock.sleep(10)
            assert await seqs(follower) == []

    async def test_an_endless_one_goes_on_after_silence_and_early_ends(self) -> None:
        ends = [stream(batch(record(0)))] + [stream()] * 7
        async with serving(*ends, stream(batch(record(1)), batch(record(2)))) as (script, api):
            follower = Follower(api, "c", endless=True)
            assert [await anext(follower) for _ in range(3)] == [record(0), record(1), record(2)]
            await follower.aclose()
        assert len(script.clock.slept) == 8  # an early end is no invitation to hurry

    async def test_a_settled_stream_ends_even_if_somebody_waits(self) -> None:
        async with serving(stream(x_session_settled="true")) as (_, api):
            follower = Follower(api, "c", waiting=lambda: True)
            assert await seqs(follower) == []
            assert follower.settled

    async def test_repeated_records_and_parts_are_dropped_and_move_the_cursor(self) -> None:
        first = stream(batch(record(0, "a"), record(1, "b")), b"cut")
        second = stream(batch(record(1, "b"), record(2, "a"), record(3, ""), record(4, "")))
        async with serving(first, second) as (_, api):
            follower = Follower(api, "c")
            assert await seqs(follower) == [0, 1, 3, 4]
            assert follower.cursor == 4

    async def test_a_cursor_past_the_tail_loses_nothing(self) -> None:
        """Rulings §4.6: some writers report one too high."""
        async with serving(stream(batch(record(5)))) as (_, api):
            assert await seqs(Follower(api, "c", after=5)) == [5]

    async def test_data_is_handed_out_opened_and_garbage_as_none(self) -> None:
        garbage = Record(1, 1, body=b"not json")
        control = Record(2, 2, (("trigger-control", "turn-complete"),))
        async with serving(stream(batch(record(0, "a", b'{"x":1}'), garbage, control))) as (_, api):
            follower = Follower(api, "c")
            arrived = [item async for item in opened(follower)]
        assert [(item.data, item.part_id) for item in arrived] == [
            ({"x": 1}, "a"),
            (None, ""),
            (None, ""),
        ]

    async def test_another_version_of_the_stream_is_refused(self) -> None:
        async with serving(json(200, b"")) as (_, api):
            with pytest.raises(errors.ProtocolError, match="version 2"):
                await anext(Follower(api, "c"))


async def test_a_hook_sees_every_request() -> None:
    seen: list[str] = []

    async def hook(request: httpx2.Request, send: Any) -> httpx2.Response:
        seen.append(request.method)
        return await send(request)

    async with serving(OK, stream()) as (_, api):
        hooked = api.hooked(hook)
        await hooked.append("c", "in", "x", part_id="p")
        await seqs(Follower(hooked, "c"))
    assert seen == ["POST", "GET"]
