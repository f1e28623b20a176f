"""Making chunks, and refusing those that a client or the log could not take.

Spec: chat-agent §4.1, §4.2.1, R-148; rulings §5.3.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Mapping
from typing import Any

import msgspec

from everturn.chat.parts import Part, is_dynamic, is_tool_part, parts_of, tool_name
from everturn.chat.whole_parts import WHOLE_PARTS
from everturn.errors import ChatChunkTooLargeError, UIMessageStreamError
from everturn.ids import Ids
from everturn.protocol import lenient, nesting
from everturn.protocol.chunks import RESERVED_PREFIX, chunk_problem
from everturn.protocol.records import RESTARTED_CHUNK
from everturn.rules import limits

#: Bytes of `{"data":,"id":""}` around a chunk and its part id.
_ENVELOPE_BYTES = 17
_encode = msgspec.json.encode


def check_chunk(chunk: Mapping[str, Any], *, part_id: str = "", ours: bool = False) -> bytes:
    """The JSON of a chunk that may be written to `.out`.

    Args:
        part_id: the part id its record will carry; it counts into the size.
        ours: True for chunks the runtime writes; authors cannot write its marks (rulings §1.6).

    Raises:
        UIMessageStreamError: it is no chunk, lacks a field of its type, or uses a reserved name.
            Names the field, never the value.
        ChatChunkTooLargeError: its record would exceed 1 047 552 bytes.
    """
    problem = chunk_problem(chunk)
    if problem is not None:
        raise UIMessageStreamError(problem)
    kind = chunk["type"]
    if not ours and (kind == RESTARTED_CHUNK or kind.startswith(RESERVED_PREFIX)):
        raise UIMessageStreamError(f"{kind!r} is written by the runtime only", chunk_type=kind)
    try:
        encoded = _encoded(chunk)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise UIMessageStreamError(
            f"a {kind!r} chunk cannot be written as JSON: {error}", chunk_type=kind
        ) from error
    if nesting.too_deep(encoded):
        raise UIMessageStreamError(f"a {kind!r} chunk: {nesting.TOO_DEEP}", chunk_type=kind)
    size = len(encoded) + len(part_id) + _ENVELOPE_BYTES
    if size > limits.CHUNK_BYTES_MAX:
        raise ChatChunkTooLargeError(kind, size, limits.CHUNK_BYTES_MAX)
    return encoded


def _encoded(chunk: Mapping[str, Any]) -> bytes:
    try:
        return _encode(chunk)
    except UnicodeEncodeError:  # half a character, as a cut stream of a model leaves it
        return lenient.encode(chunk)


async def text_chunks(
    texts: AsyncIterable[str] | Iterable[str], ids: Ids, *, message_id: str | None = None
) -> AsyncIterator[Part]:
    """Plain text as a whole answer: start, one step with one text part, finish (rulings §5.3).

    Empty pieces are left out. When the iterator raises, the chunks so far were delivered and the
    exception goes on to the caller, who closes what is open.
    """
    text_id = ids.part(16)
    yield {"type": "start", **({"messageId": message_id} if message_id is not None else {})}
    yield {"type": "start-step"}
    yield {"type": "text-start", "id": text_id}
    async for piece in _pieces(texts):
        if piece:
            yield {"type": "text-delta", "id": text_id, "delta": piece}
    yield {"type": "text-end", "id": text_id}
    yield {"type": "finish-step"}
    yield {"type": "finish", "finishReason": "stop"}


async def _pieces(texts: AsyncIterable[str] | Iterable[str]) -> AsyncIterator[str]:
    if isinstance(texts, str):
        yield texts
    elif isinstance(texts, AsyncIterable):
        async for piece in texts:
            yield piece
    else:
        for piece in texts:
            yield piece


def message_chunks(message: Mapping[str, Any]) -> Iterator[Part]:
    """The chunks that build a message: reducing them gives its parts again.

    A part of a type no chunk can build (one from a newer client) is left out.
    """
    start: Part = {"type": "start"}
    if message.get("id"):
        start["messageId"] = message["id"]
    if message.get("metadata") is not None:
        start["messageMetadata"] = message["metadata"]
    yield start
    in_step = False
    for number, part in enumerate(parts_of(message)):
        if part.get("type") == "step-start":
            if in_step:
                yield {"type": "finish-step"}
            in_step = True
            yield {"type": "start-step"}
        else:
            yield from _part_chunks(part, number)
    if in_step:
        yield {"type": "finish-step"}
    yield {"type": "finish"}


def _part_chunks(part: Part, number: int) -> Iterator[Part]:
    kind = part["type"]
    if kind in ("text", "reasoning"):
        part_id = part["id"] if isinstance(part.get("id"), str) else f"{kind}-{number}"
        meta = _kept(part, "providerMetadata")
        yield {"type": f"{kind}-start", "id": part_id, **meta}
        if part.get("text"):
            yield {"type": f"{kind}-delta", "id": part_id, "delta": part["text"]}
        if part.get("state") != "streaming":
            yield {"type": f"{kind}-end", "id": part_id, **_kept(part, "citations")}
    elif is_tool_part(part):
        yield from _tool_chunks(part)
    elif kind in WHOLE_PARTS or kind.startswith("data-"):
        yield dict(part)


def _tool_chunks(part: Part) -> Iterator[Part]:
    call = {"toolCallId": part["toolCallId"]}
    head: Part = {**call, "toolName": tool_name(part)}
    head.update(_kept(part, "providerExecuted", "title", "toolMetadata"))
    if "callProviderMetadata" in part:
        head["providerMetadata"] = part["callProviderMetadata"]
    if is_dynamic(part):
        head["dynamic"] = True
    state = part.get("state")
    if state == "input-streaming":
        yield {"type": "tool-input-start", **head, **_kept(part, "inputEncoding")}
        if part.get("rawInput"):
            yield {"type": "tool-input-delta", **call, "inputTextDelta": part["rawInput"]}
        return
    result = _kept(part, "providerExecuted", "toolMetadata")
    if "resultProviderMetadata" in part:
        result["providerMetadata"] = part["resultProviderMetadata"]
    if state == "output-error" and "input" not in part:
        raw = part.get("rawInput")
        yield {"type": "tool-input-error", **head, "input": raw, "errorText": part["errorText"]}
        return
    yield {"type": "tool-input-available", **head, "input": part.get("input")}
    yield from _approval_chunks(part)
    if state == "output-available":
        output = {"output": part.get("output"), **_kept(part, "preliminary")}
        yield {"type": "tool-output-available", **call, **result, **output}
    elif state == "output-error":
        yield {"type": "tool-output-error", **call, **result, "errorText": part["errorText"]}
    elif state == "output-denied":
        yield {"type": "tool-output-denied", **call}


def _approval_chunks(part: Part) -> Iterator[Part]:
    approval = part.get("approval")
    if not isinstance(approval, dict) or not isinstance(approval.get("id"), str):
        return
    request = {"toolCallId": part["toolCallId"], "approvalId": approval["id"]}
    if approval.get("requestReason") is not None:
        request["reason"] = approval["requestReason"]
    yield {"type": "tool-approval-request", **request, **_kept(approval, "isAutomatic")}
    if isinstance(approval.get("approved"), bool):
        decided = {"approvalId": approval["id"], "approved": approval["approved"]}
        yield {"type": "tool-approval-response", **decided, **_kept(approval, "reason")}


def _kept(part: Part, *fields: str) -> Part:
    return {field: part[field] for field in fields if part.get(field) is not None}
