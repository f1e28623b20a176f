"""A chat whose messages are a tree: edits make siblings, and a reader may switch between them.

    everturn dev examples/branching.py
    everturn chat branching

The tree is the application's; `hydrate_messages` gives the runtime the path that is shown. An edit
names the new message itself: an action that a crash interrupted runs again, and must not make a
second sibling. Its answer is asked for with a regenerate, which makes a sibling too.
"""

from typing import Literal

from pydantic import BaseModel

from everturn import chat


class Edit(BaseModel):  # say something else instead of `message_id`
    type: Literal["edit"]
    message_id: str
    new_id: str
    text: str


class Switch(BaseModel):  # show the branch that `message_id` is on
    type: Literal["switch"]
    message_id: str


class Tree:
    """The messages of one chat, each below the one before it. Stands for a table of yours."""

    def __init__(self):
        self.messages, self.parents, self.leaf = {}, {}, None

    def put(self, message, parent):
        self.messages[message["id"]] = message
        self.parents.setdefault(message["id"], parent)
        self.leaf = message["id"]

    def path(self):
        found, at = [], self.leaf
        while at is not None:
            found.append(self.messages[at])
            at = self.parents[at]
        return found[::-1]

    def switch(self, message_id):
        self.leaf = message_id  # and from there to the newest message below it
        while below := [child for child, parent in self.parents.items() if parent == self.leaf]:
            self.leaf = below[-1]


TREES = {}


@chat.agent("branching", action=Edit | Switch)
async def branching(turn: chat.Turn):
    said = [chat.text_of(m) for m in turn.ui_messages if m["role"] == "user"]
    return f"I heard: {', then '.join(said)}."


@branching.hydrate_messages
def active_path(event: chat.HydrateMessagesEvent):
    tree = TREES.setdefault(event.chat_id, Tree())
    for message in event.incoming_messages:
        tree.put(message, tree.leaf)
    path = tree.path()
    if event.trigger == "regenerate-message" and path and path[-1]["role"] == "assistant":
        tree.leaf = tree.parents[tree.leaf]
    return tree.path()


@branching.on_action
def edit_the_tree(event: chat.ActionEvent):
    tree = TREES[event.chat_id]
    if isinstance(event.action, Switch):
        tree.switch(event.action.message_id)
    else:
        parts = [{"type": "text", "text": event.action.text}]
        sibling = {"id": event.action.new_id, "role": "user", "parts": parts}
        tree.put(sibling, tree.parents[event.action.message_id])
    chat.history.set(tree.path())


@branching.on_before_turn_complete
def keep_the_answer(event: chat.BeforeTurnCompleteEvent):
    """Before the turn is complete: a reload must never miss an answer that was complete."""
    tree = TREES[event.chat_id]
    if event.response_message is not None:
        tree.put(event.response_message, tree.leaf)
