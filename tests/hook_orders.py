"""The order of hooks by scenario (chat-agent §3.5), once for the harness and real processes.

`TC` and `SN` stand for the stored turn-complete and snapshot; only the harness sees those.
"""

from __future__ import annotations

from typing import Any, Final

from everturn import chat

#: Hooks that only watch.
WATCHED: Final = (
    "on_boot",
    "on_preload",
    "on_recovery_boot",
    "on_chat_start",
    "on_turn_start",
    "on_before_turn_complete",
    "on_turn_complete",
    "on_chat_suspend",
    "on_chat_resume",
)

_HEAD: Final = ["tools", "on_validate_messages"]
_START: Final = ["on_turn_start"]
_RUN: Final = ["prepare_messages", "run"]
_END: Final = ["on_before_turn_complete", "TC", "on_turn_complete", "SN"]
#: History that came with a head start is nowhere else, so it is stored before it is committed.
_STORED_FIRST: Final = ["on_before_turn_complete", "SN", "TC", "on_turn_complete", "SN"]
FOLLOW_UP: Final = [*_HEAD, *_START, *_RUN, *_END]
FIRST: Final = [*_HEAD, "on_chat_start", *_START, *_RUN, *_END]
#: With `hydrate_messages` the author keeps history, and no snapshot is stored.
_HYDRATED: Final = [*_HEAD, "hydrate_messages"]
FAILED: Final = [*_HEAD, *_START, *_RUN, "TC", "on_turn_complete", "SN"]

#: Scenario -> what happens from its beginning to its end.
ORDERS: Final[dict[str, list[str]]] = {
    "first message": ["on_boot", *FIRST],
    "follow-up": FOLLOW_UP,
    "preload, then a message": ["on_boot", "on_preload", *FIRST],
    "preload, suspended, then a message": [
        "on_boot", "on_preload", "on_chat_suspend", "on_chat_resume", *FIRST,
    ],
    "a clean continuation": ["on_boot", *FOLLOW_UP],
    "an action": ["tools", "on_action", "TC"],
    "an action that changes history": ["tools", "on_action", "SN", "TC", "SN"],
    "a stop in mid-stream": FOLLOW_UP,
    "an error in run": FAILED,
    "an error in validation": [*_HEAD, "TC", "on_turn_complete", "SN"],
    "an error at turn start": [*_HEAD, *_START, "TC", "on_turn_complete", "SN"],
    "a follow-up with hydration": [
        *_HYDRATED, *_START, *_RUN, "on_before_turn_complete", "TC", "on_turn_complete",
    ],
    "an action with hydration": ["tools", "hydrate_messages", "on_action", "TC"],
    "an error in hydration": [*_HYDRATED, "TC", "on_turn_complete"],
    "close while idle": [],
    "close in mid-turn": FOLLOW_UP,
    "an upgrade at turn start": [*_HEAD, *_START, "upgrade-required", "on_boot", *FOLLOW_UP],
    "suspend and resume": ["on_chat_suspend", "on_chat_resume", *FOLLOW_UP],
    "out of memory, and a larger machine": [*_HEAD, *_START, *_RUN, "on_boot", *FOLLOW_UP],
}  # fmt: skip
#: Those that only make sense where processes die or a warm side speaks.
RECOVERIES: Final[dict[str, list[str]]] = {
    "a continuation after a death in mid-stream": ["on_recovery_boot", "on_boot", *FOLLOW_UP],
    "the next attempt after a death in mid-stream": ["on_recovery_boot", "on_boot", *FIRST],
    # The message that ended the run is closed by the server, with an error.
    "out of memory, and another message": [*_HEAD, *_START, *_RUN, "on_boot", *FOLLOW_UP],
    "a head start with a tool call": [
        "on_boot", "tools", "on_chat_start", *_START, *_RUN, *_STORED_FIRST,
    ],
    "a head start that is the whole answer": [
        "on_boot", "tools", "on_chat_start", *_START, *_STORED_FIRST,
    ],
}  # fmt: skip


def without_records(order: list[str]) -> list[str]:
    """The order as hooks alone can see it."""
    return [name for name in order if name not in ("TC", "SN", "upgrade-required")]


def hooked(
    id: str, note: Any = None, *, pause: Any = None, hydrates: bool = False, **options: Any
) -> chat.ChatAgent[Any]:
    """An agent with every hook of §3.5. What the newest message says decides what goes wrong.

    Args:
        note: called with the name of each hook, `tools` and `run`, and the chat's id.
        pause: awaited with the chat's id in mid-answer to "wait" and "die".
        hydrates: whether it keeps its history itself.
    """
    said = note if note is not None else lambda name, chat_id: None

    def tools(event: Any) -> list[Any]:
        said("tools", event.chat_id)
        return []

    @chat.agent(id, tools=tools, **options)
    async def agent(turn: Any) -> Any:
        said("run", turn.chat_id)
        if turn.text == "fail in run":
            raise ValueError("run")
        if turn.text == "out of memory" and turn.ctx.attempt.number == 1:
            raise MemoryError
        yield "half"
        if turn.text in ("wait", "die") and pause is not None:
            await pause(turn.chat_id)
        yield " whole"

    for name in WATCHED:
        agent.hooks.add(name, _watcher(name, said))

    @agent.on_validate_messages
    def validate(event: Any) -> Any:
        said("on_validate_messages", event.chat_id)
        if chat.text_of(event.messages[-1]) == "fail in validation":
            raise ValueError("validation")
        return event.messages

    @agent.prepare_messages
    def prepare(event: Any) -> Any:
        said("prepare_messages", event.chat_id)
        return event.messages

    @agent.on_action
    def act(event: Any) -> None:
        said("on_action", event.chat_id)
        if event.action == {"do": "undo"}:
            chat.history.slice(0, -2)

    @agent.on_turn_start
    def start(event: Any) -> None:
        text = chat.text_of(event.ui_messages[-1])
        if text == "fail at turn start":
            raise ValueError("turn start")
        if text == "upgrade" and not event.continuation:
            chat.request_upgrade()

    if hydrates:
        _keep_history(agent, said)
    return agent


def _keep_history(agent: chat.ChatAgent[Any], said: Any) -> None:
    stored: dict[str, list[Any]] = {}

    @agent.hydrate_messages
    def hydrate(event: chat.HydrateMessagesEvent) -> list[Any]:
        said("hydrate_messages", event.chat_id)
        if event.incoming_messages and event.incoming_messages[-1].text == "fail in hydration":
            raise ValueError("hydration")
        chain = stored.setdefault(event.chat_id, [])
        chat.upsert_incoming_message(chain, event)
        return chain


def _watcher(name: str, said: Any) -> Any:
    def watch(event: Any) -> None:
        said(name, event.chat_id)

    return watch
