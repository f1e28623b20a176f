"""Run metadata: one JSON object per run that its code writes and anybody may read.

Reads are local and at once. Writes change the local copy and queue an operation; operations are
sent once a second while there are any, before the run suspends, and before it reports its end.
They are operations and not the whole object, because children and other processes change the
same object (tasks-and-runs §13, wire-protocol §9.8).

Increments and appends made twice would show. So what was sent without hearing of it (the call was
cancelled, the server away) is sent again as it was, under the same key, before anything newer.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol

import anyio
import msgspec

from everturn.errors import EverturnError, InvalidRequest, RequestError
from everturn.ids import Ids
from everturn.rules import limits
from everturn.tasks import codec
from everturn.tasks import runtime as runtimes
from everturn.tasks.bridge import either

log = logging.getLogger("everturn.tasks")

FLUSH_S: Final = 1.0
#: More queued operations than this are replaced by one that sets the whole object: bounded.
OPERATIONS_MAX: Final = 1000

Operation = dict[str, Any]


class Keeper(Protocol):
    """Where metadata is kept: a run's runtime."""

    @property
    def ids(self) -> Ids: ...

    async def change_metadata(
        self, operations: Sequence[Mapping[str, Any]], key: str | None = None
    ) -> None: ...


class MetadataBuffer:
    """The local copy of a run's metadata, and the operations that were not sent yet."""

    def __init__(self, stored: bytes | None) -> None:
        value = msgspec.json.decode(stored) if stored else {}
        self.values: dict[str, Any] = value if isinstance(value, dict) else {}
        self._operations: list[Operation] = []
        #: Key and operations of what was sent and may have been carried out or not.
        self._sent: tuple[str, list[Operation]] | None = None
        #: Made when there is something to send: most runs never write metadata.
        self._sending: anyio.Lock | None = None
        self.on_dirty: Callable[[], None] | None = None

    @property
    def dirty(self) -> bool:
        return bool(self._operations or self._sent)

    def apply(self, operation: Operation) -> None:
        """Change the local copy, and remember to tell the server.

        Raises:
            InvalidRequest: the values are no JSON, or the object would be over
                limits.METADATA_BYTES_MAX.
        """
        after = msgspec.json.decode(codec.encode(self.values))
        plain: Operation = msgspec.json.decode(codec.encode(operation))
        _apply(after, plain)
        if plain["type"] == "update":
            after = plain["value"]
        if not isinstance(after, dict):
            raise InvalidRequest("run metadata is one JSON object")
        size = len(msgspec.json.encode(after))
        if size > limits.METADATA_BYTES_MAX:
            raise InvalidRequest(
                f"run metadata is {size} bytes, at most {limits.METADATA_BYTES_MAX}"
            )
        if after == self.values:
            return
        self.values = after
        self._add(plain)
        if self.on_dirty is not None:
            self.on_dirty()

    def _add(self, operation: Operation) -> None:
        """Queue; a run of sets keeps its last, a run of increments its sum."""
        if self._operations:
            last = self._operations[-1]
            if last["type"] == operation["type"] and last.get("key") == operation.get("key"):
                if operation["type"] in ("set", "update"):
                    self._operations[-1] = operation
                    return
                if operation["type"] == "increment":
                    last["value"] += operation["value"]
                    return
        self._operations.append(operation)
        if len(self._operations) > OPERATIONS_MAX:
            self._operations = [{"type": "update", "value": self.values}]

    async def flush(self, keeper: Keeper) -> None:
        """Send what is queued; durable when it returns. What fails to be sent stays queued."""
        if self._sending is None:
            if not self.dirty:
                return
            self._sending = anyio.Lock()
        async with self._sending:
            while self.dirty:
                await self._send(keeper)

    async def _send(self, keeper: Keeper) -> None:
        if self._sent is None:
            self._sent = keeper.ids.part(), self._operations
            self._operations = []
        key, batch = self._sent
        try:
            await keeper.change_metadata(batch, key)
        except RequestError:
            # Refused, and so not carried out. What is written next may make it fit: they go
            # together, as another request.
            self._sent = None
            self._operations = batch + self._operations
            raise
        self._sent = None


def _apply(values: dict[str, Any], operation: Operation) -> None:
    """One operation on the local copy; the server applies the same rules to its own."""
    kind, key = operation["type"], operation.get("key", "")
    if kind == "update":
        return
    holder, name = _place(values, key, create=kind not in ("delete", "remove"))
    if holder is None:
        return
    if kind == "set":
        holder[name] = operation["value"]
    elif kind == "delete":
        holder.pop(name, None)
    elif kind == "append":
        found = holder.get(name)
        held = found if isinstance(found, list) else [] if found is None else [found]
        holder[name] = [*held, operation["value"]]
    elif kind == "remove":
        found = holder.get(name)
        if isinstance(found, list):
            holder[name] = [item for item in found if item != operation["value"]]
    elif kind == "increment":
        found = holder.get(name)
        number = found if isinstance(found, int | float) and not isinstance(found, bool) else 0
        holder[name] = number + operation["value"]


def _place(values: dict[str, Any], key: str, *, create: bool) -> tuple[dict[str, Any] | None, str]:
    """The object that holds a key, and its name there. `$.a.b` walks objects."""
    if not key.startswith("$."):
        return values, key
    *path, name = key[2:].split(".")
    holder = values
    for part in path:
        inner = holder.get(part)
        if not isinstance(inner, dict):
            if not create:
                return None, name
            inner = holder[part] = {}
        holder = inner
    return holder, name


class RunMetadata:
    """`metadata`: the metadata of the run this code belongs to.

    Outside a run reads give nothing and writes do nothing. Writers return the object itself, so
    they can be chained.
    """

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a key in the local copy."""
        buffer = _buffer()
        if buffer is None:
            return default
        holder, name = _place(buffer.values, key, create=False)
        return default if holder is None else holder.get(name, default)

    def current(self) -> dict[str, Any]:
        """A copy of the whole object."""
        buffer = _buffer()
        if buffer is None:
            return {}
        copy: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(buffer.values))
        return copy

    def set(self, key: str, value: Any) -> RunMetadata:
        """Give a key a value: anything JSON has a form for."""
        return self._write({"type": "set", "key": key, "value": value})

    def delete(self, key: str) -> RunMetadata:
        """Drop a key; a missing one is no error."""
        return self._write({"type": "delete", "key": key})

    def replace(self, value: Mapping[str, Any]) -> RunMetadata:
        """Replace the whole object."""
        return self._write({"type": "update", "value": dict(value)})

    def append(self, key: str, value: Any) -> RunMetadata:
        """Add to a list; a missing key becomes one, a scalar the first of two."""
        return self._write({"type": "append", "key": key, "value": value})

    def remove(self, key: str, value: Any) -> RunMetadata:
        """Drop every equal element of a list."""
        return self._write({"type": "remove", "key": key, "value": value})

    def increment(self, key: str, by: float = 1) -> RunMetadata:
        """Add to a number; a missing key begins at 0."""
        return self._write({"type": "increment", "key": key, "value": by})

    def decrement(self, key: str, by: float = 1) -> RunMetadata:
        """Subtract from a number; a missing key begins at 0."""
        return self.increment(key, -by)

    @either
    async def flush(self) -> None:
        """Return when everything written so far is stored."""
        runtime = runtimes.current_or_none()
        buffer = _buffer()
        if runtime is not None and buffer is not None:
            await buffer.flush(runtime)

    def _write(self, operation: Operation) -> RunMetadata:
        buffer = _buffer()
        if buffer is None:
            return self
        try:
            buffer.apply(operation)
        except EverturnError as error:
            # A progress note must not fail the work it is about (tasks-and-runs §13).
            log.error("metadata.rejected: %s", error)
        return self


def _buffer() -> MetadataBuffer | None:
    from everturn.tasks import scope

    runtime = runtimes.current_or_none()
    return None if runtime is None else scope.of(runtime).metadata


metadata = RunMetadata()
