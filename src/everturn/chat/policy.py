"""What a message that arrives during a turn is to the turn: the message policy (rulings §5.8).

`on_busy` of an agent is decided here, by the run, and never when a record is appended: an append
always keeps the record. "Busy" means that an earlier input of the session is not decided yet;
that is in the log, so a boot comes to the same answer as the run that died.

| policy | a user's message that arrives while the chat is busy |
|---|---|
| `queue` | waits for its own turn |
| `steer` | joins the turn at its next step; else its own turn (`steering`) |
| `latest` | replaces the messages that wait; the newest gets a turn |
| `reject` | is refused |
| `interrupt` | the same as `latest`, and the turn in progress is stopped |

Regenerating, actions, answers to tool calls and `close` are not a user's new message: they always
wait their turn. What a policy refuses or supersedes is answered visibly, so that no client waits
for it and none takes it for answered: an error chunk and a turn-complete of its own, in its place
in the order, without hooks and without using up a turn. Its message stays in history, like that
of a turn that failed. An interrupted turn is a stopped one: its partial answer is kept, closed by
`abort`. When it had shown nothing yet, it gets the error chunk instead.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

from everturn.chat import commit
from everturn.chat.steering import PendingMessages, is_steerable
from everturn.chat.ui_messages import accumulate
from everturn.errors import ConfigurationError
from everturn.protocol.records import Input
from everturn.rules.boot import message_of
from everturn.tasks.signals import Signal

if TYPE_CHECKING:
    from everturn.chat.state import ChatRun, TurnState

log = logging.getLogger("everturn.chat")

OnBusy = Literal["queue", "steer", "latest", "reject", "interrupt"]
REJECTED: Final = "The chat was busy with an earlier message, and this one was not accepted."
SUPERSEDED: Final = "A newer message took the place of this one before it was answered."
DROPPED: Final = "This message was left out when its conversation was recovered from a crash."
CUT_OFF: Final = "The answer to this message was cut off by a crash, and is not given again."
INTERRUPTED: Final = "interrupted by a newer message"


def checked(on_busy: str, pending: PendingMessages | None) -> PendingMessages | None:
    """The steering configuration that goes with a policy.

    Raises ConfigurationError for an unknown policy, and for one that never lets a message wait
    for a step, beside `pending_messages`.
    """
    if on_busy not in get_args(OnBusy):
        raise ConfigurationError(f"on_busy is one of {get_args(OnBusy)}, not {on_busy!r}")
    if on_busy == "steer" and pending is None:
        return PendingMessages(should_inject=lambda batch: True)
    if pending is not None and on_busy not in ("queue", "steer"):
        raise ConfigurationError(f"pending_messages has no use beside on_busy={on_busy!r}")
    return pending


class Policy:
    """The policy of one run."""

    def __init__(self, on_busy: OnBusy) -> None:
        self._on_busy = on_busy
        #: Numbers of refused messages that wait for their turn-complete.
        self._refused: set[int] = set()
        #: The same for what the author dropped at boot, whatever the policy.
        self._dropped: set[int] = set()

    def drop(self, seq_nums: Iterable[int]) -> None:
        """Records that get no turn because the author said so when the run booted."""
        self._dropped.update(seq_nums)

    def refuses(self, item: Input) -> bool:
        """Whether it is decided already that this record gets an error in place of a turn."""
        return item.seq_num in self._refused or item.seq_num in self._dropped

    def booted(self, run: ChatRun) -> None:
        """What a boot found waiting arrived one after the other, as if just now."""
        if self._on_busy != "reject":
            return
        accepted = False
        for item in run.intake.waiting():
            if self.refuses(item):
                continue
            if accepted and is_steerable(item):
                self._refused.add(item.seq_num)
            accepted = True

    def watch(self, run: ChatRun) -> None:
        """Look at what arrives from here on."""

        def arrived() -> None:
            item = run.intake.newest()
            if item is not None and is_steerable(item):
                self._arrived(run, item)

        run.intake.watch(arrived)

    def _arrived(self, run: ChatRun, item: Input) -> None:
        if self._on_busy == "reject" and self._is_busy(run, item):
            self._refused.add(item.seq_num)
        current = run.intake.current
        if self._on_busy == "interrupt" and current is not None and current.trigger != "action":
            run.intake.interrupt(INTERRUPTED)

    def _is_busy(self, run: ChatRun, item: Input) -> bool:
        others = self._refused | self._dropped | {item.seq_num}
        return any(number not in others for number in run.intake.open_numbers)

    def refusal(self, run: ChatRun) -> str | None:
        """Why the FIFO's head gets no turn; None when it gets one."""
        head = run.intake.head()
        if head is not None and head.seq_num in self._dropped:
            return DROPPED
        if head is None or not is_steerable(head):
            return None
        if head.seq_num in self._refused:
            return REJECTED
        if self._on_busy not in ("latest", "interrupt"):
            return None
        later = run.intake.waiting()[1:]
        if not any(is_steerable(item) and not self.refuses(item) for item in later):
            return None
        # With `latest` a turn in progress is finished, also when a crash came in between.
        begun = run.restart is not None and run.restart.seq_num == head.seq_num
        return None if begun and self._on_busy == "latest" else SUPERSEDED

    def closing_words(self, run: ChatRun, state: TurnState) -> str | None:
        """The error that ends a turn which was interrupted before it had shown anything."""
        if state.stop.reason == INTERRUPTED and state.response is None:
            return SUPERSEDED
        return None

    async def refuse(self, run: ChatRun, words: str) -> None:
        """Answer the FIFO's head with an error, in place of a turn. Durable on return."""
        item = run.intake.begin(None, Signal())
        try:
            log.info("message.refused: %d", item.seq_num)
            kept = not run.agent.hydrates and item.seq_num not in self._dropped
            if kept:
                _keep(run, message_of(item))
            _close_partial(run, kept=kept)
            run.intake.decide_turn()
            cursor = run.intake.cursor()
            if run.lane.unsaved or not kept:
                # A replay of the log would find the message, and what it was told so far.
                await commit.save_history(run, cursor, failure=words)
            await commit.turn_complete(run, cursor, error=words)
            await commit.save_history(run, cursor)
        finally:
            self._refused.discard(item.seq_num)
            self._dropped.discard(item.seq_num)
            run.intake.done()


def _keep(run: ChatRun, message: Any) -> None:
    run.lane.apply()  # what was staged does not know of the message
    run.lane.replace_all(accumulate(run.lane.messages, message, "submit-message"))


def _close_partial(run: ChatRun, *, kept: bool) -> None:
    """An answer that a crash cut off, of a message that gets no turn now: it stays as it is."""
    restart, run.restart = run.restart, None
    if restart is None:
        return
    for chunk in restart.ends:
        run.out.write(chunk, ours=True)
    if restart.partial is not None and kept:
        run.lane.upsert(restart.partial)
