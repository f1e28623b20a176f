"""The history in your own database, beside your users and their orders.

    everturn dev examples/own_database.py
    everturn chat stored                      # kept in chats.sqlite, or $CHAT_DATABASE

`hydrate_messages` gives the runtime the history before every turn; from then on it keeps none of
its own: no snapshot, no replay. Three things make that safe. The question is stored before the
model is asked, so a reload shows it. The answer and `last_event_id` are stored in one transaction,
so a page reads on exactly after the messages it has. And what a tool answered is recorded under
its call id, so it counts once, however often it is delivered.
"""

import json
import os
import sqlite3
from contextlib import closing

from everturn import chat

FILE = os.environ.get("CHAT_DATABASE", "chats.sqlite")
SCHEMA = """CREATE TABLE IF NOT EXISTS chats (id TEXT PRIMARY KEY, messages TEXT, last_event TEXT);
CREATE TABLE IF NOT EXISTS answers (call_id TEXT PRIMARY KEY, output TEXT);"""


def database():
    """Local and quick enough to be used on the loop; yours may be asynchronous."""
    opened = sqlite3.connect(FILE)
    opened.executescript(SCHEMA)
    return closing(opened)


def save(chat_id, messages, last_event=None):
    with database() as db, db:
        db.execute(
            "INSERT INTO chats VALUES (?, ?, ?) ON CONFLICT (id) DO UPDATE SET messages ="
            " excluded.messages, last_event = ifnull(excluded.last_event, last_event)",
            (chat_id, json.dumps(messages), last_event),
        )


def load(chat_id):
    with database() as db:
        row = db.execute("SELECT messages FROM chats WHERE id = ?", (chat_id,)).fetchone()
    return json.loads(row[0]) if row else []


@chat.agent("stored")
async def stored(turn: chat.Turn):
    return f"That is message {len(turn.ui_messages)} of our conversation."


@stored.hydrate_messages
def hydrate(event: chat.HydrateMessagesEvent):
    messages = load(event.chat_id)
    for message in event.incoming_messages:
        for result in chat.history.extract_new_tool_results(message):
            with database() as db, db:
                answer = (result["tool_call_id"], json.dumps(result["output"]))
                db.execute("INSERT OR IGNORE INTO answers VALUES (?, ?)", answer)
    if chat.upsert_incoming_message(messages, event):
        save(event.chat_id, messages)
    return messages


@stored.on_turn_complete
def keep(event: chat.TurnCompleteEvent):
    save(event.chat_id, event.ui_messages, event.last_event_id)
