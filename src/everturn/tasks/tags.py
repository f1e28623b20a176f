"""`tags.add`: more tags for the run this code belongs to."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from everturn.errors import InvalidRequest, Unprocessable
from everturn.tasks import runtime as runtimes
from everturn.tasks import triggers
from everturn.tasks.bridge import either

log = logging.getLogger("everturn.tasks")


@either
async def add(*tags: str | Sequence[str]) -> None:
    """Add tags to the current run. Over the limit an error is logged and nothing changes.

    Raises:
        NotInRunError: called outside a run.
    """
    runtime = runtimes.current()
    given = [tag for group in tags for tag in ([group] if isinstance(group, str) else group)]
    try:
        cleaned = triggers.clean_tags(given)
        if cleaned:
            await runtime.add_tags(cleaned)
    except (InvalidRequest, Unprocessable) as error:
        log.error("tags.rejected: %s", error)
