"""`on_recovery_boot`: the author's word on an answer that a dead process left unfinished (§2.3).

The hook may replace the chain, and choose which of the recovered messages are answered. What it
leaves out is not forgotten in silence: it keeps its place in the order, and fails visibly when its
turn would have come (P-3). Of a message it takes up the record is known, so it stays open until
it is answered; that holds for the message of the unfinished answer too, which a continuation
would otherwise keep as it is.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from everturn.chat import hooks, ui_messages
from everturn.chat.failures import ends_attempt
from everturn.chat.intake import NOWHERE
from everturn.chat.parts import is_tool_part, tool_name
from everturn.chat.replay import Replay
from everturn.chat.state import ChatRun, Message
from everturn.protocol.records import Input
from everturn.rules.boot import Recovery, message_of

log = logging.getLogger("everturn.chat")


async def ask(
    run: ChatRun, replay: Replay, turns: list[Input], recovery: Recovery
) -> tuple[list[Input], Recovery]:
    """Call the hook, and do what it says. Returns what is queued, and what is recovered how.

    What the hook raises is logged, and the defaults apply. Raises what `before_boot` raises.
    """
    known = turns if recovery.spliced is None else [recovery.spliced, *turns]
    in_flight = [item for item in known if item.trigger == "submit-message"]
    event = hooks.RecoveryBootEvent(
        ctx=run.ctx,
        run_id=run.ctx.run.id,
        chat_id=run.chat_id,
        previous_run_id=run.previous_run_id or "",
        settled_messages=ui_messages.as_objects(replay.chain),
        in_flight_users=ui_messages.as_objects(filter(None, map(message_of, in_flight))),
        partial_assistant=ui_messages.as_object(replay.partial or {}),
        pending_tool_calls=_pending_calls(replay.partial_raw),
        writer=run.writer(),
    )
    try:
        answer = _overrides(await run.hook("on_recovery_boot", event))
        chain = _messages(answer.chain)
        wanted = _messages(answer.recovered_turns)
    except Exception as error:  # author code: defaults apply
        if ends_attempt(error):
            raise
        log.exception("hook.failed: on_recovery_boot")
        return turns, recovery
    await run.runtime.flush()
    if chain is not None:
        run.lane.stage(chain)
        run.lane.apply()
    if wanted is not None:
        turns, recovery = _chosen(run, turns, recovery, wanted)
    if answer.before_boot is not None:
        result = answer.before_boot()
        if inspect.isawaitable(result):
            await result
    return turns, recovery


def _messages(value: Any) -> list[Message] | None:
    """A list of the hook's answer; None for anything else, which means the default."""
    return hooks.history(value, "on_recovery_boot") if isinstance(value, list) else None


def _overrides(value: Any) -> hooks.RecoveryOverrides:
    if isinstance(value, hooks.RecoveryOverrides):
        return value
    if isinstance(value, dict):
        known = {k: value[k] for k in ("chain", "recovered_turns", "before_boot") if k in value}
        return hooks.RecoveryOverrides(**known)
    return hooks.RecoveryOverrides()


def _chosen(
    run: ChatRun, turns: Sequence[Input], recovery: Recovery, wanted: Sequence[Message]
) -> tuple[list[Input], Recovery]:
    """The author's messages in place of the recovered ones; everything else keeps its place.

    A message of the same id keeps its record; an invented one has none, comes first, and has the
    client data of the boot payload. Those the author leaves out are dropped in their place.
    """
    spliced = recovery.spliced
    submits = [item for item in turns if item.trigger == "submit-message"]
    by_id = {_id_of(item): item for item in submits}
    if spliced is not None:
        by_id[_id_of(spliced)] = spliced
    invented: list[Input] = []
    placed = {item.seq_num: item for item in turns}
    kept: set[int] = set()
    for message in wanted:
        item = by_id.get(message.get("id"))
        if item is None:
            invented.append(_made(run, message, NOWHERE, run.payload))
        else:
            kept.add(item.seq_num)
            placed[item.seq_num] = _made(run, message, item.seq_num, item.payload)
    run.policy.drop(item.seq_num for item in submits if item.seq_num not in kept)
    if spliced is not None and spliced.seq_num in kept:
        recovery = recovery._replace(spliced=None)
    recovery = recovery._replace(turns=tuple(placed[number] for number in sorted(placed)))
    return [*invented, *recovery.turns], recovery


def _id_of(item: Input) -> Any:
    return (message_of(item) or {}).get("id")


def _made(run: ChatRun, message: Message, seq_num: int, source: Mapping[str, Any]) -> Input:
    """The record of a message as if it had just come."""
    payload = {
        "chatId": run.chat_id,
        "trigger": "submit-message",
        "message": message,
        "messageId": message.get("id"),
        "metadata": source.get("metadata"),
    }
    return Input(seq_num, "message", payload)


def _pending_calls(message: Message | None) -> list[dict[str, Any]]:
    return [
        {
            "tool_call_id": part.get("toolCallId"),
            "tool_name": tool_name(part),
            "input": part.get("input"),
            "part_index": index,
        }
        for index, part in enumerate((message or {}).get("parts") or ())
        if is_tool_part(part) and part.get("state") == "input-available"
    ]
