"""Author functions receive what they declare, however often they are called."""

from __future__ import annotations

import functools
from typing import Any

import pytest

from everturn.chat.hooks import arguments


def nothing() -> None: ...
def event_only(event: Any) -> None: ...
def both(event: Any, ctx: Any) -> None: ...
def by_name(event: Any, *, ctx: Any) -> None: ...
def anything(*args: Any) -> None: ...


@functools.wraps(by_name)
def wrapped(*args: Any, **kwargs: Any) -> None: ...


CASES = [
    (nothing, [], {}),
    (event_only, ["event"], {}),
    (both, ["event"], {"ctx": "ctx"}),
    (by_name, ["event"], {"ctx": "ctx"}),
    (anything, ["event"], {}),
    (wrapped, ["event"], {"ctx": "ctx"}),
    (functools.partial(both, ctx=None), ["event"], {"ctx": "ctx"}),
]


@pytest.mark.parametrize(("function", "positional", "named"), CASES)
def test_a_function_receives_what_it_declares_each_time(
    function: Any, positional: list[str], named: dict[str, str]
) -> None:
    for _ in range(2):
        assert arguments(function, "event", "ctx") == (positional, named)


def test_functions_of_one_source_differ_only_in_what_they_hold() -> None:
    def made(word: str) -> Any:
        return lambda event: (word, event)

    for word in ("a", "b"):
        positional, named = arguments(made(word), "event", "ctx")
        assert made(word)(*positional, **named) == (word, "event")
