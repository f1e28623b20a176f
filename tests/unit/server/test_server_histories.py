"""The stored history of a session: one writer, whole at every moment, whoever dies (L-15)."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from engine_kit import Kit, chunk

from everturn.errors import Fenced, NotFound, TooLarge, Unavailable
from everturn.protocol import history
from everturn.rules import limits
from everturn.server.services.histories import channel_of
from everturn.storage.ports.rows import Session

pytestmark = pytest.mark.anyio


def document(*texts: str) -> bytes:
    return msgspec.json.encode({"version": 1, "messages": [{"id": text} for text in texts]})


def patch(keep: int, *texts: str) -> bytes:
    return msgspec.json.encode(history.patch(keep, msgspec.json.decode(document(*texts))))


async def stored(kit: Kit, session: Session) -> list[str]:
    data = (await kit.services.histories.read(session)).data
    return [] if data is None else [m["id"] for m in msgspec.json.decode(data)["messages"]]


def objects(kit: Kit) -> list[str]:
    return kit.objects.names()


async def test_what_turns_add_is_read_as_one_history() -> None:
    kit = await Kit().open()
    session = await kit.session()
    histories = kit.services.histories
    await histories.patch(session, patch(0, "a", "b"), fence=1, part=0)
    await histories.patch(session, patch(2, "c"), fence=1, part=1)

    assert await stored(kit, session) == ["a", "b", "c"]
    assert objects(kit) == []


async def test_a_part_that_is_sent_again_is_stored_once() -> None:
    """A worker whose answer was lost repeats the call; what came between must not be undone.

    L-15
    """
    kit = await Kit().open()
    session = await kit.session()
    histories = kit.services.histories
    await histories.patch(session, patch(0, "a"), fence=1, part=0)
    await histories.patch(session, patch(1, "b"), fence=1, part=1)
    await histories.patch(session, patch(0, "a"), fence=1, part=0)

    assert await stored(kit, session) == ["a", "b"]


async def test_a_rewrite_trims_what_it_holds_and_leaves_one_object() -> None:
    kit = await Kit().open()
    session = await kit.session()
    histories = kit.services.histories
    for part in range(3):
        await histories.patch(session, patch(part, str(part)), fence=1, part=part)
    await histories.rewrite(session, document("0", "1", "2"), fence=1, part=3)
    await histories.patch(session, patch(3, "3"), fence=1, part=4)
    assert await stored(kit, session) == ["0", "1", "2", "3"]
    await histories.rewrite(session, document("0", "1", "2", "3"), fence=1, part=5)

    assert await stored(kit, session) == ["0", "1", "2", "3"]
    assert len(objects(kit)) == 1
    visible = await kit.streams.bounds(channel_of(session))
    assert visible.tail - visible.first == 2, "the newest document and the trim behind it"


async def test_a_rewrite_that_is_sent_again_changes_nothing() -> None:
    kit = await Kit().open()
    session = await kit.session()
    histories = kit.services.histories
    await histories.rewrite(session, document("a"), fence=1, part=0)
    await histories.patch(session, patch(1, "b"), fence=1, part=1)
    await histories.rewrite(session, document("a"), fence=1, part=0)

    assert await stored(kit, session) == ["a", "b"]
    assert (await histories.read(session, fence=1)).next_part == 2


async def test_a_rewrite_that_is_sent_again_late_deletes_its_own_document_and_not_the_newest() -> (
    None
):
    """P-9: which document counts is what the records say, not who comes last."""
    kit = await Kit().open()
    session = await kit.session()
    histories = kit.services.histories
    await histories.rewrite(session, document("a"), fence=1, part=0)
    await histories.rewrite(session, document("a", "b"), fence=1, part=1)
    await histories.rewrite(session, document("a"), fence=1, part=0)

    assert await stored(kit, session) == ["a", "b"]
    assert len(objects(kit)) == 1


@pytest.mark.parametrize("verb", ["patch", "rewrite"])
async def test_whoever_ran_before_adds_nothing_once_the_successor_has_read(verb: str) -> None:
    """P-4 for histories: between the successor's read and its first write, too."""
    kit = await Kit().open()
    session = await kit.session()
    histories = kit.services.histories
    await histories.patch(session, patch(0, "a"), fence=1, part=0)
    await histories.read(session, fence=2)

    late = patch(1, "zombie") if verb == "patch" else document("zombie")
    with pytest.raises(Fenced):
        await getattr(histories, verb)(session, late, fence=1, part=1)
    assert await stored(kit, session) == ["a"]


async def test_a_run_that_does_not_know_what_it_stored_is_told_its_next_part() -> None:
    kit = await Kit().open()
    session = await kit.session()
    histories = kit.services.histories
    assert (await histories.read(session, fence=4)).next_part == 0
    await histories.patch(session, patch(0, "a"), fence=4, part=0)
    await histories.rewrite(session, document("a"), fence=4, part=1)
    assert (await histories.read(session, fence=4)).next_part == 2

    assert (await histories.read(session, fence=5)).next_part == 0


async def test_the_weight_of_patches_is_told_so_that_a_successor_goes_on_counting() -> None:
    kit = await Kit().open()
    session = await kit.session()
    histories = kit.services.histories
    await histories.rewrite(session, document("a"), fence=1, part=0)
    added = patch(1, "b")
    await histories.patch(session, added, fence=1, part=1)

    assert (await histories.read(session, fence=2)).patched_bytes == len(added)


@pytest.mark.parametrize("step", ["put", "append", "trim", "delete"])
async def test_a_rewrite_may_die_at_each_of_its_steps(
    step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P-9: before the record that names it the old history counts, from then on the new one."""
    kit = await Kit().open()
    session = await kit.session()
    histories = kit.services.histories
    await histories.rewrite(session, document("a"), fence=1, part=0)
    await histories.patch(session, patch(1, "b"), fence=1, part=1)
    calls = {"append": 0, "trim": 1}

    async def dies(*_: Any, **__: Any) -> Any:
        raise Unavailable("gone")

    if step in calls:
        real, left = kit.streams.append, calls[step]

        async def append(*args: Any, **options: Any) -> Any:
            nonlocal left
            left -= 1
            return await (real if left >= 0 else dies)(*args, **options)

        monkeypatch.setattr(kit.streams, "append", append)
    else:
        monkeypatch.setattr(kit.objects, step, dies)
    with pytest.raises(Unavailable):
        await histories.rewrite(session, document("a", "b", "c"), fence=1, part=2)
    monkeypatch.undo()

    done = step in ("trim", "delete")
    assert await stored(kit, session) == (["a", "b", "c"] if done else ["a", "b"])
    following = 3 if done else 2
    assert (await histories.read(session, fence=1)).next_part == following
    await histories.rewrite(session, document("z"), fence=1, part=following)
    assert await stored(kit, session) == ["z"]


async def test_a_reader_whose_document_is_replaced_meanwhile_looks_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kit = await Kit().open()
    session = await kit.session()
    histories = kit.services.histories
    await histories.rewrite(session, document("a"), fence=1, part=0)
    real = kit.objects.get

    async def get(name: str) -> bytes | None:
        monkeypatch.undo()
        await histories.rewrite(session, document("a", "b"), fence=1, part=1)
        return await real(name)

    monkeypatch.setattr(kit.objects, "get", get)

    assert await stored(kit, session) == ["a", "b"]


async def test_a_history_whose_object_is_gone_is_an_error_and_not_an_empty_one() -> None:
    """P-9: taken for empty, it would be forgotten for good with the next trim."""
    kit = await Kit().open()
    session = await kit.session()
    await kit.services.histories.rewrite(session, document("a"), fence=1, part=0)
    (name,) = objects(kit)
    await kit.objects.delete(name)

    with pytest.raises(NotFound, match="names an object that is not there"):
        await kit.services.histories.read(session)


async def test_a_document_at_the_limit_is_stored_and_one_past_it_refused() -> None:
    kit = await Kit().open()
    session = await kit.session()
    size = limits.SNAPSHOT_BODY_BYTES_MAX
    await kit.services.histories.rewrite(session, b"x" * size, fence=1, part=0)

    with pytest.raises(TooLarge, match=f"{size + 1} bytes, at most {size}"):
        await kit.services.histories.rewrite(session, b"x" * (size + 1), fence=1, part=1)


async def test_patches_are_no_input_and_no_output() -> None:
    """A history channel is nobody's to follow, and the sweeps leave it alone."""
    kit = await Kit().open()
    session = await kit.session()
    async with kit.worker() as worker:
        info = await worker.claim()
        await worker.write(info, 0, chunk("a"))
        await worker.call(info, "snapshot.patch", data=patch(0, "a"), part=0)
        refused = await worker.call_raw(info, "read", io="history", limit=5)

    assert refused.error is not None
    assert refused.error["code"] == "invalid_request"
    assert len(await kit.out(session)) == 1


async def test_a_history_of_many_megabytes_passes_the_link_both_ways() -> None:
    """A chat with a few dozen attachments: larger than a message of the link, and it goes on."""
    kit = await Kit().open()
    await kit.session()
    whole = document("x" * (2 * limits.LINK_MESSAGE_BYTES_MAX))
    async with kit.worker() as worker:
        info = await worker.claim()
        await worker.call(info, "snapshot.put", data=whole, part=0)
        kept = await worker.call(info, "snapshot.get")

    assert kept["data"] == whole
