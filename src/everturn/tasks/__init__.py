"""What an author writes runs with: tasks, their context, waits, steps, channels.

`from everturn import tasks` also gives the functions that need no task object in hand:
`tasks.trigger("id", payload)`, `tasks.trigger_and_wait("id", payload)`, and hooks of the whole
app, as in `@tasks.on_failure`. They are resolved on first use, so that importing this package
imports nothing else.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from everturn.tasks.batches import trigger as batch_trigger
    from everturn.tasks.batches import trigger_and_wait as batch_trigger_and_wait
    from everturn.tasks.triggers import start as trigger
    from everturn.tasks.triggers import start_and_wait as trigger_and_wait

    __all__ = ["batch_trigger", "batch_trigger_and_wait", "trigger", "trigger_and_wait"]

_TRIGGERS: Final = {"trigger": "start", "trigger_and_wait": "start_and_wait"}
_BATCHES: Final = {"batch_trigger": "trigger", "batch_trigger_and_wait": "trigger_and_wait"}
_MOMENTS: Final = frozenset(
    {
        "on_start",
        "on_start_attempt",
        "on_success",
        "on_failure",
        "on_complete",
        "on_wait",
        "on_resume",
        "on_cancel",
        "catch_error",
        "init",
        "cleanup",
        "middleware",
    }
)


def __getattr__(name: str) -> Any:
    if name in _TRIGGERS:
        return getattr(import_module("everturn.tasks.triggers"), _TRIGGERS[name])
    if name in _BATCHES:
        return getattr(import_module("everturn.tasks.batches"), _BATCHES[name])
    if name in _MOMENTS:
        return getattr(import_module("everturn.tasks.hooks").hooks, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
