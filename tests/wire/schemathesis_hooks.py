"""What schemathesis is told beyond the document. Loaded by its command line, not by pytest."""

from __future__ import annotations

import json
from typing import Any

import schemathesis


@schemathesis.serializer("application/x-ndjson")
def lines(context: schemathesis.SerializationContext, value: Any) -> Any:
    """One JSON value a line; what is generated is one line."""
    if isinstance(value, bytes):
        return value
    return json.dumps(value).encode() + b"\n"
