"""A session as a multi-step approval, no chat: durable for as long as people take to decide.

    everturn dev examples/approval_flow.py
    python examples/approval_flow.py

The task waits suspended between decisions: a restart, a deploy or a weekend changes nothing. Each
decision is a `step`: a run that begins anew after a crash does not ask for it again.
"""

import asyncio

from everturn import sessions, step, task

STEPS = ("manager", "finance")


@task("expense-approval")
async def expense_approval(payload):
    session = sessions.open(payload["sessionId"])
    for name in STEPS:
        decision = await step(name, ask, session, name, payload["amount"])
        if not decision["approved"]:
            await session.out.append({"state": "rejected", "by": name})
            return {"approved": False, "by": name}
        await session.out.append({"state": "approved", "by": name})
    await session.out.append({"state": "paid"})
    return {"approved": True}


async def ask(session, name, amount):
    """Say who is waited for, then wait: suspended, for as long as it takes."""
    await session.out.append({"state": "waiting", "for": name, "amount": amount})
    return (await session.in_.wait(timeout="7d")).unwrap()


async def decide() -> None:
    started = await sessions.start(
        type="approval",
        task="expense-approval",
        trigger_config={"basePayload": {"amount": 120}},
    )
    handle = sessions.open(started.id)
    async for event in handle.out.read(timeout=20):
        print(event)
        if event["state"] == "waiting":
            await handle.in_.send({"approved": True, "by": event["for"]})
        if event["state"] in ("paid", "rejected"):
            break


if __name__ == "__main__":
    asyncio.run(decide())
