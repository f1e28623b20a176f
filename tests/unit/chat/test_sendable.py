"""What every provider takes (P-8): names, ids, files and values on their way to a model."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from everturn.chat import sendable
from everturn.protocol import lenient
from everturn.protocol.records import Record, input_body, parse_input

Json = dict[str, Any]


def call(call_id: Any, state: str = "output-available") -> Json:
    return {"type": "tool-t", "toolCallId": call_id, "state": state}


def answer(*parts: Json) -> Json:
    return {"id": "a", "role": "assistant", "parts": list(parts)}


def ids(messages: list[Json]) -> list[Any]:
    return [part["toolCallId"] for message in messages for part in message["parts"]]


def test_a_history_whose_calls_have_ids_of_their_own_is_not_touched() -> None:
    history = [answer(call("c1"), call("call_2-x")), {"id": "u", "role": "user", "parts": []}]
    assert all(a is b for a, b in zip(sendable.distinct_calls(history), history, strict=True))


def test_a_history_that_grows_gives_its_first_calls_the_same_ids() -> None:
    first = [answer(call("0"), call("0")), answer(call("has spaces"))]
    grown = [*first, answer(call("0"), call(None), call("has spaces"))]
    made = ids(sendable.distinct_calls(grown))
    assert made[:3] == ids(sendable.distinct_calls(first))
    assert made[0] == "0"
    assert len(set(made)) == len(made)
    assert all(isinstance(call_id, str) and call_id.isascii() for call_id in made)


def test_a_call_that_is_still_to_be_carried_out_keeps_its_id() -> None:
    history = [answer(call("c")), answer(call("c", "approval-responded"))]
    first, second = ids(sendable.distinct_calls(history))
    assert (first != "c", second) == (True, "c")


@pytest.mark.parametrize(
    ("name", "sent"),
    [("look", "look"), ("", "unknown"), ("look up (web)", "look_up__web_"), ("x" * 99, "x" * 64)],
)
def test_a_name_keeps_what_a_provider_takes_of_it(name: str, sent: str) -> None:
    assert sendable.tool_name(name) == sent


@pytest.mark.parametrize(
    ("url", "media", "sent"),
    [
        ("https://a.test/x.png", "image/png", ("https://a.test/x.png", "image/png")),
        ("https://a.test/x.png", "", ("https://a.test/x.png", "image/png")),
        ("https://a.test/x", "", None),
        ("blob:abc", "image/png", None),
        ("file:///etc/passwd", "text/plain", None),
        ("", "image/png", None),
        ("data:image/png;base64,eA==", "image/png", ("data:image/png;base64,eA==", "image/png")),
        ("data:text/plain,x%20y", "", ("data:text/plain;base64,eCB5", "text/plain")),
        ("data:image/png;base64,%%%", "image/png", None),
        ("data:image/png;base64,", "image/png", None),
    ],
)
def test_a_file_is_sent_where_it_can_be_read(url: str, media: str, sent: Any) -> None:
    made = sendable.file({"type": "file", "url": url, "mediaType": media})
    assert (made and (made["url"], made["mediaType"])) == sent


def test_a_value_nested_too_deep_is_sent_as_text_and_others_as_they_are() -> None:
    deep: Any = 1
    for _ in range(sendable.NESTING_MAX + 1):
        deep = {"in": [deep]}
    assert msgspec.json.decode(sendable.value(deep)) == deep
    assert isinstance(sendable.arguments(deep), dict)
    wide = {"rows": [{"n": number} for number in range(1000)]}
    assert sendable.value(wide) is wide
    assert (
        sendable.arguments(msgspec.json.encode(wide).decode()) == msgspec.json.encode(wide).decode()
    )


@pytest.mark.parametrize("half", ["\\ud83d", "\\uDE00", "x \\ud83d\\ud83d y"])
def test_half_a_character_is_replaced_and_the_rest_is_read(half: str) -> None:
    found = lenient.decode(f'{{"whole": "\\ud83d\\ude00", "half": "{half}"}}')
    assert found["whole"] == "\U0001f600"
    assert "\ufffd" in found["half"]
    msgspec.json.encode(found)


@pytest.mark.parametrize("text", ['{"a"', '"\\ud83d', "\\ud83d", "nonsense"])
def test_what_is_no_json_is_none_with_half_a_character_in_it_too(text: str) -> None:
    with pytest.raises(msgspec.DecodeError):
        lenient.decode(text)


def test_a_message_cut_inside_an_emoji_is_a_message() -> None:
    text = (
        '{"kind":"message","payload":{"trigger":"submit-message","message":{"id":"u","role":'
        '"user","parts":[{"type":"text","text":"cut \\ud83d"}]}}}'
    )
    found = parse_input(Record(0, 0, (), input_body(text, "p")))
    assert found.payload["message"]["parts"][0]["text"] == "cut \ufffd"
