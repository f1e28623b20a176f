"""Who may do what: the caller of a request, and what each action needs (wire-protocol §3.5).

A secret key opens everything in its environment. A public token opens what its scopes name, and
some actions are refused to it whatever its scopes say (rulings §4.2). An action lists its
resources as alternatives: any one suffices. Both forms of a session's id are alternatives, so a
token for either form opens the session under both.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

from everturn.errors import NotAllowed
from everturn.protocol.tokens import grants

Action = Literal["read", "write", "trigger", "batchTrigger", "admin"]
#: `(type, id)`; without an id the whole collection is asked for.
Resource = tuple[str, str | None]

UNAUTHORIZED: Final = "Unauthorized"


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, after authentication."""

    environment_id: str
    #: True for a secret key, False for a public token.
    is_secret: bool
    scopes: tuple[str, ...] = ()
    #: SHA-256 of a one-time-use token: it may start one run (§3.6).
    one_time_use: str | None = None
    #: Columns a token hides from run rows.
    skip_columns: tuple[str, ...] = ()
    #: When the credential stops to work; None for one that has no time of its own.
    expires_at_ms: int | None = None
    #: What rate limits are counted by; never the credential itself.
    rate_key: str = ""


def session_resources(*forms: str | None) -> tuple[Resource, ...]:
    """The forms of one session's id as alternatives, doubles and absent ones left out."""
    return tuple(("sessions", form) for form in dict.fromkeys(forms) if form is not None)


def run_resources(
    run_id: str, task_id: str, tags: Iterable[str] = (), batch_id: str | None = None
) -> tuple[Resource, ...]:
    """What opens one run: itself, its task, any of its tags, its batch."""
    batch: tuple[Resource, ...] = () if batch_id is None else (("batch", batch_id),)
    return (("runs", run_id), ("tasks", task_id), *(("tags", tag) for tag in tags), *batch)


def may(caller: Caller, action: Action, resources: Iterable[Resource]) -> bool:
    """Whether the caller may do this to at least one of the resources."""
    return caller.is_secret or any(
        grants(caller.scopes, action, kind, name) for kind, name in resources
    )


def require(caller: Caller, action: Action, resources: Iterable[Resource]) -> None:
    """Raise NotAllowed unless one of the resources is open to the caller."""
    if not may(caller, action, resources):
        raise NotAllowed(UNAUTHORIZED)


def require_secret(caller: Caller, message: str = UNAUTHORIZED) -> None:
    """Raise NotAllowed for a public token, whatever its scopes (rulings §4.2)."""
    if not caller.is_secret:
        raise NotAllowed(message)
