"""What a worker is told about a run, and what it reports: the words of tasks and runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec


class TaskDeclaration(msgspec.Struct, frozen=True, kw_only=True):
    """One task as a worker declares it at its hello."""

    task_id: str
    kind: Literal["task", "agent", "custom-agent"] = "task"
    queue: str = ""  # empty: task/<id>
    queue_limit: int | None = None
    #: Wire form, camelCase: retry, maxDuration, maxAttempts, description, payloadSchema, file…
    config: Mapping[str, Any] = {}


class RunInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A claimed run, whole: everything an attempt needs to start. Times are epoch ms."""

    run_id: str
    task_id: str
    environment_id: str
    environment_slug: str
    fence: int
    attempt: int
    #: Attempts that failed in the author's code so far; interruptions are not failures.
    failures: int = 0
    #: True when an attempt of this run was interrupted and its journal is replayed.
    recovered: bool = False
    #: Wire payload, JSON text: server-added members (sessionId, continuation, …) included.
    payload: bytes
    payload_type: str = "application/json"
    session_id: str | None = None
    #: External id or session id: what its channels are named by.
    session_key: str | None = None
    #: The newest committed `.in` cursor the session row knows (rulings §1.10), and, for raw
    #: tasks, what was consumed (rulings §1.16).
    cursor: int | None = None
    decided: tuple[int, ...] = ()
    consumed: int | None = None
    version: str
    queue: str
    max_attempts: int
    max_duration_s: int | None = None
    machine: str | None = None
    tags: tuple[str, ...] = ()
    metadata: bytes | None = None
    created_at_ms: int
    started_at_ms: int
    priority_ms: int = 0
    concurrency_key: str | None = None
    idempotency_key: str | None = None
    parent_run_id: str | None = None
    root_run_id: str | None = None
    depth: int = 0
    is_test: bool = False
    #: `(position, key, result)` of steps done by an interrupted attempt.
    journal: tuple[tuple[int, str, bytes], ...] = ()


OutcomeKind = Literal["completed", "failed", "canceled", "timed_out", "crashed", "interrupted"]


class RunOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """How an attempt ended, as its worker reports it.

    * completed: `output` is set.
    * failed: `error` is set; `retryable` False forbids another attempt, `retry_at_ms` or the
      task's policy says when. `turns` counts turns this run started: a chat run that failed
      before its first one starts no successor (rulings §1.10).
    * interrupted: the worker drained or lost its lease; costs no retry. With `error` the attempt
      gave up by itself, because it could not read what it needs: that counts like a death of
      its process, three of which in a row end the run (rulings §1.8).
    """

    kind: OutcomeKind
    output: bytes | None = None
    output_type: str = "application/json"
    error: Mapping[str, Any] | None = None
    retryable: bool = True
    retry_at_ms: int | None = None
    machine: str | None = None
    metadata: bytes | None = None
    cursor: int | None = None
    decided: tuple[int, ...] = ()
    turns: int = 0


class TokenResult(msgspec.Struct, frozen=True, kw_only=True):
    """A wait token as a run that waits for it sees it (wire-protocol §14)."""

    status: Literal["WAITING", "COMPLETED", "TIMED_OUT"]
    output: bytes | None = None
    output_type: str | None = None


class RunResult(msgspec.Struct, frozen=True, kw_only=True):
    """A finished run as whoever waited for it sees it (wire-protocol §9.9)."""

    run_id: str
    task_id: str
    ok: bool
    status: str
    output: bytes | None = None
    output_type: str | None = None
    error: Mapping[str, Any] | None = None
