"""The adapters work with the oldest and the newest releases of the libraries they adapt."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import pytest
from library_environments import ROOT, environment, floor_of, newest_of, run_tests

LIBRARY = "pydantic-ai-slim"
SDK = "openai-agents"
HERE = Path(__file__).parent
PROVIDERS = HERE / "provider_requests_checks.py"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def library_tests() -> list[Path]:
    """Every unit test of a chat that goes through the model library."""
    found = sorted((ROOT / "tests" / "unit" / "chat").glob("test_*.py"))
    return [path for path in found if "pydantic_ai" in path.read_text()]


def with_providers(release: str) -> tuple[str, ...]:
    """What the checks of real requests need; LangGraph has none of its own, and is small."""
    return f"{LIBRARY}[anthropic,openai]=={release}", "langgraph"


def test_chats_work_with_the_oldest_release_of_the_model_library() -> None:
    python = environment("pydantic-ai-oldest", *with_providers(floor_of(LIBRARY)))

    assert " passed" in run_tests(python, [*library_tests(), PROVIDERS])


def test_chats_work_with_the_newest_release_of_the_model_library() -> None:
    newest = newest_of(LIBRARY)
    python = environment("pydantic-ai-newest", *with_providers(newest))
    # The suite that this test is part of is the rest of that run, where it has that release.
    files = [] if version(LIBRARY) == newest else library_tests()

    assert " passed" in run_tests(python, [*files, PROVIDERS])


def test_chats_work_with_the_oldest_and_the_newest_openai_agents_sdk() -> None:
    for release in sorted({floor_of(SDK), newest_of(SDK)}):
        python = environment(f"{SDK}-{release}", f"{SDK}=={release}")

        assert " passed" in run_tests(python, [HERE / "openai_agents_checks.py"])
