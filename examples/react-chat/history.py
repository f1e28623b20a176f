"""What pages show before they are connected: the messages of each chat, and where to read on.

The agent writes, the backend reads. Here it is one SQLite file; in your application it is a table
beside your users. `last_event_id` belongs to `messages`: reading on after it adds what is missing.
"""

import json
import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import anyio

FILE = Path(os.environ.get("CHAT_HISTORY", ".everturn/react-chat.sqlite"))
SCHEMA = """CREATE TABLE IF NOT EXISTS chats
    (id TEXT PRIMARY KEY, messages TEXT, last_event_id TEXT, is_answering INTEGER)"""
# Without a cursor of its own a row keeps the one it has: a turn has begun.
SAVE = """INSERT INTO chats VALUES (?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET
    messages = excluded.messages, is_answering = excluded.is_answering,
    last_event_id = ifnull(excluded.last_event_id, last_event_id)"""


class Stored(NamedTuple):
    messages: list[dict[str, Any]]
    last_event_id: str | None
    is_answering: bool


async def save(chat_id: str, messages: list[Any], *, last_event_id: str | None = None) -> None:
    row = (chat_id, json.dumps(messages), last_event_id, last_event_id is None)

    def write() -> None:
        with closing(_open()) as database, database:
            database.execute(SAVE, row)

    await anyio.to_thread.run_sync(write)


async def load(chat_id: str) -> Stored | None:
    def read() -> Any:
        with closing(_open()) as database:
            query = "SELECT messages, last_event_id, is_answering FROM chats WHERE id = ?"
            return database.execute(query, (chat_id,)).fetchone()

    row = await anyio.to_thread.run_sync(read)
    return None if row is None else Stored(json.loads(row[0]), row[1], bool(row[2]))


def _open() -> sqlite3.Connection:
    FILE.parent.mkdir(parents=True, exist_ok=True)
    database = sqlite3.connect(FILE)
    database.execute("PRAGMA journal_mode = WAL")
    database.execute(SCHEMA)
    return database
