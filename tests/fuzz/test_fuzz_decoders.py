"""Bytes from outside never raise what is not ours, and never cost more than their size."""

from __future__ import annotations

import time
import tracemalloc

import pytest
from fuzz_stored import TARGETS as STORED
from fuzz_targets import CORPUS, EXAMPLES, inputs
from fuzz_targets import TARGETS as WIRE
from hypothesis import HealthCheck, given, settings

from everturn.errors import EverturnError

TARGETS = WIRE | STORED
#: Seconds of the processor that one input may take, and bytes of memory beside a multiple of its own
#: size. Both are far above what is needed, and far below what an input that multiplies itself
#: would take.
SECONDS_MAX = 2.0
MEMORY_MAX = 16 << 20
MEMORY_PER_BYTE = 200


def run(target: str, data: bytes) -> None:
    began = time.thread_time()
    try:
        TARGETS[target](data)
    except EverturnError:
        pass
    assert time.thread_time() - began < SECONDS_MAX


@pytest.mark.parametrize("target", TARGETS)
def test_every_kept_input_is_refused_or_read_by_every_decoder(target: str) -> None:
    files = sorted(CORPUS.iterdir())
    assert len(files) > 20
    for path in files:
        data = path.read_bytes()
        tracemalloc.start()
        try:
            run(target, data)
            _, peak = tracemalloc.get_traced_memory()
        except BaseException as error:
            error.add_note(path.name)
            raise
        finally:
            tracemalloc.stop()
        assert peak < MEMORY_MAX + len(data) * MEMORY_PER_BYTE, path.name


@pytest.mark.parametrize("target", TARGETS)
def test_any_input_is_refused_or_read(target: str) -> None:
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
        derandomize=EXAMPLES <= 150,
    )
    @given(inputs)
    def each(data: bytes) -> None:
        run(target, data)

    each()


def test_empty_slices_without_end_are_bounded() -> None:
    """Each costs a place in a table: a peer could send them for ever."""
    from everturn.protocol import link

    unpacker: link.Unpacker[link.WorkerFrame] = link.Unpacker(link.WorkerFrame, 1 << 20)
    packer = link.Packer(1 << 20)

    def send_for_ever() -> None:
        for key in range(1 << 20):
            unpacker.decode(packer.message(packer.encode(link.Slice(key, False, b""))))

    with pytest.raises(EverturnError, match="slices of unfinished frames"):
        send_for_ever()


def test_empty_lines_of_one_event_without_end_are_bounded() -> None:
    """Each costs a place in a list, and the event may never end."""
    from everturn.protocol import sse

    decoder = sse.Decoder(event_bytes_max=1000)
    with pytest.raises(EverturnError, match="larger than 1000 bytes"):
        decoder.feed(b"data:\n" * 5000)
