"""What an app offers: its tasks and agents, found by importing it.

A definition registers itself where it is declared, so importing the app's files is all that
finding them takes. An id names one definition of a process: two files that claim the same id fail
at once, with both files in the message, because the server could not tell their runs apart
(tasks-and-runs §3.1).
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Literal, Protocol, runtime_checkable

from everturn.errors import ConfigurationError
from everturn.protocol.runs import TaskDeclaration
from everturn.rules import limits
from everturn.tasks.runtime import RunRuntime

Kind = Literal["task", "agent", "custom-agent"]


@runtime_checkable
class Definition(Protocol):
    """Something a worker can run: a task, or a chat agent."""

    @property
    def task_id(self) -> str:
        """Unique among everything the app defines, whatever its kind."""
        ...

    @property
    def kind(self) -> Kind: ...

    def declaration(self) -> TaskDeclaration:
        """What the server has to know about it."""
        ...

    async def run(self, runtime: RunRuntime) -> bytes | None:
        """Work one attempt. Returns the output as JSON text, None for no output.

        Raises whatever the author's code raised; `tasks.failures` says how exceptions of ours
        change the outcome.
        """
        ...


class Registry:
    """Definitions by id, and declared queues with their limits."""

    def __init__(self) -> None:
        self._definitions: dict[str, Definition] = {}
        self._places: dict[str, str] = {}
        self._queues: dict[str, int | None] = {}

    @property
    def definitions(self) -> Mapping[str, Definition]:
        return MappingProxyType(self._definitions)

    @property
    def queues(self) -> Mapping[str, int | None]:
        """Declared queues and their concurrency limits; None is unlimited."""
        return MappingProxyType(self._queues)

    def place(self, task_id: str) -> str:
        """Where an id was defined: `file:line`."""
        return self._places.get(task_id, "")

    def register(self, definition: Definition, *, place: str | None = None) -> None:
        """Offer a definition under its id.

        Args:
            place: `file:line` of the definition; found from the calling frame when left out.

        Raises:
            ConfigurationError: the id is malformed, or is defined elsewhere too.
        """
        task_id = definition.task_id
        if not task_id or len(task_id) > limits.TASK_ID_CHARS_MAX:
            raise ConfigurationError(
                f"a task id has 1 to {limits.TASK_ID_CHARS_MAX} characters, not {len(task_id)}"
            )
        place = place or author_place()
        earlier = self._places.get(task_id)
        # The very same line again is the same module imported under a second name.
        if earlier is not None and earlier != place:
            raise ConfigurationError(f"task id {task_id!r} is defined twice: {earlier} and {place}")
        self._definitions[task_id] = definition
        self._places[task_id] = place

    def register_queue(self, name: str, concurrency_limit: int | None) -> bool:
        """Declare a queue. False when it was declared before with another limit, which is kept."""
        if name in self._queues:
            return self._queues[name] == concurrency_limit
        self._queues[name] = concurrency_limit
        return True

    def get(self, task_id: str) -> Definition | None:
        return self._definitions.get(task_id)


def author_place() -> str:
    """`file:line` of the nearest frame outside this package."""
    frame = inspect.currentframe()
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if not (module == "everturn" or module.startswith("everturn.")):
            return f"{frame.f_code.co_filename}:{frame.f_lineno}"
        frame = frame.f_back
    return "<unknown>"


_registry = Registry()


def current() -> Registry:
    """The registry that definitions go into right now."""
    return _registry


def register(definition: Definition, *, place: str | None = None) -> None:
    """`current().register(definition)`."""
    _registry.register(definition, place=place)


@contextmanager
def collecting(registry: Registry) -> Iterator[Registry]:
    """Definitions made inside the block go into `registry` instead of the process's own."""
    global _registry
    before, _registry = _registry, registry
    try:
        yield registry
    finally:
        _registry = before
