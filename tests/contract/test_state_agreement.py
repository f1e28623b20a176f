"""Random calls on the SQL engine and on the memory engine give the same answers.

The memory engine is the executable specification; a seed names a sequence of calls, so a failure
repeats. What the contract suite does not think of, this may.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from state_calls import RandomCalls, answer
from state_calls_kept import KeptCalls

from everturn.storage.memory.state import MemoryState
from everturn.storage.ports.state import StateStore
from everturn.storage.sql.state import SqlState
from everturn.testing.contracts.state_scene import NOW, register

pytestmark = pytest.mark.anyio

CALLS = 400


@pytest.mark.parametrize("kind", [RandomCalls, KeptCalls])
@pytest.mark.parametrize(
    ("engine", "seed"), [*(("sqlite", seed) for seed in range(6)), ("postgresql", 6)]
)
async def test_memory_and_sql_agree(
    kind: type[RandomCalls], engine: str, seed: int, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    calls = kind(seed)
    url = f"sqlite:///{tmp_path}/state.db"
    if engine == "postgresql":
        url = request.getfixturevalue("postgres_url")
    memory: StateStore = MemoryState()
    sql: StateStore = await SqlState.open(url)
    for state in (memory, sql):
        await state.ensure_environment("dev", now_ms=NOW, id="env")
        await register(state, "env", "w0")
    for step in range(CALLS):
        name, call = calls.draw()
        expected = await answer(call, memory)
        assert await answer(call, sql) == expected, f"call {step}: {name}"
    await sql.close()
