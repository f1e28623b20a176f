"""`everturn chat` where an answer asks its reader for a yes or a no."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import Dev, Run

APP = """
from everturn import chat
from everturn.chat.adapters.offline import offline_model
from pydantic import BaseModel
from pydantic_ai import Agent

clerk = Agent(offline_model(delay_ms=0))

class Order(BaseModel):
    number: int

@chat.tool(name="refund", needs_approval=True)
async def refund(order: Order) -> str:
    with open("paid", "a") as paid:
        paid.write(f"{order.number} ")
    return f"order {order.number} is paid back"

@chat.agent("desk", tools=[refund])
async def desk(turn: chat.Turn):
    return turn.stream(clerk, **chat.run_options(tools=turn.tools))
"""

pytestmark = pytest.mark.processes


@pytest.fixture
def desk(folder: Path, dev: Dev) -> Path:
    (folder / "app.py").write_text(APP)
    dev.start()
    return folder / "paid"


def test_a_call_is_carried_out_for_a_typed_yes_and_for_nothing_else(
    desk: Path, everturn: Run
) -> None:
    said = ["refund order 7", "yes", "refund order 8", "No", "refund order 9", "never mind", "yes"]
    done = everturn("chat", "desk", stdin="\n".join(said))
    assert done.returncode == 0, done.stderr
    assert desk.read_text() == "7 "
    assert done.stderr.count("refund waits for your approval: yes or no?") == 3
    assert "order 7 is paid back. (Turn 1" in done.stdout, "the answer went on after the yes"
    assert "You said: 'never mind'" in done.stdout
    assert "You said: 'yes'" in done.stdout, "a yes that nothing waits for is a message"


def test_a_single_message_says_that_its_answer_waits(desk: Path, everturn: Run) -> None:
    done = everturn("chat", "desk", "-m", "refund order 7")
    assert (done.returncode, desk.exists()) == (0, False)
    assert "leave out -m to be asked" in done.stderr
