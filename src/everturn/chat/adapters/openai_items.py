"""A chat's history as input of OpenAI's responses interface (chat-agent §4.2.5).

One way only, as for the other library: UI messages are canonical, and what a model is sent is
derived from them for one request. Left out are what `conversion.for_models` leaves out for every
model, and reasoning: the interface takes it back only together with ids of its own, which are
good for as long as the provider stores the response.

Within a step all calls come before all results, the order in which the model and its tools spoke.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any, Final

from everturn.chat import conversion
from everturn.chat.parts import Message, Part, is_tool_part, parts_of, tool_name

Item = dict[str, Any]
#: What a model is told of a call that a person refused without a word.
DENIED: Final = "The person did not approve this call."


def to_items(ui_messages: Sequence[Message], tools: Any = None) -> list[Item]:
    """The history as input items: for `Runner.run_streamed(input=…)`, `responses.create(input=…)`.

    Args:
        tools: tools of ours whose `to_model_output` stored results pass through.

    Calls that nobody has answered are left out (R-195), decided approvals too: a request cannot
    say them; `openai_agents.run_agent` carries them out.
    """
    found: list[Item] = []
    for message in conversion.for_models(ui_messages, tools, newest=False):
        if message["role"] == "assistant":
            found.extend(_answer(parts_of(message)))
        else:
            content = [_content(part) for part in parts_of(message)]
            found.append({"role": message["role"], "content": content})
    return found


def call_item(part: Part) -> Item:
    """A tool part as the call the model made."""
    return {
        "type": "function_call",
        "call_id": part["toolCallId"],
        "name": tool_name(part),
        "arguments": _text(part.get("input") if part.get("input") is not None else {}),
    }


def _answer(parts: Sequence[Part]) -> Iterator[Item]:
    step: list[Part] = []
    for part in parts:
        if part["type"] == "step-start":
            yield from _step(step)
            step = []
        else:
            step.append(part)
    yield from _step(step)


def _step(parts: Sequence[Part]) -> Iterator[Item]:
    for part in parts:
        if part["type"] == "text" and part.get("text"):
            yield {"role": "assistant", "content": part["text"]}
        elif is_tool_part(part):
            yield call_item(part)
    for part in parts:
        if is_tool_part(part):
            output = _result(part)
            yield {"type": "function_call_output", "call_id": part["toolCallId"], "output": output}


def _result(part: Part) -> str:
    if part["state"] == "output-available":
        return _text(part.get("output"))
    if part["state"] == "output-error":
        return str(part.get("errorText", ""))
    return reason_of(part)


def reason_of(part: Part) -> str:
    """Why a person refused a call, in words for the model."""
    approval = part.get("approval")
    reason = approval.get("reason") if isinstance(approval, dict) else None
    return reason if isinstance(reason, str) and reason else DENIED


def _content(part: Part) -> Item:
    if part["type"] == "text":
        return {"type": "input_text", "text": part.get("text", "")}
    url, media_type = str(part.get("url", "")), str(part.get("mediaType", ""))
    if media_type.startswith("image/"):
        return {"type": "input_image", "image_url": url, "detail": "auto"}
    if not url.startswith("data:"):
        return {"type": "input_file", "file_url": url}
    return {"type": "input_file", "file_data": url, "filename": part.get("filename") or "file"}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
