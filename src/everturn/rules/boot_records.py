"""The payloads a session's runs are born with, and the first message's way into the log.

A `message` or `action` in `basePayload` becomes the session's first `.in` record and is stripped
from the payload: nothing is lost by an upgrade, and a second attempt answers nothing twice
(rulings §1.4). A continuation takes its work from `.in` and so carries no message at all
(wire-protocol §4.8).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

#: Triggers that somebody waits for an answer to.
ANSWERED: Final = frozenset({"submit-message", "regenerate-message", "action"})
_WORK: Final = ("message", "messages", "trigger", "action", "messageId")


def boot_part_id(run_id: str) -> str:
    """The part id of the first message: the same however often it is appended."""
    return f"boot:{run_id}"


def failure_part_id(run_id: str, seq_num: int | None, what: str) -> str:
    """Part ids of the error chunk and the turn-complete the server writes for a dead turn.

    `seq_num` is that of the message whose turn it was; None when no open message is known.
    """
    return f"fail:{run_id}:{'-' if seq_num is None else seq_num}:{what}"


def is_failure_part(part_id: str, run_id: str) -> bool:
    """Whether a record's part id says that the server failed a message for this run."""
    return part_id.startswith(f"fail:{run_id}:")


def first_payload(
    base: Mapping[str, Any], *, session_id: str, idle_timeout_s: int | None
) -> tuple[dict[str, Any], bytes | None]:
    """`(payload, boot input)` of a session's first run.

    The boot input is the text of the `.in` record that the first message becomes, None when
    `base` holds none.
    """
    payload = _with_server_members(base, session_id, idle_timeout_s)
    trigger = base.get("trigger", "submit-message")
    holds_work = "message" in base or "action" in base or trigger == "regenerate-message"
    if trigger not in ANSWERED or not holds_work:
        return payload, None
    chunk = {"kind": "message", "payload": {**base, "trigger": trigger}}
    for name in _WORK:
        payload.pop(name, None)
    return payload, msgspec.json.encode(chunk)


#: Says that this server closes the turns of runs that ended (rulings §1.9). So an unfinished answer
#: that a continuation finds is that of a process that was lost, and is given again (§1.5), where
#: in a log that was written elsewhere it would stand for the answer.
ANSWERS_AGAIN: Final = "answersAgain"


def continuation_payload(
    base: Mapping[str, Any],
    *,
    session_id: str,
    idle_timeout_s: int | None,
    previous_run_id: str,
) -> dict[str, Any]:
    """The payload of a run that carries a session on."""
    payload = _with_server_members(base, session_id, idle_timeout_s)
    for name in ("message", "messages", "trigger", "action", "headStartMessages"):
        payload.pop(name, None)
    payload["continuation"] = True
    payload["previousRunId"] = previous_run_id
    payload[ANSWERS_AGAIN] = True
    return payload


def _with_server_members(
    base: Mapping[str, Any], session_id: str, idle_timeout_s: int | None
) -> dict[str, Any]:
    payload = dict(base)
    if idle_timeout_s is not None:
        payload["idleTimeoutInSeconds"] = idle_timeout_s
    payload["sessionId"] = session_id
    return payload
