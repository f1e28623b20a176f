"""P-1 and P-9 under power loss: the data folder is put back to what had been synced.

A preload library (`power.c`) keeps a second tree beside the data folder of a real server; it holds
the bytes of each file as of its last sync, and nothing else. At a random moment both processes are
killed and the folder is replaced by that tree, or by one that holds any part of the writes that
were not synced besides (`torn.py`). What had been acknowledged must be there.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import anyio
import anyio.to_thread
import pytest
from conversation import Conversations
from torn import replace_torn, tear
from torn_writer import channel, open_streams

from everturn import AgentChat, sessions
from everturn.client.api import Api
from everturn.client.config import configure
from everturn.errors import EverturnError
from everturn.protocol.records import NewRecord, open_envelope
from everturn.storage.sql.state import SqlState
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

    def cut_power(self, torn: random.Random | None = None) -> None:
        """Kill everything; leave of the data folder what was synced.

        With `torn`, leave any part of what was written besides as well, by lot.
        """
        self.system.kill_server()
        self.system.kill_worker()
        if torn is not None:
            replace_torn(self.system.data_dir, self.shadow, torn)
            # The disk holds it now, and the shadow is what the disk holds.
            shutil.rmtree(self.shadow)
            shutil.copytree(self.system.data_dir, self.shadow)
            return
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


@pytest.mark.parametrize("seed", [None, 1, 2, 3], ids=["synced", 1, 2, 3])
async def test_acknowledged_appends_survive_a_power_loss(
    machine: Machine, seed: int | None
) -> None:
    """P-1: ten writers until the power fails; each acknowledged record is where it was put.

    The disk is left with what was synced alone, or, with a seed, with torn writes beyond it.
    """
    torn = None if seed is None else random.Random(seed)
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
        await machine.in_thread(machine.cut_power, torn)
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
        for n in range(4, 8):
            torn = random.Random(n) if n % 2 else None
            await machine.in_thread(machine.cut_power, torn)
            await machine.in_thread(machine.power_on)
            assert await machine.ask(chat, f"m{n}") == f"answer {2 * n + 1}"
        await machine.settled(chat.id, 8)


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


#: Power losses of one data folder, and outcomes of each that are looked at.
LOSSES, OUTCOMES = 6, 6


async def _check(folder: Path, told: dict[tuple[int, int], str], sessions_told: set[str]) -> None:
    """Open both databases as a server does; everything that was told must be there."""
    streams = await open_streams(folder)
    try:
        for number in {number for number, _ in told}:
            stored: dict[int, str] = {}
            after = None
            while page := await streams.read(channel(number), after=after):
                after = page[-1].seq_num
                stored.update((r.seq_num, r.body.split(b" x")[0].decode()) for r in page)
            assert sorted(stored) == list(range(len(stored))), "no record is missing in between"
            mine = {seq: text for (place, seq), text in told.items() if place == number}
            lost = {seq for seq, text in mine.items() if stored.get(seq) != text}
            assert not lost, f"{len(lost)} of {len(mine)} acknowledged records are gone"
            # The tail goes on, under a fence of its own.
            newest = max(stored, default=-1)
            fence = newest + 1_000_000
            await streams.raise_fence(channel(number), fence)
            appended = await streams.append(
                channel(number), [NewRecord(b"after x")], fence=fence, first_part=0
            )
            assert appended.seq_nums == (newest + 1,)
    finally:
        await streams.close()
    state = await SqlState.open(f"sqlite:///{folder / 'state.db'}")
    try:
        environment = await state.ensure_environment("dev", now_ms=1)
        for key in sessions_told:
            session = await state.session(environment.id, key)
            assert session is not None, f"session {key} was acknowledged and is gone"
            assert await state.run(environment.id, f"run_{key}") is not None
    finally:
        await state.close()


def _write_until_killed(
    folder: Path, shadow: Path, library: Path, seed: str, lines_wanted: int
) -> list[str]:
    """Run the writer; kill it when it has told that many lines. Every whole line counts."""
    environment = {
        **os.environ,
        "LD_PRELOAD": str(library),
        "EVERTURN_POWER_ROOT": os.path.realpath(folder),
        "EVERTURN_POWER_SHADOW": os.path.realpath(shadow),
    }
    command = [sys.executable, str(HERE / "torn_writer.py"), str(folder), seed]
    writer = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE)
    assert writer.stdout is not None
    lines: list[bytes] = []
    try:
        while len(lines) < lines_wanted:
            line = writer.stdout.readline()
            assert line, f"the writer ended with {writer.wait()}"
            lines.append(line)
    finally:
        writer.kill()
        lines += writer.stdout.readlines()
        writer.stdout.close()
        writer.wait()
    return [line.decode().rstrip("\n") for line in lines if line.endswith(b"\n")]


@pytest.mark.parametrize("seed", range(3))
async def test_torn_writes_lose_nothing_acknowledged_and_both_databases_open_by_themselves(
    tmp_path: Path, library: Path, seed: int
) -> None:
    """P-1: log, segments and state, power loss after power loss of one folder.

    Compaction and checkpoints run all the time, so that the power fails in the middle of them.
    """
    chance = random.Random(f"torn {seed}")
    live, shadow = tmp_path / "data", tmp_path / "shadow"
    live.mkdir()
    shadow.mkdir()
    told: dict[tuple[int, int], str] = {}
    sessions_told: set[str] = set()
    for loss in range(LOSSES):
        wanted = chance.randrange(20, 900)
        lines = await anyio.to_thread.run_sync(
            _write_until_killed, live, shadow, library, f"{seed}-{loss}", wanted
        )
        for line in lines:
            kind, rest = line.split(" ", 1)
            if kind == "S":
                sessions_told.add(rest)
            else:
                number, seq_num, text = rest.split(" ", 2)
                told[int(number), int(seq_num)] = text
        for outcome in range(OUTCOMES):
            torn = tmp_path / f"torn-{loss}-{outcome}"
            tear(live, shadow, torn, chance)
            await _check(torn, told, sessions_told)
            shutil.rmtree(torn)
        replace_torn(live, shadow, chance)
        shutil.rmtree(shadow)
        shutil.copytree(live, shadow)
    assert len(told) > 100
    assert len(sessions_told) > 10
