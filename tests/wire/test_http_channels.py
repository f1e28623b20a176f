"""Session channels over HTTP: append, follow, read (wire-protocol §5, §6)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from http_harness import START_MS, Http, server

from everturn.errors import Unavailable
from everturn.protocol.records import (
    NewRecord,
    control_record,
    data_body,
    input_body,
    trim_record,
)
from everturn.storage.memory.streams import MemoryStreams

pytestmark = pytest.mark.anyio

IN = "/realtime/v1/sessions/chat-1/in"
OUT = "/realtime/v1/sessions/chat-1/out"


@pytest.fixture
async def http() -> AsyncIterator[Http]:
    async with server() as opened:
        yield opened


def chunk(text: str, part: str) -> NewRecord:
    data = msgspec.json.encode({"type": "text-delta", "delta": text})
    return NewRecord(data_body(data, part), (), part)


TURN_COMPLETE = control_record("turn-complete", [("session-in-event-id", "0")])


async def write(http: Http, *records: NewRecord, session: str = "chat-1") -> None:
    await http.system.services.streams.append(http.channel("out", session), records)


class TestAppend:
    async def test_the_posted_text_is_stored_as_a_string(self, http: Http) -> None:
        # W-60, W-80
        await http.create()
        reply = await http(
            "POST", f"{IN}/append", raw=b'{"kind":"stop"}', headers={"X-Part-Id": "abc"}
        )

        assert (reply.status, reply.json) == (200, {"ok": True, "seq": 0})
        (record,) = await http.system.services.streams.read(http.channel("in"), after=None)
        assert record.body == b'{"data":"{\\"kind\\":\\"stop\\"}","id":"abc"}'

    async def test_a_repeated_part_id_adds_nothing_and_gets_the_first_answer(
        self, http: Http
    ) -> None:
        # W-60
        await http.create()
        replies = [
            await http("POST", f"{IN}/append", raw=text, headers={"X-Part-Id": part})
            for text, part in ((b"a", "1"), (b"b", "2"), (b"again", "1"))
        ]

        assert [reply.json["seq"] for reply in replies] == [0, 1, 0]
        assert len(await http.system.services.streams.read(http.channel("in"), after=None)) == 2

    async def test_text_that_is_no_json_is_input_too(self, http: Http) -> None:
        await http.create()
        for raw in (b"raw", b"{", b"\xff\xfe"):
            reply = await http(
                "POST", f"{IN}/append", raw=raw, headers={"content-type": "text/plain"}
            )
            assert reply.status == 200

    async def test_both_forms_of_the_id_reach_the_same_log(self, http: Http) -> None:
        # W-1, W-23
        session_id = (await http.create("chat/1"))["id"]
        first = await http("POST", "/realtime/v1/sessions/chat%2F1/in/append", raw=b"a")
        second = await http("POST", f"/realtime/v1/sessions/{session_id}/in/append", raw=b"b")

        assert (first.json["seq"], second.json["seq"]) == (0, 1)

    async def test_an_unknown_session_is_not_found(self, http: Http) -> None:
        for name in ("nobody", "session_cnobody"):
            reply = await http("POST", f"/realtime/v1/sessions/{name}/in/append", raw=b"a")
            assert (reply.status, reply.json) == (404, {"error": "Resource not found"})

    async def test_a_closed_session_takes_no_input(self, http: Http) -> None:
        # W-61
        await http.create()
        await http("POST", f"{IN}/append", raw=b"a")
        await http("POST", "/api/v1/sessions/chat-1/close", {"reason": "done"})
        before = await http.stored()
        reply = await http("POST", f"{IN}/append", raw=b"b")

        assert reply.status == 409
        assert reply.headers["x-should-retry"] == "false"
        assert reply.json == {
            "ok": False,
            "error": "Cannot append to a closed session",
            "code": "session_closed",
            "closedReason": "done",
        }
        assert await http.stored() == before

    async def test_an_expired_session_takes_no_input(self, http: Http) -> None:
        await http.create(expiresAt=START_MS + 1000)
        await http("POST", f"{IN}/append", raw=b"a")
        await http.clock.advance(1)
        before = await http.stored()
        reply = await http("POST", f"{IN}/append", raw=b"b")

        assert reply.status == 400
        assert reply.json == {"ok": False, "error": "Cannot append to an expired session"}
        assert await http.stored() == before

    async def test_a_public_token_never_writes_out(self, http: Http) -> None:
        """R-221."""
        # W-25
        await http.create()
        key = http.token("write:sessions:chat-1", "admin")
        before = await http.stored()
        for path in ("append", "records"):
            reply = await http("POST", f"{OUT}/{path}", raw=b"{}", key=key)
            assert reply.status == 403
            assert reply.json == {
                "ok": False,
                "error": "Appending to the out channel requires secret key authentication",
            }
        assert await http.stored() == before

    async def test_a_secret_key_appends_to_out(self, http: Http) -> None:
        await http.create()
        reply = await http("POST", f"{OUT}/append", raw=b"hi", headers={"X-Part-Id": "p"})

        assert reply.json == {"ok": True, "seq": 0}

    async def test_a_channel_that_does_not_exist_is_refused(self, http: Http) -> None:
        await http.create()
        before = await http.stored()
        reply = await http("POST", "/realtime/v1/sessions/chat-1/side/append", raw=b"a")

        assert (reply.status, reply.json["error"]) == (400, "Params Error")
        assert (await http("GET", "/realtime/v1/sessions/chat-1/side")).status == 400
        assert await http.stored() == before

    async def test_the_metered_record_may_have_a_mebibyte_and_not_a_byte_more(
        self, http: Http
    ) -> None:
        # W-62
        await http.create()
        room = 1024 * 1024 - 8 - len(input_body("", "p0"))
        at_limit = await http("POST", f"{IN}/append", raw=b"x" * room, headers={"X-Part-Id": "p0"})
        assert at_limit.status == 200
        before = await http.stored()

        # Quotes count twice, so a body under the HTTP cap can still be over the record's.
        past = await http(
            "POST",
            f"{IN}/append",
            raw=b'"' + b"x" * (room - 1),
            headers={"X-Part-Id": "p1", "origin": "https://app.example"},
        )
        assert past.status == 413
        assert past.json["ok"] is False
        assert "Record metered size 1048577 bytes exceeds" in past.json["error"]
        assert past.headers["access-control-allow-origin"] == "https://app.example"
        assert await http.stored() == before

    @pytest.mark.parametrize("how", ["declared", "undeclared", "chunked", "false"])
    async def test_a_body_over_the_cap_or_without_a_size_is_refused(
        self, http: Http, how: str
    ) -> None:
        # W-3, W-6
        await http.create()
        before = await http.stored()
        big = b"x" * (1024 * 1024 + 1)
        path = f"{IN}/append"
        if how == "declared":
            reply = await http("POST", path, raw=big)
        elif how == "undeclared":
            reply = await http("POST", path, pieces=[b"x"])
        elif how == "chunked":
            reply = await http("POST", path, pieces=[b"x"] * 5)
        else:
            reply = await http("POST", path, pieces=[big], headers={"content-length": "5"})

        assert reply.status == 413
        assert reply.json["error"] == "Request body too large"
        assert await http.stored() == before

    @pytest.mark.parametrize("size", ["", "-1", "1e3", "\u00b2", "9" * 5000])
    async def test_a_size_that_is_no_number_is_none(self, http: Http, size: str) -> None:
        await http.create()
        reply = await http("POST", f"{IN}/append", raw=b"a", headers={"content-length": size})

        assert reply.status == 413

    async def test_a_part_id_has_a_longest_length(self, http: Http) -> None:
        # W-72
        await http.create()
        fits = await http("POST", f"{IN}/append", raw=b"a", headers={"X-Part-Id": "p" * 256})
        past = await http("POST", f"{IN}/append", raw=b"a", headers={"X-Part-Id": "p" * 257})

        assert (fits.status, past.status) == (200, 400)
        assert past.json["ok"] is False

    async def test_a_path_that_is_not_utf_8_is_refused(self, http: Http) -> None:
        # W-12
        reply = await http("POST", "/realtime/v1/sessions/%FF/in/append", raw=b"a")

        assert (reply.status, reply.json["error"]) == (400, "Params Error")

    async def test_an_append_to_a_session_whose_run_ended_starts_the_next_run(
        self, http: Http
    ) -> None:
        # W-72
        run_id = (await http.create())["runId"]
        await http("POST", f"/api/v2/runs/{run_id}/cancel")
        await http("POST", f"{IN}/append", {"kind": "message", "payload": {"chatId": "chat-1"}})

        session = (await http("GET", "/api/v1/sessions/chat-1")).json
        assert session["currentRunId"] != run_id


class TestAppendRecords:
    async def test_records_are_stored_as_readers_expect_them(self, http: Http) -> None:
        # W-69
        await http.create()
        body = {
            "records": [
                {"data": {"type": "text-delta"}, "partId": "p1"},
                {"control": "turn-complete", "headers": [["session-in-event-id", "4"]]},
                {"trim": 0},
            ]
        }
        reply = await http("POST", f"{OUT}/records", body)
        again = await http("POST", f"{OUT}/records", {"records": body["records"][:1]})

        assert reply.json == {"ok": True, "seqNums": [0, 1, 2]}
        assert again.json == {"ok": True, "seqNums": [0]}
        data, control, trim = await http.system.services.streams.read(
            http.channel("out"), after=None
        )
        assert data.body == b'{"data":{"type":"text-delta"},"id":"p1"}'
        assert control.control == "turn-complete"
        assert trim.is_command

    @pytest.mark.parametrize(
        "body",
        [
            {"records": []},
            {"records": [{}]},
            {"records": [{"data": 1, "trim": 1}]},
            {"records": [{"trim": -1}]},
            {"records": [{"control": "x", "headers": [["", "trim"]]}]},
            {"records": [{"data": n} for n in range(1001)]},
            {},
        ],
    )
    async def test_what_is_none_of_the_three_kinds_is_refused(
        self, http: Http, body: object
    ) -> None:
        await http.create()
        before = await http.stored()
        reply = await http("POST", f"{OUT}/records", body)

        assert (reply.status, reply.json["ok"]) == (400, False)
        assert await http.stored() == before


class TestFollow:
    async def test_headers_come_at_once_and_name_the_version(self, http: Http) -> None:
        # W-63
        await http.create()
        async with http.follow(OUT, headers={"origin": "https://app.example"}) as stream:
            assert stream.status == 200
            assert stream.headers | {"vary": ""} == {
                "content-type": "text/event-stream",
                "x-stream-version": "v2",
                "cache-control": "no-cache, no-transform",
                "x-accel-buffering": "no",
                "access-control-allow-origin": "https://app.example",
                "access-control-expose-headers": "*",
                "vary": "",
            }

    async def test_what_is_there_comes_first_then_what_is_written(self, http: Http) -> None:
        await http.create()
        await write(http, chunk("a", "1"), chunk("b", "2"))
        async with http.follow(OUT) as stream:
            await stream.wait(lambda: len(stream.records) == 2)
            await write(http, chunk("c", "3"))
            await stream.wait(lambda: len(stream.records) == 3)

        assert [record.seq_num for record in stream.records] == [0, 1, 2]
        batches = [event for event in stream.events if event.event == "batch"]
        assert batches[-1].id.startswith("2,3,")
        assert msgspec.json.decode(batches[-1].data)["tail"]["seq_num"] == 3
        assert not stream.ended

    @pytest.mark.parametrize(
        ("cursor", "expected"),
        [
            ("0", [1, 2]),
            ("2", []),
            ("1,2,106", [2]),
            ("99", []),
            ("9" * 30, []),
            ("abc", [0, 1, 2]),
            ("-1", [0, 1, 2]),
            ("", [0, 1, 2]),
        ],
    )
    async def test_it_resumes_after_the_leading_digits_of_last_event_id(
        self, http: Http, cursor: str, expected: list[int]
    ) -> None:
        # W-63
        await http.create()
        await write(http, *(chunk("x", str(n)) for n in range(3)))
        async with http.follow(OUT, headers={"Last-Event-ID": cursor}) as stream:
            await write(http, chunk("new", "new"))
            await stream.wait(lambda: stream.records and stream.records[-1].seq_num == 3)

        assert [record.seq_num for record in stream.records] == [*expected, 3]

    async def test_it_starts_at_the_first_visible_record_after_a_trim(self, http: Http) -> None:
        # W-71
        await http.create()
        await write(http, *(chunk("x", str(n)) for n in range(4)), trim_record(3))
        for cursor in ("", "0"):
            async with http.follow(OUT, headers={"Last-Event-ID": cursor}) as stream:
                await stream.wait(lambda stream=stream: len(stream.records) == 2)
            assert [record.seq_num for record in stream.records] == [3, 4]

    async def test_a_secret_key_may_read_what_was_trimmed_but_is_retained(self, http: Http) -> None:
        # W-71
        await http.create()
        await write(http, *(chunk("x", str(n)) for n in range(4)), trim_record(3))
        path = f"{OUT}?includeTrimmed=true"
        async with http.follow(path) as stream:
            await stream.wait(lambda: len(stream.records) == 5)
        token = http.token("read:sessions:chat-1")
        refused = await http("GET", path, key=token)

        assert [record.seq_num for record in stream.records] == [0, 1, 2, 3, 4]
        assert refused.status == 403

    async def test_a_session_that_does_not_exist_yet_is_waited_for(self, http: Http) -> None:
        # W-68
        async with http.follow(OUT) as stream:
            await http.create()
            await write(http, chunk("first", "1"))
            await stream.wait(lambda: len(stream.records) == 1)

        assert stream.records[0].seq_num == 0

    async def test_an_unknown_id_of_ours_is_not_found(self, http: Http) -> None:
        reply = await http("GET", "/realtime/v1/sessions/session_cnobody/out")

        assert (reply.status, reply.json) == (404, {"error": "Not found"})

    async def test_silence_for_the_timeout_ends_it_with_done(self, http: Http) -> None:
        # W-63
        await http.create()
        async with http.follow(OUT, headers={"Timeout-Seconds": "20"}) as stream:
            await http.clock.advance(19)
            assert not stream.ended
            await write(http, chunk("x", "1"))
            await stream.wait(lambda: len(stream.records) == 1)
            await http.clock.advance(19)
            assert not stream.ended
            await http.clock.advance(2)
            assert stream.is_done

    async def test_idle_readers_are_pinged_every_five_to_fifteen_seconds(self, http: Http) -> None:
        # W-64
        await http.create()
        async with http.follow(OUT, headers={"Timeout-Seconds": "600"}) as stream:

            def pings() -> int:
                return sum(event.event == "ping" for event in stream.events)

            assert pings() == 1  # caught up
            await http.clock.advance(4.5)
            assert pings() == 1
            await http.clock.advance(11)
            assert pings() >= 2
            await http.clock.advance(100)
            assert 8 <= pings() <= 22

    @pytest.mark.parametrize(
        ("value", "text"),
        [
            ("x", "Invalid timeout seconds"),
            ("1.5", "Invalid timeout seconds"),
            ("0", "Timeout seconds must be greater than 0"),
            ("-5", "Timeout seconds must be greater than 0"),
            ("601", "Timeout seconds must be less than 600"),
        ],
    )
    async def test_a_timeout_out_of_bounds_is_refused_as_text(
        self, http: Http, value: str, text: str
    ) -> None:
        # W-63
        await http.create()
        reply = await http("GET", OUT, headers={"Timeout-Seconds": value})

        assert (reply.status, reply.text) == (400, text)
        assert reply.headers["content-type"].startswith("text/plain")

    async def test_a_settled_channel_delivers_the_rest_and_ends(self, http: Http) -> None:
        # W-65
        await http.create()
        await write(http, chunk("a", "1"), TURN_COMPLETE, trim_record(0))
        peek = {"X-Peek-Settled": "1", "Last-Event-ID": "0"}
        async with http.follow(OUT, headers=peek) as stream:
            await stream.wait(lambda: stream.ended)

        assert stream.headers["x-session-settled"] == "true"
        assert [record.seq_num for record in stream.records] == [1, 2]
        assert stream.is_done

    async def test_a_channel_in_mid_turn_is_not_settled(self, http: Http) -> None:
        # W-65
        await http.create()
        await write(http, TURN_COMPLETE, chunk("a", "1"))
        async with http.follow(OUT, headers={"X-Peek-Settled": "1"}) as stream:
            await stream.wait(lambda: len(stream.records) == 2)
            assert "x-session-settled" not in stream.headers
            assert not stream.ended

    async def test_nobody_is_settled_without_asking(self, http: Http) -> None:
        await http.create()
        await write(http, TURN_COMPLETE)
        async with http.follow(OUT) as stream:
            await stream.wait(lambda: len(stream.records) == 1)
            assert "x-session-settled" not in stream.headers
            assert not stream.ended

    async def test_a_reader_that_leaves_is_forgotten(self, http: Http) -> None:
        await http.create()
        async with http.follow(OUT):
            assert http.system.app.readers.count == 1
        assert http.system.app.readers.count == 0

    async def test_readers_are_bounded(self) -> None:
        async with server(readers_max=1) as http:
            await http.create()
            async with http.follow(OUT):
                reply = await http("GET", OUT)
            assert reply.status == 503

    async def test_a_closed_session_stays_readable(self, http: Http) -> None:
        # W-68
        await http.create()
        await write(http, chunk("a", "1"))
        await http("POST", "/api/v1/sessions/chat-1/close", {})
        async with http.follow(OUT) as stream:
            await stream.wait(lambda: len(stream.records) == 1)

    async def test_either_form_in_a_token_opens_both_forms_of_the_id(self, http: Http) -> None:
        """R-221."""
        # W-23
        session_id = (await http.create())["id"]
        for scope in (session_id, "chat-1"):
            for form in (session_id, "chat-1"):
                path = f"/realtime/v1/sessions/{form}/out/records"
                reply = await http("GET", path, key=http.token(f"read:sessions:{scope}"))
                assert reply.status == 200
        assert (await http("GET", OUT, key=http.token("read:sessions:other"))).status == 403
        assert (await http("GET", OUT, key=http.token("write:sessions:chat-1"))).status == 403


class FailingStore(MemoryStreams):
    """Breaks when it is told to."""

    broken = False

    async def append(self, *args: Any, **options: Any) -> Any:
        if self.broken:
            raise Unavailable("the disk is full of secrets")
        return await super().append(*args, **options)

    def subscribe(self, *args: Any) -> Any:
        subscription, store = super().subscribe(*args), self

        class Failing:
            caught_up = False
            cursor = None

            async def next(self, **options: Any) -> Any:
                if store.broken:
                    raise Unavailable("gone")
                store.broken = True
                return await subscription.next()

            def close(self) -> None:
                subscription.close()

        return Failing()


class TestBrokenStore:
    async def test_a_stream_is_cut_and_never_ended_in_good_order(self) -> None:
        async with server(engine=FailingStore) as http:
            await http.create()
            await write(http, chunk("a", "1"))
            with pytest.raises(ExceptionGroup):
                async with http.follow(OUT) as stream:
                    await stream.wait(lambda: False)
            assert [record.seq_num for record in stream.records] == [0]
            assert not stream.ended
            assert http.system.app.readers.count == 0

    async def test_an_append_that_is_not_stored_is_not_acknowledged(self) -> None:
        async with server(engine=FailingStore) as http:
            await http.create()
            http.system.services.streams.broken = True
            reply = await http("POST", f"{IN}/append", raw=b"a")
        assert (reply.status, reply.json["ok"]) == (503, False)
        assert int(reply.headers["retry-after"]) >= 1


class TestReadAsJson:
    async def test_all_kinds_of_records_after_a_cursor(self, http: Http) -> None:
        # W-67
        await http.create()
        await write(http, chunk("a", "p1"), TURN_COMPLETE, trim_record(0))
        everything = (await http("GET", f"{OUT}/records")).json
        rest = (await http("GET", f"{OUT}/records?afterEventId=0")).json

        assert everything == {
            "records": [
                {"data": {"type": "text-delta", "delta": "a"}, "id": "p1", "seqNum": 0},
                {
                    "data": "",
                    "id": "",
                    "seqNum": 1,
                    "headers": [["trigger-control", "turn-complete"], ["session-in-event-id", "0"]],
                },
            ]
        }
        assert rest["records"] == everything["records"][1:]

    async def test_input_reads_back_as_the_posted_text(self, http: Http) -> None:
        await http.create()
        await http("POST", f"{IN}/append", raw=b'{"kind":"stop"}', headers={"X-Part-Id": "u1"})

        assert (await http("GET", f"{IN}/records")).json == {
            "records": [{"data": '{"kind":"stop"}', "id": "u1", "seqNum": 0}]
        }

    async def test_a_cursor_below_the_visible_start_reads_from_the_start(self, http: Http) -> None:
        await http.create()
        await write(http, *(chunk("x", str(n)) for n in range(4)), trim_record(3))
        reply = await http("GET", f"{OUT}/records?afterEventId=0")

        assert [record["seqNum"] for record in reply.json["records"]] == [3]

    async def test_more_than_a_page_comes_whole(self, http: Http) -> None:
        await http.create()
        for start in range(0, 2500, 500):
            await write(http, *(chunk("x", str(n)) for n in range(start, start + 500)))
        reply = await http("GET", f"{OUT}/records")

        assert [record["seqNum"] for record in reply.json["records"]] == list(range(2500))

    async def test_a_cursor_that_is_no_number_is_refused(self, http: Http) -> None:
        await http.create()
        for value in ("x", "-1", "1.5", ""):
            reply = await http("GET", f"{OUT}/records?afterEventId={value}")
            assert (reply.status, reply.json["error"]) == (400, "Query Error")

    async def test_a_session_that_does_not_exist_yet_has_no_records(self, http: Http) -> None:
        assert (await http("GET", f"{OUT}/records")).json == {"records": []}


class TestTheRest:
    async def test_head_answers_without_a_body(self, http: Http) -> None:
        # W-70
        await http.create()
        reply = await http("HEAD", OUT)

        assert (reply.status, reply.headers["x-last-chunk-index"], reply.body) == (200, "0", b"")

    async def test_a_method_that_does_not_exist_names_those_that_do(self, http: Http) -> None:
        reply = await http("DELETE", OUT)

        assert (reply.status, reply.json) == (405, {"error": "Method not allowed"})
        assert reply.headers["allow"] == "GET, HEAD, PUT, OPTIONS"
