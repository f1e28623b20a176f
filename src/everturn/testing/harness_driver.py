"""The client's side of the harness: everything that can be sent to a chat."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import anyio
import msgspec

from everturn.chat.handover import wire_partial
from everturn.errors import EverturnError
from everturn.testing.harness_session import SessionSide
from everturn.testing.harness_turn import HarnessTurn

Message = dict[str, Any]
#: Real seconds that leaving a harness, or a failed head start, may take.
CLOSE_S_MAX: Final = 1.0


class Driver(SessionSide):
    """The verbs a test drives a chat with. Those that wait return the turn."""

    @abstractmethod
    async def start(self, *, attempt: int = 1, payload: Mapping[str, Any] | None = None) -> None:
        """Claim a run: a new one, or with `attempt` > 1 the same one again."""

    @abstractmethod
    async def reached(self, condition: Callable[[], bool]) -> None:
        """Return when `condition()` holds at a moment when nothing else can run."""

    @abstractmethod
    async def turn_after(self, seq_num: int) -> HarnessTurn:
        """The records after `seq_num`, up to and with the next turn-complete."""

    @abstractmethod
    async def _ensure_run(self) -> None:
        """See that a run is in progress, which reads what was posted."""

    async def post(self, chunk: Any, *, part_id: str | None = None) -> int:
        """Append any input chunk (or text) and see that a run reads it. Does not wait."""
        text = chunk if isinstance(chunk, str) else msgspec.json.encode(chunk).decode()
        await self._plant_first()
        seq_num = await self.world.post(text, part_id=part_id)
        await self._ensure_run()
        return seq_num

    send_raw = post

    async def post_message(self, message: Message | str, **fields: Any) -> int:
        """Append a user message and do not wait for its turn; its seq_num."""
        made = self.user(message)
        return await self.post(self.wire("submit-message", message=made, **fields))

    async def send_message(self, message: Message | str, **fields: Any) -> HarnessTurn:
        """One message; returns at the next turn-complete."""
        made = self.user(message)
        return await self.send(self.wire("submit-message", message=made, **fields))

    async def send_regenerate(self) -> HarnessTurn:
        """Ask for another answer; returns at the next turn-complete."""
        return await self.send(self.wire("regenerate-message"))

    async def send_action(self, action: Any) -> HarnessTurn:
        """One action; returns at the next turn-complete. One that does not fit is an error."""
        return await self.send(self.wire("action", action=action))

    async def send_stop(self, message: str | None = None, *, target: int | None = None) -> int:
        """Stop the turn in progress, or the one of the message `target`. Does not wait."""
        chunk: dict[str, Any] = {"kind": "stop"}
        if message is not None:
            chunk["message"] = message
        if target is not None:
            chunk["targetSeq"] = target
        return await self.post(chunk)

    async def send_close(self) -> int:
        """Ask the run to end after what is in progress. Does not wait."""
        return await self.post(self.wire("close"))

    async def send_head_start(self, messages: Sequence[Message]) -> None:
        """Start the run as a head start does, with the history of the first request.

        For a harness that was made with `start=False`. Returns when it waits for the handover.
        """
        if self.alive:
            raise EverturnError("a head start begins a run: make the harness with start=False")
        boot = {"trigger": "handover-prepare", "headStartMessages": list(messages)}
        await self.start(payload=boot)

    async def send_handover(
        self,
        partial: Message | Sequence[Message],
        *,
        is_final: bool = False,
        message_id: str | None = None,
    ) -> HarnessTurn:
        """Hand over the first step of the answer; returns at the turn-complete.

        Args:
            partial: the step as a UI message, or as model messages in AI SDK JSON.
            message_id: the id it was streamed under; that of the UI message when left out.
        """
        chunk: dict[str, Any] = {"kind": "handover", "isFinal": is_final}
        if isinstance(partial, dict):
            message_id = message_id or partial.get("id")
            chunk["partialAssistantMessage"] = wire_partial(partial, is_final=is_final)
        else:
            chunk["partialAssistantMessage"] = list(partial)
        if message_id is not None:
            chunk["messageId"] = message_id
        return await self.send(chunk)

    async def send_handover_skip(self) -> None:
        """The warm side failed; returns when the run has ended, after a second at most."""
        await self.post({"kind": "handover-skip"})
        with anyio.move_on_after(CLOSE_S_MAX):
            await self.reached(lambda: not self.alive)

    async def _plant_first(self) -> None:
        """What is sent to a chat without a run is newer than all that waits for its next boot."""
        if not self.alive:
            await self._plant()

    async def send(self, chunk: Any) -> HarnessTurn:
        """Append an input and return at the next turn-complete."""
        await self._plant_first()
        tail = (await self.world.streams.bounds(self.world.channel("out"))).tail
        await self.post(chunk)
        return await self.turn_after(tail - 1)
