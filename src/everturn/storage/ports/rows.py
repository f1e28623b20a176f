"""What the port of state hands out and takes: its rows, and what new ones are made from.

Frozen snapshots: a row says what was true when it was read. Times are milliseconds since the
epoch. The verbs that read and change them are in `state.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Generic, Literal, TypeVar

import msgspec

from everturn.errors import Unprocessable
from everturn.protocol.records import InputCursor
from everturn.rules import limits
from everturn.rules.run_states import RunState
from everturn.storage.ports.debouncing import Debounce, expiry_ms
from everturn.storage.ports.texts import Texts

T = TypeVar("T")


class Environment(msgspec.Struct, frozen=True, kw_only=True):
    id: str  # cuid without prefix: it is the `sub` of tokens
    slug: str  # dev | prod | staging | preview/<branch>
    created_at_ms: int

    @property
    def type(self) -> str:
        """dev, prod, stg or preview: the middle of its keys (`tr_<type>_…`)."""
        return self.slug.partition("/")[0]


class ApiKey(msgspec.Struct, frozen=True, kw_only=True):
    """A secret key at rest: the plain text is only in `ciphertext` (rulings §4.1)."""

    id: str
    environment_id: str
    sha256: str
    ciphertext: bytes
    hint: str  # the first characters, for lists: "tr_dev_ab…"
    created_at_ms: int
    revoked_at_ms: int | None = None


class Session(msgspec.Struct, frozen=True, kw_only=True):
    id: str  # session_…
    environment_id: str
    external_id: str | None
    type: str
    task_id: str
    trigger_config: Mapping[str, Any]  # wire form, camelCase
    tags: tuple[str, ...]
    metadata: Mapping[str, Any] | None
    created_at_ms: int
    updated_at_ms: int
    expires_at_ms: int | None = None
    closed_at_ms: int | None = None
    closed_reason: str | None = None
    current_run_id: str | None = None
    #: Highest fence ever handed to a run of this session. Rises for the session's whole life.
    fence: int = 0
    #: The newest committed `.in` cursor a finished run reported (rulings §1.10).
    cursor: InputCursor = InputCursor()

    @property
    def key(self) -> str:
        """What its channels and tokens are named by: the external id if there is one."""
        return self.external_id if self.external_id is not None else self.id

    def status(self, now_ms: int) -> str:
        """CLOSED, EXPIRED or ACTIVE (wire-protocol §4.1)."""
        if self.closed_at_ms is not None:
            return "CLOSED"
        if self.expires_at_ms is not None and self.expires_at_ms <= now_ms:
            return "EXPIRED"
        return "ACTIVE"


WaitKind = Literal["channel", "until", "run", "token"]


class Wait(Texts, frozen=True, kw_only=True):
    """What a suspended run waits for. Any wait may also have an end: `until_ms`.

    * channel: a record of its session's `in` with `seq_num > after` (`ref` is the session key)
    * until: the clock only
    * run: the run named by `ref` becoming final
    * token: the wait token named by `ref` being completed, or timing out by its own clock
    """

    kind: WaitKind
    ref: str = ""
    after: int | None = None
    until_ms: int | None = None


class NewRun(Texts, frozen=True, kw_only=True):
    id: str
    task_id: str
    payload: bytes  # JSON text (or packet text by payload_type)
    queue: str
    payload_type: str = "application/json"
    session_id: str | None = None
    #: The first message of the session, to become its first `.in` record (rulings §1.4).
    boot_input: bytes | None = None
    continuation: bool = False
    previous_run_id: str | None = None
    concurrency_key: str | None = None
    priority_ms: int = 0
    not_before_ms: int | None = None
    #: Queue position in ms; the time of creation unless it inherits its parent's.
    queued_at_ms: int | None = None
    lock_version: str | None = None
    max_attempts: int | None = None
    max_duration_s: int | None = None
    machine: str | None = None
    tags: tuple[str, ...] = ()
    metadata: bytes | None = None
    idempotency_key: str | None = None
    idempotency_expires_ms: int | None = None
    #: The user's own key and scope, for display.
    idempotency_options: Mapping[str, Any] | None = None
    #: Of one HTTP call over its retries: a second create with it answers the first run.
    request_key: str | None = None
    #: Until when the request key finds the run; None: as long as the run is kept.
    request_expires_ms: int | None = None
    #: How long it may wait for its first start, counted from the end of its delay.
    ttl_ms: int | None = None
    debounce: Debounce | None = None
    parent_run_id: str | None = None
    root_run_id: str | None = None
    depth: int = 0
    trigger_function: str = "trigger"
    batch_id: str | None = None
    is_test: bool = False


class Run(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    environment_id: str
    task_id: str
    state: RunState
    queue: str
    payload: bytes
    payload_type: str
    created_at_ms: int
    updated_at_ms: int
    queued_at_ms: int
    session_id: str | None = None
    boot_input: bytes | None = None
    continuation: bool = False
    previous_run_id: str | None = None
    concurrency_key: str | None = None
    priority_ms: int = 0
    not_before_ms: int | None = None
    #: Pinned at the first claim, or locked by the trigger.
    version: str | None = None
    worker_id: str | None = None
    #: Fence of the newest claim; for session runs it is unique in the session. 0: never claimed.
    fence: int = 0
    attempt: int = 0
    #: Failures of the author's code so far (interruptions are not failures).
    failures: int = 0
    #: Deaths of its process in a row without progress.
    interruptions: int = 0
    max_attempts: int | None = None
    max_duration_s: int | None = None
    machine: str | None = None
    wait: Wait | None = None
    output: bytes | None = None
    output_type: str | None = None
    error: Mapping[str, Any] | None = None
    tags: tuple[str, ...] = ()
    metadata: bytes | None = None
    idempotency_key: str | None = None
    idempotency_options: Mapping[str, Any] | None = None
    parent_run_id: str | None = None
    root_run_id: str | None = None
    depth: int = 0
    trigger_function: str = "trigger"
    batch_id: str | None = None
    is_test: bool = False
    ttl_ms: int | None = None
    #: When it expires if nobody has claimed it by then.
    expire_at_ms: int | None = None
    #: Names of its streams, in the order of their first values (`services/run_streams.py`).
    streams: tuple[str, ...] = ()
    started_at_ms: int | None = None
    executed_at_ms: int | None = None
    finished_at_ms: int | None = None


class Holding(msgspec.Struct, frozen=True, kw_only=True):
    """A run that is a worker's by its row, without what it carries."""

    run_id: str
    fence: int
    state: RunState


def queued_run(environment_id: str, new: NewRun, *, now_ms: int) -> Run:
    """The row a new run starts as, on every engine: QUEUED, nothing claimed, nothing tried."""
    return Run(
        id=new.id,
        environment_id=environment_id,
        task_id=new.task_id,
        state=RunState.QUEUED,
        queue=new.queue,
        payload=new.payload,
        payload_type=new.payload_type,
        created_at_ms=now_ms,
        updated_at_ms=now_ms,
        queued_at_ms=now_ms if new.queued_at_ms is None else new.queued_at_ms,
        session_id=new.session_id,
        boot_input=new.boot_input,
        continuation=new.continuation,
        previous_run_id=new.previous_run_id,
        concurrency_key=new.concurrency_key or None,
        priority_ms=new.priority_ms,
        not_before_ms=new.not_before_ms,
        version=new.lock_version,
        max_attempts=new.max_attempts,
        max_duration_s=new.max_duration_s,
        machine=new.machine,
        tags=new.tags,
        metadata=new.metadata,
        idempotency_key=new.idempotency_key,
        idempotency_options=new.idempotency_options,
        parent_run_id=new.parent_run_id,
        root_run_id=new.root_run_id,
        depth=new.depth,
        trigger_function=new.trigger_function,
        batch_id=new.batch_id,
        is_test=new.is_test,
        ttl_ms=new.ttl_ms,
        expire_at_ms=expiry_ms(new.ttl_ms, max(now_ms, new.not_before_ms or 0)),
    )


class NewSession(Texts, frozen=True, kw_only=True):
    id: str
    external_id: str | None
    type: str
    task_id: str
    trigger_config: Mapping[str, Any]
    tags: tuple[str, ...] = ()
    metadata: Mapping[str, Any] | None = None
    expires_at_ms: int | None = None


class OpenedSession(msgspec.Struct, frozen=True, kw_only=True):
    session: Session
    run: Run
    created: bool  # the session row is new
    run_created: bool


class TaskVersion(Texts, frozen=True, kw_only=True):
    """One task as one version of the code declares it."""

    task_id: str
    kind: Literal["task", "agent", "custom-agent"] = "task"
    queue: str = ""  # empty: task/<id>
    queue_limit: int | None = None
    #: Retry policy, limits, schema, description: what the server needs to know, wire form.
    config: Mapping[str, Any] = {}


class Worker(Texts, frozen=True, kw_only=True):
    id: str  # made by the worker process, new at each start of it
    environment_id: str
    version: str
    server_id: str
    lease_until_ms: int
    registered_at_ms: int
    draining: bool = False


class SessionFilter(Texts, frozen=True, kw_only=True):
    types: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()  # any of
    task_ids: tuple[str, ...] = ()
    external_id: str | None = None
    statuses: tuple[str, ...] = ()  # any of ACTIVE CLOSED EXPIRED
    created_from_ms: int | None = None
    created_to_ms: int | None = None


class RunFilter(Texts, frozen=True, kw_only=True):
    states: tuple[RunState, ...] = ()
    #: Of QUEUED runs only those whose delay lies ahead at `delayed_at_ms` (True), or all others.
    delayed: bool | None = None
    delayed_at_ms: int = 0
    task_ids: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()  # any of
    versions: tuple[str, ...] = ()
    queues: tuple[str, ...] = ()
    machines: tuple[str, ...] = ()
    session_id: str | None = None
    batch_id: str | None = None
    is_test: bool | None = None
    created_from_ms: int | None = None
    created_to_ms: int | None = None


def is_delayed(run: Run, at_ms: int) -> bool:
    """Whether a queued run is held back by its own delay: never claimed, its time to come."""
    return run.attempt == 0 and run.not_before_ms is not None and run.not_before_ms > at_ms


def check_streams(run: Run) -> None:
    """Raise Unprocessable when a run has as many streams as it may."""
    if len(run.streams) >= limits.RUN_STREAMS_MAX:
        raise Unprocessable(
            f"a run has at most {limits.RUN_STREAMS_MAX} streams",
            streams_max=limits.RUN_STREAMS_MAX,
        )


class Page(msgspec.Struct, Generic[T], frozen=True, kw_only=True):
    """Newest first. A cursor is the id of a boundary row, or None where the list ends."""

    items: tuple[T, ...]
    next: str | None = None
    previous: str | None = None


#: Builds the run of a session from its row: `(session, id of the run it replaces or None)`.
#: Pure, and may be called again when a transaction is retried.
MakeRun = Callable[[Session, str | None], NewRun]
