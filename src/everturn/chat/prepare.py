"""`prepare_messages`: the author's last word on what the model is sent (chat-agent §3.1, §3.3).

It is called for every request that starts from a list of ours: `run` before the agent function,
`compaction-result` and `compaction-rebuild` between steps. Whatever it returns, a tail of calls
and their results stays at the end, because a provider refuses a history in which a call and its
result do not follow each other, and because a person's approval acts on exactly that tail (R-046).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Literal

from everturn.chat import hooks
from everturn.chat.state import ChatRun, TurnState

Reason = Literal["run", "compaction-rebuild", "compaction-result"]
_RESULTS: Final = ("tool-return", "retry-prompt", "builtin-tool-return")


async def prepared(
    run: ChatRun, state: TurnState, messages: Sequence[Any], reason: Reason
) -> list[Any]:
    """`messages` as the hook wants them; as they are when there is none."""
    if not run.agent.hooks.has("prepare_messages"):
        return list(messages)
    event = hooks.PrepareMessagesEvent(
        chat_id=run.chat_id,
        turn=state.turn,
        messages=list(messages),
        reason=reason,
        client_data=state.client_data,
    )
    found = await run.hook("prepare_messages", event)
    if not isinstance(found, Sequence) or isinstance(found, str | bytes):
        raise TypeError(
            f"prepare_messages must return a list of messages, not {type(found).__name__}"
        )
    return with_tail(found, tail_of(messages))


def tail_of(messages: Sequence[Any]) -> list[Any]:
    """The calls at the end of a history, with their results if they have any; else nothing."""
    start = len(messages)
    while start > 0 and _holds_only_results(messages[start - 1]):
        start -= 1
    if start == 0 or not _holds_calls(messages[start - 1]):
        return []
    return list(messages[start - 1 :])


def with_tail(messages: Sequence[Any], tail: list[Any]) -> list[Any]:
    """`messages` ending in `tail`, and holding it nowhere else."""
    if not tail or list(messages[-len(tail) :]) == tail:
        return list(messages)
    return [message for message in messages if message not in tail] + tail


def _holds_only_results(message: Any) -> bool:
    parts = message.parts if message.kind == "request" else ()
    return bool(parts) and all(part.part_kind in _RESULTS for part in parts)


def _holds_calls(message: Any) -> bool:
    return message.kind == "response" and any(p.part_kind == "tool-call" for p in message.parts)
