"""The public names: complete, lazy, and honest about what is missing."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec

import pytest

import everturn

#: Written in a later landing; until then the name says that it is missing.
_MODULES = {name: home.partition(":")[0] for name, home in everturn._HOMES.items()}
_THERE = [name for name in everturn.__all__ if find_spec(_MODULES[name]) is not None]
_MISSING = [name for name in everturn.__all__ if name not in _THERE]


@pytest.mark.parametrize("name", _THERE)
def test_every_name_resolves(name: str) -> None:
    assert getattr(everturn, name) is not None
    assert name in dir(everturn)


def test_what_a_later_version_brings_is_said_to_be_missing() -> None:
    for name in _MISSING:
        with pytest.raises(AttributeError, match=f"everturn.{name} is not part of this version"):
            getattr(everturn, name)


def test_a_name_that_never_was_is_an_ordinary_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        everturn.nonsense  # noqa: B018  # the access is the test


def test_the_list_of_names_and_their_homes_agree() -> None:
    assert set(everturn.__all__) == set(everturn._HOMES)
    assert {"AgentChat", "PendingMessages", "Compaction", "chat", "sessions", "task", "tasks"} <= {
        *everturn.__all__
    }


@pytest.mark.parametrize(
    "program",
    [
        "import everturn",
        "from everturn import AgentChat, sessions, runs, auth, blocking; AgentChat('a', 'b')",
    ],
)
def test_talking_to_agents_loads_no_model_library_database_or_server(program: str) -> None:
    heavy = [
        "pydantic_ai",
        "sqlalchemy",
        "starlette",
        "uvicorn",
        "everturn.server",
        "everturn.chat",
    ]
    look = f"{program}; import sys; print([name for name in {heavy} if name in sys.modules])"
    shown = subprocess.run(
        [sys.executable, "-c", look], capture_output=True, text=True, timeout=60, check=True
    )
    assert shown.stdout == "[]\n"


def test_a_module_that_lacks_something_says_what(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(everturn._HOMES, "broken", "client_broken_module")
    with pytest.raises(ModuleNotFoundError, match="nowhere_to_be_found"):
        everturn.broken  # noqa: B018  # the access is the test
