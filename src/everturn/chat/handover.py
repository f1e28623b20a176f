"""Head start, on the agent's side: the first step of an answer was made elsewhere (§2.6, §4.15).

A warm process (`everturn.chat_server`) makes the first model request of a chat while this run
boots. It writes what it streams to `.out` itself, as a guest, and then appends one `handover`
record to `.in`: the step it made as *model messages in AI SDK JSON*, the id it was streamed under,
and whether that was already the whole answer. What this module promises about it:

* **One message.** The turn that takes a handover goes on in the same message: it writes no
  `start` of its own, because the warm side's is on `.out` already. A replay of the log therefore
  finds one segment, and a browser one message.
* **Calls run once, here.** Pending tool calls become parts in the state `approval-responded`, and
  the model library gets them as calls that nobody has answered: before its next request it runs
  them, or defers them to a client, or asks a person, as each tool says. The approvals are markers
  of the protocol and nobody's consent, so they are never passed on as such, and they leave the
  message with the turn.
* **The history is stored before the turn is committed.** What the user said travels in the boot
  payload only, never on `.in`; a run that died between the two could not find it again.
* **A dead attempt is told again.** Everything before `data-restarted` is discarded by replay, the
  warm side's chunks included, so the attempt that writes the mark repeats them from the handover.
  Before the handover arrived the mark is not written: the warm side may still be streaming.

The handover record is open, like a message, until its turn is committed; until then every attempt
finds it in the log. A handover that nobody waits for is dropped.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from everturn.chat import tracing
from everturn.chat.chunks import message_chunks
from everturn.chat.parts import (
    Message,
    Part,
    is_handed_over,
    is_tool_part,
    parts_of,
    tool_name,
)
from everturn.chat.ui_messages import new_message_id, repair
from everturn.ids import Ids
from everturn.protocol.records import Input
from everturn.rules import limits
from everturn.rules.boot import HANDOVER_PREPARE

if TYPE_CHECKING:
    from everturn.chat.state import ChatRun, TurnState

#: How a warm side without approval ids of its own marks the calls it hands over.
APPROVAL_PREFIX: Final = "handover-"


@dataclass(frozen=True)
class Handover:
    """The first step of an answer, as it was handed over.

    Attributes:
        partial: the step as a UI message; its id is the one it was streamed under.
        is_final: whether it is the whole answer: nothing is run then.
        seq_num: of its record on `.in`.
    """

    partial: Message
    is_final: bool
    seq_num: int


# --- the record -----------------------------------------------------------------------------------


def handover_of(item: Input, ids: Ids) -> Handover | None:
    """What a `handover` record says; None for one that is malformed."""
    wire = item.payload.get("partialAssistantMessage")
    if item.kind != "handover" or not isinstance(wire, list):
        return None
    is_final = item.payload.get("isFinal") is True
    message_id = item.payload.get("messageId")
    partial: Message = {
        "id": message_id if isinstance(message_id, str) and message_id else new_message_id(ids),
        "role": "assistant",
        "parts": [{"type": "step-start"}, *ui_parts(wire, is_final=is_final)],
    }
    return Handover(partial, is_final, item.seq_num)


def ui_parts(wire: Sequence[Any], *, is_final: bool) -> list[Part]:
    """The parts of a UI message from AI SDK model messages; what is none of ours is left out.

    Args:
        is_final: False makes every call without a result one that is to be executed.
    """
    results = _tool_rows(wire)
    parts: list[Part] = []
    for message in wire:
        if not isinstance(message, dict) or message.get("role") != "assistant":
            continue
        content = message.get("content")
        if isinstance(content, str):
            content = [{"type": "text", "text": content}]
        for row in content if isinstance(content, list) else ():
            if isinstance(row, dict):
                parts.extend(_ui_part(row, results, is_final=is_final))
    return parts


def _ui_part(row: Part, results: Mapping[str, Part], *, is_final: bool) -> Iterator[Part]:
    kind = row.get("type")
    options = row.get("providerOptions")
    if kind in ("text", "reasoning") and isinstance(row.get("text"), str):
        part: Part = {"type": kind, "text": row["text"], "state": "done"}
        if isinstance(options, dict):
            part["providerMetadata"] = options
        yield part
    elif kind == "file" and isinstance(row.get("data"), str):
        media = str(row.get("mediaType", "application/octet-stream"))
        data = row["data"]
        url = data if ":" in data[:16] else f"data:{media};base64,{data}"
        yield {"type": "file", "mediaType": media, "url": url}
    elif kind == "tool-call" and isinstance(row.get("toolCallId"), str):
        yield _ui_call(row, results.get(row["toolCallId"], {}), is_final=is_final)


def _ui_call(row: Part, result: Mapping[str, Any], *, is_final: bool) -> Part:
    call_id = row["toolCallId"]
    part: Part = {
        "type": f"tool-{row.get('toolName', '')}",
        "toolCallId": call_id,
        "state": "input-available",
        "input": row.get("input"),
    }
    if isinstance(row.get("providerOptions"), dict):
        part["callProviderMetadata"] = row["providerOptions"]
    if row.get("providerExecuted") is not None:
        part["providerExecuted"] = row["providerExecuted"]
    if "output" in result:
        part.update(state="output-available", output=_plain(result["output"]))
    elif not is_final:
        approval_id = result.get("approvalId") or f"{APPROVAL_PREFIX}{call_id}"
        approved = result.get("approved", True) is True
        approval = {
            "id": approval_id,
            "approved": approved,
            **({"handover": True} if approved else {}),
        }
        part.update(state="approval-responded", approval=approval)
    return part


def _tool_rows(wire: Sequence[Any]) -> dict[str, Part]:
    """By call id: the output, or the approval, that the partial already holds."""
    rows = [
        row
        for message in wire
        if isinstance(message, dict) and isinstance(message.get("content"), list)
        for row in message["content"]
        if isinstance(row, dict)
    ]
    calls = {
        row["approvalId"]: row.get("toolCallId")
        for row in rows
        if row.get("type") == "tool-approval-request" and isinstance(row.get("approvalId"), str)
    }
    found: dict[str, Part] = {}
    for row in rows:
        if row.get("type") == "tool-approval-response":
            call_id = calls.get(str(row.get("approvalId")))
            if isinstance(call_id, str):
                found.setdefault(call_id, {}).update(
                    approvalId=row["approvalId"], approved=row.get("approved")
                )
        elif row.get("type") == "tool-result" and isinstance(row.get("toolCallId"), str):
            found.setdefault(row["toolCallId"], {})["output"] = row.get("output")
    return found


def _plain(output: Any) -> Any:
    """The value inside the AI SDK's `{type, value}` form of a tool output."""
    if isinstance(output, dict) and set(output) == {"type", "value"}:
        return output["value"]
    return output


def wire_partial(message: Message, *, is_final: bool) -> list[dict[str, Any]]:
    """A UI message as AI SDK model messages: what the warm side puts into the record.

    Args:
        is_final: False marks the pending calls as approved: the agent is to execute them.
    """
    content: list[Part] = []
    responses: list[Part] = []
    for part in parts_of(message):
        kind = part.get("type")
        if kind in ("text", "reasoning"):
            content.append(_with_options({"type": kind, "text": part.get("text", "")}, part))
        elif kind == "file":
            row = {"type": "file", "data": part.get("url"), "mediaType": part.get("mediaType")}
            content.append(_with_options(row, part))
        elif is_tool_part(part):
            content.append(_wire_call(part))
            responses.extend(_wire_result(part, content, is_final=is_final))
    made: list[dict[str, Any]] = [{"role": "assistant", "content": content}]
    if responses:
        made.append({"role": "tool", "content": responses})
    return made


def _with_options(row: Part, part: Part) -> Part:
    metadata = part.get("providerMetadata")
    return {**row, "providerOptions": metadata} if isinstance(metadata, dict) else row


def _wire_call(part: Part) -> Part:
    row: Part = {
        "type": "tool-call",
        "toolCallId": part["toolCallId"],
        "toolName": tool_name(part),
        "input": part.get("input"),
    }
    if part.get("providerExecuted") is not None:
        row["providerExecuted"] = part["providerExecuted"]
    if isinstance(part.get("callProviderMetadata"), dict):
        row["providerOptions"] = part["callProviderMetadata"]
    return row


def _wire_result(part: Part, content: list[Part], *, is_final: bool) -> Iterator[Part]:
    call_id = part["toolCallId"]
    if part.get("state") == "output-available":
        output = {"type": "json", "value": part.get("output")}
        yield {
            "type": "tool-result",
            "toolCallId": call_id,
            "toolName": tool_name(part),
            "output": output,
        }
    elif not is_final and part.get("state") == "input-available":
        approval_id = f"{APPROVAL_PREFIX}{call_id}"
        content.append(
            {"type": "tool-approval-request", "approvalId": approval_id, "toolCallId": call_id}
        )
        yield {"type": "tool-approval-response", "approvalId": approval_id, "approved": True}


# --- the run --------------------------------------------------------------------------------------


def expected(payload: Mapping[str, Any]) -> bool:
    """Whether a run with this boot payload begins with a handover."""
    return payload.get("trigger") == HANDOVER_PREPARE


def head_start_messages(payload: Mapping[str, Any]) -> list[Message]:
    """What was said before the first step; it travels in the boot payload only."""
    found = payload.get("headStartMessages")
    return repair(found) if expected(payload) and isinstance(found, list) else []


def window_s(payload: Mapping[str, Any], chosen_s: float | None) -> float:
    """How long a handover is waited for: the author's choice > the payload's > 60 s."""
    hint = payload.get("idleTimeoutInSeconds")
    if chosen_s is not None:
        return chosen_s
    if isinstance(hint, int | float) and not isinstance(hint, bool) and hint >= 0:
        return float(hint)
    return limits.HANDOVER_WAIT_S


async def receive(run: ChatRun, limit_s: float) -> Handover | None:
    """Wait for the handover, without suspending (D-18). None after a skip, or when none came.

    Messages that arrive meanwhile stay in the FIFO.
    """
    with tracing.span(run, "waiting for handover signal"):
        item = await run.intake.handover(limit_s)
    made = handover_of(item, run.runtime.ids) if item is not None else None
    if item is not None and made is None:
        run.intake.decide(item.seq_num)
    return made


def input_of(run: ChatRun, handover: Handover) -> Input:
    """The input that the turn of a handover answers: nothing but the metadata of the payload."""
    left_out = ("message", "messages", "headStartMessages", "messageId")
    payload = {key: value for key, value in run.payload.items() if key not in left_out}
    return Input(handover.seq_num, "message", {**payload, "trigger": "submit-message"})


def splice(run: ChatRun, state: TurnState, handover: Handover) -> None:
    """T11: the first step joins the history, and is told again after a crash.

    Deduplicated by its id: a hydrating author may have stored the partial.
    """
    run.lane.upsert(handover.partial)
    state.history_changed = True
    if state.restarted:
        for chunk in retold(handover.partial):
            run.out.write(chunk, ours=True)


def retold(partial: Message) -> Iterator[Part]:
    """The chunks that show the first step; the message stays open after them."""
    shown = {**partial, "parts": [_as_shown(part) for part in parts_of(partial)]}
    return (chunk for chunk in message_chunks(shown) if chunk["type"] != "finish")


def _as_shown(part: Part) -> Part:
    """A handed-over call as the warm side showed it: waiting for its result."""
    if not is_handed_over(part):
        return part
    return {key: v for key, v in part.items() if key != "approval"} | {"state": "input-available"}


def without_markers(message: Message, handover: Handover | None) -> Message:
    """The message without the approvals that only said that a call is to be executed."""
    if handover is None:
        return message
    parts = [_as_called(part) if is_handed_over(part) else part for part in parts_of(message)]
    return {**message, "parts": parts}


def _as_called(part: Part) -> Part:
    """A handed-over call without its marker; one that never ran waits for a result again."""
    if part.get("state") == "approval-responded":
        return _as_shown(part)
    return {key: value for key, value in part.items() if key != "approval"}
