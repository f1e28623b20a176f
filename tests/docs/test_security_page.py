"""`SECURITY.md` names its tests, its settings and its commands; each is there."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from everturn.server.settings import PREFIX, Settings

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "SECURITY.md").read_text()


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`((?:tests|src)/[^`]+)`", PAGE))))
def test_what_the_page_points_to_is_there(name: str) -> None:
    assert list(ROOT.glob(name)), name


def test_every_security_test_is_on_the_page() -> None:
    for path in (ROOT / "tests" / "wire").glob("test_security_*.py"):
        assert f"tests/wire/{path.name}" in PAGE


def test_settings_and_commands_of_the_page_exist() -> None:
    settings = {field.name for field in dataclasses.fields(Settings)}
    for name in re.findall(rf"{PREFIX}(?!FUZZ)([A-Z_]+)", PAGE):
        assert name.lower() in settings
    targets = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`make (\w+)`", PAGE):
        assert f"\n{target}:" in targets


def test_the_page_is_one_page() -> None:
    assert len(PAGE.splitlines()) <= 100
