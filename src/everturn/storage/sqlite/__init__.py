"""Streams in one SQLite file: a log of group commits, compacted into segments.

`streams.py` is the engine and tells how an append becomes durable; `compaction.py` how records
get from the log to segments; `schema.py` what the file holds.
"""

from everturn.storage.sqlite.streams import SqliteStreams

__all__ = ["SqliteStreams"]
