"""The session's side of the harness: what is stored, and what a test stores before a run boots."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Literal

import msgspec

from everturn.chat.chunks import message_chunks
from everturn.chat.ui_messages import new_message_id
from everturn.protocol.records import (
    IN_CURSOR_HEADER,
    TURN_COMPLETE,
    NewRecord,
    Record,
    control_record,
    data_body,
    parse_input,
    trim_target,
)
from everturn.testing import harness_covered
from everturn.testing.harness_data import Kept
from everturn.testing.harness_turn import HarnessTurn, raw_chunks
from everturn.testing.runtime import SNAPSHOT, World

Message = dict[str, Any]


class SessionSide(ABC):
    """What outlives the runs of one chat, and how a test looks at it and fills it.

    The `seed_session_…` verbs and `seed_snapshot` are for the next boot: while a run is in
    progress they are kept back until another one starts.
    """

    client_data: Any = None
    chat_id: str = ""

    def __init__(self, world: World) -> None:
        self.world = world
        self.kept = Kept()
        self._seeds: list[Callable[[], Awaitable[object]]] = []

    @property
    @abstractmethod
    def alive(self) -> bool:
        """Whether a run is in progress, waiting ones included."""

    def user(self, message: Message | str) -> Message:
        """A user message; text becomes one with a fresh id."""
        if isinstance(message, dict):
            return message
        parts = [{"type": "text", "text": message}]
        return {"id": new_message_id(self.world.ids), "role": "user", "parts": parts}

    def wire(self, trigger: str, **fields: Any) -> dict[str, Any]:
        """The input chunk of a message record."""
        payload = {"chatId": self.chat_id, "trigger": trigger, **fields}
        payload.setdefault("metadata", self.client_data)
        if payload["metadata"] is None:
            del payload["metadata"]
        else:
            payload["metadata"] = self.kept.portable(payload["metadata"])
        return {"kind": "message", "payload": payload}

    # --- seeding ---------------------------------------------------------------------------------

    async def _for_next_boot(self, seed: Callable[[], Awaitable[object]]) -> None:
        if self.alive:
            self._seeds.append(seed)
        else:
            await seed()

    async def _plant(self) -> None:
        """A run is about to boot, and read what was kept back for it, and what that covers."""
        seeds, self._seeds = self._seeds, []
        for seed in seeds:
            await seed()
        await harness_covered.cover_in(self.world)

    async def seed_snapshot(self, snapshot: Mapping[str, Any]) -> None:
        """What the next boot finds stored. To be seeded before what came after it.

        Records that it covers and that the chat does not have are made up, so that messages come
        after them (`harness_covered`).

        Raises ValueError when it covers more than can be made up.
        """
        data = msgspec.json.encode(snapshot)

        async def seed() -> None:
            await self.world.objects.put(SNAPSHOT, data)
            await harness_covered.cover_out(self.world)

        await self._for_next_boot(seed)

    async def seed_session_out_tail(self, chunks: Sequence[Mapping[str, Any]]) -> None:
        """What the next boot finds on `.out`; `trigger:turn-complete` marks the end of a turn."""
        await self._for_next_boot(lambda: self.seed_out(*chunks))

    async def seed_session_out_partial(self, message: Message) -> None:
        """An answer that the next boot finds unfinished: its chunks, without a `finish`."""
        chunks = [chunk for chunk in message_chunks(message) if chunk["type"] != "finish"]
        await self.seed_session_out_tail(chunks)

    async def seed_session_in_tail(self, messages: Sequence[Message | str]) -> None:
        """User messages (or whole chunks, by their `kind`) that the next boot finds on `.in`.

        They carry no metadata and are numbered from 1: number 0 is a stop that was used up
        before, so that a cursor before all of them can be told from none.
        """

        async def seed() -> None:
            tail = (await self.world.streams.bounds(self.world.channel("in"))).tail
            if tail == 0:
                await self.world.post('{"kind":"stop"}')
            for item in messages:
                whole = isinstance(item, dict) and "kind" in item
                payload = {"chatId": self.chat_id, "trigger": "submit-message"}
                chunk: Any = item
                if not whole:
                    chunk = {"kind": "message", "payload": {**payload, "message": self.user(item)}}
                await self.world.post(msgspec.json.encode(chunk).decode())

        await self._for_next_boot(seed)

    async def seed_out(self, *items: Mapping[str, Any]) -> list[int]:
        """Chunks on `.out` right now, written by nobody in particular.

        A `trigger:turn-complete` marker becomes a control record, with `cursor` as its header.
        """
        made: list[NewRecord] = []
        for item in items:
            if item["type"] == "trigger:turn-complete":
                cursor = item.get("cursor")
                headers = [] if cursor is None else [(IN_CURSOR_HEADER, str(cursor))]
                made.append(control_record(TURN_COMPLETE, headers))
            else:
                part = self.world.ids.part()
                made.append(NewRecord(data_body(msgspec.json.encode(item), part), (), part))
        return list((await self.world.streams.append(self.world.channel("out"), made)).seq_nums)

    async def seed_in(self, *items: Message | str) -> list[int]:
        """User messages (or whole chunks, by their `kind`) on `.in`, right now."""
        seqs = []
        for item in items:
            whole = isinstance(item, dict) and "kind" in item
            chunk = item if whole else self.wire("submit-message", message=self.user(item))
            seqs.append(await self.world.post(msgspec.json.encode(chunk).decode()))
        return seqs

    # --- looking ---------------------------------------------------------------------------------

    async def get_snapshot(self) -> dict[str, Any] | None:
        """The snapshot that was stored last; None before the first."""
        data = await self.world.objects.get(SNAPSHOT)
        found: dict[str, Any] | None = None if data is None else msgspec.json.decode(data)
        return found

    async def records(self, io: Literal["in", "out"] = "out") -> list[Record]:
        """All records ever written, trimmed ones included."""
        return await self.world.read_all(io)

    async def turns(self) -> list[HarnessTurn]:
        """All complete turns so far."""
        found: list[HarnessTurn] = []
        first = 0
        records = await self.records()
        for number, record in enumerate(records):
            if record.control == TURN_COMPLETE:
                turn = records[first : number + 1]
                found.append(await self.turn_of(turn, earlier=records[:first]))
                first = number + 1
        return found

    async def turn_of(self, records: Sequence[Record], *, earlier: Sequence[Record]) -> HarnessTurn:
        """A turn as a test looks at it, made of its records and those before it."""
        inputs = [parse_input(record).payload.get("message") for record in await self.records("in")]
        answers = [m for m in inputs if isinstance(m, dict) and m.get("role") == "assistant"]
        return HarnessTurn(records, earlier=earlier, answers=answers)

    async def trims(self) -> list[int]:
        """What trim commands asked for, in order."""
        targets = [trim_target(r.headers, r.body) for r in await self.records()]
        return [target for target in targets if target is not None]

    @property
    def waitpoints(self) -> list[tuple[int | None, int | None]]:
        """`(after, until_ms)` of every suspension: the cursor waited after, and the time limit."""
        return list(self.world.waits)

    @property
    def waiting_tokens(self) -> list[str]:
        """Ids of wait tokens that the agent made and nobody has completed, oldest first."""
        return self.world.nearby.waiting_tokens

    def complete_token(self, token: str, data: Any = None) -> None:
        """Complete a wait token, as somebody outside would; the first completion counts."""
        self.world.nearby.complete_token(token, data)

    @property
    def started_tasks(self) -> list[tuple[str, Any]]:
        """`(task id, payload)` of every task that the agent started, in order."""
        return list(self.world.nearby.started)

    @property
    def continued(self) -> list[str]:
        """The reasons of end-and-continue calls, in order."""
        return list(self.world.continued)

    async def all_chunks(self) -> list[dict[str, Any]]:
        """Every chunk on `.out`, without control markers."""
        raw = await self.all_raw_chunks()
        return [chunk for chunk in raw if not str(chunk["type"]).startswith("trigger:")]

    async def all_raw_chunks(self) -> list[dict[str, Any]]:
        """Every chunk on `.out`, with control markers between them."""
        return raw_chunks(await self.records())
