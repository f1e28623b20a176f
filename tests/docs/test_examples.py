"""The examples run as they are written: the app under a real system, the backend as a script."""

from __future__ import annotations

import ast
import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from everturn.client.config import configure
from everturn.testing.asgi import AsgiTransport
from everturn.testing.processes import System

ROOT = Path(__file__).parent.parent.parent
EXAMPLES = ROOT / "examples"


@contextmanager
def serving(folder: Path, example: str) -> Iterator[System]:
    with System(folder, EXAMPLES / example) as system:
        yield system


def run_backend(system: System, example: str) -> list[Any]:
    """Run an example as a script; the values it printed, one a line."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / example)],
        env={
            **os.environ,
            "EVERTURN_API_URL": system.url,
            "EVERTURN_SECRET_KEY": system.key,
        },
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, f"{done.stderr}\n{system.logs()}"
    return [ast.literal_eval(line) for line in done.stdout.splitlines()]


def test_the_inbox_echoes_what_it_is_sent_and_says_goodbye(tmp_path: Path) -> None:
    with serving(tmp_path, "inbox.py") as system:
        assert run_backend(system, "inbox.py") == [
            {"echo": {"hello": "world"}},
            {"said": "goodbye"},
        ]


def test_the_approval_flow_waits_for_each_decision_and_pays(tmp_path: Path) -> None:
    with serving(tmp_path, "approval_flow.py") as system:
        assert run_backend(system, "approval_flow.py") == [
            {"state": "waiting", "for": "manager", "amount": 120},
            {"state": "approved", "by": "manager"},
            {"state": "waiting", "for": "finance", "amount": 120},
            {"state": "approved", "by": "finance"},
            {"state": "paid"},
        ]


def test_the_request_handler_restores_a_chat_from_one_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.delitem(sys.modules, "request_handler", raising=False)
    import request_handler  # type: ignore[import-not-found]  # found on the path set just above

    async def two_requests() -> tuple[dict[str, Any], dict[str, Any]]:
        async with httpx2.AsyncClient(
            transport=AsgiTransport(request_handler.app), base_url="http://handler"
        ) as client:
            first = await client.post("/", json={"chat": "c1", "text": "hello"})
            body = {**first.json(), "chat": "c1", "text": "and again"}
            second = await client.post("/", json=body)
            return first.json(), second.json()

    with serving(tmp_path, "assistant.py") as system:
        configure(url=system.url, secret_key=system.key)
        try:
            first, second = asyncio.run(two_requests())
        finally:
            configure()
    assert first["answer"]
    assert second["answer"]
    assert int(second["last_event_id"]) > int(first["last_event_id"])
