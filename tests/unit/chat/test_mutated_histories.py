"""P-8 at random: histories and logs that were whole, with a few things broken in them.

The corpus (`test_broken_histories.py`) holds what people have met; this finds what nobody thought
of. Whatever was changed, the request made of a history is one that no provider refuses, and a
message that nobody touched is heard whole.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any, Final

import anyio
import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic_ai import Agent
from strict_provider import ANSWER, said, strict_model

from everturn.chat.conversion import to_model_messages
from everturn.chat.replay import replay_out
from everturn.chat.ui_messages import id_of, repair, text_of
from everturn.protocol.records import (
    TURN_COMPLETE,
    Input,
    InputCursor,
    Record,
    control_record,
    data_body,
)

Json = dict[str, Any]
#: `(place, what to do there, a second place)`: numbers are taken modulo what there is.
Change = tuple[int, str, int]
STEP: Final[Json] = {"type": "step-start"}
NEXT: Final[Json] = {
    "id": "next",
    "role": "user",
    "parts": [{"type": "text", "text": "and now?"}],
}


# --- whole histories ------------------------------------------------------------------------------


def turn(number: int) -> list[Json]:
    """A question and its answer in two steps, with every kind of part a chat holds."""
    found = {"q": number, "list": [1, {"deep": None}]}
    results = [
        {"state": "output-available", "output": {"found": number}},
        {"state": "output-error", "errorText": f"no {number}"},
        {"state": "output-denied", "approval": {"id": "ap", "approved": False, "reason": "no"}},
        {"state": "input-available"},
    ]
    calls = [
        {"type": "tool-look", "toolCallId": f"c{number}-{n}", "input": found, **result}
        for n, result in enumerate(results)
    ]
    marker = {
        "type": "data-pending-message-injected",
        "data": {"messageIds": [f"i{number}"], "uiMessages": [user(f"i{number}", "steered")]},
    }
    parts = [
        STEP,
        {"type": "reasoning", "text": "hm", "state": "done", "providerMetadata": {"p": {"a": 1}}},
        {"type": "text", "text": f"looking {number}", "state": "done"},
        *calls,
        {"type": "dynamic-tool", "toolName": "mcp", "toolCallId": f"d{number}", **results[0]},
        STEP,
        marker,
        {"type": "text", "text": f"answer {number}", "state": "done"},
        {"type": "source-url", "sourceId": "s", "url": "https://a.test"},
        {"type": "file", "mediaType": "text/plain", "url": "data:text/plain;base64,eA=="},
        {"type": "data-note", "id": "n", "data": [number]},
    ]
    asked = user(f"u{number}", f"question {number}")
    asked["parts"].append({"type": "file", "mediaType": "image/png", "url": "https://a.test/x.png"})
    return [asked, {"id": f"a{number}", "role": "assistant", "parts": parts}]


def user(message_id: str, text: str) -> Json:
    return {"id": message_id, "role": "user", "parts": [{"type": "text", "text": text}]}


HISTORY: Final = [message for number in range(3) for message in turn(number)]


# --- changes --------------------------------------------------------------------------------------


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every `(container, key)` inside of a JSON value."""
    keys = value.keys() if isinstance(value, dict) else range(len(value))
    for key in list(keys):
        yield value, key
        if isinstance(value[key], dict | list):
            yield from places(value[key])


def _delete(container: Any, key: Any, other: Any) -> None:
    del container[key]


def _double(container: Any, key: Any, other: Any) -> None:
    if isinstance(container, list):
        container.insert(key, copy.deepcopy(container[key]))


def _replace(container: Any, key: Any, other: Any) -> None:
    container[key] = copy.deepcopy(other)


def _swap(container: Any, key: Any, other: Any) -> None:
    if isinstance(container, list) and len(container) > 1:
        container[key], container[key - 1] = container[key - 1], container[key]


def _cut(container: Any, key: Any, other: Any) -> None:
    if isinstance(container[key], str | list):
        container[key] = container[key][: len(container[key]) // 2]


def _wrap(container: Any, key: Any, other: Any) -> None:
    container[key] = [container[key]]


CHANGES: Final[dict[str, Callable[[Any, Any, Any], None]]] = {
    "delete": _delete,
    "double": _double,
    "swap": _swap,
    "cut": _cut,
    "wrap": _wrap,
    "take another's value": _replace,
    **{f"be {value!r}": lambda c, k, o, v=value: _replace(c, k, v) for value in (None, 5, "", {})},  # type: ignore[misc]  # a default binds the loop's value
}
KINDS: Final = st.lists(
    st.tuples(st.integers(0, 9999), st.sampled_from(sorted(CHANGES)), st.integers(0, 9999)),
    min_size=1,
    max_size=4,
)


def changed(whole: list[Any], changes: list[Change]) -> list[Any]:
    made = copy.deepcopy(whole)
    for place, kind, second in changes:
        found = list(places(made))
        if not found:
            break
        container, key = found[place % len(found)]
        from_, at = found[second % len(found)]
        CHANGES[kind](container, key, from_[at])
    return made


def untouched(broken: list[Any]) -> list[str]:
    """The texts of messages nobody changed, and whose ids nobody else took."""
    ids = [item.get("id") for item in broken if isinstance(item, dict)]
    return [
        text
        for message in HISTORY
        if message in broken and ids.count(message["id"]) == 1
        for text in (part.get("text") for part in message["parts"])
        if text is not None
    ]


def heard(history: list[Json]) -> str:
    """What a strict provider was told with this history and one more message."""
    model = strict_model(1)
    agent = Agent(model)

    async def ask() -> str:
        return (await agent.run(message_history=to_model_messages([*history, NEXT]))).output

    assert anyio.run(ask) == ANSWER
    return said(model.requests[-1])


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(changes=KINDS)
def test_whatever_is_broken_in_a_history_every_provider_takes_it_and_the_rest_is_heard(
    changes: list[Change],
) -> None:
    """P-8."""
    broken = changed(HISTORY, changes)
    told = heard(repair(broken))
    assert [text for text in untouched(broken) if text not in told] == []


def test_a_history_that_nobody_broke_is_heard_whole() -> None:
    told = heard(repair(HISTORY))
    assert untouched(HISTORY)
    assert [text for text in untouched(HISTORY) if text not in told] == []


# --- logs -----------------------------------------------------------------------------------------


def chunks(number: int) -> list[Json]:
    call = f"c{number}"
    return [
        {"type": "start", "messageId": f"a{number}"},
        {"type": "start-step"},
        {"type": "text-start", "id": "t"},
        {"type": "text-delta", "id": "t", "delta": f"answer {number}"},
        {"type": "text-end", "id": "t"},
        {"type": "tool-input-start", "toolCallId": call, "toolName": "look"},
        {"type": "tool-input-delta", "toolCallId": call, "inputTextDelta": '{"q": 1}'},
        {"type": "tool-input-available", "toolCallId": call, "toolName": "look", "input": {}},
        {"type": "tool-output-available", "toolCallId": call, "output": {"found": 1}},
        {"type": "data-note", "id": "n", "data": number},
        {"type": "finish-step"},
        {"type": "finish", "finishReason": "stop"},
        {"type": "trigger:turn-complete", "cursor": number},
    ]


LOG: Final = [chunk for number in range(3) for chunk in chunks(number)]


def recorded(log: list[Any]) -> list[Record]:
    records: list[Record] = []
    for chunk in log:
        seq_num = len(records)
        if isinstance(chunk, dict) and chunk.get("type") == "trigger:turn-complete":
            cursor = chunk.get("cursor")
            until = InputCursor(cursor if isinstance(cursor, int) else None)
            made = control_record(TURN_COMPLETE, until.headers())
            records.append(Record(seq_num, 0, made.headers))
        else:
            body = data_body(msgspec.json.encode(chunk), f"1-{seq_num}")
            records.append(Record(seq_num, 0, (), body))
    return records


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(changes=KINDS)
def test_whatever_is_broken_in_a_log_its_other_turns_are_replayed(changes: list[Change]) -> None:
    """P-8, R-128."""
    broken = changed(LOG, changes)
    inputs = [
        Input(number, "message", {"trigger": "submit-message", "message": user(f"u{number}", "q")})
        for number in range(3)
    ]
    replay = replay_out(recorded(broken), [], inputs=inputs)
    chain = repair(replay.chain)
    assert heard([*chain, *([replay.partial] if replay.partial is not None else [])])
    for number in range(3):
        if stands_alone(broken, number):
            assert [text_of(m) for m in chain if id_of(m) == f"a{number}"] == [f"answer {number}"]


def stands_alone(broken: list[Any], number: int) -> bool:
    """Whether a turn is as it was, begins its group, and is the only one of its id."""
    whole = chunks(number)
    if whole[0] not in broken:
        return False
    start = broken.index(whole[0])
    end = {"type": "trigger:turn-complete", "cursor": number - 1}
    names = [chunk.get("messageId") for chunk in broken if isinstance(chunk, dict)]
    begins = start == 0 or broken[start - 1] == end
    same = broken[start : start + len(whole)] == whole
    return begins and same and names.count(f"a{number}") == 1
