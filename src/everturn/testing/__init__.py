"""Testing agents and tasks without a server, a network or a model (chat-agent §7).

    from everturn import testing

    async def test_it_greets():
        async with testing.mock_chat_agent("assistant") as h:
            turn = await h.send_message("hello")
            assert turn.text == "Hello!"

Everything is imported when it is first used: pytest loads this package in every project that has
everturn installed, and a project that does not test agents should not pay for the model library.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from everturn.testing.clock import VirtualClock as VirtualClock
    from everturn.testing.harness import ChatHarness as ChatHarness
    from everturn.testing.harness import mock_chat_agent as mock_chat_agent
    from everturn.testing.harness_turn import HarnessTurn as HarnessTurn
    from everturn.testing.models import Call as Call
    from everturn.testing.models import Pause as Pause
    from everturn.testing.models import ScriptedModel as ScriptedModel
    from everturn.testing.models import ScriptExhausted as ScriptExhausted
    from everturn.testing.models import scripted_model as scripted_model
    from everturn.testing.task_context import MockTask as MockTask
    from everturn.testing.task_context import run_in_mock_task_context as run_in_mock_task_context

__all__ = [
    "Call",
    "ChatHarness",
    "HarnessTurn",
    "mock_chat_agent",
    "MockTask",
    "Pause",
    "run_in_mock_task_context",
    "scripted_model",
    "ScriptedModel",
    "ScriptExhausted",
    "VirtualClock",
]

#: Public name -> the module of this package that holds it.
_HOMES: Final[dict[str, str]] = {
    "Call": "models",
    "ChatHarness": "harness",
    "HarnessTurn": "harness_turn",
    "MockTask": "task_context",
    "Pause": "models",
    "ScriptExhausted": "models",
    "ScriptedModel": "models",
    "VirtualClock": "clock",
    "mock_chat_agent": "harness",
    "run_in_mock_task_context": "task_context",
    "scripted_model": "models",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'everturn.testing' has no attribute {name!r}")
    value = getattr(import_module(f"everturn.testing.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
