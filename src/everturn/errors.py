"""Every exception of ours, sorted by what the caller should do next.

EverturnError                  .code (stable, listed in PROTOCOL.md), .details (no secrets)
├── RequestError               change the request; trying again is useless
│   ├── InvalidRequest         the request is malformed
│   │   └── TooLarge           something is over its limit; names the size and the limit
│   ├── Unprocessable          well formed, but a rule of the domain forbids it
│   ├── NotAuthenticated       no or a bad credential
│   ├── NotAllowed             the credential does not open this
│   ├── NotFound               SessionNotFound, RunNotFound, TaskNotFound
│   └── Conflict               SessionClosedError, CursorTrimmed(.first_seq_num)
├── Fenced, LeaseLost          stop and write nothing: another worker owns this run
├── Unavailable                try again after .retry_after_s; the outcome may be unknown
├── ApiError                   a server answered with an error: .status, .body
│   └── (client side mirror)
├── RunContextError            NotInRunError, ChatContextError: called in the wrong place
├── AgentError                 the author's code failed; FatalAgentError: no further attempt
├── StreamError                ChatTurnError, StreamAlreadyConsumed, UIMessageStreamError, …
├── WaitTimeoutError           a wait ended without its event; InputStreamTimeoutError
└── ProtocolError              the other side broke PROTOCOL.md

`Suspend`-like control flow is not here: it derives from BaseException and never leaves `worker/`.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar


class EverturnError(Exception):
    """Root of all exceptions of this package.

    Attributes:
        code: stable machine-readable name.
        details: typed facts about this occurrence; never a secret or a message body.
    """

    code: ClassVar[str] = "error"

    def __init__(self, message: str = "", **details: Any) -> None:
        super().__init__(message or type(self).__name__)
        self.message = message or type(self).__name__
        self.details = details


class RequestError(EverturnError):
    """The request must change; repeating it unchanged is useless.

    Attributes:
        headers: of the answer, in lower case, where a server said so over HTTP.
    """

    code = "request_error"
    headers: Mapping[str, str] = MappingProxyType({})


class InvalidRequest(RequestError):
    code = "invalid_request"


class TooLarge(InvalidRequest):
    """Something is over its limit. `.details`: what, bytes, bytes_max."""

    code = "too_large"


class Unprocessable(RequestError):
    """Well formed, but a rule of the domain forbids it (HTTP 422)."""

    code = "unprocessable"


class NotAuthenticated(RequestError):
    code = "not_authenticated"


class NotAllowed(RequestError):
    code = "not_allowed"


class NotFound(RequestError):
    code = "not_found"


class SessionNotFound(NotFound):
    code = "session_not_found"


class RunNotFound(NotFound):
    code = "run_not_found"


class TaskNotFound(NotFound):
    code = "task_not_found"


class Conflict(RequestError):
    code = "conflict"


class SessionClosedError(Conflict):
    """The session is closed or expired: it accepts no input. `.details`: reason."""

    code = "session_closed"


class CursorTrimmed(Conflict):
    """Records right after the cursor were forgotten. `.first_seq_num` is the oldest one left."""

    code = "cursor_trimmed"

    def __init__(self, first_seq_num: int) -> None:
        super().__init__(
            f"records before {first_seq_num} were trimmed", first_seq_num=first_seq_num
        )
        self.first_seq_num = first_seq_num


class Fenced(EverturnError):
    """A newer lease has written here. The caller must stop and write nothing more."""

    code = "fenced"


class LeaseLost(EverturnError):
    """This worker no longer owns the run."""

    code = "lease_lost"


class Unavailable(EverturnError):
    """Try again later; whether the call took effect may be unknown."""

    code = "unavailable"

    def __init__(self, message: str = "", *, retry_after_s: float = 1.0, **details: Any) -> None:
        super().__init__(message, **details)
        self.retry_after_s = retry_after_s


class ApiError(EverturnError):
    """A server answered with an error status.

    Attributes:
        status: the HTTP status, or None when no answer came.
        body: the decoded error body, if there was one.
        headers: of the answer, in lower case.
    """

    code = "api_error"

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.body = body
        self.headers = dict(headers or {})

    @property
    def reset_at_ms(self) -> int | None:
        """When a rate limit that refused the call lets calls through again, in epoch ms.

        None unless the answer was a 429 that names limit, remainder and reset.
        """
        headers = self.headers
        reset = headers.get("x-ratelimit-reset", "")
        named = "x-ratelimit-limit" in headers and "x-ratelimit-remaining" in headers
        if (
            self.status != 429
            or not named
            or not (reset.isascii() and reset.isdigit() and len(reset) <= 18)
        ):
            return None
        return int(reset)


class RunContextError(EverturnError):
    """Called in the wrong place."""

    code = "run_context"


class NotInRunError(RunContextError):
    """Only code inside a run can wait."""

    code = "not_in_run"


class ChatContextError(RunContextError):
    """A `chat.*` helper was called outside a chat run."""

    code = "not_in_chat"


class ConcurrentWaitError(RunContextError):
    """A second wait was begun while one is pending; use the batch forms."""

    code = "concurrent_wait"


class AgentError(EverturnError):
    """The author's code failed."""

    code = "agent_error"


class FatalAgentError(AgentError):
    """The author's code failed and asks for no further attempt."""

    code = "agent_error_fatal"


class AbortTaskRunError(FatalAgentError):
    """Raised by authors: fail this run now, without a retry."""

    code = "aborted_by_author"


class NonDeterminismError(FatalAgentError):
    """A recovered run did not repeat its journalled steps in their order."""

    code = "non_determinism"


class SubtaskError(AgentError):
    """A child run failed and its result was unwrapped. `.details`: task_id, run_id."""

    code = "subtask_failed"


class StreamError(EverturnError):
    code = "stream_error"


class ChatTurnError(StreamError):
    """The turn ended with an error chunk."""

    code = "turn_failed"


class StreamAlreadyConsumed(StreamError):
    """A stream is read once, in one mode."""

    code = "stream_consumed"


class UIMessageStreamError(StreamError):
    """A chunk does not fit the message being built, such as a delta for an unknown text id."""

    code = "chunk_out_of_place"


class ChatChunkTooLargeError(StreamError):
    """One chunk is larger than a record may be."""

    code = "chunk_too_large"

    def __init__(self, chunk_type: str, chunk_size: int, max_size: int) -> None:
        super().__init__(
            f"a {chunk_type!r} chunk is {chunk_size} bytes, at most {max_size}: "
            "store the value and stream a reference to it",
            chunk_type=chunk_type,
            chunk_size=chunk_size,
            max_size=max_size,
        )
        self.chunk_type = chunk_type
        self.chunk_size = chunk_size
        self.max_size = max_size


class ChatLocalNotInitialized(RunContextError):
    """A `chat.local` was read or written before `init`."""

    code = "local_not_initialized"


class WaitTimeoutError(EverturnError):
    """A wait ended without its event."""

    code = "wait_timeout"


class InputStreamTimeoutError(WaitTimeoutError):
    """No record came within the timeout of a `once`."""

    code = "input_timeout"


class ProtocolError(EverturnError):
    """The other side broke PROTOCOL.md."""

    code = "protocol_error"


class IllegalTransition(EverturnError):
    """A state machine was asked for a transition its table does not hold."""

    code = "illegal_transition"


class StorageCorrupt(EverturnError):
    """Stored bytes fail their check. The message names file and place."""

    code = "storage_corrupt"


class ConfigurationError(EverturnError):
    """The settings cannot work together; one clear line says why."""

    code = "configuration"
