"""`sessions`: starting, finding, changing and closing sessions, and opening their channels.

Calls go to the configured server with its secret key (`config.py`).
"""

from __future__ import annotations

import builtins
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Literal, TypeVar

import msgspec

from everturn.client import binding, wire
from everturn.client.api import Api
from everturn.client.channels import InputChannel, OutputChannel
from everturn.client.paging import Listing
from everturn.errors import InvalidRequest, ProtocolError

_InfoT = TypeVar("_InfoT", bound="SessionInfo")
Status = Literal["ACTIVE", "CLOSED", "EXPIRED"]


class SessionInfo(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A session as the server tells it. Times are aware datetimes.

    `trigger_config` keeps its wire names and is None in lists.
    """

    id: str
    external_id: str | None
    type: str
    task_identifier: str
    created_at: datetime
    updated_at: datetime
    tags: tuple[str, ...] = ()
    metadata: Mapping[str, Any] | None = None
    trigger_config: Mapping[str, Any] | None = None
    current_run_id: str | None = None
    closed_at: datetime | None = None
    closed_reason: str | None = None
    expires_at: datetime | None = None

    @property
    def key(self) -> str:
        """What its channels and tokens are named by: the external id if there is one."""
        return self.external_id if self.external_id is not None else self.id


class StartedSession(SessionInfo, frozen=True, kw_only=True, rename="camel"):
    """A session that `start` made or found.

    * `run_id`: its live run. `is_cached`: whether the session existed before.
    * `public_access_token`: reads and writes this session for an hour; fit for a browser.
    """

    run_id: str
    public_access_token: str
    is_cached: bool


class SessionHandle(msgspec.Struct, frozen=True):
    """The two channels of a session, from outside of its runs."""

    id: str
    in_: InputChannel
    out: OutputChannel


async def start(
    *,
    type: str,
    task: str,
    trigger_config: Mapping[str, Any] | None = None,
    external_id: str | None = None,
    tags: Sequence[str] = (),
    metadata: Mapping[str, Any] | None = None,
    expires_at: datetime | timedelta | str | None = None,
    api: Api | None = None,
) -> StartedSession:
    """Create a session with its first run, or find it by its external id.

    Args:
        type: free-form; `chat.agent` for chats.
        task: id of the task its runs run.
        trigger_config: how they are started: `base_payload`, `machine`, `queue`, `tags` (5),
            `max_attempts` (1-10), `max_duration`, `lock_to_version`, `region`, `idle_timeout`.
            The only member that is replaced when the session exists.
        external_id: your own name for it, 1-256 characters; two callers that give the same one
            get the same session. Without one every call makes a new session.
        tags: of the session, at most 10.

    Raises:
        SessionClosedError: a session of this external id is closed or expired.
        Unprocessable: no such task was ever registered.
    """
    api = api or Api()
    body: dict[str, Any] = {
        "type": type,
        "taskIdentifier": task,
        "triggerConfig": {"basePayload": {}, **wire.trigger_config(trigger_config)},
    }
    if external_id is not None:
        body["externalId"] = external_id
    if tags:
        body["tags"] = builtins.list(tags)
    if metadata is not None:
        body["metadata"] = wire.plain(metadata)
    if expires_at is not None:
        body["expiresAt"] = wire.moment(expires_at, now_ms=api.clock.now_ms())
    return _parse(await api.create_session(body), StartedSession)


async def retrieve(id: str, *, api: Api | None = None) -> SessionInfo:
    """A session by its id or external id. Raises SessionNotFound."""
    return _parse(await (api or Api()).retrieve_session(id), SessionInfo)


async def update(
    id: str,
    *,
    tags: Sequence[str] | None = None,
    metadata: Mapping[str, Any] | None = None,
    clear_metadata: bool = False,
    api: Api | None = None,
) -> SessionInfo:
    """Replace tags or metadata; what is None stays. The external id never changes.

    Raises SessionNotFound.
    """
    body: dict[str, Any] = {}
    if tags is not None:
        body["tags"] = builtins.list(tags)
    if metadata is not None or clear_metadata:
        body["metadata"] = None if clear_metadata else wire.plain(metadata)
    return _parse(await (api or Api()).update_session(id, body), SessionInfo)


async def close(id: str, *, reason: str | None = None, api: Api | None = None) -> SessionInfo:
    """Close a session for good: it takes no more input, and stays readable.

    Closing again changes nothing, the first reason (at most 256 characters) stays. A run in
    progress is not cancelled. Raises SessionNotFound.
    """
    body = {} if reason is None else {"reason": reason}
    return _parse(await (api or Api()).close_session(id, body), SessionInfo)


def list(
    *,
    type: str | Sequence[str] | None = None,
    tag: str | Sequence[str] | None = None,
    task: str | Sequence[str] | None = None,
    external_id: str | None = None,
    status: Status | Sequence[Status] | None = None,
    period: str | None = None,
    from_: datetime | int | None = None,
    to: datetime | int | None = None,
    limit: int | None = None,
    after: str | None = None,
    before: str | None = None,
    api: Api | None = None,
) -> Listing[SessionInfo]:
    """Sessions that match all filters; a filter with several values matches any of them.

    Args:
        period: created within, such as `7d`. `from_`, `to`: created between, epoch ms or times.
        limit: sessions per page, 1-100 (20).
        after, before: cursors of an earlier page; not both.
    """
    if after is not None and before is not None:
        raise InvalidRequest("give `after` or `before`, not both")
    query = {
        "page[size]": limit,
        "page[after]": after,
        "page[before]": before,
        "filter[type]": type,
        "filter[tags]": tag,
        "filter[taskIdentifier]": task,
        "filter[externalId]": external_id,
        "filter[status]": status,
        "filter[createdAt][period]": period,
        "filter[createdAt][from]": None if from_ is None else wire.epoch_ms(from_),
        "filter[createdAt][to]": None if to is None else wire.epoch_ms(to),
    }
    return Listing((api or Api()).list_sessions, _info, wire.query(**query))


def open(id: str, *, api: Api | None = None) -> SessionHandle:
    """The channels of a session, by its id or external id. Makes no request.

    Inside a run of that session this is the run's own handle (`chat`'s and `tasks`' documentation
    tells what more it can do).
    """
    own: SessionHandle | None = binding.handle_in_run(id)
    if own is not None and api is None:
        return own
    api = api or Api()
    return SessionHandle(id, InputChannel(api, id), OutputChannel(api, id))


def _parse(body: Mapping[str, Any], kind: builtins.type[_InfoT]) -> _InfoT:
    try:
        return msgspec.convert(body, kind)
    except msgspec.ValidationError as error:
        raise ProtocolError(f"the server's session does not read: {error}") from error


def _info(body: Mapping[str, Any]) -> SessionInfo:
    return _parse(body, SessionInfo)
