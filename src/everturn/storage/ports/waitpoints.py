"""The port of wait tokens: named things that somebody completes once, from anywhere.

A token is PENDING until it is completed or its time is up, and then it stays what it is: the
first completion wins, and later ones change nothing (tasks-and-runs §12.2). Completing is durable
before it is answered; whoever waits is woken afterwards, by a service.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, Protocol

import msgspec

from everturn.storage.ports.texts import Texts

if TYPE_CHECKING:
    from everturn.storage.ports.rows import Page, Run

WaitpointStatus = Literal["WAITING", "COMPLETED", "TIMED_OUT"]


class NewWaitpoint(Texts, frozen=True, kw_only=True):
    id: str  # waitpoint_…
    tags: tuple[str, ...] = ()
    timeout_at_ms: int | None = None
    idempotency_key: str | None = None
    idempotency_expires_ms: int | None = None
    #: Of one HTTP call over its retries; looked at when there is no idempotency key.
    request_key: str | None = None

    @property
    def active_key(self) -> str | None:
        """What finds this token again; None when nothing does."""
        if self.idempotency_key is not None:
            return f"key:{self.idempotency_key}"
        return None if self.request_key is None else f"request:{self.request_key}"


class Waitpoint(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    environment_id: str
    created_at_ms: int
    tags: tuple[str, ...] = ()
    timeout_at_ms: int | None = None
    idempotency_key: str | None = None
    idempotency_expires_ms: int | None = None
    completed_at_ms: int | None = None
    timed_out: bool = False
    #: Packet text, and its type; None when it was completed without data.
    output: bytes | None = None
    output_type: str | None = None

    @property
    def status(self) -> WaitpointStatus:
        """WAITING, COMPLETED or TIMED_OUT (wire-protocol §14)."""
        if self.completed_at_ms is None:
            return "WAITING"
        return "TIMED_OUT" if self.timed_out else "COMPLETED"


def pending_waitpoint(environment_id: str, new: NewWaitpoint, *, now_ms: int) -> Waitpoint:
    """The row a new token starts as, on every engine."""
    return Waitpoint(
        id=new.id,
        environment_id=environment_id,
        created_at_ms=now_ms,
        tags=new.tags,
        timeout_at_ms=new.timeout_at_ms,
        idempotency_key=new.idempotency_key,
        idempotency_expires_ms=new.idempotency_expires_ms,
    )


class WaitpointFilter(Texts, frozen=True, kw_only=True):
    statuses: tuple[WaitpointStatus, ...] = ()  # any of
    tags: tuple[str, ...] = ()  # any of
    idempotency_key: str | None = None
    created_from_ms: int | None = None
    created_to_ms: int | None = None


class WaitpointStore(Protocol):
    """The part of the state port that keeps wait tokens. Any call may raise Unavailable."""

    async def create_waitpoint(
        self, environment_id: str, new: NewWaitpoint, *, now_ms: int
    ) -> tuple[Waitpoint, bool]:
        """Make a token; `(token, False)` when a key found an earlier one.

        A key is free again when its time is over. A completed token keeps its key, so that a wait
        with this key returns at once (tasks-and-runs §12.1).
        """
        ...

    async def waitpoint(self, environment_id: str | None, waitpoint_id: str) -> Waitpoint | None:
        """A token; `environment_id=None` is for the server's own use."""
        ...

    async def waitpoints(
        self,
        environment_id: str,
        where: WaitpointFilter,
        *,
        limit: int,
        after: str | None = None,
        before: str | None = None,
    ) -> Page[Waitpoint]:
        """Newest first. Raises InvalidRequest for a cursor that names no token here."""
        ...

    async def complete_waitpoint(
        self,
        environment_id: str,
        waitpoint_id: str,
        *,
        now_ms: int,
        output: bytes | None = None,
        output_type: str | None = None,
        timed_out: bool = False,
    ) -> tuple[Waitpoint, bool] | None:
        """Complete a token. `(token, False)`, changing nothing, when it is completed already;
        None when there is none."""
        ...

    async def due_waitpoints(self, *, now_ms: int, limit: int) -> Sequence[Waitpoint]:
        """Tokens that are not completed and whose `timeout_at_ms` has passed, oldest first.

        `StateStore.next_due_ms` counts these times too.
        """
        ...

    async def waiting_on_token(self, waitpoint_id: str) -> Sequence[Run]:
        """Suspended runs whose wait is this token."""
        ...
