"""One request and its answer: what every route stands on.

A route is a `Resource`: one path, a handler per method. The order in which a request can fail is
the same everywhere (wire-protocol §1.1) and lives here: preflight, method, credential, rate,
size; then the handler, which reads path, query and body, looks up, checks scopes and calls a
service. Handlers return an `Answer` or raise; `protocol/problems.py` words the errors, and this
module adds CORS headers to whatever goes out, errors included.

Paths are routed raw: split on `/` first, each segment decoded afterwards, because ids are chosen
by users and may hold a slash (§1.2).
"""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar
from urllib.parse import parse_qsl, unquote_to_bytes

import msgspec

from everturn.errors import EverturnError, InvalidRequest, TooLarge
from everturn.protocol import sessions as words
from everturn.protocol.problems import MethodNotAllowed, Shape, problem
from everturn.rules import durations, limits
from everturn.rules.access import Caller
from everturn.server.auth import authenticate

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from everturn.server.rates import Rates
    from everturn.server.services import Services

log = logging.getLogger("everturn.server")

RawHeaders = tuple[tuple[bytes, bytes], ...]
BodyT = TypeVar("BodyT")

JSON: Final = (b"content-type", b"application/json")
_EXPOSED: Final = b"x-trigger-jwt, x-trigger-jwt-claims"
_METHODS: Final = b"GET,HEAD,PUT,PATCH,POST,DELETE"
#: Where the application leaves the services for the routes.
SERVICES: Final = "everturn.services"
RATES: Final = "everturn.rates"
QUERY_PARTS_MAX: Final = 100
_SIZE: Final = re.compile(r"\d{1,18}", re.ASCII)


class Answer(NamedTuple):
    """A whole HTTP answer."""

    status: int
    body: bytes
    headers: RawHeaders = (JSON,)


class Disconnected(Exception):
    """The client went away before its request was complete; there is nobody to answer."""


def answer(value: Any, status: int = 200, headers: RawHeaders = ()) -> Answer:
    """A JSON answer."""
    return Answer(status, msgspec.json.encode(value), (JSON, *headers))


class Call:
    """One request: what a handler may ask of it. Nothing is parsed before it is asked for."""

    __slots__ = ("caller", "params", "receive", "scope", "services", "shape")

    def __init__(
        self, services: Services, scope: Scope, receive: Receive, params: dict[str, str]
    ) -> None:
        self.services = services
        self.scope = scope
        self.receive = receive
        self.params = params
        #: Set by `authenticate`; a handler that is called has one.
        self.caller: Caller = NOBODY
        self.shape = Shape.PLAIN

    def header(self, name: bytes) -> str | None:
        """A request header by its lower-case name."""
        for key, value in self.scope["headers"]:
            if key == name:
                text: str = value.decode("latin-1")
                return text
        return None

    @property
    def query(self) -> dict[str, str]:
        """The query; of a repeated name the last value counts (§1.3)."""
        try:
            pairs = parse_qsl(
                self.scope["query_string"].decode("latin-1"),
                keep_blank_values=True,
                max_num_fields=QUERY_PARTS_MAX,
            )
        except ValueError:
            raise query_error(f"at most {QUERY_PARTS_MAX} parts") from None
        return dict(pairs)

    async def authenticate(self, *, public: bool) -> Caller:
        """Find out who asks. Raises NotAuthenticated."""
        header = self.header(b"authorization")
        self.caller = await authenticate(self.services, header, public=public)
        return self.caller

    def check_size(self, bytes_max: int) -> None:
        """Raise TooLarge when the declared size is over the cap, or none is declared (§1.1)."""
        declared = self.header(b"content-length")
        if declared is None or not _SIZE.fullmatch(declared) or int(declared) > bytes_max:
            raise TooLarge("Request body too large", what="body", bytes_max=bytes_max)

    async def body(self, bytes_max: int) -> bytes:
        """The body. Raises TooLarge past the cap, and Disconnected when it never completes."""
        message = await self.receive()
        if message["type"] == "http.request" and not message.get("more_body", False):
            whole: bytes = message.get("body", b"")
            if len(whole) > bytes_max:
                raise TooLarge("Request body too large", what="body", bytes_max=bytes_max)
            return whole
        pieces: list[bytes] = []
        size = 0
        while True:
            if message["type"] != "http.request":
                raise Disconnected
            piece = message.get("body", b"")
            size += len(piece)
            if size > bytes_max:
                raise TooLarge("Request body too large", what="body", bytes_max=bytes_max)
            pieces.append(piece)
            if not message.get("more_body", False):
                return b"".join(pieces)
            message = await self.receive()

    async def lines(self, line_bytes_max: int) -> AsyncIterator[bytes]:
        """The lines of the body as they come, empty ones left out.

        Raises TooLarge past the cap of one line, and Disconnected when the body never completes.
        Nothing more of the body is read than what the caller has asked for.
        """
        # Grows in place: only what is new is looked at, however many pieces a line comes in.
        held = bytearray()
        more = True
        while more:
            message = await self.receive()
            if message["type"] != "http.request":
                raise Disconnected
            more = message.get("more_body", False)
            *whole, rest = message.get("body", b"").split(b"\n")
            if not more:
                whole, rest = [*whole, rest], b""
            if whole and held:
                whole[0] = bytes(held) + whole[0]
                held.clear()
            held += rest
            if max((len(held), *map(len, whole))) > line_bytes_max:
                raise TooLarge("Line too large", what="line", bytes_max=line_bytes_max)
            for line in whole:
                if line.strip():
                    yield line

    async def json(self, kind: type[BodyT], bytes_max: int) -> BodyT:
        """The body as its type. Raises InvalidRequest or TooLarge."""
        return words.decode(await self.body(bytes_max), kind)


#: Stands for a caller before there is one; opens nothing.
NOBODY: Final = Caller(environment_id="", is_secret=False)

Handler = Callable[[Call], Awaitable[Answer]]


class Method(NamedTuple):
    """A handler and what must hold before it is called."""

    handler: Handler
    #: Public tokens are accepted; the handler checks their scopes.
    public: bool = False
    #: Cap of the body in bytes; with one, the size must be declared.
    cap: int | None = None
    #: No credential is asked for: health checks, and links that carry their own signature.
    open: bool = False


class Resource:
    """One path: an ASGI application that answers its methods."""

    def __init__(self, *, cors: bool = False, exposed: bytes = _EXPOSED, **methods: Method) -> None:
        """`exposed`: response headers a page may read, on a CORS route."""
        self.cors = cors
        self._exposed = exposed
        self.methods: Mapping[str, Method] = dict(methods)
        if "GET" in methods:
            self.methods = {**methods, "HEAD": methods["GET"]}
        self._allow = ", ".join([*self.methods, *(["OPTIONS"] if cors else [])])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        origin = origin_of(scope) if self.cors else None
        if self.cors and scope["method"] == "OPTIONS":
            await respond(send, preflight(scope), None)
            return
        call = Call(scope[SERVICES], scope, receive, {})
        try:
            result = await self._handle(call)
        except Disconnected:
            return
        except Exception as error:
            result = failure(call, error)
        await respond(send, result, origin, self._exposed)

    async def _handle(self, call: Call) -> Answer:
        method = self.methods.get(call.scope["method"])
        if method is None:
            raise MethodNotAllowed("Method not allowed", allow=self._allow)
        allowance: RawHeaders = ()
        if not method.open:
            caller = await call.authenticate(public=method.public)
            rates: Rates | None = call.scope.get(RATES)
            if rates is not None:
                allowance = rates.take(caller)
        if method.cap is not None:
            call.check_size(method.cap)
        call.params = {
            name: decode_segment(value) for name, value in call.scope["path_params"].items()
        }
        result = await method.handler(call)
        if allowance:
            return result._replace(headers=(*result.headers, *allowance))
        return result


def failure(call: Call, error: Exception) -> Answer:
    """The answer for an exception. One that is not ours is logged, and says nothing outside."""
    if not isinstance(error, EverturnError):
        log.exception("request.failed", extra={"method": call.scope["method"]})
    return Answer(*problem(error, call.shape))


async def respond(
    send: Send, result: Answer, origin: bytes | None, exposed: bytes = _EXPOSED
) -> None:
    """Send a whole answer, readable by the page of `origin`."""
    await send(
        {
            "type": "http.response.start",
            "status": result.status,
            "headers": [
                *result.headers,
                (b"content-length", b"%d" % len(result.body)),
                *cors_headers(origin, exposed),
            ],
        }
    )
    await send({"type": "http.response.body", "body": result.body})


# --- CORS (§1.4) ---------------------------------------------------------------------------------


def origin_of(scope: Scope) -> bytes | None:
    """The request's Origin header."""
    for name, value in scope["headers"]:
        if name == b"origin":
            found: bytes = value
            return found
    return None


def cors_headers(origin: bytes | None, exposed: bytes = _EXPOSED) -> RawHeaders:
    """What lets a page of that origin read the answer; nothing without an origin."""
    if origin is None:
        return ()
    return (
        (b"access-control-allow-origin", origin),
        (b"vary", b"Origin"),
        (b"access-control-expose-headers", exposed),
    )


def preflight(scope: Scope) -> Answer:
    """The answer to `OPTIONS` on a CORS route: whatever headers were asked for are allowed."""
    asked = b""
    for name, value in scope["headers"]:
        if name == b"access-control-request-headers":
            asked = value
    headers: list[tuple[bytes, bytes]] = [
        JSON,
        (b"access-control-allow-origin", origin_of(scope) or b"*"),
        (b"vary", b"Origin, Access-Control-Request-Headers" if asked else b"Origin"),
        (b"access-control-allow-methods", _METHODS),
        (b"access-control-max-age", b"300"),
    ]
    if asked:
        headers.append((b"access-control-allow-headers", asked))
    return Answer(200, b"{}", tuple(headers))


# --- path and query ------------------------------------------------------------------------------


def decode_segment(segment: str | bytes) -> str:
    """One path segment, decoded after the path was split. Raises InvalidRequest."""
    try:
        text = unquote_to_bytes(segment).decode("utf-8")
    except UnicodeDecodeError:
        raise params_error("not UTF-8") from None
    if not text or "\0" in text or len(text) > limits.SEGMENT_CHARS_MAX:
        raise params_error(f"1 to {limits.SEGMENT_CHARS_MAX} characters without NUL")
    return text


def params_error(reason: str) -> InvalidRequest:
    """400 `Params Error` (§1.1 step 5)."""
    return InvalidRequest("Params Error", problems=[{"message": reason}])


def query_error(reason: str, *path: str) -> InvalidRequest:
    """400 `Query Error` (§1.1 step 6)."""
    return InvalidRequest("Query Error", problems=[{"path": list(path), "message": reason}])


class PageQuery(NamedTuple):
    """Cursor pagination (§1.3)."""

    limit: int
    after: str | None
    before: str | None


def page_query(query: dict[str, str], default: int) -> PageQuery:
    """`page[size]`, `page[after]`, `page[before]`. Raises InvalidRequest."""
    size = query.get("page[size]")
    limit = default
    if size is not None:
        limit = int(size) if size.isascii() and size.isdigit() and len(size) < 5 else 0
        if not 1 <= limit <= limits.PAGE_SIZE_MAX:
            raise query_error(f"an integer from 1 to {limits.PAGE_SIZE_MAX}", "page[size]")
    after, before = query.get("page[after]"), query.get("page[before]")
    # A client that steps back from a page it reached by `after` still sends that one: `before`
    # is what it asks for.
    return PageQuery(limit, after if before is None else None, before)


def check_filters(query: dict[str, str], known: Iterable[str]) -> None:
    """Raise InvalidRequest for a `filter[…]` this list does not have: a filter that is misspelled
    would otherwise answer with everything."""
    for name in query:
        if name.startswith("filter[") and name not in known:
            raise query_error("unknown filter", name)


def listed(query: dict[str, str], name: str) -> tuple[str, ...]:
    """The members of a comma-joined value, empty ones left out."""
    return tuple(part.strip() for part in query.get(name, "").split(",") if part.strip())


def created_range(query: dict[str, str], now_ms: int) -> tuple[int | None, int | None]:
    """`filter[createdAt][from|to|period]` as epoch ms, both ends included. Raises InvalidRequest."""
    begin = _epoch_ms(query, "filter[createdAt][from]")
    end = _epoch_ms(query, "filter[createdAt][to]")
    period = query.get("filter[createdAt][period]")
    if period is not None:
        try:
            length_s = durations.parse(period)
        except InvalidRequest:
            raise query_error("a duration such as 7d", "filter[createdAt][period]") from None
        begin = max(begin or 0, now_ms - round(length_s * 1000))
    return begin, end


def _epoch_ms(query: dict[str, str], name: str) -> int | None:
    text = query.get(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 16):
        raise query_error("milliseconds since the epoch", name)
    return int(text)


def page_body(items: list[Any], following: str | None, previous: str | None) -> dict[str, Any]:
    """A page; a cursor that does not exist is left out, because null breaks clients (§1.3)."""
    pagination: dict[str, str] = {}
    if following is not None:
        pagination["next"] = following
    if previous is not None:
        pagination["previous"] = previous
    return {"data": items, "pagination": pagination}
