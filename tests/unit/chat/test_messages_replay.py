"""A conversation is rebuilt from `.out` and `.in` (§2.4, D-12, D-24; rulings §1.5-§1.9)."""

from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from everturn.chat.reducer import MessageReducer
from everturn.chat.replay import Replay, replay_out
from everturn.chat.ui_messages import text_of
from everturn.protocol.records import (
    Input,
    InputCursor,
    Record,
    control_record,
    data_body,
    trim_record,
)

Chunk = dict[str, Any]


class Log:
    """Writes a log as a run does."""

    def __init__(self) -> None:
        self.records: list[Record] = []

    def data(self, *chunks: Chunk, part_id: str = "") -> Log:
        for chunk in chunks:
            seq = len(self.records)
            body = data_body(msgspec.json.encode(chunk), part_id or f"1-{seq}")
            self.records.append(Record(seq, 0, (), body))
        return self

    def turn_complete(self, cursor: int | None = None, decided: tuple[int, ...] = ()) -> Log:
        headers = InputCursor(cursor, frozenset(decided)).headers()
        made = control_record("turn-complete", headers)
        self.records.append(Record(len(self.records), 0, made.headers))
        return self

    def trim(self) -> Log:
        made = trim_record(0)
        self.records.append(Record(len(self.records), 0, made.headers, made.body))
        return self


def start(message_id: str) -> Chunk:
    return {"type": "start", "messageId": message_id}


def text(body: str, part_id: str = "t", *, end: bool = True) -> list[Chunk]:
    chunks: list[Chunk] = [
        {"type": "text-start", "id": part_id},
        {"type": "text-delta", "id": part_id, "delta": body},
    ]
    return [*chunks, {"type": "text-end", "id": part_id}] if end else chunks


def answer(message_id: str, body: str) -> list[Chunk]:
    step = [{"type": "start-step"}, *text(body), {"type": "finish-step"}]
    return [start(message_id), *step, {"type": "finish", "finishReason": "stop"}]


def user(message_id: str, body: str = "hi") -> Chunk:
    return {"id": message_id, "role": "user", "parts": [{"type": "text", "text": body}]}


def submit(seq: int, message: Chunk) -> Input:
    return Input(seq, "message", {"trigger": "submit-message", "message": message})


def shown(replay: Replay) -> list[tuple[str, str]]:
    return [(m["id"], text_of(m)) for m in replay.chain]


def test_a_committed_turn_is_history_with_the_message_it_answered() -> None:
    log = Log().data(*answer("a1", "one")).turn_complete(0).trim()
    log.data(*answer("a2", "two")).turn_complete(1)
    replay = replay_out(log.records, [], inputs=[submit(0, user("u1")), submit(1, user("u2"))])

    assert [m["id"] for m in replay.chain] == ["u1", "a1", "u2", "a2"]
    assert [g.answered[0].seq_num for g in replay.groups] == [0, 1]
    assert (replay.cursor.seq_num, replay.turn_complete) == (1, log.records[-1].seq_num)
    assert replay.last_seq_num == log.records[-1].seq_num
    assert replay.partial is None
    assert not replay.uncommitted


def test_messages_the_cursor_does_not_cover_stay_out_of_the_chain() -> None:
    log = Log().data(*answer("a1", "one")).turn_complete(0)
    replay = replay_out(log.records, [], inputs=[submit(0, user("u1")), submit(1, user("u2"))])

    assert [m["id"] for m in replay.chain] == ["u1", "a1"]


def test_a_lost_snapshot_costs_nothing_and_a_kept_one_is_not_repeated() -> None:
    log = Log().data(*answer("a2", "two")).turn_complete(1)
    chain = [user("u1"), {"id": "a1", "role": "assistant", "parts": []}]
    replay = replay_out(
        log.records,
        chain,
        inputs=[submit(0, user("u1")), submit(1, user("u2"))],
        cursor=InputCursor(0),
    )

    assert [m["id"] for m in replay.chain] == ["u1", "a1", "u2", "a2"]


def test_a_turn_whose_chunks_were_trimmed_adds_no_messages_without_a_snapshot() -> None:
    log = Log().turn_complete(3).trim().data(*answer("a2", "two")).turn_complete(4)
    inputs = [submit(seq, user(f"u{seq}")) for seq in range(5)]
    replay = replay_out(log.records, [], inputs=inputs)

    assert [m["id"] for m in replay.chain] == ["u4", "a2"]


def test_a_turn_that_wrote_nothing_keeps_its_message_when_there_is_a_snapshot() -> None:
    log = Log().turn_complete(1)
    replay = replay_out(
        log.records, [user("u0")], inputs=[submit(1, user("u1"))], cursor=InputCursor(0)
    )

    assert [m["id"] for m in replay.chain] == ["u0", "u1"]


def test_data_after_finish_belongs_to_the_finished_message() -> None:
    log = Log().data(*answer("a", "x"), {"type": "data-note", "data": 1}).turn_complete(0)
    replay = replay_out(log.records, [])

    assert [m["id"] for m in replay.chain] == ["a"]
    assert replay.chain[0]["parts"][-1] == {"type": "data-note", "data": 1}


def test_data_before_the_first_start_belongs_to_the_message_that_follows() -> None:
    log = Log().data({"type": "data-note", "data": 1}, *answer("a", "x")).turn_complete(0)

    assert [m["id"] for m in replay_out(log.records, []).chain] == ["a"]


def test_a_turn_of_data_only_is_a_message_with_an_id_that_stays_the_same() -> None:
    log = Log().data({"type": "data-note", "data": 1}).turn_complete(0)
    once = replay_out(log.records, [])
    again = replay_out(log.records, once.chain, has_snapshot=True)

    assert once.chain[0]["id"] == "out-0"
    assert again.chain == once.chain


def test_a_stopped_turn_is_settled_history_with_its_text() -> None:
    log = Log().data(
        start("a"),
        {"type": "start-step"},
        *text("half", end=False),
        {"type": "tool-input-start", "toolCallId": "c", "toolName": "t"},
        {"type": "abort"},
    )
    replay = replay_out(log.turn_complete(0).records, [])

    assert replay.partial is None
    assert replay.chain[0]["parts"] == [
        {"type": "step-start"},
        {"type": "text", "text": "half", "state": "done"},
    ]


def test_a_turn_the_server_failed_keeps_its_partial_text() -> None:
    log = Log().data(start("a"), *text("half", end=False))
    log.data({"type": "error", "errorText": "crashed"}).turn_complete(0)
    replay = replay_out(log.records, [], inputs=[submit(0, user("u"))])

    assert shown(replay) == [("u", "hi"), ("a", "half")]
    assert replay.groups[0].failed


def test_a_failure_without_a_word_leaves_no_empty_message() -> None:
    log = Log().data(start("a"), {"type": "error", "errorText": "no"}).turn_complete(0)

    assert replay_out(log.records, []).chain == []


def test_a_rejected_segment_is_skipped_and_its_neighbours_are_kept() -> None:
    log = Log().data(*answer("a", "one")).turn_complete(0)
    log.data(start("b"), {"type": "text-delta", "id": "never", "delta": "x"}).turn_complete(1)
    log.data(*answer("c", "three")).turn_complete(2)

    assert [m["id"] for m in replay_out(log.records, []).chain] == ["a", "c"]


def test_a_replayed_message_keeps_the_place_of_its_id() -> None:
    chain = [user("u"), {"id": "a", "role": "assistant", "parts": []}, user("v")]
    replay = replay_out(Log().data(*answer("a", "x")).turn_complete(0).records, chain)

    assert shown(replay) == [("u", "hi"), ("a", "x"), ("v", "hi")]


def test_records_of_a_turn_the_chain_already_holds_add_nothing() -> None:
    log = Log().data(*answer("a", "x")).turn_complete(0)
    once = replay_out(log.records, [])

    assert replay_out(log.records, once.chain).chain == once.chain


def test_a_repeated_part_counts_once() -> None:
    log = Log().data(start("a"), {"type": "text-start", "id": "t"})
    delta = {"type": "text-delta", "id": "t", "delta": "x"}
    log.data(delta, part_id="p").data(delta, part_id="p").turn_complete(0)

    assert shown(replay_out(log.records, [])) == [("a", "x")]


def test_what_is_no_chunk_is_skipped() -> None:
    log = Log().data(*answer("a", "x"))
    for body in (b"", b"not json", b'{"data":"text","id":"q"}', b'{"data":{"type":5}}'):
        log.records.append(Record(len(log.records), 0, (), body))
    log.data({"type": "trigger:turn-complete"}).turn_complete(0)

    assert shown(replay_out(log.records, [])) == [("a", "x")]


def test_an_answer_that_was_given_again_is_there_once() -> None:
    log = Log().data(start("a"), *text("first try", end=False))
    log.data({"type": "text-end", "id": "t"})
    log.data({"type": "data-restarted", "data": {"runId": "run_c1", "attempt": 2}})
    log.data(*answer("a", "second try")).turn_complete(0)
    replay = replay_out(log.records, [], inputs=[submit(0, user("u"))])

    assert shown(replay) == [("u", "hi"), ("a", "second try")]


def test_an_open_segment_is_superseded_by_a_start_of_its_id() -> None:
    log = Log().data(start("a"), *text("first", end=False), *answer("a", "second"))

    assert shown(replay_out(log.turn_complete(0).records, [])) == [("a", "second")]


def test_two_messages_in_one_turn_are_two_messages() -> None:
    log = Log().data(*answer("a", "one"), *answer("b", "two")).turn_complete(0)

    assert shown(replay_out(log.records, [])) == [("a", "one"), ("b", "two")]


# --- the open tail ------------------------------------------------------------------------------


def test_an_unfinished_turn_is_a_partial_and_not_in_the_chain() -> None:
    log = Log().data(*answer("a", "x")).turn_complete(0)
    log.data(
        start("b"),
        {"type": "reasoning-start", "id": "r"},
        *text("hal", end=False),
        {"type": "tool-input-available", "toolCallId": "c", "toolName": "t", "input": {}},
    )
    replay = replay_out(log.records, [])

    assert [m["id"] for m in replay.chain] == ["a"]
    assert replay.uncommitted
    assert replay.partial is not None
    assert text_of(replay.partial) == "hal"
    assert all(part.get("state") == "done" for part in replay.partial["parts"])
    assert replay.partial_raw is not None
    assert replay.partial_raw["parts"][-1]["state"] == "input-available"
    assert replay.partial_message_id == "b"
    assert (replay.open_text_ids, replay.open_reasoning_ids) == (("t",), ("r",))


def test_a_finished_answer_without_its_turn_complete_is_still_uncommitted() -> None:
    replay = replay_out(Log().data(*answer("a", "x")).records, [])

    assert replay.chain == []
    assert replay.partial is not None
    assert replay.partial_finished
    assert replay.open_text_ids == ()


def test_a_tail_of_borders_only_is_no_partial_and_still_names_its_message() -> None:
    """R-122."""
    replay = replay_out(Log().data(start("a"), {"type": "start-step"}).records, [])

    assert (replay.partial, replay.partial_raw) == (None, None)
    assert replay.partial_message_id == "a"
    assert replay.uncommitted


def test_a_tail_with_an_unfinished_tool_call_is_a_partial() -> None:
    """R-122."""
    call = {"type": "tool-input-start", "toolCallId": "c", "toolName": "t"}
    replay = replay_out(Log().data(start("a"), {"type": "start-step"}, call).records, [])

    assert replay.partial is not None
    assert replay.partial_raw is not None
    assert replay.partial_raw["parts"][-1]["toolCallId"] == "c"


def test_a_second_crash_right_after_the_mark_still_knows_the_message_id() -> None:
    log = Log().data(start("a"), *text("x"), {"type": "data-restarted", "data": {}})
    replay = replay_out(log.records, [])

    assert replay.partial is None
    assert replay.partial_message_id == "a"


# --- answers that continue after a tool result --------------------------------------------------

PENDING = {
    "id": "a",
    "role": "assistant",
    "parts": [
        {"type": "step-start"},
        {"type": "text", "text": "Let me ask.", "state": "done"},
        {"type": "tool-ask", "toolCallId": "c", "state": "input-available", "input": {}},
    ],
}
REPLY = {
    "id": "a",
    "role": "assistant",
    "parts": [{"type": "tool-ask", "toolCallId": "c", "state": "output-available", "output": 7}],
}


def asked() -> list[Chunk]:
    call = {"type": "tool-input-available", "toolCallId": "c", "toolName": "ask", "input": {}}
    step = [{"type": "start-step"}, *text("Let me ask."), call, {"type": "finish-step"}]
    return [start("a"), *step, {"type": "finish", "finishReason": "tool-calls"}]


def test_a_continued_answer_is_one_whole_message_without_any_snapshot() -> None:
    """R-141."""
    log = Log().data(*asked()).turn_complete(0).data(*answer("a", "Seven.")).turn_complete(1)
    replay = replay_out(log.records, [], inputs=[submit(0, user("u")), submit(1, REPLY)])

    assert shown(replay) == [("u", "hi"), ("a", "Let me ask.Seven.")]
    assert replay.chain[1]["parts"][2]["output"] == 7


def test_a_resume_killed_half_way_keeps_what_came_before_the_pause_and_the_answer() -> None:
    """R-140."""
    log = Log().data(start("a"), {"type": "start-step"}, *text("Sev", end=False))
    replay = replay_out(
        log.records, [user("u"), PENDING], inputs=[submit(1, REPLY)], cursor=InputCursor(0)
    )

    assert replay.partial is not None
    assert replay.partial["id"] == "a"
    assert text_of(replay.partial) == "Let me ask.Sev"
    assert replay.partial["parts"][2]["output"] == 7
    assert replay.chain == [user("u"), PENDING]


# --- steering and regenerating ------------------------------------------------------------------


def test_an_injected_message_stays_inside_the_answer() -> None:
    marker = {
        "type": "data-pending-message-injected",
        "data": {"messageIds": ["u2"], "messages": [{"id": "u2", "text": "also"}]},
    }
    chunks = answer("a", "x")
    log = Log().data(*chunks[:2], marker, *chunks[2:]).turn_complete(0, decided=(1,))
    replay = replay_out(log.records, [], inputs=[submit(0, user("u1")), submit(1, user("u2"))])

    assert [m["id"] for m in replay.chain] == ["u1", "a"]


def test_a_decided_record_is_not_answered_a_second_time() -> None:
    log = Log().data(*answer("a", "x")).turn_complete(0, decided=(2,))
    log.data(*answer("b", "y")).turn_complete(2)
    inputs = [submit(seq, user(f"u{seq}")) for seq in range(3)]
    replay = replay_out(log.records, [], inputs=inputs)

    assert [[i.seq_num for i in g.answered] for g in replay.groups] == [[0, 2], [1]]


def test_a_regenerated_answer_takes_the_place_of_the_old_one() -> None:
    log = Log().data(*answer("a", "old")).turn_complete(0)
    log.data(*answer("b", "new")).turn_complete(1)
    again = Input(1, "message", {"trigger": "regenerate-message"})
    replay = replay_out(log.records, [], inputs=[submit(0, user("u")), again])

    assert shown(replay) == [("u", "hi"), ("b", "new")]


# --- properties ---------------------------------------------------------------------------------

CHUNK = st.one_of(
    st.builds(lambda i, d: text(d, i), st.sampled_from(["s", "t"]), st.text(max_size=3)),
    st.builds(lambda d: [{"type": "data-note", "data": d}], st.integers()),
    st.just([{"type": "start-step"}]),
    st.just([{"type": "finish-step"}]),
    st.builds(
        lambda c: [
            {"type": "tool-input-available", "toolCallId": c, "toolName": "t", "input": {}},
            {"type": "tool-output-available", "toolCallId": c, "output": None},
        ],
        st.sampled_from(["c", "d"]),
    ),
)
TURN = st.lists(CHUNK, min_size=1, max_size=5).map(lambda found: [c for one in found for c in one])


@settings(deadline=None)
@given(turns=st.lists(TURN, max_size=4))
def test_replay_gives_the_messages_the_reducer_gave_and_twice_is_once(
    turns: list[list[Chunk]],
) -> None:
    log = Log()
    expected = []
    for number, chunks in enumerate(turns):
        whole = [start(f"a{number}"), *chunks, {"type": "finish"}]
        reducer = MessageReducer()
        for chunk in whole:
            reducer.feed(chunk)
        if any(part["type"] != "step-start" for part in reducer.message["parts"]):
            expected.append(reducer.message)
        log.data(*whole).turn_complete(number)
    replay = replay_out(log.records, [])

    assert replay.chain == expected
    assert replay_out(log.records, replay.chain).chain == expected


JUNK = st.one_of(
    st.builds(start, st.sampled_from(["a", "b"])),
    st.sampled_from(
        [
            {"type": "finish"},
            {"type": "data-restarted", "data": {}},
            {"type": "text-delta", "id": "t", "delta": "x"},
            {"type": "text-start", "id": "t"},
            {"type": "text-start"},
            {"type": "tool-output-available", "toolCallId": "c", "output": 1},
            {"type": "tool-input-start", "toolCallId": "c", "toolName": "t"},
            {"type": "data-pending-message-injected", "data": 7},
            {"type": "error", "errorText": "e"},
            {"type": "of tomorrow"},
        ]
    ),
    st.just(None),
)


@settings(deadline=None)
@given(found=st.lists(JUNK, max_size=12), cursor=st.none() | st.integers(0, 3))
def test_no_log_breaks_a_replay_and_nothing_uncommitted_enters_the_chain(
    found: list[Chunk | None], cursor: int | None
) -> None:
    log = Log()
    for chunk in found:
        log.data(chunk) if chunk is not None else log.turn_complete(cursor)
    inputs = [submit(seq, user(f"u{seq}")) for seq in range(4)]
    replay = replay_out(log.records, [], inputs=inputs)

    committed = None not in found
    assert not (committed and replay.chain)
    assert replay.uncommitted == bool(found and found[-1] is not None)
