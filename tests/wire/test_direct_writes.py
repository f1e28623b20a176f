"""Direct writes: the ticket, the write endpoint, and the unmodified npm client writing through it.

Wire-protocol §5.2, §5.5, §6, §7, §8.7, §18.1; rulings §1.17, §4.2, §4.5, §4.6.
"""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import anyio
import httpx2
import msgspec
import pytest
from http_harness import Http, Reply, scope_of, server

from everturn.errors import NotAuthenticated, Unavailable
from everturn.protocol import s2_frames as s2
from everturn.protocol.records import data_body, input_body
from everturn.protocol.s2_frames import AppendAck, AppendInput, Frame, InputRecord
from everturn.rules import limits

if TYPE_CHECKING:
    from driver import Driver

    from everturn.testing.processes import System

OUT = "/realtime/v1/sessions/chat-1/out"
IN = "/realtime/v1/sessions/chat-1/in"
FRAMED = {"content-type": "s2s/proto"}
PROTOBUF = {"content-type": "application/protobuf"}


def fresh(name: str) -> str:
    return f"{name}/{uuid.uuid4().hex[:8]}"


@pytest.mark.processes
class TestTheOfficialClient:
    #: How far behind the last record lies what a writer reports; 4.5.0 says one too much (§7.3).
    past_the_last: ClassVar[int] = 1

    def test_append_pipe_writer_control_and_trim_are_stored_and_read_back(
        self, drive: Driver
    ) -> None:
        seen = drive.run("directWrites", id=fresh("direct"))

        assert seen["before"]["values"] == [
            {"type": "start", "messageId": "m1"},
            "plain",
            *({"type": "data-piped", "data": n} for n in range(5)),
            {"type": "data-written", "data": 'ä \\ "'},
            {"type": "data-merged"},
        ]
        assert seen["before"]["controls"] == [{"subtype": "turn-complete", "seqNum": 9}]
        assert int(seen["end"]["lastEventId"]) == 8 + self.past_the_last
        assert seen["control"]["lastEventId"] == "9", "the number of the control record itself"
        assert seen["after"]["ids"] == ["4", "5", "6", "7", "8"], "trimmed to 4"

    def test_megabytes_in_many_batches_keep_their_order(self, drive: Driver) -> None:
        seen = drive.run("directVolume", id=fresh("volume"), count=2500, bytes=1200)

        assert seen["numbers"] == list(range(2500))
        assert int(seen["end"]["lastEventId"]) == 2499 + self.past_the_last

    def test_what_is_refused_reaches_the_caller(self, drive: Driver) -> None:
        id = fresh("refused")
        drive.run("sessions", id=id, tag="any")  # opens it, and closes it at the end
        open_id = fresh("open")
        seen = drive.run("directRefused", id=open_id, closed=id)

        assert seen["tooLarge"]["name"] == "ChatChunkTooLargeError"
        assert (seen["reserved"]["status"], seen["unknown"]["status"]) == (400, 404)
        assert "closed session" in seen["closed"]["message"]
        assert seen["closed"]["status"] == 400

    def test_reading_from_one_past_the_tail_misses_nothing(self, drive: Driver) -> None:
        seen = drive.run("onePastTheTail", id=fresh("tail"))

        assert int(seen["lastEventId"]) == 1 + self.past_the_last
        assert [value["type"] for value in seen["later"]["values"]] == ["text-end", "finish"]

    def test_a_head_start_is_stored_and_its_turn_completed_by_the_agent(
        self, drive: Driver
    ) -> None:
        seen = drive.run("headStart", id=fresh("head"), agent="echo")

        types = [event["type"] for event in seen["events"]]
        text = "".join(event.get("delta", "") for event in seen["events"])
        assert seen["status"] == 200
        assert text == "warm hello"
        assert types[-2:] == ["trigger:turn-complete", "trigger:session-state"]
        assert [value["type"] for value in seen["stored"]["values"]] == types[:-2]
        assert [c["subtype"] for c in seen["stored"]["controls"]] == ["turn-complete"]

    def test_a_write_over_a_killed_server_leaves_no_gap_and_nothing_twice(
        self, drive: Driver, system: System
    ) -> None:
        """P-1, P-5: what the client sends again is known by its ids."""
        id = uuid.uuid4().hex
        process = drive.start("directCrash", id=id, count=400)
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "READY"
        system.kill_server()
        system.start_server()
        seen = drive.finish(process)

        with api_client(system) as client:
            records = client.get(f"/realtime/v1/sessions/{id}/out/records").json()["records"]
        numbers = [record["data"]["data"] for record in records]
        assert numbers == list(range(len(numbers)))
        assert "error" in seen or len(numbers) == 400

    def test_a_message_written_to_in_is_answered(self, system: System) -> None:
        """The run check of an append (rulings §1.1), also for records that come this way."""
        id = uuid.uuid4().hex
        with api_client(system) as client:
            body: dict[str, Any] = {"type": "chat.agent", "taskIdentifier": "eager"}
            config = {"basePayload": {"messages": [], "trigger": "preload", "chatId": id}}
            created = client.post(
                "/api/v1/sessions", json=body | {"externalId": id, "triggerConfig": config}
            )
            assert created.status_code == 201
            for turn in range(2):  # the second finds the run suspended
                write_message(client, id, turn)
                wait_for_turns(client, id, turn + 1)


def api_client(system: System) -> httpx2.Client:
    key = {"authorization": f"Bearer {system.key}"}
    return httpx2.Client(base_url=system.url, headers=key, timeout=30)


def write_message(client: httpx2.Client, id: str, number: int) -> None:
    """Append a user's message to `in` through the write endpoint, as JSON."""
    ticket = client.put(f"/realtime/v1/sessions/{id}/in").headers
    message = {"id": f"u{number}", "role": "user", "parts": [{"type": "text", "text": "hi"}]}
    payload = {"chatId": id, "trigger": "submit-message", "message": message}
    chunk = msgspec.json.encode({"kind": "message", "payload": payload}).decode()
    written = client.post(
        f"{ticket['x-s2-endpoint']}/streams/{ticket['x-s2-stream-name']}/records",
        headers={"authorization": f"Bearer {ticket['x-s2-access-token']}"},
        json={"records": [{"body": input_body(chunk, f"m{number}").decode()}]},
    )
    assert written.status_code == 200, written.text


def turns_ended(client: httpx2.Client, id: str) -> int:
    records = client.get(f"/realtime/v1/sessions/{id}/out/records").json()["records"]
    return sum(["trigger-control", "turn-complete"] in r.get("headers", []) for r in records)


def wait_for_turns(client: httpx2.Client, id: str, count: int) -> None:
    deadline = time.monotonic() + 30
    while turns_ended(client, id) < count:
        assert time.monotonic() < deadline, f"turn {count} never ended"
        time.sleep(0.02)


# --- without a socket ----------------------------------------------------------------------------


class Ticket(NamedTuple):
    path: str
    token: str


class Writer:
    """A client of the write endpoint."""

    def __init__(self, http: Http, ticket: Ticket) -> None:
        self.http = http
        self.ticket = ticket

    async def post(self, data: bytes, headers: dict[str, str] | None = None, **more: Any) -> Reply:
        more.setdefault("key", self.ticket.token)
        return await self.http("POST", self.ticket.path, raw=data, headers=headers, **more)

    async def frames(self, *inputs: AppendInput | bytes, **more: Any) -> list[Frame]:
        """One session: its frames, each sent in two pieces, and the answer's frames."""
        flow = b"".join(
            i if isinstance(i, bytes) else s2.encode_frame(s2.encode_input(i)) for i in inputs
        )
        half = len(flow) // 2
        reply = await self.post(b"", FRAMED, pieces=[flow[:half], flow[half:]], **more)
        assert reply.status == 200, reply
        return list(s2.decode_frames(reply.body))

    async def acks(self, *inputs: AppendInput) -> list[AppendAck]:
        return [s2.decode_ack(frame.body) for frame in await self.frames(*inputs)]


async def ticket_for(http: Http, path: str = OUT, **more: Any) -> Ticket:
    reply = await http("PUT", path, **more)
    assert (reply.status, reply.json) == (202, {"version": "v2"})
    endpoint = reply.headers["x-s2-endpoint"]
    assert endpoint.startswith(http.system.services.base_url)
    base = endpoint.removeprefix(http.system.services.base_url)
    name = reply.headers["x-s2-stream-name"]
    return Ticket(f"{base}/streams/{name}/records", reply.headers["x-s2-access-token"])


def record(data: bytes = b'"x"', part: str = "p1") -> InputRecord:
    return InputRecord(data_body(data, part))


def batch(*records: InputRecord, **conditions: Any) -> AppendInput:
    return AppendInput(records, **conditions)


def refused(frame: Frame) -> tuple[int, str]:
    assert frame.is_terminal
    status, body = s2.split_last_frame(frame.body)
    return status, msgspec.json.decode(body)["code"]


@pytest.fixture
async def http() -> AsyncIterator[Http]:
    async with server() as http:
        await http.create()
        yield http


@pytest.fixture
async def out(http: Http) -> Writer:
    return Writer(http, await ticket_for(http))


async def bodies(http: Http, io: str = "out", session: str = "chat-1") -> list[bytes]:
    records = await http.system.services.streams.read(http.channel(io, session), after=None)
    return [r.body for r in records]


@pytest.mark.anyio
class TestTheTicket:
    async def test_it_has_the_forms_clients_insist_on_whatever_the_session_is_called(
        self, http: Http
    ) -> None:
        reply = await http("PUT", "/realtime/v1/sessions/%D1%87%D0%B0%D1%82%2F1/out")

        assert re.fullmatch(r"[a-z0-9][a-z0-9-]{6,46}[a-z0-9]", reply.headers["x-s2-basin"])
        assert re.fullmatch(r"[a-z0-9-]{8,100}", reply.headers["x-s2-stream-name"])
        assert reply.headers["x-s2-flush-interval-ms"].isdigit()
        assert reply.headers["x-s2-access-token"].isascii()

    async def test_both_forms_of_the_id_name_the_same_stream(self, http: Http) -> None:
        row = await http.create()
        by_id = await ticket_for(http, f"/realtime/v1/sessions/{row['id']}/out")

        assert by_id.path == (await ticket_for(http)).path

    async def test_a_browser_may_read_what_it_was_given(self, http: Http) -> None:
        headers = {
            "authorization": f"Bearer {http.token('write:sessions:chat-1')}",
            "origin": "https://app.example",
        }
        found: list[tuple[bytes, bytes]] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: dict[str, Any]) -> None:
            found.extend(message.get("headers", ()))

        await http.system.app(scope_of("PUT", IN, headers), receive, send)

        exposed = b",".join(v for k, v in found if k == b"access-control-expose-headers")
        assert (b"access-control-allow-origin", b"https://app.example") in found
        for name, _ in found:
            assert not name.startswith(b"x-s2-") or name in exposed

    async def test_out_is_for_secret_keys_alone(self, http: Http) -> None:
        # W-150
        reply = await http("PUT", OUT, key=http.token("write:sessions:chat-1", "admin"))

        assert (reply.status, reply.text) == (
            403,
            "Initializing the out channel requires secret key authentication",
        )

    async def test_in_takes_a_token_that_may_write_the_session(self, http: Http) -> None:
        assert (await http("PUT", IN, key=http.token("write:sessions:chat-1"))).status == 202
        for scope in ("read:sessions:chat-1", "write:sessions:chat-2"):
            assert (await http("PUT", IN, key=http.token(scope))).status == 403

    async def test_a_closed_session_gives_none(self, http: Http) -> None:
        await http("POST", "/api/v1/sessions/chat-1/close", {})
        reply = await http("PUT", OUT)

        assert (reply.status, reply.text) == (
            400,
            "Cannot initialize a channel on a closed session",
        )

    async def test_an_id_of_ours_that_does_not_exist_is_not_found(self, http: Http) -> None:
        reply = await http("PUT", "/realtime/v1/sessions/session_cmissing/out")

        assert (reply.status, reply.text) == (404, "Session not found")

    async def test_it_is_told_where_the_caller_reached_the_server(self, http: Http) -> None:
        reply = await http("PUT", OUT, headers={"host": "agents.internal:8030"})

        assert reply.headers["x-s2-endpoint"] == "http://agents.internal:8030/s2/v1"

    async def test_the_address_in_the_settings_wins(self) -> None:
        async with server(direct_url="https://writes.example/x/") as http:
            reply = await http("PUT", OUT, headers={"host": "elsewhere"})

            assert reply.headers["x-s2-endpoint"] == "https://writes.example/x"

    async def test_it_opens_its_own_stream_and_no_other(self, http: Http) -> None:
        # W-150
        mine = await ticket_for(http)
        other = await ticket_for(http, "/realtime/v1/sessions/chat-2/out")
        inward = await ticket_for(http, IN)
        body = s2.encode_input(batch(record()))

        for path in (other.path, inward.path):
            reply = await Writer(http, Ticket(path, mine.token)).post(body, PROTOBUF)
            assert (reply.status, reply.json["code"]) == (403, "not_allowed")
        assert await bodies(http) == []

    async def test_changed_or_foreign_tokens_open_nothing(self, http: Http) -> None:
        path, token = await ticket_for(http)
        body = s2.encode_input(batch(record()))
        said, _, signature = token.partition(".")
        bad = (said + "A." + signature, said + ".", said, "x.y", http.token("admin"), "é")

        for candidate in bad:
            reply = await Writer(http, Ticket(path, candidate)).post(body, PROTOBUF)
            assert (reply.status, reply.json["code"]) == (401, "not_authenticated"), candidate
        assert (await http("POST", path, raw=body, key=None)).status == 401

    async def test_it_ends_after_a_day_also_within_a_session(self, http: Http, out: Writer) -> None:
        # W-150
        assert len(await out.acks(batch(record()))) == 1
        await http.clock.jump(24 * 3600)

        reply = await out.post(s2.encode_input(batch(record())), PROTOBUF)
        assert (reply.status, reply.json["message"]) == (401, "the access token has expired")
        direct = http.system.services.direct
        ticket, _ = direct.issue(http.system.environment.id, "chat-1", "out", until_ms=0)
        with pytest.raises(NotAuthenticated, match="expired"):
            await direct.append(ticket, batch(record()))

    async def test_it_does_not_outlive_the_token_that_asked_for_it(self, http: Http) -> None:
        token = http.token("write:sessions:chat-1")  # of 15 minutes
        writer = Writer(http, await ticket_for(http, IN, key=token))
        sent = s2.encode_input(batch(InputRecord(input_body('{"kind":"stop"}', "s1"))))
        assert (await writer.post(sent, PROTOBUF)).status == 200

        await http.clock.jump(15 * 60)
        assert (await writer.post(sent, PROTOBUF)).status == 401


@pytest.mark.anyio
class TestAppends:
    async def test_each_frame_is_acked_in_order_with_its_numbers(
        self, http: Http, out: Writer
    ) -> None:
        # W-151
        acks = await out.acks(
            batch(record(part="a"), record(part="b")),
            batch(record(part="c")),
            batch(record(part="d")),
        )

        assert [(a.start.seq_num, a.end.seq_num, a.tail.seq_num) for a in acks] == [
            (0, 2, 2),
            (2, 3, 3),
            (3, 4, 4),
        ]
        assert acks[0].start.timestamp_ms == http.clock.now_ms()
        assert await bodies(http) == [data_body(b'"x"', part) for part in "abcd"]

    async def test_a_batch_sent_again_adds_nothing_and_gets_its_numbers(
        self, http: Http, out: Writer
    ) -> None:
        """P-5: what a client does whose connection broke before the ack."""
        # W-152
        sent = batch(record(part="a"), record(part="b"))
        first = await out.acks(sent)
        await out.acks(batch(record(part="c")))
        (again,) = await out.acks(sent)

        assert again[:2] == (first[0].start, first[0].end)
        assert again.tail.seq_num == 3
        assert len(await bodies(http)) == 3

    async def test_json_and_protobuf_say_the_same(self, http: Http, out: Writer) -> None:
        # W-151
        text = '{"data":{"type":"start"},"id":"a"}'
        by_json = await out.post(msgspec.json.encode({"records": [{"body": text}]}))
        by_bytes = await out.post(s2.encode_input(batch(record(part="b"))), PROTOBUF)

        now = http.clock.now_ms()
        assert by_json.json == {
            "start": {"seq_num": 0, "timestamp": now},
            "end": {"seq_num": 1, "timestamp": now},
            "tail": {"seq_num": 1, "timestamp": now},
        }
        assert by_bytes.headers["content-type"] == "application/protobuf"
        assert s2.decode_ack(by_bytes.body).start.seq_num == 1
        assert (await bodies(http))[0] == text.encode()

    async def test_a_control_record_keeps_its_headers(self, http: Http, out: Writer) -> None:
        # W-81
        await out.post(
            b'{"records":[{"body":"","headers":'
            b'[["trigger-control","turn-complete"],["public-access-token","pp"]]}]}'
        )

        (stored,) = await http.system.services.streams.read(http.channel(), after=None)
        assert (stored.control, stored.header("public-access-token")) == ("turn-complete", "pp")

    async def test_a_trim_moves_the_start_of_out(self, http: Http, out: Writer) -> None:
        # W-82
        await out.acks(*(batch(record(part=str(n))) for n in range(5)))
        trim = InputRecord((3).to_bytes(8, "big"), (("", "trim"),))
        await out.post(s2.encode_input(batch(trim)), PROTOBUF)

        bounds = await http.system.services.streams.bounds(http.channel())
        assert (bounds.first, bounds.tail) == (3, 6)

    async def test_a_body_that_is_no_envelope_is_stored_as_it_is(
        self, http: Http, out: Writer
    ) -> None:
        await out.acks(batch(InputRecord(b"\xff\x00 plain"), InputRecord(b'{"id":7}')))

        assert await bodies(http) == [b"\xff\x00 plain", b'{"id":7}']

    async def test_out_may_be_written_before_its_session_exists(self, http: Http) -> None:
        writer = Writer(http, await ticket_for(http, "/realtime/v1/sessions/later/out"))
        assert len(await writer.acks(batch(record()))) == 1

        await http.create("later")
        assert len(await bodies(http, session="later")) == 1

    async def test_what_is_written_to_in_is_input_like_any_other(self, http: Http) -> None:
        token = http.token("write:sessions:chat-1")
        writer = Writer(http, await ticket_for(http, IN, key=token))
        message = '{"kind":"message","payload":{"trigger":"submit-message"}}'
        await writer.acks(batch(InputRecord(input_body(message, "m1"))))
        repeat = await http(
            "POST", f"{IN}/append", raw=message.encode(), headers={"x-part-id": "m1"}
        )

        assert repeat.json["seq"] == 0
        assert await bodies(http, "in") == [input_body(message, "m1")]

    async def test_in_without_a_session_is_refused(self, http: Http) -> None:
        writer = Writer(http, await ticket_for(http, "/realtime/v1/sessions/later/in"))

        (last,) = await writer.frames(batch(record()))
        assert refused(last) == (404, "session_not_found")


@pytest.mark.anyio
class TestRefusals:
    async def test_what_was_acked_before_a_refusal_stays_and_nothing_after_it(
        self, http: Http, out: Writer
    ) -> None:
        # W-154
        bad = batch(record(part="b"), match_seq_num=9)
        first, last = await out.frames(batch(record(part="a")), bad, batch(record(part="c")))

        assert s2.decode_ack(first.body).start.seq_num == 0
        assert refused(last) == (400, "invalid_request")
        assert await bodies(http) == [data_body(b'"x"', "a")]

    async def test_a_fencing_token_is_never_the_streams(self, http: Http, out: Writer) -> None:
        # W-154
        sent = msgspec.json.encode({"records": [{"body": "x"}], "fencing_token": "mine"})
        reply = await out.post(sent)

        assert reply.status == 412
        assert reply.json["fencing_token_mismatch"] == ""
        empty = msgspec.json.encode({"records": [{"body": "x"}], "fencing_token": ""})
        assert (await out.post(empty)).status == 200

    @pytest.mark.parametrize(
        "headers",
        [
            (("", "fence"),),
            (("", "trim"),),  # with a body of one byte
            (("", "trim"), ("a", "b")),
            (("a", "b"), ("", "trim")),
        ],
    )
    async def test_commands_other_than_a_whole_trim_are_refused(
        self, http: Http, out: Writer, headers: tuple[tuple[str, str], ...]
    ) -> None:
        # W-154
        (last,) = await out.frames(batch(InputRecord(b"1", headers)))

        assert refused(last) == (400, "invalid_request")
        assert await bodies(http) == []

    async def test_no_token_can_trim_the_input_of_a_session(self, http: Http) -> None:
        """Rulings §1.17: undecided messages are not forgotten."""
        writer = Writer(http, await ticket_for(http, IN))
        trim = InputRecord((3).to_bytes(8, "big"), (("", "trim"),))

        (last,) = await writer.frames(batch(trim))
        assert refused(last) == (403, "not_allowed")

    async def test_a_session_that_closes_meanwhile_takes_no_more(
        self, http: Http, out: Writer
    ) -> None:
        await http("POST", "/api/v1/sessions/chat-1/close", {})
        (last,) = await out.frames(batch(record()))
        reply = await out.post(b'{"records":[{"body":"x"}]}')

        assert refused(last) == (409, "session_closed")
        assert (reply.status, reply.json["code"]) == (409, "session_closed")

    @pytest.mark.parametrize(
        ("asked", "status"),
        [
            (batch(), 400),
            (batch(*(record(part=str(n)) for n in range(1001))), 413),
            (batch(InputRecord(bytes(limits.RECORD_BYTES_MAX))), 413),
            (batch(*(InputRecord(bytes(400_000)) for _ in range(3))), 413),
            (batch(record(part="x" * 257)), 413),
        ],
    )
    async def test_sizes_over_their_limits_store_nothing(
        self, http: Http, out: Writer, asked: AppendInput, status: int
    ) -> None:
        # W-153
        (last,) = await out.frames(asked)

        assert refused(last)[0] == status
        assert await bodies(http) == []

    async def test_a_full_batch_fits(self, http: Http, out: Writer) -> None:
        most = InputRecord(bytes(limits.RECORD_BYTES_MAX - 8))
        many = batch(*(record(part=str(n)) for n in range(1000)))
        first, second = await out.acks(batch(most), many)

        assert (first.end.seq_num, second.end.seq_num) == (1, 1001)

    @pytest.mark.parametrize(
        ("flow", "status"),
        [
            (b"\xff\xff\xff\x00", 413),  # a frame of 16 MB
            (b"\x00\x00\x00\x00", 400),  # a frame without its flags
            (s2.encode_frame(b"\x0b"), 400),  # no message
            (s2.encode_frame(b"", s2.ZSTD), 400),
            (s2.encode_frame(b"\x0a\x00")[:-1], 400),  # cut off
        ],
    )
    async def test_a_broken_flow_ends_the_session_with_the_reason(
        self, out: Writer, flow: bytes, status: int
    ) -> None:
        (last,) = await out.frames(flow)

        assert refused(last)[0] == status

    async def test_a_last_frame_of_the_client_ends_the_session(self, out: Writer) -> None:
        frames = await out.frames(batch(record()), s2.encode_frame(b"", s2.TERMINAL))

        assert [frame.is_terminal for frame in frames] == [False]

    async def test_a_session_without_a_frame_for_long_is_ended_in_good_order(
        self, http: Http, out: Writer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("everturn.server.direct.endpoint.IDLE_S", 0.01)
        sent: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            await anyio.sleep_forever()
            raise AssertionError("unreachable")

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        headers = FRAMED | {"authorization": f"Bearer {out.ticket.token}"}
        with anyio.fail_after(5):
            await http.system.app(scope_of("POST", out.ticket.path, headers), receive, send)

        assert sent[-1] == {"type": "http.response.body", "body": b"", "more_body": False}

    async def test_other_paths_methods_and_types_are_refused(self, http: Http, out: Writer) -> None:
        path, token = out.ticket
        wrong_method = await http("GET", path, key=token)
        no_records = await http("POST", path.removesuffix("/records"), key=token)
        wrong_type = await out.post(b"x", {"content-type": "text/plain"})
        wrong_format = await out.post(b"{}", {"s2-format": "base64"})
        no_json = await out.post(b"{}")

        assert (wrong_method.status, wrong_method.headers["allow"]) == (405, "POST, OPTIONS")
        assert (no_records.status, no_records.json["code"]) == (404, "not_found")
        assert [r.status for r in (wrong_type, wrong_format, no_json)] == [400, 400, 400]

    async def test_a_browser_may_write_and_read_refusals(self, http: Http, out: Writer) -> None:
        origin = {"origin": "https://app.example"}
        asked = {"access-control-request-headers": "authorization,s2-basin"}
        before = await http("OPTIONS", out.ticket.path, key=None, headers=origin | asked)
        bad = await out.post(b"{}", origin)

        assert before.headers["access-control-allow-headers"] == "authorization,s2-basin"
        assert bad.headers["access-control-allow-origin"] == "https://app.example"

    async def test_a_store_that_is_away_says_try_again(
        self, http: Http, out: Writer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def away(*args: object) -> None:
            raise Unavailable("the store is away")

        monkeypatch.setattr(http.system.services.outbox, "append_guest", away)
        (last,) = await out.frames(batch(record()))

        assert refused(last) == (503, "unavailable")

    async def test_an_error_of_ours_says_nothing_about_itself(
        self, http: Http, out: Writer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def broken(*args: object) -> None:
            raise KeyError("a secret")

        monkeypatch.setattr(http.system.services.outbox, "append_guest", broken)
        (last,) = await out.frames(batch(record()))

        assert refused(last) == (500, "internal")
        assert b"secret" not in last.body

    async def test_sessions_over_the_limit_are_asked_to_come_again(
        self, http: Http, out: Writer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("everturn.server.services.direct.SESSIONS_MAX", 0)
        reply = await out.post(b"", FRAMED)

        assert (reply.status, reply.json["code"]) == (503, "unavailable")


@pytest.mark.anyio
async def test_the_headers_of_a_session_go_out_before_anything_was_sent(
    http: Http, out: Writer
) -> None:
    started, left = anyio.Event(), anyio.Event()

    async def receive() -> dict[str, Any]:
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            started.set()

    headers = FRAMED | {"authorization": f"Bearer {out.ticket.token}"}
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(http.system.app, scope_of("POST", out.ticket.path, headers), receive, send)
        with anyio.fail_after(5):
            await started.wait()
        left.set()
