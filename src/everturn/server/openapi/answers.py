"""The shapes of answers, for the OpenAPI document. A member without a default is always there.

Nothing is encoded with these: handlers build plain dictionaries, and a run of generated requests
against a live server compares what they answer with what is written here. Absent members are
left out and never null, unless a type says so, because clients refuse them (wire-protocol §19).
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

Prefixed = Annotated[str, Meta(pattern="^[a-z]+_[^_]+$")]
Count = Annotated[int, Meta(ge=0)]


class Error(msgspec.Struct):
    """Why a request was refused. `details` names the part of a path or query that is wrong."""

    error: str
    ok: Literal[False] | UnsetType = UNSET
    code: str | UnsetType = UNSET
    closedReason: str | UnsetType = UNSET
    details: list[dict[str, Any]] | UnsetType = UNSET


class WriteError(msgspec.Struct):
    """Why the write endpoint refused an append."""

    code: str
    message: str


class RateLimitError(msgspec.Struct):
    """Too many requests with this credential; `reset` is in milliseconds since the epoch."""

    title: str
    status: Literal[429]
    type: str
    detail: str
    reset: int
    limit: int
    remaining: int
    secondsUntilReset: int
    error: str


class Ok(msgspec.Struct):
    ok: Literal[True]


class Ready(msgspec.Struct):
    ready: Literal[True]


class NotReady(msgspec.Struct):
    ready: Literal[False]
    reason: str


class Success(msgspec.Struct):
    success: Literal[True]


class Id(msgspec.Struct):
    id: str


class Message(msgspec.Struct):
    message: str


class Pagination(msgspec.Struct):
    """Cursors of the neighbouring pages; a page that does not exist has none."""

    next: str | UnsetType = UNSET
    previous: str | UnsetType = UNSET


# --- sessions and channels -----------------------------------------------------------------------


class SessionItem(msgspec.Struct, kw_only=True):
    """A session as lists show it."""

    id: Prefixed
    externalId: str | None
    type: str
    taskIdentifier: str
    currentRunId: str | None
    tags: list[str]
    metadata: dict[str, Any] | None
    closedAt: datetime | None
    closedReason: str | None
    expiresAt: datetime | None
    createdAt: datetime
    updatedAt: datetime


class SessionDetail(SessionItem, kw_only=True):
    """A session with how its runs are triggered."""

    triggerConfig: dict[str, Any]


class CreatedSession(SessionDetail, kw_only=True):
    """A session with its current run and a token for it, good for an hour."""

    runId: Prefixed
    publicAccessToken: str
    isCached: bool


class SessionPage(msgspec.Struct):
    data: list[SessionItem]
    pagination: Pagination


class Continued(msgspec.Struct):
    runId: Prefixed
    swapped: bool


class Link(msgspec.Struct):
    """A link that carries its own credential, good for an hour."""

    presignedUrl: str


class PacketLink(Link):
    """`storagePath` is what a trigger sends in place of the payload."""

    storagePath: str


class Appended(msgspec.Struct):
    ok: Literal[True]
    seq: Count


class AppendedRecords(msgspec.Struct):
    ok: Literal[True]
    seqNums: list[Count]


class ChannelRecord(msgspec.Struct):
    data: Any
    id: str
    seqNum: Count
    headers: list[tuple[str, str]] | UnsetType = UNSET


class ChannelRecords(msgspec.Struct):
    records: list[ChannelRecord]


class StreamVersion(msgspec.Struct):
    version: Literal["v1", "v2"]


class Position(msgspec.Struct):
    seq_num: Count
    timestamp: Count


class Ack(msgspec.Struct):
    """Where an append begins and ends, and where the stream ends."""

    start: Position
    end: Position
    tail: Position


# --- tokens --------------------------------------------------------------------------------------


class TokenClaims(msgspec.Struct):
    """What a client copies into tokens it signs with its secret key."""

    sub: str
    pub: Literal[True]


class Token(msgspec.Struct):
    token: str


# --- tasks and runs ------------------------------------------------------------------------------


class TaskItem(msgspec.Struct):
    id: str
    kind: Literal["task", "agent", "custom-agent"]
    description: str | UnsetType = UNSET
    payloadSchema: Any | UnsetType = UNSET


class TaskList(msgspec.Struct):
    data: list[TaskItem]


class Triggered(msgspec.Struct):
    id: Prefixed
    isCached: bool


class Environment(msgspec.Struct):
    id: str
    name: str


class RunError(msgspec.Struct):
    message: str
    name: str | UnsetType = UNSET
    stackTrace: str | UnsetType = UNSET


RunStatus = Literal[
    "PENDING_VERSION",
    "DELAYED",
    "QUEUED",
    "DEQUEUED",
    "EXECUTING",
    "WAITING",
    "COMPLETED",
    "CANCELED",
    "FAILED",
    "CRASHED",
    "SYSTEM_FAILURE",
    "EXPIRED",
    "TIMED_OUT",
]


class RunItem(msgspec.Struct, kw_only=True):
    """A run as lists and related runs show it."""

    id: Prefixed
    status: RunStatus
    taskIdentifier: str
    isQueued: bool
    isExecuting: bool
    isWaiting: bool
    isCompleted: bool
    isSuccess: bool
    isFailed: bool
    isCancelled: bool
    isTest: bool
    createdAt: datetime
    updatedAt: datetime
    startedAt: datetime | UnsetType = UNSET
    finishedAt: datetime | UnsetType = UNSET
    delayedUntil: datetime | UnsetType = UNSET
    expiredAt: datetime | UnsetType = UNSET
    tags: list[str]
    idempotencyKey: str | UnsetType = UNSET
    version: str | UnsetType = UNSET
    batchId: str | UnsetType = UNSET
    metadata: Any | UnsetType = UNSET
    costInCents: float
    baseCostInCents: float
    durationMs: Count
    depth: Count
    triggerFunction: str


class ListedRun(RunItem, kw_only=True):
    env: Environment


class RunPage(msgspec.Struct):
    data: list[ListedRun]
    pagination: Pagination


class RelatedRuns(msgspec.Struct):
    root: RunItem | UnsetType = UNSET
    parent: RunItem | UnsetType = UNSET
    children: list[RunItem] | UnsetType = UNSET


class RunDetail(RunItem, kw_only=True):
    """A run, whole. A payload that was stored as a packet is a link."""

    attemptCount: Count
    relatedRuns: RelatedRuns
    payload: Any | UnsetType = UNSET
    payloadPresignedUrl: str | UnsetType = UNSET
    output: Any | UnsetType = UNSET
    error: RunError | UnsetType = UNSET


class RunResult(msgspec.Struct):
    """How a finished run ended; `output` is packet text."""

    ok: bool
    id: str
    taskIdentifier: str
    output: str | UnsetType = UNSET
    outputType: str | UnsetType = UNSET
    error: dict[str, Any] | UnsetType = UNSET


class RunMetadata(msgspec.Struct):
    metadata: dict[str, Any]
    metadataType: str | UnsetType = UNSET


# --- batches, wait tokens ------------------------------------------------------------------------


class RunEvent(msgspec.Struct):
    """A change of a run's state."""

    spanId: str
    runId: Prefixed
    taskSlug: str
    message: str
    startTime: str
    duration: Count
    level: str
    kind: str
    isError: bool
    isPartial: bool
    isCancelled: bool


class RunEvents(msgspec.Struct):
    events: list[RunEvent]


class Span(msgspec.Struct):
    """A run in a trace; `children` are spans again."""

    id: str
    runId: Prefixed
    data: dict[str, Any]
    children: list[dict[str, Any]]
    parentId: str | UnsetType = UNSET


class Trace(msgspec.Struct):
    traceId: str
    rootSpan: Span


class RunTrace(msgspec.Struct):
    trace: Trace


class SpanDetail(msgspec.Struct):
    """One span of a trace."""

    spanId: str
    parentId: str | None
    runId: Prefixed
    message: str
    startTime: str
    durationMs: Count
    level: str
    isError: bool
    isPartial: bool
    isCancelled: bool
    events: list[dict[str, Any]]
    entityType: str
    properties: dict[str, Any] | UnsetType = UNSET


class CreatedBatch(msgspec.Struct):
    id: Prefixed
    runCount: Count
    isCached: bool
    idempotencyKey: str | UnsetType = UNSET


class FilledBatch(msgspec.Struct):
    id: Prefixed
    itemsAccepted: Count
    itemsDeduplicated: Count
    sealed: bool
    enqueuedCount: Count
    expectedCount: Count
    runCount: Count


class Processing(msgspec.Struct):
    errors: list[Any]
    completedAt: datetime | UnsetType = UNSET


class BatchDetail(msgspec.Struct, kw_only=True):
    id: Prefixed
    status: Literal["PENDING", "PROCESSING", "COMPLETED"]
    createdAt: datetime
    updatedAt: datetime
    runCount: Count
    runs: list[str]
    processing: Processing
    idempotencyKey: str | UnsetType = UNSET


class BatchResults(msgspec.Struct):
    id: Prefixed
    items: list[RunResult]


class CreatedToken(msgspec.Struct):
    """`url` completes the token without any other credential."""

    id: Prefixed
    isCached: bool
    url: str


class TokenItem(msgspec.Struct, kw_only=True):
    id: Prefixed
    url: str
    status: Literal["WAITING", "COMPLETED", "TIMED_OUT"]
    tags: list[str]
    createdAt: datetime
    idempotencyKey: str | UnsetType = UNSET
    idempotencyKeyExpiresAt: datetime | UnsetType = UNSET
    completedAt: datetime | UnsetType = UNSET
    completedAfter: datetime | UnsetType = UNSET
    timeoutAt: datetime | UnsetType = UNSET


class TokenDetail(TokenItem, kw_only=True):
    """`output` is packet text."""

    output: str | UnsetType = UNSET
    outputType: str | UnsetType | None = UNSET
    outputIsError: bool | UnsetType = UNSET


class TokenPage(msgspec.Struct):
    data: list[TokenItem]
    pagination: Pagination
