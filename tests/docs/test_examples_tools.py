"""The examples with tools run as they are written."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from everturn import AgentChat
from everturn.chat.ui_messages import text_of
from everturn.client.config import configure
from everturn.testing.processes import System

EXAMPLES = Path(__file__).parent.parent.parent / "examples"


def test_the_shop_looks_up_packs_asks_and_refunds_with_approval(tmp_path: Path) -> None:
    script = EXAMPLES / "tools_and_approval.py"
    with System(tmp_path, script) as system:
        done = subprocess.run(
            [sys.executable, str(script)],
            env={**os.environ, "EVERTURN_API_URL": system.url, "EVERTURN_SECRET_KEY": system.key},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, f"{done.stderr}\n{system.logs()}"
    for said in (
        'look_up says {"number":7,"status":"paid","total":40}',
        'pack says {"packed":100}',
        'refund says {"refunded":7}',
        "ask_address says 12 Owl Lane",
    ):
        assert said in done.stdout
    assert "'preliminary': True" in done.stdout
    assert "tool-approval-request" in done.stdout


def test_the_lead_shows_how_far_its_researcher_is_and_ends_with_the_answer(tmp_path: Path) -> None:
    async def ask() -> list[dict[str, Any]]:
        async with AgentChat("lead") as chat:
            stream = await chat.send_message("research the colour of owls")
            return [chunk async for chunk in stream]

    with System(tmp_path, EXAMPLES / "research_team.py") as system:
        configure(url=system.url, secret_key=system.key)
        try:
            chunks = asyncio.run(ask())
        finally:
            configure()
    *shown, last = [chunk for chunk in chunks if chunk["type"] == "tool-output-available"]
    assert shown
    assert all(chunk["preliminary"] for chunk in shown)
    assert "preliminary" not in last
    assert text_of(last["output"]).endswith("The answer is 42.")
    answer = "".join(chunk["delta"] for chunk in chunks if chunk["type"] == "text-delta")
    assert answer.startswith("research says I looked into 'research the colour of owls'.")
