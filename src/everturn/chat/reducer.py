"""From chunks to the message they build: what a browser would show, byte for byte.

The reducer is the AI SDK's, in Python: whoever captures an answer, replays `.out` or follows a
chat from a script sees the message a browser sees. Its rules (chat-agent §4.2.4):

* Parts are appended in the order their first chunk arrives. Text and reasoning parts are open
  from their start to their end chunk; a delta or an end for a part that is not open is an error,
  because silently dropping it would show a wrong answer as a whole one.
* A step is the parts after the newest `step-start`. A chunk about a tool call looks for the call
  in the current step. Only results, approvals and denials may look further back: they may
  belong to a call of an earlier pause.
* `reset-step` takes back the parts of the current step; `ai` 6 does not know it and shows them.
* An absent field and a field that is `null` are different things, in chunks and in parts.
* `error` and `abort` add no part; they are remembered beside the message.
* A `start` with another id than an earlier `start` of the same stream begins a fresh message
  (X-04): a run that answers again after a crash writes on the same stream.

Deltas are the hot path, thousands per answer. Their text is collected in lists and joined when
somebody looks at the message, so a long answer costs linear time; the tolerant parse of streamed
tool input happens at the same moment for the same reason.

Unknown chunk types and unknown keys never raise: a newer client may know them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from everturn.chat.open_parts import OpenPart, StreamedCall, not_started, text_field
from everturn.chat.partial_json import parse_partial
from everturn.chat.parts import (
    ABSENT,
    copy_fields,
    copy_message,
    is_dynamic,
    is_tool_part,
    merged,
    tool_name,
    without,
    write_tool,
)
from everturn.chat.whole_parts import WHOLE_PARTS, whole_part
from everturn.errors import UIMessageStreamError
from everturn.protocol.chunks import DATA_PREFIX

Json = dict[str, Any]

_DELTAS: Final = frozenset({"text-delta", "reasoning-delta", "tool-input-delta"})


class MessageReducer:
    """Builds one UI message from chunks, and can be asked for it at any time.

    Args:
        seed: the message that is being continued (an answer that waited for a tool result). It
            is copied. Without one an empty assistant message with id `""` is begun.

    Attributes:
        finish_reason: of the newest `finish` chunk that named one.
        error: the text of the newest `error` chunk.
        aborted: whether an `abort` chunk came.
    """

    def __init__(self, seed: Mapping[str, Any] | None = None) -> None:
        self.finish_reason: str | None = None
        self.error: str | None = None
        self.aborted = False
        self._message: Json = {"id": "", "role": "assistant", "parts": []}
        if seed is not None:
            self._message.update(copy_message(seed))
        self._started = False
        self._text: dict[str, OpenPart] = {}
        self._reasoning: dict[str, OpenPart] = {}
        self._calls: dict[str, StreamedCall] = {}
        self._stale_parts: list[OpenPart] = []
        self._stale_calls: dict[str, StreamedCall] = {}
        self._resume_streamed_calls()

    # --- what was built -----------------------------------------------------------------------

    @property
    def message(self) -> Json:
        """The message so far. It goes on changing with the next `feed`; see `snapshot`."""
        self._settle()
        return self._message

    def snapshot(self) -> Json:
        """A copy of the message that later chunks do not change."""
        return copy_message(self.message)

    @property
    def open_text_ids(self) -> tuple[str, ...]:
        """Ids of text parts that were started and not ended, in the order they were started."""
        return tuple(self._text)

    @property
    def open_reasoning_ids(self) -> tuple[str, ...]:
        """Ids of reasoning parts that were started and not ended."""
        return tuple(self._reasoning)

    # --- chunks -------------------------------------------------------------------------------

    def feed(self, chunk: Mapping[str, Any]) -> bool:
        """Take one chunk.

        Returns:
            Whether the message changed in a way a client is shown.

        Raises:
            UIMessageStreamError: the chunk refers to a part or call that is not there, or lacks
                the field its effect needs. The message stays as it was.
        """
        kind = chunk.get("type")
        if not isinstance(kind, str):
            raise UIMessageStreamError("a chunk needs a `type`")
        if self._stale_calls and kind not in _DELTAS:
            self._settle_calls()
        handler = _HANDLERS.get(kind)
        if handler is not None:
            return handler(self, chunk)
        return self._data(chunk) if kind.startswith(DATA_PREFIX) else False

    def _start(self, chunk: Mapping[str, Any]) -> bool:
        named = chunk.get("messageId") is not None
        message_id = text_field(chunk, "messageId") if named else self._message["id"]
        fresh = self._started and message_id != self._message["id"]
        if fresh:
            self._begin_again()
        self._message["id"] = message_id
        self._started = True
        return self._merge_metadata(chunk) or named

    def _begin_again(self) -> None:
        self._message = {"id": "", "role": "assistant", "parts": []}
        self._text, self._reasoning, self._calls = {}, {}, {}
        self._stale_parts, self._stale_calls = [], {}
        self.finish_reason = None

    def _start_step(self, chunk: Mapping[str, Any]) -> bool:
        self._parts.append({"type": "step-start"})
        return False

    def _finish_step(self, chunk: Mapping[str, Any]) -> bool:
        self._text, self._reasoning = {}, {}
        return False

    def _reset_step(self, chunk: Mapping[str, Any]) -> bool:
        """Take back what the current step has shown: a provider begins it anew."""
        step = next(
            (
                n
                for n in range(len(self._parts), 0, -1)
                if self._parts[n - 1]["type"] == "step-start"
            ),
            0,
        )
        self._settle()  # a part of an earlier step keeps what was said to it meanwhile
        self._text, self._reasoning, self._calls = {}, {}, {}
        changed = len(self._parts) > step
        del self._parts[step:]
        return changed

    def _finish(self, chunk: Mapping[str, Any]) -> bool:
        reason = chunk.get("finishReason")
        if reason is not None:
            self.finish_reason = reason
        return self._merge_metadata(chunk)

    def _merge_metadata(self, chunk: Mapping[str, Any]) -> bool:
        metadata = chunk.get("messageMetadata")
        if metadata is None:
            return False
        before = self._message.get("metadata")
        self._message["metadata"] = metadata if before is None else merged(before, metadata)
        return True

    def _error(self, chunk: Mapping[str, Any]) -> bool:
        self.error = str(chunk.get("errorText", ""))
        return False

    def _abort(self, chunk: Mapping[str, Any]) -> bool:
        self.aborted = True
        return False

    # --- text and reasoning -------------------------------------------------------------------

    def _text_start(self, chunk: Mapping[str, Any]) -> bool:
        part: Json = {"type": "text", "text": "", "state": "streaming"}
        return self._open_part(self._text, part, chunk)

    def _reasoning_start(self, chunk: Mapping[str, Any]) -> bool:
        part: Json = {
            "type": "reasoning",
            "id": text_field(chunk, "id"),
            "text": "",
            "state": "streaming",
        }
        return self._open_part(self._reasoning, part, chunk)

    def _open_part(self, open_: dict[str, OpenPart], part: Json, chunk: Mapping[str, Any]) -> bool:
        copy_fields(chunk, part, "providerMetadata")
        part_id = text_field(chunk, "id")
        # An id that is opened again names the new part, and is the newest one open.
        open_.pop(part_id, None)
        open_[part_id] = OpenPart(part)
        self._parts.append(part)
        return True

    def _text_delta(self, chunk: Mapping[str, Any]) -> bool:
        return self._extend(self._text, chunk)

    def _reasoning_delta(self, chunk: Mapping[str, Any]) -> bool:
        return self._extend(self._reasoning, chunk)

    def _extend(self, open_: dict[str, OpenPart], chunk: Mapping[str, Any]) -> bool:
        part = open_.get(text_field(chunk, "id"))
        if part is None:
            raise not_started(chunk)
        delta = text_field(chunk, "delta")
        if not part.pieces:
            self._stale_parts.append(part)
        part.pieces.append(delta)
        if chunk.get("providerMetadata") is not None:
            part.part["providerMetadata"] = chunk["providerMetadata"]
        return True

    def _text_end(self, chunk: Mapping[str, Any]) -> bool:
        opened = self._text.get(text_field(chunk, "id"))
        if opened is not None and chunk.get("citations") is not None:
            opened.part["citations"] = chunk["citations"]
        return self._close_part(self._text, chunk)

    def _reasoning_end(self, chunk: Mapping[str, Any]) -> bool:
        return self._close_part(self._reasoning, chunk)

    def _close_part(self, open_: dict[str, OpenPart], chunk: Mapping[str, Any]) -> bool:
        opened = open_.pop(text_field(chunk, "id"), None)
        if opened is None:
            raise not_started(chunk)
        opened.part["state"] = "done"
        if chunk.get("providerMetadata") is not None:
            opened.part["providerMetadata"] = chunk["providerMetadata"]
        return True

    # --- files, sources, data -----------------------------------------------------------------

    def _whole(self, chunk: Mapping[str, Any]) -> bool:
        self._parts.append(whole_part(chunk))
        return True

    def _data(self, chunk: Mapping[str, Any]) -> bool:
        if chunk.get("transient"):
            return False
        if chunk.get("id") is not None:
            for part in self._parts:
                if part.get("type") == chunk["type"] and part.get("id") == chunk["id"]:
                    part["data"] = chunk.get("data")
                    return True
        self._parts.append(dict(chunk))
        return True

    # --- tools --------------------------------------------------------------------------------

    def _tool_input_start(self, chunk: Mapping[str, Any]) -> bool:
        call = StreamedCall(
            tool_name=text_field(chunk, "toolName"),
            dynamic=bool(chunk.get("dynamic")),
            fields={k: chunk[k] for k in ("inputEncoding", "title", "toolMetadata") if k in chunk},
        )
        self._calls[text_field(chunk, "toolCallId")] = call
        self._put_tool(chunk, call.tool_name, "input-streaming", dynamic=call.dynamic)
        return True

    def _tool_input_delta(self, chunk: Mapping[str, Any]) -> bool:
        call_id = text_field(chunk, "toolCallId")
        call = self._calls.get(call_id)
        if call is None:
            raise not_started(chunk)
        call.pieces.append(text_field(chunk, "inputTextDelta"))
        self._stale_calls[call_id] = call
        return True

    def _tool_input_available(self, chunk: Mapping[str, Any]) -> bool:
        self._put_tool(
            without(chunk, "inputEncoding"),
            text_field(chunk, "toolName"),
            "input-available",
            dynamic=bool(chunk.get("dynamic")),
            input=chunk.get("input", ABSENT),
        )
        return True

    def _tool_input_error(self, chunk: Mapping[str, Any]) -> bool:
        known = self._in_step(text_field(chunk, "toolCallId"))
        dynamic = bool(chunk.get("dynamic")) if known is None else is_dynamic(known)
        bad = chunk.get("input", ABSENT)
        self._put_tool(
            without(chunk, "inputEncoding", "title"),
            text_field(chunk, "toolName"),
            "output-error",
            dynamic=dynamic,
            input=bad if dynamic else ABSENT,
            rawInput=ABSENT if dynamic else bad,
            errorText=text_field(chunk, "errorText"),
        )
        return True

    def _tool_approval_request(self, chunk: Mapping[str, Any]) -> bool:
        part = self._call(chunk)
        approval: Json = {"id": text_field(chunk, "approvalId")}
        if chunk.get("approvalDescriptor") is not None:
            approval["descriptor"] = chunk["approvalDescriptor"]
        copy_fields(chunk, approval, "inputSchemaInput")
        if chunk.get("reason") is not None:
            approval["requestReason"] = chunk["reason"]
        if chunk.get("isAutomatic") is True:
            approval["isAutomatic"] = True
        if chunk.get("signature") is not None:
            approval["signature"] = chunk["signature"]
        part["state"] = "approval-requested"
        part["approval"] = approval
        return True

    def _tool_approval_response(self, chunk: Mapping[str, Any]) -> bool:
        part = self._asked(chunk)
        part["state"] = "approval-responded"
        part["approval"] = {**part["approval"], "approved": chunk.get("approved") is True}
        if chunk.get("reason") is not None:
            part["approval"]["reason"] = chunk["reason"]
        if chunk.get("providerExecuted") is not None:
            part["providerExecuted"] = chunk["providerExecuted"]
        if chunk.get("providerMetadata") is not None:
            part["callProviderMetadata"] = chunk["providerMetadata"]
        return True

    def _tool_output_denied(self, chunk: Mapping[str, Any]) -> bool:
        self._call(chunk)["state"] = "output-denied"
        return True

    def _tool_output_available(self, chunk: Mapping[str, Any]) -> bool:
        part = self._call(chunk)
        self._put_result(
            part,
            chunk,
            "output-available",
            output=chunk.get("output", ABSENT),
            preliminary=chunk.get("preliminary", ABSENT),
        )
        return True

    def _tool_output_error(self, chunk: Mapping[str, Any]) -> bool:
        part = self._call(chunk)
        raw = ABSENT if is_dynamic(part) else part.get("rawInput", ABSENT)
        self._put_result(
            part, chunk, "output-error", rawInput=raw, errorText=text_field(chunk, "errorText")
        )
        return True

    def _put_result(self, part: Json, chunk: Mapping[str, Any], state: str, **values: Any) -> None:
        options = without(chunk, "inputEncoding", "title")
        if options.get("toolMetadata") is None:
            options.pop("toolMetadata", None)
        write_tool(part, options, tool_name(part), state, input=part.get("input", ABSENT), **values)

    def _put_tool(
        self, chunk: Mapping[str, Any], name: str, state: str, *, dynamic: bool, **values: Any
    ) -> None:
        """Update the call of this id in the current step, or append it.

        A static call never takes over a dynamic part of the same id, nor the other way round.
        """
        call_id = text_field(chunk, "toolCallId")
        part = self._in_step(call_id, dynamic=dynamic)
        if part is None:
            part = {"type": "dynamic-tool" if dynamic else f"tool-{name}", "toolCallId": call_id}
            self._parts.append(part)
        write_tool(part, chunk, name, state, **values)

    def _in_step(self, call_id: str, *, dynamic: bool | None = None) -> Json | None:
        """The tool part of a call in the current step: the first one, of that form if given."""
        found: Json | None = None
        for part in reversed(self._parts):
            if part.get("type") == "step-start":
                break
            if part.get("toolCallId") != call_id or not is_tool_part(part):
                continue
            if dynamic is None or is_dynamic(part) == dynamic:
                found = part
        return found

    def _call(self, chunk: Mapping[str, Any]) -> Json:
        """The part of a call, in the current step if it is there, else the newest one."""
        call_id = text_field(chunk, "toolCallId")
        part = self._in_step(call_id)
        if part is not None:
            return part
        for part in reversed(self._parts):
            if part.get("toolCallId") == call_id and is_tool_part(part):
                return part
        raise UIMessageStreamError(
            f"a {chunk['type']!r} chunk names tool call {call_id!r}, which this message "
            "does not hold",
            chunk_type=chunk["type"],
            chunk_id=call_id,
        )

    def _asked(self, chunk: Mapping[str, Any]) -> Json:
        """The call that an approval was asked for."""
        approval_id = text_field(chunk, "approvalId")
        for part in self._parts:
            approval = part.get("approval")
            if (
                is_tool_part(part)
                and isinstance(approval, dict)
                and approval.get("id") == approval_id
            ):
                return part
        raise UIMessageStreamError(
            f"a {chunk['type']!r} chunk names approval {approval_id!r}, which nobody asked for",
            chunk_type=chunk["type"],
            chunk_id=approval_id,
        )

    # --- what is computed late ----------------------------------------------------------------

    @property
    def _parts(self) -> list[Json]:
        parts: list[Json] = self._message["parts"]
        return parts

    def _settle(self) -> None:
        for stale in self._stale_parts:
            stale.join()
        self._stale_parts.clear()
        self._settle_calls()

    def _settle_calls(self) -> None:
        """Write the streamed input of calls into their parts, in the order of their deltas."""
        stale, self._stale_calls = self._stale_calls, {}
        for call_id, call in stale.items():
            text = call.text()
            if call.fields.get("inputEncoding") == "text":
                value: Any = text
            else:
                value, readable = parse_partial(text)
                value = value if readable else ABSENT
            self._put_tool(
                {"toolCallId": call_id, **call.fields},
                call.tool_name,
                "input-streaming",
                dynamic=call.dynamic,
                input=value,
                rawInput=text,
            )

    def _resume_streamed_calls(self) -> None:
        """Let deltas continue the calls that a seed left half written in its last step."""
        for part in reversed(self._parts):
            if part.get("type") == "step-start":
                break
            if is_tool_part(part) and part.get("state") == "input-streaming":
                self._calls[part["toolCallId"]] = StreamedCall(
                    tool_name=tool_name(part),
                    dynamic=is_dynamic(part),
                    fields={
                        k: part[k] for k in ("inputEncoding", "title", "toolMetadata") if k in part
                    },
                    written=part.get("rawInput", ""),
                )


_R = MessageReducer
_HANDLERS: Final = {
    "start": _R._start,
    "start-step": _R._start_step,
    "text-start": _R._text_start,
    "text-delta": _R._text_delta,
    "text-end": _R._text_end,
    "reasoning-start": _R._reasoning_start,
    "reasoning-delta": _R._reasoning_delta,
    "reasoning-end": _R._reasoning_end,
    "tool-input-start": _R._tool_input_start,
    "tool-input-delta": _R._tool_input_delta,
    "tool-input-available": _R._tool_input_available,
    "tool-input-error": _R._tool_input_error,
    "tool-approval-request": _R._tool_approval_request,
    "tool-approval-response": _R._tool_approval_response,
    "tool-output-available": _R._tool_output_available,
    "tool-output-error": _R._tool_output_error,
    "tool-output-denied": _R._tool_output_denied,
    **dict.fromkeys(WHOLE_PARTS, _R._whole),
    "message-metadata": _R._merge_metadata,
    "finish-step": _R._finish_step,
    "reset-step": _R._reset_step,
    "finish": _R._finish,
    "error": _R._error,
    "abort": _R._abort,
}
