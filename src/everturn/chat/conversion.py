"""From UI messages to messages of the model library (chat-agent §4.2.5).

One way only: UI messages are canonical, model messages are derived from them for one request and
never dumped back. The library's own Vercel loader makes the final objects, because it knows how
it stored signatures and ids in provider metadata; before that, everything it must not see is
taken out here:

* calls without a result (still streaming, waiting for an answer or an approval, only preliminary):
  a provider refuses a history with a call that nobody answered;
* sources and data parts, which are for people, and what a provider added of its own (`custom`,
  `reasoning-file`), which the loader cannot carry; the injection marker becomes the user messages
  it stands for, at its place (D-08), and so does a `steering-message` of `ai` 7;
* what the loader would refuse (fields and part types it does not know) and what a client must not
  be able to say: provider metadata of user messages names files and settings at the provider;
* what a provider would refuse, which would poison the chat: see `sendable`.

The model library is imported inside the functions: an agent that never asks for model messages
does not pay its second of import time (rulings §5.1).
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from everturn.chat import sendable
from everturn.chat.parts import (
    FINAL_STATES,
    Message,
    Part,
    is_dynamic,
    is_handed_over,
    is_tool_part,
    parts_of,
    tool_name,
)
from everturn.chat.ui_messages import repair
from everturn.protocol.chunks import INJECTED_CHUNK

if TYPE_CHECKING:
    from pydantic_ai.messages import ModelMessage
    from pydantic_ai.tools import DeferredToolResults

_log: Final = logging.getLogger("everturn.chat")
#: What a provider stored with a part; a part the library refuses is tried without it.
_METADATA: Final = ("providerMetadata", "callProviderMetadata")
#: Where the library shows messages of `RunContext.enqueue` in an answer.
_ENQUEUED: Final = "data-enqueued-messages"
#: Parts of an answer that stand for messages which joined it.
_STAND_INS: Final = (INJECTED_CHUNK, "steering-message", _ENQUEUED)
#: How the library refuses a message; its validation errors are ValueErrors.
_REFUSALS: Final = (ValueError, TypeError, AssertionError, RecursionError)

#: `(tool, output, input, tool_call_id) -> what the model sees`
ModelOutput = Callable[[str, Any, Any, str], Any]


def to_model_messages(
    ui_messages: Sequence[Message], tools: Any = None, *, newest: bool = True
) -> list[ModelMessage]:
    """The history as the model library takes it.

    Args:
        tools: the tools declared on the agent, as a mapping by name or an iterable of objects
            with a `name`. Where one has `to_model_output`, stored results pass through it (R-156).
        newest: False for a piece of history after which more comes: the approvals its last message
            brings were acted on.

    A part that cannot be converted is left out and logged; the others are kept (P-8). One that a
    provider takes only in another form gets that form: `sendable` says which.
    """
    return _loaded(for_models(ui_messages, tools, newest=newest))


def for_models(
    ui_messages: Sequence[Message], tools: Any = None, *, newest: bool = True
) -> list[Message]:
    """The history without what no model may see, still as UI messages.

    What `to_model_messages` begins with, for adapters of other libraries. Arguments as there.
    """
    for_model = _model_output(tools)
    prepared: list[Message] = []
    last = len(ui_messages) - 1 if newest else -1
    for index, message in enumerate(sendable.distinct_calls(ui_messages)):
        prepared.extend(_prepared(message, for_model, is_last=index == last))
    return prepared


def deferred_results(ui_messages: Sequence[Message]) -> DeferredToolResults | None:
    """The approvals and denials the trailing assistant message brings; None without any.

    Only a plain true approves: the value comes from a client (§4.11.3).
    """
    if not ui_messages or ui_messages[-1].get("role") != "assistant":
        return None
    # A call that a head start handed over is no approved one: it is executed, deferred or put to a
    # person as its tool says, which is what the library does with a call nobody has answered.
    last = parts_of(ui_messages[-1])
    found = [part for part in last if _is_decided(part) and not is_handed_over(part)]
    if not found:
        return None
    from pydantic_ai.tools import DeferredToolResults, ToolDenied

    approvals: dict[str, Any] = {}
    for part in found:
        approval = part["approval"]
        if approval.get("approved") is True:
            approvals[part["toolCallId"]] = True
        elif isinstance(approval.get("reason"), str) and approval["reason"]:
            approvals[part["toolCallId"]] = ToolDenied(message=approval["reason"])
        else:
            approvals[part["toolCallId"]] = False
    return DeferredToolResults(approvals=approvals)


def _is_decided(part: Part) -> bool:
    return (
        is_tool_part(part)
        and part.get("state") == "approval-responded"
        and isinstance(part.get("toolCallId"), str)
        and isinstance(part.get("approval"), dict)
    )


# --- what the loader gets ---------------------------------------------------------------------


def _prepared(message: Message, for_model: ModelOutput, *, is_last: bool) -> Iterator[Message]:
    """A message as one or more that the loader takes; nothing when nothing of it is for a model."""
    role = message.get("role")
    if role == "assistant":
        yield from _prepared_answer(message, for_model, is_last=is_last)
        return
    kinds = ("text",) if role == "system" else ("text", "file")
    found = (_plain(part) for part in parts_of(message) if part.get("type") in kinds)
    parts = [part for part in found if part is not None]
    if parts:
        yield _envelope(message, parts)


def _prepared_answer(
    message: Message, for_model: ModelOutput, *, is_last: bool
) -> Iterator[Message]:
    parts: list[Part] = []
    for part in parts_of(message):
        if part.get("type") in _STAND_INS:
            if _says_anything(parts):
                yield _envelope(message, parts)
            parts = []
            for injected in _injected(part):
                yield from _prepared(injected, for_model, is_last=False)
        elif is_tool_part(part):
            parts.extend(_tool(part, for_model, keep_decided=is_last))
        elif part.get("type") == "step-start":
            parts.append({"type": "step-start"})
        elif part.get("type") in ("text", "reasoning") or _is_inline(part):
            plain = _plain(part, stored=True)
            if plain is not None:
                parts.append(plain)
    if _says_anything(parts):
        yield _envelope(message, parts)


def _is_inline(part: Part) -> bool:
    return part.get("type") == "file" and str(part.get("url")).startswith("data:")


def _says_anything(parts: list[Part]) -> bool:
    return any(part["type"] != "step-start" for part in parts)


def _envelope(message: Message, parts: list[Part]) -> Message:
    return {"id": str(message.get("id") or ""), "role": message["role"], "parts": parts}


def _plain(part: Part, *, stored: bool = False) -> Part | None:
    """A text, reasoning or file part as the loader takes it; None for one that says nothing.

    Args:
        stored: with what the provider stored with it.
    """
    fields = ("type", "text", "mediaType", "url", "filename")
    made: Part = {field: part[field] for field in fields if isinstance(part.get(field), str)}
    metadata = sendable.metadata(part.get("providerMetadata")) if stored else None
    if metadata is not None:
        made["providerMetadata"] = metadata
    if made["type"] == "file":
        return sendable.file(made)
    made["text"] = sendable.text(made.get("text", ""))
    if part.get("state") == "streaming":
        made["state"] = "streaming"  # its signature has not come
    return made if made["text"].strip() or sendable.speaks_without_words(made) else None


def _tool(part: Part, for_model: ModelOutput, *, keep_decided: bool) -> Iterator[Part]:
    """The call with its result, or nothing when there is none.

    A decided approval stays only at the very end of the history, where the next request answers
    it; anywhere else nobody ever will.
    """
    state = part.get("state")
    if state not in FINAL_STATES and not (keep_decided and _is_decided(part)):
        return
    if state == "output-available" and part.get("preliminary"):
        return
    call_id = part["toolCallId"]
    made: Part = {"type": part["type"], "toolCallId": call_id, "state": state}
    name = tool_name(part)
    known_as = sendable.tool_name(name) if state in FINAL_STATES else name
    if is_dynamic(part):
        made["toolName"] = known_as
    else:
        made["type"] = f"tool-{known_as}"
    if isinstance(part.get("providerExecuted"), bool):
        made["providerExecuted"] = part["providerExecuted"]
    metadata = sendable.metadata(part.get("callProviderMetadata"))
    if metadata is not None:
        made["callProviderMetadata"] = metadata
    made["input"] = sendable.arguments(part.get("input", part.get("rawInput")))
    if state == "output-available":
        output = for_model(name, part.get("output"), part.get("input"), call_id)
        made["output"] = sendable.value(output)
    elif state == "output-error":
        made["errorText"] = sendable.text(str(part.get("errorText") or "the tool failed"))
    else:
        made["approval"] = _approval(part, call_id)
    yield made


def _approval(part: Part, call_id: str) -> Part:
    given = part.get("approval")
    found: Mapping[str, Any] = given if isinstance(given, dict) else {}
    approval: Part = {
        "id": str(found.get("id", call_id)),
        "approved": found.get("approved") is True,
    }
    if isinstance(found.get("reason"), str):
        approval["reason"] = found["reason"]
    return approval


def _injected(marker: Part) -> Iterator[Message]:
    """The user messages a steering marker stands for: whole ones if stored, else their text."""
    if marker["type"] == "steering-message":
        found = {"id": marker.get("id") or "", "role": "user", "parts": parts_of(marker)}
        yield from repair([found])
        return
    data = marker.get("data")
    if not isinstance(data, dict):
        return
    if marker["type"] == _ENQUEUED:
        yield from _enqueued(data.get("messages"))
        return
    whole = data.get("uiMessages")
    if isinstance(whole, list):
        yield from (item for item in repair(whole) if item["role"] == "user")
        return
    listed = data.get("messages")
    for item in listed if isinstance(listed, list) else ():
        if isinstance(item, dict) and isinstance(item.get("text"), str):
            yield {
                "id": item.get("id") or "",
                "role": "user",
                "parts": [{"type": "text", "text": item["text"]}],
            }


def _enqueued(listed: Any) -> Iterator[Message]:
    """What an author's code put into the library's queue, of people and of the model.

    Without what stands for further messages: that would nest as deeply as whoever wrote it likes.
    """
    for item in repair(listed) if isinstance(listed, list) else ():
        if item["role"] in ("user", "assistant"):
            kept = [part for part in parts_of(item) if part.get("type") not in _STAND_INS]
            yield {**item, "parts": kept}


# --- the library's loader ---------------------------------------------------------------------


def _loaded(prepared: list[Message]) -> list[ModelMessage]:
    from pydantic_ai.ui.vercel_ai import VercelAIAdapter
    from pydantic_ai.ui.vercel_ai.request_types import UIMessage

    try:
        return VercelAIAdapter.load_messages([UIMessage.model_validate(one) for one in prepared])
    except _REFUSALS:
        kept = (_loadable(message) for message in prepared)
        whole = [UIMessage.model_validate(one) for one in kept if _says_anything(one["parts"])]
        return VercelAIAdapter.load_messages(whole)


def _loadable(message: Message) -> Message:
    """The message with those of its parts that the library takes."""
    parts: list[Part] = []
    for part in message["parts"]:
        bare = {key: value for key, value in part.items() if key not in _METADATA}
        taken = next((one for one in (part, bare) if _is_loadable(message, one)), None)
        if taken is not None:
            parts.append(taken)
        else:
            # The library's own words would quote the message; name only what and where.
            _log.warning("conversion.part_skipped %s: %s", message["id"], part["type"])
    return {**message, "parts": parts}


def _is_loadable(message: Message, part: Part) -> bool:
    from pydantic_ai.ui.vercel_ai import VercelAIAdapter
    from pydantic_ai.ui.vercel_ai.request_types import UIMessage

    try:
        alone = UIMessage.model_validate({**message, "parts": [part]})
        VercelAIAdapter.load_messages([alone])
    except _REFUSALS:
        return False
    return True


# --- to_model_output --------------------------------------------------------------------------


def _model_output(tools: Any) -> ModelOutput:
    transforms = {
        name: transform
        for name, tool in _named(tools)
        if callable(transform := getattr(tool, "to_model_output", None))
    }

    def convert(name: str, output: Any, given: Any, call_id: str) -> Any:
        transform = transforms.get(name)
        if transform is None:
            return output
        return model_output(transform, output, given, call_id)

    return convert


def model_output(transform: Callable[..., Any], output: Any, given: Any, call_id: str) -> Any:
    """What a tool's `to_model_output` makes of a result: of one just made, or a stored one."""
    return _plain_output(call_with(transform, output, given, call_id))


def _named(tools: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(tools, Mapping):
        yield from ((str(name), tool) for name, tool in tools.items())
    elif isinstance(tools, Iterable):
        for tool in tools:
            name = getattr(tool, "name", None)
            if isinstance(name, str):
                yield name, tool


def call_with(function: Callable[..., Any], *values: Any) -> Any:
    """Call `function` with as many of `values` as it declares: authors leave out what they ignore."""
    parameters = inspect.signature(function).parameters.values()
    if any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in parameters):
        return function(*values)
    takes = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return function(*values[: sum(p.kind in takes for p in parameters)])


def _plain_output(value: Any) -> Any:
    """What a transform gave, or the value inside the AI SDK's `{type, value}` form of it."""
    if isinstance(value, dict) and set(value) == {"type", "value"}:
        if value["type"] in ("text", "json", "error-text", "error-json"):
            return value["value"]
        if value["type"] == "content" and isinstance(value["value"], list):
            texts = [item.get("text") for item in value["value"] if isinstance(item, dict)]
            return "\n".join(text for text in texts if isinstance(text, str))
    return value
