"""Frames of the worker link: they round-trip, in slices too, and garbage is a clear error."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from everturn.errors import ProtocolError
from everturn.protocol.link import (
    Append,
    Beat,
    Call,
    Claim,
    Credit,
    HeldRun,
    Hello,
    Packer,
    RecordFrame,
    ServerFrame,
    Slice,
    Unpacker,
    Wake,
    WorkerFrame,
)
from everturn.protocol.records import NewRecord
from everturn.protocol.runs import RunInfo, TaskDeclaration

SLICE = 64
text = st.text(max_size=20)
bodies = st.binary(max_size=300)
records = st.builds(
    NewRecord, body=bodies, headers=st.lists(st.tuples(text, text), max_size=2).map(tuple)
)
worker_frames = st.one_of(
    st.builds(Beat, n=st.integers(0, 2**40)),
    st.builds(Credit, runs=st.integers(0, 1000)),
    st.builds(
        Append,
        run_id=text,
        fence=st.integers(1, 99),
        first_part=st.integers(0, 10**9),
        records=st.lists(records, max_size=4),
    ),
    st.builds(
        Call,
        id=text,
        run_id=text,
        fence=st.integers(0, 9),
        method=text,
        params=st.dictionaries(text, st.one_of(text, bodies, st.none()), max_size=3),
    ),
    st.builds(
        Hello,
        worker_id=text,
        version=text,
        tasks=st.lists(st.builds(TaskDeclaration, task_id=text), max_size=2),
        queues=st.dictionaries(text, st.none() | st.integers(0, 9), max_size=2),
        held=st.lists(st.builds(HeldRun, run_id=text, fence=st.integers(0, 9)), max_size=2),
    ),
)


@given(st.lists(worker_frames, max_size=20))
def test_frames_of_a_worker_arrive_as_they_were_sent_in_slices_or_not(
    frames: list[WorkerFrame],
) -> None:
    """L-1, L-7."""
    packer, unpacker = Packer(SLICE), Unpacker[WorkerFrame](WorkerFrame, 1 << 20)
    items = [item for frame in frames for item in packer.encode(frame)]
    message = Packer.message(items)
    assert unpacker.decode(message) == frames


def test_other_frames_pass_between_the_slices_of_a_large_one() -> None:
    """L-7: a large record does not hold up a heartbeat."""
    packer, unpacker = Packer(SLICE), Unpacker[WorkerFrame](WorkerFrame, 1 << 20)
    large = Append("run_1", 1, 0, [NewRecord(b"x" * 500)])
    pieces = packer.encode(large)
    assert len(pieces) > 5
    beat = packer.encode(Beat(7))
    assert unpacker.decode(Packer.message(pieces[:3] + beat)) == [Beat(7)]
    assert unpacker.decode(Packer.message(pieces[3:])) == [large]


def test_unfinished_slices_are_bounded() -> None:
    unpacker = Unpacker[WorkerFrame](WorkerFrame, 9_000)
    half = Packer.message([_encode(Slice(1, False, b"x" * 600))])
    unpacker.decode(half)
    with pytest.raises(ProtocolError, match="hold 9392 bytes, at most 9000"):
        unpacker.decode(half)


@given(st.binary(max_size=200))
def test_garbage_is_a_protocol_error_and_nothing_else(data: bytes) -> None:
    try:
        Unpacker[WorkerFrame](WorkerFrame, 1000).decode(data)
    except ProtocolError:
        pass


def test_a_message_of_many_frames_keeps_its_count() -> None:
    packer, unpacker = Packer(SLICE), Unpacker[WorkerFrame](WorkerFrame, 1 << 20)
    for count in (15, 16, 17, 70_000):
        items = [packer.encode(Beat(1))[0]] * count
        assert len(unpacker.decode(Packer.message(items))) == count


def test_frames_of_a_server_arrive_as_they_were_sent() -> None:
    packer, unpacker = Packer(SLICE), Unpacker[ServerFrame](ServerFrame, 1 << 20)
    info = RunInfo(
        run_id="run_1",
        task_id="t",
        environment_id="e",
        environment_slug="dev",
        fence=3,
        attempt=2,
        payload=b"{}",
        version="v",
        queue="task/t",
        max_attempts=3,
        created_at_ms=1,
        started_at_ms=2,
    )
    wake = Wake("run_1", 3, False, [RecordFrame(5, 9, (("a", "b"),), b"body")], None)
    frames: list[ServerFrame] = [Claim(info), wake]
    items = [item for frame in frames for item in packer.encode(frame)]
    assert unpacker.decode(Packer.message(items)) == frames


def _encode(frame: WorkerFrame) -> bytes:
    (item,) = Packer(1 << 20).encode(frame)
    return item
