"""Idempotency keys: the same key for the same task finds the same run (tasks-and-runs §9).

The server sees only a digest: SHA-256 of the parts joined with `-`, with the run's id (scope
`run`) and the attempt's number (scope `attempt`) added as further parts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Literal

from everturn.errors import InvalidRequest
from everturn.rules import limits
from everturn.tasks import runtime as runtimes

Scope = Literal["run", "attempt", "global"]
_DIGEST_CHARS = 64


class IdempotencyKey(str):
    """A digest that remembers what it was made of, for display."""

    original: str
    scope: Scope

    def __new__(cls, digest: str, original: str, scope: Scope) -> IdempotencyKey:
        key = super().__new__(cls, digest)
        key.original = original
        key.scope = scope
        return key


def create(key: str | Sequence[str], *, scope: Scope = "run") -> IdempotencyKey:
    """The digest of a key in a scope. Outside a run every scope is `global`.

    Raises:
        InvalidRequest: an empty key, or one over limits.IDEMPOTENCY_KEY_CHARS_MAX characters.
    """
    parts = [key] if isinstance(key, str) else list(key)
    original = "-".join(parts)
    if not original or len(original) > limits.IDEMPOTENCY_KEY_CHARS_MAX:
        raise InvalidRequest(
            f"an idempotency key has 1 to {limits.IDEMPOTENCY_KEY_CHARS_MAX} characters, "
            f"not {len(original)}"
        )
    runtime = runtimes.current_or_none()
    if runtime is not None and scope != "global":
        parts.append(runtime.info.run_id)
        if scope == "attempt":
            parts.append(str(runtime.info.attempt))
    digest = hashlib.sha256("-".join(parts).encode()).hexdigest()
    return IdempotencyKey(digest, original, scope if runtime is not None else "global")


def options(key: str | Sequence[str] | None, ttl: str | None) -> dict[str, Any]:
    """The members of a trigger's wire options for a key as an author passed it.

    A string of 64 characters counts as a digest already and travels unchanged.
    """
    if key is None:
        return {}
    if isinstance(key, IdempotencyKey):
        made = key
    elif isinstance(key, str) and len(key) == _DIGEST_CHARS:
        made = IdempotencyKey(key, key, "global")
    else:
        made = create(key)
    wire: dict[str, Any] = {
        "idempotencyKey": str(made),
        "idempotencyKeyOptions": {"key": made.original, "scope": made.scope},
    }
    if ttl is not None:
        wire["idempotencyKeyTTL"] = ttl
    return wire
