"""A session without a chat: a task that echoes whatever lands on its input.

    everturn dev examples/inbox.py          # the task
    python examples/inbox.py                # the backend: starts, sends, reads

Between messages the task waits: warm for half a minute, then suspended, without a slot.
"""

import asyncio

from everturn import sessions, task


@task("inbox")
async def inbox(payload):
    session = sessions.open(payload["sessionId"])
    while True:
        # Warm for a while, then suspended: the run costs memory only until the next record.
        result = await session.in_.wait_with_idle_timeout(idle_timeout=30, timeout="1h")
        if not result.ok or result.output == "bye":
            await session.out.append({"said": "goodbye"})
            return {"ended": True}
        await session.out.append({"echo": result.output})


async def backend() -> None:
    session = await sessions.start(type="inbox", task="inbox")
    handle = sessions.open(session.id)
    await handle.in_.send({"hello": "world"})
    await handle.in_.send("bye")
    async for value in handle.out.read(timeout=20):
        print(value)
        if value == {"said": "goodbye"}:
            break


if __name__ == "__main__":
    asyncio.run(backend())
