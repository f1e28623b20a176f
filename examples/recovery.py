"""After a crash in mid-answer: look at what was left, and decide how to go on.

    everturn dev examples/recovery.py
    everturn chat careful

Without the hook a message whose answer was cut short is answered again, or, when its run is gone
for good, the partial answer stays in the history and the next message goes on from there. An agent
that acts on the world may want to look first: which calls were in progress, did they happen? The
hook runs before `on_boot`; what it writes, readers see before anything else.
"""

from everturn import chat

DONE = set()  # tool call ids that really happened; stands for a table of yours


@chat.agent("careful")
async def careful(turn: chat.Turn):
    yield f"I know of {len(turn.ui_messages)} messages. "
    yield "Done."


@careful.on_recovery_boot
def look_first(event: chat.RecoveryBootEvent):
    unsure = [call for call in event.pending_tool_calls if call["tool_call_id"] not in DONE]
    if not unsure:
        return None  # the default is right
    names = ", ".join(call["tool_name"] for call in unsure)
    event.writer.data("recovered", {"text": f"I was interrupted during: {names}"})
    # Only what is settled; the questions that are still open are answered after it.
    return chat.RecoveryOverrides(chain=event.settled_messages)
