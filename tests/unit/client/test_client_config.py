"""Server and key: who says them, and who wins."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from everturn.client import config
from everturn.client.config import ClientConfig, configure, current, resolve, use
from everturn.errors import ConfigurationError


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("EVERTURN_API_URL", "EVERTURN_SECRET_KEY", "EVERTURN_DATA_DIR", "EVERTURN_BRANCH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(config, "_configured", ClientConfig())


def write_dev(folder: Path, content: str | None = None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    dev = {"url": "http://127.0.0.1:9999", "key": "tr_dev_file"}
    (folder / "dev.json").write_text(json.dumps(dev) if content is None else content)


def test_with_nothing_said_it_is_the_local_server_without_a_key() -> None:
    assert current() == ("http://localhost:8030", None, None, None)


def test_the_surrounding_block_wins_over_the_process_and_that_over_the_environment() -> None:
    environ = {"EVERTURN_API_URL": "http://env/", "EVERTURN_SECRET_KEY": "env"}
    process = ClientConfig(url="http://process")
    block = ClientConfig(secret_key="block")
    assert resolve(environ=environ)[:2] == ("http://env", "env")
    assert resolve(process, environ=environ)[:2] == ("http://process", "env")
    assert resolve(block, process, environ=environ)[:2] == ("http://process", "block")


def test_configure_and_use_are_seen_by_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERTURN_SECRET_KEY", "env")
    configure(url="http://process/", branch="b")
    with use(ClientConfig(secret_key="block")):
        assert current() == ("http://process", "block", "b", None)
    assert current() == ("http://process", "env", "b", None)
    configure()
    assert current().url == "http://localhost:8030"


def test_the_file_of_the_development_server_is_the_fallback(tmp_path: Path) -> None:
    write_dev(tmp_path / ".everturn")
    assert current()[:2] == ("http://127.0.0.1:9999", "tr_dev_file")
    write_dev(tmp_path / "elsewhere", '{"url":"http://other","key":"k"}')
    environ = {"EVERTURN_DATA_DIR": str(tmp_path / "elsewhere")}
    assert resolve(environ=environ)[:2] == ("http://other", "k")


def test_the_key_of_the_file_goes_to_its_own_server_only(tmp_path: Path) -> None:
    write_dev(tmp_path / ".everturn")
    assert resolve(ClientConfig(url="https://example.org"), environ={}).secret_key is None
    same = resolve(ClientConfig(url="http://127.0.0.1:9999/"), environ={})
    assert same.secret_key == "tr_dev_file"
    other_key = resolve(ClientConfig(secret_key="tr_prod_x"), environ={})
    assert other_key[:2] == ("http://localhost:8030", "tr_prod_x")


@pytest.mark.parametrize("content", ["", "[]", "\xff"])
def test_a_file_that_is_something_else_is_named(tmp_path: Path, content: str) -> None:
    write_dev(tmp_path / ".everturn", content)
    with pytest.raises(ConfigurationError, match=r"dev\.json"):
        current()
