"""`chat.local`: a value per run, declared once per app (chat-agent §4.3).

A local is declared at module level and holds nothing itself. Its value belongs to the run that
code is part of, found through the run's context: chats that share a process never see each
other's (R-062), a value lives over turns and suspensions, and a new run starts empty. So it is
set in `on_boot`, which every run, continuation and retry goes through.

Writing an attribute replaces the value by a changed copy: whoever read the value before keeps
what he read, and the flag behind `has_changed` is set. Changing something inside the value is not
seen.

A run started as a tool of this one gets the values along: `locals_for_child` is what travels, in
the child's tool options. There each local is built when it is first used. Nothing comes back.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
from collections.abc import Mapping, MutableMapping
from typing import Any, Final, Generic, TypeVar

import msgspec

from everturn.chat.catalog import Catalog
from everturn.chat.tool_options import options_of
from everturn.errors import ChatContextError, ChatLocalNotInitialized, InvalidRequest
from everturn.tasks import codec, runtime, scope

T = TypeVar("T")
log = logging.getLogger("everturn.chat")
_declared: Final = Catalog("local")


class _Cell:
    """The value of one local in one run."""

    __slots__ = ("changed", "value")

    def __init__(self, value: Any) -> None:
        self.value = value
        self.changed = False


class _Values:
    """The locals of one run: those in use, and those a parent sent that nobody used yet."""

    def __init__(self) -> None:
        self.cells: dict[str, _Cell] = {}
        self.received: dict[str, Any] = {}


class ChatLocal(Generic[T]):
    """A declared local. Its attributes are those of the run's value. Made by `chat.local`.

    Attributes named like the methods here are reached through `get()`.
    """

    __slots__ = ("_id", "_type")
    _id: str
    _type: Any

    def __init__(self, id: str, type_: Any) -> None:
        object.__setattr__(self, "_id", id)
        object.__setattr__(self, "_type", type_)

    def init(self, value: T | Mapping[str, Any]) -> None:
        """Set this run's value; it counts as unchanged from here.

        A mapping is validated into the declared type, anything else is taken as it is.

        Raises:
            ChatContextError: outside of a run.
            ValueError: the mapping does not fit the type.
        """
        values = _values()
        values.received.pop(self._id, None)
        values.cells[self._id] = _Cell(_into(self._type, value))

    def get(self) -> T:
        """A shallow copy of the value. Raises ChatLocalNotInitialized before `init`."""
        value: T = copy.copy(self._cell().value)
        return value

    def has_changed(self) -> bool:
        """Whether an attribute was written since the last call or `init`. Asking clears it.

        False before `init`: nothing has changed then.
        """
        cell = _values().cells.get(self._id)
        if cell is None:
            return False
        changed, cell.changed = cell.changed, False
        return changed

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            # Asked by copying, pickling and inspection: about the local, not about its value.
            raise AttributeError(name)
        value = self._cell().value
        if isinstance(value, Mapping):
            try:
                return value[name]
            except KeyError:
                raise AttributeError(f"local {self._id!r} has no {name!r}") from None
        return getattr(value, name)

    def __setattr__(self, name: str, value: Any) -> None:
        cell = self._cell()
        cell.value = _with(cell.value, name, value)
        cell.changed = True

    def _cell(self) -> _Cell:
        values = _values()
        if self._id in values.received:
            _build(self._id, self._type, values)
        cell = values.cells.get(self._id)
        if cell is None:
            raise ChatLocalNotInitialized(
                f"local {self._id!r} has no value in this run: call its `init` in `on_boot`"
            )
        return cell

    def __repr__(self) -> str:
        return f"<chat local {self._id!r}>"


def local(id: str, type_: type[T]) -> ChatLocal[T]:
    """Declare a value that each run has for itself.

    Args:
        id: unique in the project.
        type_: a pydantic model, dataclass, msgspec struct, or `dict`.

    Raises ConfigurationError when another line declares the id.
    """
    _declared.declare(id)
    return ChatLocal(id, type_)


# --- across runs ----------------------------------------------------------------------------------


def locals_for_child() -> dict[str, Any]:
    """Every value of this run as plain JSON data, by id, for a run started as its tool.

    Values without a JSON form are left out, and so is everything outside of a run.
    """
    if runtime.current_or_none() is None:
        return {}
    values = _values()
    found = dict(values.received)
    for id, cell in values.cells.items():
        try:
            found[id] = codec.decode(codec.encode(cell.value))
        except InvalidRequest:
            found.pop(id, None)
            log.debug("local.unserialisable: %s", id)
    return found


# --- values ---------------------------------------------------------------------------------------


def _values() -> _Values:
    current = runtime.current_or_none()
    if current is None:
        raise ChatContextError("a chat local has a value inside a run only")
    held = scope.of(current).locals
    if _Values not in held:
        held[_Values] = values = _Values()
        # A run that carries out a tool call starts with what its chat sent along.
        options = options_of(current)
        if options is not None:
            values.received.update(options.chat_locals)
    found = held[_Values]
    assert isinstance(found, _Values)
    return found


def _build(id: str, type_: Any, values: _Values) -> None:
    """What a parent sent, as the declared type. Data that does not fit counts as not sent."""
    data = values.received.pop(id)
    try:
        values.cells[id] = _Cell(_into(type_, data))
    except (ValueError, TypeError) as error:
        log.warning("local.unfit: %s: %s", id, error)


def _into(type_: Any, value: Any) -> Any:
    """Plain data as the declared type; anything else as it is."""
    if isinstance(type_, type) and isinstance(value, type_):
        return value
    if isinstance(type_, type) and issubclass(type_, msgspec.Struct):
        return msgspec.convert(value, type_) if isinstance(value, Mapping) else value
    if isinstance(value, Mapping | list | str | int | float | bool | None):
        return codec.validator(type_)(value)
    return value


def _with(value: Any, name: str, new: Any) -> Any:
    """A copy of `value` with one attribute (or key) replaced.

    Frozen values are replaced the way their kind provides for. Raises AttributeError, or the
    type's own validation error, for what the value does not allow.
    """
    if isinstance(value, MutableMapping):
        made = copy.copy(value)
        made[name] = new
        return made
    if isinstance(value, msgspec.Struct):
        return _replaced(msgspec.structs.replace, value, name, new)
    if dataclasses.is_dataclass(value):
        return _replaced(dataclasses.replace, value, name, new)
    if getattr(type(value), "model_config", {}).get("frozen"):
        if name not in type(value).model_fields:
            raise AttributeError(f"{type(value).__name__} has no field {name!r}")
        return value.model_copy(update={name: new})
    made = copy.copy(value)
    setattr(made, name, new)
    return made


def _replaced(replace: Any, value: Any, name: str, new: Any) -> Any:
    try:
        return replace(value, **{name: new})
    except TypeError:
        raise AttributeError(f"{type(value).__name__} has no field {name!r}") from None
