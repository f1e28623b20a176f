"""What is installed beside us: nothing older than the fixes we know we need.

A database of advisories is asked by `make audit` (pip-audit), which needs the network and changes its
answer from day to day; this file pins what is known, so that a floor cannot sink below a fix unseen.
Whoever learns of an advisory that matters here raises the floor in `pyproject.toml` and adds a line.
"""

from __future__ import annotations

import importlib.metadata
import re
import tomllib
from pathlib import Path
from typing import Any, Final

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]

#: Package -> the first version without a fault that could be reached through us, and which it was.
FIXED: Final = {
    "cryptography": ("44.0.1", "CVE-2024-12797: OpenSSL in the wheels"),
    "h2": ("4.3.0", "CVE-2025-57804: header injection when HTTP/2 is passed on as HTTP/1"),
    "h11": ("0.16.0", "CVE-2025-43859: request smuggling by chunked bodies"),
    "idna": ("3.7", "CVE-2024-3651: quadratic time for crafted names"),
    "mcp": ("1.23.0", "CVE-2025-66416: DNS rebinding on loopback servers"),
    "pydantic": ("2.4.0", "CVE-2024-3772: quadratic time for crafted addresses"),
    "PyJWT": ("2.10.1", "CVE-2024-53861: issuer compared in part"),
    "starlette": ("0.49.1", "CVE-2025-62727: quadratic time for crafted Range headers"),
}


def declared() -> list[Requirement]:
    """Everything that an installation of ours asks for, extras included."""
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    texts = [*project["dependencies"]]
    for extra in project["optional-dependencies"].values():
        texts.extend(extra)
    return [Requirement(text) for text in texts]


def same(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def floor_of(requirement: Requirement) -> Version | None:
    floors = [Version(one.version) for one in requirement.specifier if one.operator == ">="]
    return max(floors, default=None)


@pytest.mark.parametrize("requirement", declared(), ids=str)
def test_every_dependency_has_a_floor_and_comes_from_an_index(requirement: Requirement) -> None:
    assert requirement.url is None
    # `pydantic-ai-slim[openai]` has its floor in the dependencies themselves.
    floors = [floor_of(one) for one in declared() if same(one.name) == same(requirement.name)]
    assert any(floor is not None for floor in floors)


@pytest.mark.parametrize("name", FIXED)
def test_no_floor_lies_below_a_fix_we_know_we_need(name: str) -> None:
    fixed, why = FIXED[name]
    floors = [floor_of(one) for one in declared() if same(one.name) == same(name)]
    for floor in floors:
        if floor is not None:
            assert floor >= Version(fixed), why


@pytest.mark.parametrize("name", FIXED)
def test_what_is_installed_is_not_older_than_the_fix(name: str) -> None:
    """Those that come with another package have no floor of ours: they are looked at here."""
    try:
        installed = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        optional = {same(one.name) for one in declared()}
        assert same(name) in optional | {"idna", "h11"}, f"{name} is not ours any more: strike it"
        return
    fixed, why = FIXED[name]
    assert Version(installed) >= Version(fixed), why
