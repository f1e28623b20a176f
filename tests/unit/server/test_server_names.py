"""NUL from outside: kept in what is said, refused in what things are called."""

from __future__ import annotations

from typing import Any

import pytest
from engine_kit import FakeWorker, Kit

from everturn.errors import InvalidRequest, ProtocolError
from everturn.protocol.link import Hello
from everturn.protocol.runs import TaskDeclaration

pytestmark = pytest.mark.anyio

NUL = "a\0b"


async def test_a_payload_and_its_metadata_keep_their_nul() -> None:
    kit = await Kit().open()
    async with kit.worker(credit=1) as worker:
        run, _ = await kit.services.runs.trigger(
            kit.environment, "plain", {"payload": {NUL: NUL}, "options": {"metadata": {NUL: NUL}}}
        )
        info = await worker.claim()

    assert info.run_id == run.id
    assert info.payload == b'{"a\\u0000b":"a\\u0000b"}'
    assert info.metadata == b'{"a\\u0000b":"a\\u0000b"}'


@pytest.mark.parametrize(
    ("options", "member"),
    [
        ({"tags": [NUL]}, "tags"),
        ({"idempotencyKey": NUL}, "idempotency_key"),
        ({"concurrencyKey": NUL}, "concurrency_key"),
        ({"machine": NUL}, "machine"),
        ({"lockToVersion": NUL}, "lock_version"),
        ({"payloadType": NUL}, "payload_type"),
        ({"debounce": {"key": NUL, "delay": "5s"}}, "key"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_a_trigger_with_a_nul_in_a_name_is_refused(
    options: dict[str, Any], member: str
) -> None:
    kit = await Kit().open()
    async with kit.worker(credit=1):
        with pytest.raises(InvalidRequest, match=f"^{member} holds a NUL"):
            await kit.services.runs.trigger(
                kit.environment, "plain", {"payload": 1, "options": options}
            )


@pytest.mark.parametrize(
    "hello",
    [
        Hello(NUL, "v1", [], {}, []),
        Hello("w", NUL, [], {}, []),
        Hello("w", "v1", [TaskDeclaration(task_id=NUL)], {}, []),
        Hello("w", "v1", [TaskDeclaration(task_id="t", queue=NUL)], {}, []),
        Hello("w", "v1", [], {NUL: 1}, []),
    ],
    ids=["worker", "version", "task", "its queue", "queue"],
)
async def test_a_worker_with_a_nul_in_a_name_is_told_that_it_breaks_the_protocol(
    hello: Hello,
) -> None:
    kit = await Kit().open()
    worker = FakeWorker("w")
    worker.send(hello)

    with pytest.raises(ProtocolError, match="holds a NUL"):
        await kit.services.links.serve(kit.environment, worker)
