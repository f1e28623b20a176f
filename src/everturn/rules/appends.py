"""What may be appended to a channel at all, whatever the channel already holds.

Every stream engine asks here before it looks at its own state, so that all of them refuse the
same things with the same words.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from everturn.errors import InvalidRequest, TooLarge
from everturn.protocol.records import NewRecord, metered_bytes
from everturn.rules import limits

#: Fences fit a JSON number exactly.
FENCE_MAX: Final = (1 << 53) - 1


def check_append(records: Sequence[NewRecord], fence: int | None, first_part: int | None) -> int:
    """The metered bytes of a batch that may be appended.

    Raises:
        TooLarge: a record, a part id or the number of records is over its limit.
        InvalidRequest: an empty batch, a fence without part numbers or the reverse, numbers out
            of range, or text that has no UTF-8 form.
    """
    if not records:
        raise InvalidRequest("an append needs at least one record")
    if len(records) > limits.BATCH_RECORDS_MAX:
        raise TooLarge(
            f"{len(records)} records in one append, at most {limits.BATCH_RECORDS_MAX}",
            what="batch",
            records=len(records),
            records_max=limits.BATCH_RECORDS_MAX,
        )
    if fence is not None:
        check_fence(fence)
    if (fence is None) != (first_part is None):
        raise InvalidRequest("a lease holder names its fence and its first part, a guest neither")
    if first_part is not None and first_part < 0:
        raise InvalidRequest(f"parts are numbered from 0, not {first_part}")
    total = 0
    for index, record in enumerate(records):
        body = record.body
        if type(body) is not bytes:  # stored as anything else, it could not be read back
            raise InvalidRequest(f"the body of record {index} is no bytes object")
        size = 8 + len(body)
        if record.headers:
            size = _metered(index, record)
        if size > limits.RECORD_BYTES_MAX:
            raise TooLarge(
                f"record {index} is {size} bytes, at most {limits.RECORD_BYTES_MAX}",
                what="record",
                index=index,
                bytes=size,
                bytes_max=limits.RECORD_BYTES_MAX,
            )
        if fence is None and record.part_id is not None:
            _check_part_id(index, record.part_id)
        total += size
    return total


def check_fence(fence: int) -> None:
    """Raises InvalidRequest unless `fence` is a lease's number (from 1, below 2**53)."""
    if not 1 <= fence <= FENCE_MAX:
        raise InvalidRequest(f"a fence is a number from 1 to {FENCE_MAX}, not {fence}")


def check_parts(fence: int, first_part: int, count: int) -> None:
    """Raises InvalidRequest or TooLarge for a question about parts that makes no sense."""
    check_fence(fence)
    if first_part < 0 or count < 0:
        raise InvalidRequest(f"parts are numbered from 0, not {count} from {first_part}")
    if count > limits.PARTS_ASKED_MAX:
        raise TooLarge(
            f"{count} parts asked for at once, at most {limits.PARTS_ASKED_MAX}",
            what="parts",
            parts=count,
            parts_max=limits.PARTS_ASKED_MAX,
        )


def _metered(index: int, record: NewRecord) -> int:
    try:
        return metered_bytes(record.headers, record.body)
    except UnicodeEncodeError as error:
        raise InvalidRequest(f"a header of record {index} has no UTF-8 form") from error


def _check_part_id(index: int, part_id: str) -> None:
    if len(part_id) > limits.PART_ID_CHARS_MAX:
        raise TooLarge(
            f"the part id of record {index} has {len(part_id)} characters, "
            f"at most {limits.PART_ID_CHARS_MAX}",
            what="part_id",
            chars=len(part_id),
            chars_max=limits.PART_ID_CHARS_MAX,
        )
    try:
        part_id.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(f"the part id of record {index} has no UTF-8 form") from error
