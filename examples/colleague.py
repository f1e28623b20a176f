"""A colleague who remembers: one conversation with another agent, over many turns.

    everturn dev examples/colleague.py
    everturn chat manager

`research_team.py` asks once and is done. Here the manager has a chat of its own with a specialist,
named after the manager's: the same id is the same session, with all that was said in it, also
after a crash or a deploy. Each run opens it again in `on_boot`; the specialist's run ends when the
manager's does, in `on_complete`. A stop of the manager stops the specialist, by the turn's signal.
"""

from everturn import AgentChat, chat

desk = chat.local("desk", AgentChat)


@chat.agent("specialist")
async def specialist(turn: chat.Turn):
    """Stands for an agent with a model, tools and a long memory."""
    asked = [chat.text_of(m) for m in turn.ui_messages if m["role"] == "user"]
    yield f"so far you have asked me about {' and '.join(asked)}."


@chat.agent("manager")
async def manager(turn: chat.Turn):
    stream = await desk.send_message(turn.text, signal=turn.signal)
    yield "The specialist says: "
    async for chunk in stream:
        if chunk["type"] == "text-delta":
            yield chunk["delta"]
    stream.raise_for_error()


@manager.on_boot
def call_in(event: chat.BootEvent):
    desk.init(AgentChat("specialist", id=f"{event.chat_id}-specialist"))


@manager.on_complete
async def send_home():
    await desk.close()
