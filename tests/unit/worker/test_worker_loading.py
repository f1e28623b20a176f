"""Finding an app, and its version. Every mistake is one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from everturn.clock import SystemClock
from everturn.errors import ConfigurationError
from everturn.worker.loading import load_app, version_of

TASK = """
from everturn.tasks.definition import task

@task(id="{id}")
async def f(payload): ...
"""


def written(folder: Path, name: str, text: str) -> str:
    path = folder / name
    path.write_text(text)
    return str(path)


def problem(app: str) -> str:
    with pytest.raises(ConfigurationError) as caught:
        load_app(app)
    assert "\n" not in caught.value.message
    return caught.value.message


def test_an_app_is_found_by_its_file(tmp_path: Path) -> None:
    app = load_app(written(tmp_path, "found_app.py", TASK.format(id="a")))

    assert list(app.registry.definitions) == ["a"]


def test_a_missing_file_or_module_is_named() -> None:
    assert problem("nowhere/app.py") == "there is no file nowhere/app.py"
    assert problem("no_such_module_of_ours") == "there is no module no_such_module_of_ours"


def test_a_syntax_error_names_file_and_line(tmp_path: Path) -> None:
    path = written(tmp_path, "bad_syntax_app.py", "x = 1\ndef f(:\n")

    assert problem(path).startswith(f"{path}:2: ")


def test_an_import_that_fails_names_its_cause_and_line(tmp_path: Path) -> None:
    path = written(tmp_path, "bad_import_app.py", "x = 1\nimport no_such_package_of_theirs\n")

    said = problem(path)
    assert f"{path}:2" in said
    assert "no_such_package_of_theirs" in said


def test_an_app_that_a_library_refuses_is_named_by_its_own_line(tmp_path: Path) -> None:
    path = written(tmp_path, "refused_app.py", "import anyio\n\nanyio.run(5)\n")

    assert f"{path}:3" in problem(path)


def test_an_app_without_agents_or_tasks_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, "empty_app.py", "x = 1\n")

    assert problem(path) == f"{path} defines no agents and no tasks"


def test_a_duplicate_id_names_both_places(tmp_path: Path) -> None:
    path = written(tmp_path, "twice_app.py", TASK.format(id="a") * 2)

    said = problem(path)
    assert "'a'" in said
    assert f"{path}:4" in said
    assert f"{path}:9" in said


def test_the_version_follows_the_files_and_the_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Conformance 114: identical code is the same version, a change another."""
    monkeypatch.delenv("EVERTURN_VERSION", raising=False)
    path = written(tmp_path, "version_app.py", TASK.format(id="a"))
    clock = SystemClock()
    first = version_of(load_app(path), clock)
    again = version_of(load_app(path), clock)
    written(tmp_path, "version_app.py", TASK.format(id="b"))
    changed = version_of(load_app(path), clock)
    monkeypatch.setenv("EVERTURN_VERSION", "20260101.7")

    assert first == again
    assert first.partition(".")[0].isdigit()
    assert changed != first
    assert version_of(load_app(path), clock) == "20260101.7"
