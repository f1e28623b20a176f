"""P-1 and P-9 under power loss: the data folder is put back to what had been synced.

A preload library (`power.c`) keeps a second tree beside the data folder of a real server; it holds
the bytes of each file as of its last sync, and nothing else. At a random moment both processes are
killed and the folder is replaced by that tree. What had been acknowledged must be there.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest
from conversation import Conversations

from everturn import AgentChat, sessions
from everturn.client.api import Api
from everturn.client.config import configure
from everturn.errors import EverturnError
from everturn.protocol.records import open_envelope
from everturn.testing.processes import System

pytestmark = [pytest.mark.anyio, pytest.mark.processes]

HERE = Path(__file__).parent
APP = HERE.parent / "apps" / "conversations.py"


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    built = tmp_path_factory.mktemp("power") / "power.so"
    source = str(HERE / "power.c")
    compiler = ["cc", "-Wall", "-Werror", "-Wno-stringop-truncation", "-Wno-format-truncation"]
    options = ["-shared", "-fPIC", "-O1"]
    subprocess.run([*compiler, *options, source, "-o", str(built), "-ldl"], check=True)
    return built


class Machine(Conversations):
    """A system whose power can be cut."""

    def __init__(self, system: System, shadow: Path) -> None:
        super().__init__(system)
        self.shadow = shadow

    def cut_power(self) -> None:
        """Kill everything; leave of the data folder what was synced."""
        self.system.kill_server()
        self.system.kill_worker()
        # Logs are not data, and the message of a failing test wants them.
        logs = [(log.name, log.read_bytes()) for log in self.system.data_dir.glob("*.log")]
        shutil.rmtree(self.system.data_dir)
        shutil.copytree(
            self.shadow, self.system.data_dir, ignore=shutil.ignore_patterns("*.copying")
        )
        for name, text in logs:
            (self.system.data_dir / name).write_bytes(text)

    def power_on(self) -> None:
        self.system.start_server()
        self.system.start_worker()


@pytest.fixture
def machine(tmp_path: Path, library: Path) -> Iterator[Machine]:
    data, shadow = tmp_path / "data", tmp_path / "shadow"
    shadow.mkdir()
    preload = {
        "LD_PRELOAD": str(library),
        "EVERTURN_POWER_ROOT": os.path.realpath(data),
        "EVERTURN_POWER_SHADOW": os.path.realpath(shadow),
        "EVERTURN_TEST_LEDGER": str(tmp_path / "ledger"),
    }
    with System(data, APP, environment=preload) as system:
        configure(url=system.url, secret_key=system.key)
        try:
            yield Machine(system, shadow)
        finally:
            configure()


@pytest.mark.parametrize("round", range(3))
async def test_acknowledged_appends_survive_a_power_loss(machine: Machine, round: int) -> None:
    """P-1: ten writers until the power fails; each acknowledged record is where it was put."""
    key = f"power-{uuid.uuid4().hex[:8]}"
    await sessions.start(type="inbox", task="inbox", external_id=key)
    acknowledged: list[tuple[int, str]] = []

    async def write(writer: int) -> None:
        api = Api(tries=1)
        for n in range(10_000):
            text = f"writer {writer} message {n}"
            try:
                seq = await api.append(key, "in", text, part_id=f"{writer}-{n}")
            except EverturnError:
                return
            assert seq is not None
            acknowledged.append((seq, text))

    wanted = random.randrange(30, 300)
    async with anyio.create_task_group() as writers:
        for writer in range(10):
            writers.start_soon(write, writer)
        with anyio.fail_after(60):
            while len(acknowledged) < wanted:
                await anyio.sleep(0.001)
        await machine.in_thread(machine.cut_power)
    await machine.in_thread(machine.power_on)

    stored = {
        record.seq_num: opened[0]
        for record in await machine.records(key, "in")
        if (opened := open_envelope(record.body)) is not None
    }
    lost = [text for seq, text in acknowledged if stored.get(seq) != text]
    assert not lost, f"{len(lost)} of {len(acknowledged)} acknowledged records are gone"


async def test_a_conversation_goes_on_after_a_power_loss_with_all_it_knew(
    machine: Machine,
) -> None:
    """P-1, P-3, P-9: answered turns are not answered again, and history was stored before trims."""
    async with AgentChat("eager", id=f"power-{uuid.uuid4().hex[:8]}") as chat:
        for n in range(4):
            assert await machine.ask(chat, f"m{n}") == f"answer {2 * n + 1}"
        for n in range(4, 7):
            await machine.in_thread(machine.cut_power)
            await machine.in_thread(machine.power_on)
            assert await machine.ask(chat, f"m{n}") == f"answer {2 * n + 1}"
        await machine.settled(chat.id, 7)


async def test_a_turn_that_the_power_loss_interrupted_is_answered_once(machine: Machine) -> None:
    """P-3."""
    async with AgentChat("slow", id=f"power-{uuid.uuid4().hex[:8]}") as chat:
        stream = await chat.send_message("count")
        deltas, cut = 0, False
        async for chunk in stream:
            deltas += chunk["type"] == "text-delta"
            if deltas == 5 and not cut:
                cut = True
                await machine.in_thread(machine.cut_power)
                await machine.in_thread(machine.power_on)
        assert stream.complete
        (turn,) = await machine.settled(chat.id, 1)
    assert turn.error is None, machine.system.logs()
    assert turn.text == "".join(f"w{n} " for n in range(40)), turn.chunks
    assert turn.restarts == 1
