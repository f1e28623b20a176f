"""Batches as they are said on the wire: two phases (wire-protocol §10).

Phase 1 says how many items will come. Phase 2 carries them, one JSON object a line, in any number
of requests: an item is known by its index, so a client that lost an answer sends all of it again.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, UnsetType

from everturn.errors import InvalidRequest, Unprocessable
from everturn.protocol import nesting


class CreateBatch(msgspec.Struct, kw_only=True, rename="camel"):
    """Body of `POST /api/v3/batches`."""

    run_count: Annotated[int, Meta(ge=1, le=1000)]
    parent_run_id: str | None = None
    resume_parent_on_completion: bool = False
    idempotency_key: Annotated[str, Meta(min_length=1, max_length=2048)] | None = None
    idempotency_key_options: dict[str, Any] | None = None


class WholeItem(msgspec.Struct, kw_only=True):
    """One item of a batch that comes in one request."""

    task: Annotated[str, Meta(min_length=1, max_length=128)]
    payload: Any | UnsetType = UNSET
    options: dict[str, Any] = {}


class WholeBatch(msgspec.Struct, kw_only=True):
    """Body of `POST /api/v2/tasks/batch`."""

    items: Annotated[list[WholeItem], Meta(min_length=1, max_length=500)]


class BatchItem(msgspec.Struct, kw_only=True):
    """One line of phase 2; `payload` and `options` are those of a trigger (§9.1)."""

    index: int
    task: Annotated[str, Meta(min_length=1, max_length=128)]
    payload: Any | UnsetType = UNSET
    options: dict[str, Any] = {}

    def body(self) -> dict[str, Any]:
        """The trigger body this item is."""
        body: dict[str, Any] = {"options": self.options}
        if not isinstance(self.payload, UnsetType):
            body["payload"] = self.payload
        return body


def parse_line(line: bytes, run_count: int) -> BatchItem:
    """One item.

    Raises:
        InvalidRequest: the line is no JSON (400).
        Unprocessable: it is no item, or its index is not one of this batch (422).
    """
    if nesting.too_deep(line):
        raise InvalidRequest(f"Invalid JSON in a batch item: {nesting.TOO_DEEP}")
    try:
        found = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"Invalid JSON in a batch item: {error}") from error
    try:
        item = msgspec.convert(found, BatchItem)
    except msgspec.ValidationError as error:
        raise Unprocessable(f"Invalid batch item: {error}") from error
    if not 0 <= item.index < run_count:
        raise Unprocessable(f"item {item.index} of a batch of {run_count}: indexes start at 0")
    return item
