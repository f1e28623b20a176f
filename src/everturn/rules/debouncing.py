"""The option `debounce` of a trigger, as Python writes it and as the wire has it."""

from __future__ import annotations

import math
from typing import Any, Literal, TypedDict

from everturn.errors import InvalidRequest
from everturn.rules.durations import Duration, parse, written


class _Keyed(TypedDict):
    key: str
    delay: Duration


class Debounce(_Keyed, total=False):
    """Many calls with one `key` become one run, started when none came for `delay`.

    Its payload is that of the first call, or of the last with `mode="trailing"`. Calls put it off to
    `max_delay` after it was made at most.
    """

    mode: Literal["leading", "trailing"]
    max_delay: Duration


def wire_debounce(debounce: Debounce) -> dict[str, Any]:
    """The wire's form, durations in whole seconds, rounded up.

    Raises InvalidRequest for a member that is missing, unknown or no duration.
    """
    unknown = set(debounce) - {"key", "delay", "mode", "max_delay"}
    if unknown or not {"key", "delay"} <= set(debounce):
        raise InvalidRequest("debounce takes key, delay, mode and max_delay; the first two always")
    wire: dict[str, Any] = {"key": debounce["key"], "delay": _seconds(debounce["delay"])}
    if "mode" in debounce:
        wire["mode"] = debounce["mode"]
    if "max_delay" in debounce:
        wire["maxDelay"] = _seconds(debounce["max_delay"])
    return wire


def _seconds(value: Duration) -> str:
    return written(math.ceil(parse(value)))
