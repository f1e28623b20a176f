"""The HTTP application: the table of routes, and the way a request takes through it.

`App` is what a server runs. Session channels, which carry every chunk, are plain ASGI callables
picked by their prefix. Everything else goes through the table below. Both work on the raw path:
the table is matched against the path as it was sent, and what it captured is decoded afterwards,
so `chat%2F1` is one segment (wire-protocol §1.2).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING, Final, cast

import msgspec
from starlette.routing import Route, Router

from everturn.errors import NotFound
from everturn.protocol import paths
from everturn.protocol.problems import problem
from everturn.rules import limits
from everturn.server.direct import endpoint
from everturn.server.openapi.document import Described, document
from everturn.server.rates import Rates
from everturn.server.routes import (
    auth_tokens,
    batches,
    described,
    health,
    packets,
    realtime,
    runs,
    sessions,
    snapshots,
    tasks,
    waitpoints,
)
from everturn.server.routes.calls import (
    RATES,
    SERVICES,
    Answer,
    Method,
    Resource,
    cors_headers,
    origin_of,
    respond,
)
from everturn.server.routes.channels import PREFIX, channels
from everturn.server.routes.channels import TABLE as CHANNELS
from everturn.server.routes.link import link_endpoint
from everturn.server.routes.reading import READERS, Readers
from everturn.server.routes.run_streams import PREFIX as STREAMS_PREFIX
from everturn.server.routes.run_streams import TABLE as RUN_STREAMS
from everturn.server.routes.run_streams import run_streams

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from everturn.server.services import Services

_LINK: Final = paths.LINK.encode()
#: In the order of the channels' table.
_CHANNEL_TEMPLATES: Final = (paths.CHANNEL, paths.CHANNEL_APPEND, paths.CHANNEL_RECORDS)
_LIMITED: Final = b"/api/"
#: Paths under `/api` that are never limited (§17.6).
_UNLIMITED: Final = (
    b"/api/v1/auth/jwt/claims",
    b"/api/v1/snapshots/",
    b"/snapshot-url",
    b"/api/v1/packets/",
    b"/api/v2/packets/",
)

_CREATE = Method(sessions.create, public=True, cap=limits.CREATE_BODY_BYTES_MAX)
_UPDATE = Method(sessions.update, public=True, cap=limits.UPDATE_BODY_BYTES_MAX)
_CLOSE = Method(sessions.close, public=True, cap=limits.SMALL_BODY_BYTES_MAX)
_CONTINUE = Method(sessions.end_and_continue, public=True, cap=limits.SMALL_BODY_BYTES_MAX)
_TRIGGER = Method(runs.trigger, public=True, cap=limits.TRIGGER_BODY_BYTES_MAX)
_MINT = Method(auth_tokens.mint, cap=limits.UPDATE_BODY_BYTES_MAX)
_MINT_PUBLIC = Method(auth_tokens.mint_public, cap=limits.UPDATE_BODY_BYTES_MAX)
_TOKEN_CREATE = Method(waitpoints.create, cap=limits.WAIT_BODY_BYTES_MAX)
_TOKEN_COMPLETE = Method(waitpoints.complete, public=True, cap=limits.TOKEN_DATA_BYTES_MAX)
_RESCHEDULE = Method(runs.reschedule, cap=limits.UPDATE_BODY_BYTES_MAX)
_RESET_KEY = Method(runs.reset_key, public=True, cap=limits.IDEMPOTENCY_RESET_BYTES_MAX)
_BATCH_CREATE = Method(batches.create, public=True, cap=limits.BATCH_BODY_BYTES_MAX)
#: Items are streamed: no size is declared, and each line has a cap of its own.
_BATCH_ITEMS = Method(batches.add_items, public=True)
_PACKET_WRITE = Method(packets.write, open=True, cap=limits.PACKET_BYTES_MAX)
_SNAPSHOT_UPLOAD = Method(sessions.snapshot_upload, public=True)
_SNAPSHOT_DOWNLOAD = Method(sessions.snapshot_download, public=True)
_SNAPSHOT_WRITE = Method(snapshots.write, open=True, cap=limits.SNAPSHOT_BODY_BYTES_MAX)


def _any_depth(template: str) -> str:
    """A route whose `{name}` may hold slashes, encoded or not (§11)."""
    return template.replace("{name}", "{name:path}")


@cache
def _document() -> bytes:
    return msgspec.json.encode(document(every_route()))


ROUTES: Final[list[Route]] = [
    # health
    Route(paths.HEALTH, Resource(GET=Method(health.alive, open=True))),
    Route(paths.READY, Resource(GET=Method(health.ready, open=True))),
    Route(paths.OPENAPI, Resource(cors=True, GET=Method(described.openapi, open=True))),
    # sessions (§4)
    Route(
        paths.SESSIONS,
        Resource(cors=True, GET=Method(sessions.page, public=True), POST=_CREATE),
    ),
    Route(
        paths.SESSION,
        Resource(cors=True, GET=Method(sessions.retrieve, public=True), PATCH=_UPDATE),
    ),
    Route(paths.SESSION_CLOSE, Resource(cors=True, POST=_CLOSE)),
    Route(paths.SESSION_CONTINUE, Resource(cors=True, POST=_CONTINUE)),
    Route(
        paths.SESSION_SNAPSHOT_URL,
        Resource(cors=True, GET=_SNAPSHOT_DOWNLOAD, PUT=_SNAPSHOT_UPLOAD),
    ),
    Route(
        paths.SNAPSHOT,
        Resource(cors=True, GET=Method(snapshots.read, open=True), PUT=_SNAPSHOT_WRITE),
    ),
    # tokens (§3.4)
    Route(paths.TOKEN_CLAIMS, Resource(POST=Method(auth_tokens.claims))),
    Route(paths.TOKENS, Resource(POST=_MINT)),
    Route(paths.PUBLIC_TOKENS, Resource(POST=_MINT_PUBLIC)),
    # tasks and runs (§9)
    Route(paths.TASKS, Resource(GET=Method(tasks.page))),
    Route(paths.TASK_TRIGGER, Resource(cors=True, POST=_TRIGGER)),
    Route(paths.RUNS, Resource(GET=Method(runs.page, public=True))),
    Route(paths.PROJECT_RUNS, Resource(GET=Method(runs.project_page))),
    Route(paths.RUN_EVENTS, Resource(GET=Method(runs.events, public=True))),
    Route(paths.RUN_TRACE, Resource(GET=Method(runs.trace, public=True))),
    Route(paths.RUN_SPAN, Resource(GET=Method(runs.span, public=True))),
    Route(paths.RUN, Resource(cors=True, GET=Method(runs.retrieve, public=True))),
    Route(paths.RUN_CANCEL, Resource(POST=Method(runs.cancel, public=True))),
    Route(
        paths.RUN_METADATA,
        Resource(
            GET=Method(runs.read_metadata),
            PUT=Method(runs.change_metadata, cap=limits.TRIGGER_BODY_BYTES_MAX),
        ),
    ),
    Route(
        paths.RUN_TAGS,
        Resource(POST=Method(runs.add_tags, cap=limits.UPDATE_BODY_BYTES_MAX)),
    ),
    Route(paths.RUN_RESULT, Resource(GET=Method(runs.result))),
    Route(paths.RUN_REPLAY, Resource(POST=Method(runs.replay))),
    Route(paths.RUN_RESCHEDULE, Resource(POST=_RESCHEDULE)),
    Route(paths.KEY_RESET, Resource(cors=True, POST=_RESET_KEY)),
    # batches (§10)
    Route(paths.BATCHES, Resource(cors=True, POST=_BATCH_CREATE)),
    Route(
        paths.TASKS_BATCH,
        Resource(POST=Method(batches.create_whole, cap=limits.TRIGGER_BODY_BYTES_MAX)),
    ),
    Route(paths.BATCH_ITEMS, Resource(cors=True, POST=_BATCH_ITEMS)),
    Route(paths.BATCH, Resource(cors=True, GET=Method(batches.retrieve, public=True))),
    Route(paths.BATCH_RESULTS, Resource(GET=Method(batches.results))),
    # packets (§11)
    Route(_any_depth(paths.PACKET_UPLOAD), Resource(PUT=Method(packets.upload))),
    Route(
        _any_depth(paths.PACKET),
        Resource(
            cors=True,
            GET=Method(packets.download, public=True),
            PUT=Method(packets.upload),
        ),
    ),
    Route(
        paths.PACKET_DATA,
        Resource(cors=True, GET=Method(packets.read, open=True), PUT=_PACKET_WRITE),
    ),
    # realtime run subscriptions (§12)
    Route(
        paths.REALTIME_RUN,
        Resource(cors=True, exposed=b"*", GET=Method(realtime.run, public=True)),
    ),
    Route(
        paths.REALTIME_RUNS,
        Resource(cors=True, exposed=b"*", GET=Method(realtime.runs, public=True)),
    ),
    Route(
        paths.REALTIME_BATCH,
        Resource(cors=True, exposed=b"*", GET=Method(realtime.batch, public=True)),
    ),
    # wait tokens (§14)
    Route(paths.WAIT_TOKENS, Resource(GET=Method(waitpoints.page), POST=_TOKEN_CREATE)),
    Route(paths.WAIT_TOKEN, Resource(GET=Method(waitpoints.retrieve))),
    Route(paths.WAIT_TOKEN_COMPLETE, Resource(cors=True, POST=_TOKEN_COMPLETE)),
    Route(paths.WAIT_TOKEN_CALLBACK, Resource(POST=Method(waitpoints.callback, open=True))),
]


def every_route() -> Iterator[Described]:
    """Every route of this application, for its OpenAPI document."""
    for route in ROUTES:
        resource = cast("Resource", route.endpoint)
        for name, method in resource.methods.items():
            if name != "HEAD":
                limited = not method.open and _is_limited(route.path.encode())
                yield Described(
                    route.path,
                    name,
                    method.handler,
                    public=method.public,
                    open=method.open,
                    cap=method.cap,
                    cors=resource.cors,
                    limited=limited,
                )
    for io_template, table in zip(_CHANNEL_TEMPLATES, CHANNELS.values(), strict=True):
        for name, handler in table.items():
            yield Described(io_template, name, handler, public=True, cors=True)
    for template, streams in RUN_STREAMS.items():
        for name, follower in streams.items():
            yield Described(template, name, follower, public=True, cors=True)
    yield Described(paths.STREAM_RECORDS, "POST", endpoint.direct, open=True, cors=True)
    yield Described(paths.LINK, "GET", link_endpoint)


class App:
    """The ASGI application of one server."""

    def __init__(self, services: Services, readers: Readers) -> None:
        self._services = services
        self.readers = readers
        self._rates = (
            Rates(services.settings, services.clock) if services.settings.limits_rates else None
        )
        self._router = Router(ROUTES, default=_nowhere, redirect_slashes=False)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._router(scope, receive, send)
            return
        raw: bytes = scope.get("raw_path") or scope["path"].encode()
        scope["raw_path"] = raw = raw.partition(b"?")[0]
        scope[SERVICES] = self._services
        if scope["type"] == "websocket":
            await self._websocket(raw, scope, receive, send)
        elif raw.startswith(PREFIX):
            scope[READERS] = self.readers
            await channels(scope, receive, send)
        elif raw.startswith(STREAMS_PREFIX):
            scope[READERS] = self.readers
            await run_streams(scope, receive, send)
        elif raw.startswith(endpoint.PREFIX):
            await endpoint.direct(scope, receive, send)
        else:
            if self._rates is not None and _is_limited(raw):
                scope[RATES] = self._rates
            scope[described.DOCUMENT] = _document
            scope["path"] = raw.decode("latin-1")
            scope["root_path"] = ""
            await self._router(scope, receive, send)

    async def _websocket(self, raw: bytes, scope: Scope, receive: Receive, send: Send) -> None:
        if raw == _LINK:
            await link_endpoint(self._services, scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 4404})


def _is_limited(raw: bytes) -> bool:
    return raw.startswith(_LIMITED) and not any(part in raw for part in _UNLIMITED)


async def _nowhere(scope: Scope, receive: Receive, send: Send) -> None:
    """A path that does not exist; readable from a page too, so that a typo can be understood."""
    result = Answer(*problem(NotFound("Not found", should_retry=False)))
    await respond(
        send, result._replace(headers=(*result.headers, *cors_headers(origin_of(scope)))), None
    )
