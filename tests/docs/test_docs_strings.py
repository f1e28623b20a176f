"""Every public name says what it does, where an editor and `help` look for it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from types import FunctionType, ModuleType
from typing import Any

import pytest

import everturn
from everturn import chat, chat_server, testing


def described(thing: Any) -> bool:
    """Whether somebody wrote about it; what dataclasses write about themselves does not count."""
    text = inspect.getdoc(thing) or ""
    name = getattr(thing, "__name__", "")
    return len(text) > 10 and not text.startswith(f"{name}(")


def members(kind: type) -> Iterator[tuple[str, Any]]:
    """The public methods and properties that a class of ours defines or inherits from ours."""
    for base in kind.__mro__:
        if base.__module__.partition(".")[0] != "everturn":
            continue
        for name, member in vars(base).items():
            if name.startswith("_"):
                continue
            if isinstance(member, property):
                yield name, member.fget
            elif isinstance(member, FunctionType | classmethod | staticmethod):
                yield name, getattr(member, "__func__", member)


def functions(module: ModuleType) -> Iterator[tuple[str, Any]]:
    """What a public module offers: its `__all__`, or the public things it defines itself."""
    names = getattr(module, "__all__", None)
    for name in names or [name for name in vars(module) if not name.startswith("_")]:
        value = getattr(module, name)
        if names or getattr(value, "__module__", None) == module.__name__:
            yield name, value


def undescribed(path: str, thing: Any) -> list[str]:
    """The names at and below one public name that nobody described."""
    if isinstance(thing, str | int | float | frozenset | tuple):
        return []  # constants, whose comment is beside them
    missing = [] if described(thing) else [path]
    kind = thing if isinstance(thing, type) else type(thing)
    if isinstance(thing, ModuleType):
        for name, value in functions(thing):
            if isinstance(value, type | FunctionType):
                missing += undescribed(f"{path}.{name}", value)
    elif kind.__module__.partition(".")[0] == "everturn":
        missing += [f"{path}.{name}" for name, member in members(kind) if not described(member)]
    return missing


PUBLIC = [
    *((f"everturn.{name}", everturn) for name in everturn.__all__),
    *((f"everturn.chat.{name}", chat) for name in chat.__all__),
    *((f"everturn.testing.{name}", testing) for name in testing.__all__),
    *((f"everturn.chat_server.{name}", chat_server) for name in chat_server.__all__),
]


@pytest.mark.parametrize(("path", "module"), PUBLIC, ids=[path for path, _ in PUBLIC])
def test_a_public_name_says_what_it_does(path: str, module: ModuleType) -> None:
    thing = getattr(module, path.rpartition(".")[2])
    assert undescribed(path, thing) == []
