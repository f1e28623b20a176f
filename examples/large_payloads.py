"""What is too large for a chunk: store it first, stream its id.

    everturn dev examples/large_payloads.py
    everturn chat reports                     # say how many rows: 20000

A chunk is one record and holds about a megabyte; one that is larger fails the turn. So the agent
stores the report where its application serves files, and writes a small data part that says where.
The name is made of the content: a turn that a crash interrupted stores the same file again.
"""

import hashlib
import json
import os
import tempfile
from pathlib import Path

from everturn import chat

STORE = Path(os.environ.get("REPORTS_DIR", tempfile.gettempdir()))


def rows(count):
    return [{"row": number, "text": "measured " * 20} for number in range(count)]


def store(report):
    """Write it, whole or not at all, and return its name. A bucket does as well as a folder."""
    body = json.dumps(report).encode()
    name = f"report-{hashlib.sha256(body).hexdigest()[:16]}.json"
    partial = STORE / f".{name}.{os.getpid()}"
    partial.write_bytes(body)
    partial.rename(STORE / name)
    return name, len(body)


@chat.agent("reports")
async def reports(turn: chat.Turn):
    name, size = store(rows(int(turn.text)))
    yield {"type": "data-report", "id": name, "data": {"url": f"/reports/{name}", "bytes": size}}
    yield f"The report has {size} bytes."
