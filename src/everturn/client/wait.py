"""Wait tokens: made here, waited for by runs, completed by whoever holds one (wire-protocol §14).

    token = await wait.create_token(timeout="1d")
    send_mail(approve=token.url)                      # a POST to it completes the token
    result = await wait.for_token(token)              # inside a run

Everything but the waiting works from anywhere.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final, Literal

import msgspec

from everturn.client import wire
from everturn.client.api import Api
from everturn.client.paging import Listing
from everturn.errors import InvalidRequest, ProtocolError, WaitTimeoutError
from everturn.rules import durations

TokenStatus = Literal["WAITING", "COMPLETED", "TIMED_OUT"]
_DIGEST_CHARS: Final = 64


class WaitToken(msgspec.Struct, frozen=True, kw_only=True):
    """A token as it was made.

    `url` completes it with whatever JSON is posted to it. `public_access_token` may complete this
    token and nothing else, for a day, also from a browser.
    """

    id: str
    url: str
    is_cached: bool = False
    public_access_token: str | None = None


class TokenState(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A token as it stands. Times are aware datetimes.

    `output` is there once it is COMPLETED (never in a list), `error` once it TIMED_OUT. `raw` is
    the whole answer.
    """

    id: str
    url: str
    status: TokenStatus
    created_at: datetime
    tags: tuple[str, ...] = ()
    completed_at: datetime | None = None
    timeout_at: datetime | None = None
    idempotency_key: str | None = None
    idempotency_key_expires_at: datetime | None = None
    output: Any = None
    error: WaitTimeoutError | None = None
    raw: Mapping[str, Any] = {}


async def create_token(
    *,
    timeout: durations.Duration | datetime | None = None,
    tags: str | Sequence[str] | None = None,
    idempotency_key: str | Sequence[str] | None = None,
    idempotency_key_ttl: str | None = None,
    api: Api | None = None,
) -> WaitToken:
    """Make a token.

    Args:
        timeout: after which whoever waits gets an error; None waits for ever.
        tags: up to ten, to find it by.
        idempotency_key: the same key finds the same token, completed or not.

    Raises Unprocessable or InvalidRequest for a value out of its bounds.
    """
    api = api or Api()
    body: dict[str, Any] = {}
    if isinstance(timeout, datetime):
        body["timeout"] = wire.moment(timeout, now_ms=api.clock.now_ms())
    elif timeout is not None:
        body["timeout"] = durations.parse(timeout)
    if tags is not None:
        body["tags"] = tags if isinstance(tags, str) else list(tags)
    if idempotency_key is not None:
        body["idempotencyKey"] = _digest(idempotency_key)
        if idempotency_key_ttl is not None:
            body["idempotencyKeyTTL"] = idempotency_key_ttl
    answer, headers = await api.create_wait_token(body)
    return WaitToken(
        id=str(answer["id"]),
        url=str(answer["url"]),
        is_cached=bool(answer.get("isCached", False)),
        public_access_token=headers.get("x-trigger-jwt"),
    )


async def complete_token(
    token: str | WaitToken | TokenState, data: Any = None, *, api: Api | None = None
) -> None:
    """Complete a token; one that is completed already stays as it is. Raises NotFound."""
    body = {} if data is None else {"data": wire.plain(data)}
    await (api or Api()).complete_wait_token(_id(token), body)


async def retrieve_token(
    token: str | WaitToken | TokenState, *, api: Api | None = None
) -> TokenState:
    """A token as it stands, with its output. Raises NotFound."""
    return _parse(await (api or Api()).retrieve_wait_token(_id(token)))


def list_tokens(
    *,
    status: TokenStatus | Sequence[TokenStatus] | None = None,
    tags: str | Sequence[str] | None = None,
    idempotency_key: str | Sequence[str] | None = None,
    period: str | None = None,
    from_: datetime | int | None = None,
    to: datetime | int | None = None,
    limit: int | None = None,
    api: Api | None = None,
) -> Listing[TokenState]:
    """Tokens that match all filters, newest first, without outputs; `limit` is the page size."""
    query = wire.query(
        **{
            "page[size]": limit,
            "filter[status]": status,
            "filter[tags]": tags,
            "filter[idempotencyKey]": None if idempotency_key is None else _digest(idempotency_key),
            "filter[createdAt][period]": period,
            "filter[createdAt][from]": None if from_ is None else wire.epoch_ms(from_),
            "filter[createdAt][to]": None if to is None else wire.epoch_ms(to),
        }
    )
    return Listing((api or Api()).list_wait_tokens, _parse, query)


def decode_output(text: str, kind: str) -> Any:
    """The value of a token's output packet: text, or JSON, plain or in the rich form's `json`."""
    if kind.startswith("text/plain"):
        return text
    try:
        value = msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise ProtocolError(f"the token's output does not read: {error}") from error
    if kind == "application/super+json" and isinstance(value, dict) and "json" in value:
        return value["json"]
    return value


def timed_out(token_id: str) -> WaitTimeoutError:
    """The error of a token that nobody completed in time."""
    return WaitTimeoutError(f"{token_id} was not completed in time", token_id=token_id)


def _parse(body: Mapping[str, Any]) -> TokenState:
    known = {name: value for name, value in body.items() if name != "output"}
    try:
        token = msgspec.convert({**known, "raw": body}, TokenState)
    except msgspec.ValidationError as error:
        raise ProtocolError(f"the server's token does not read: {error}") from error
    if token.status == "TIMED_OUT":
        return msgspec.structs.replace(token, error=timed_out(token.id))
    output = body.get("output")
    if not isinstance(output, str):
        return token
    kind = str(body.get("outputType") or "application/json")
    return msgspec.structs.replace(token, output=decode_output(output, kind))


def _id(token: str | WaitToken | TokenState) -> str:
    return token if isinstance(token, str) else token.id


def _digest(key: str | Sequence[str]) -> str:
    """What a key is known by (wire-protocol §9.3); one of 64 characters is a digest already."""
    if isinstance(key, str) and len(key) == _DIGEST_CHARS:
        return str(key)
    text = key if isinstance(key, str) else "-".join(key)
    if not text:
        raise InvalidRequest("an idempotency key is not empty")
    return hashlib.sha256(text.encode()).hexdigest()
