"""Per handler: what its route takes and answers, as far as the code does not say it by itself.

The types of bodies are those the handlers decode with, and the names of filters are the sets they
check against, so neither can differ from what the server does. What is left is said here once.
Statuses that follow from the route are added by `document.py`: 401 and 403 where a credential is
asked for, 413 under a cap, 429 under `/api`, 404 where a path holds an id, 400 and 503 everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, NamedTuple

from everturn.protocol.batches import BatchItem, CreateBatch, WholeBatch
from everturn.protocol.problems import Shape
from everturn.protocol.s2_frames import JsonInput
from everturn.protocol.sessions import CloseSession, CreateSession, EndAndContinue, UpdateSession
from everturn.protocol.waitpoints import CompleteToken, CreateToken
from everturn.rules import limits
from everturn.rules.metadata import MetadataChange
from everturn.server.direct import endpoint
from everturn.server.openapi import answers as a
from everturn.server.routes import (
    auth_tokens,
    batches,
    channels,
    described,
    health,
    link,
    packets,
    reading,
    realtime,
    run_streams,
    runs,
    sessions,
    snapshots,
    tasks,
    waitpoints,
)
from everturn.server.services.trigger_options import TriggerBody

JSON: Final = "application/json"
NDJSON: Final = "application/x-ndjson"
SSE: Final = "text/event-stream"
TEXT: Final = "text/plain"
ANY: Final = "*/*"
PROTOBUF: Final = "application/protobuf"
FRAMES: Final = "s2s/proto"

Schema = Mapping[str, Any]
BYTES: Final[Schema] = {"type": "string", "contentMediaType": "application/octet-stream"}
STRING: Final[Schema] = {"type": "string"}


class Parameter(NamedTuple):
    """A parameter of a query or a header. A value outside its schema is a 400, or is ignored."""

    name: str
    about: str
    schema: Schema = STRING
    place: str = "query"


class Content(NamedTuple):
    """One form of a body or an answer: a type of ours, or a schema."""

    media: str
    kind: Any


class Operation(NamedTuple):
    """What one handler takes and answers."""

    #: Success answers: status -> shape, forms, or None for no body.
    answers: Mapping[int, Any] = {200: a.Ok}
    body: Any = None
    #: A body may be left out.
    optional: bool = False
    parameters: tuple[Parameter, ...] = ()
    #: Refusals beyond those that follow from the route.
    refusals: tuple[int, ...] = ()
    #: How its domain words errors; what comes before a handler is always plain.
    errors: Shape = Shape.PLAIN
    #: Response headers of its success.
    headers: Mapping[str, str] = {}
    #: Public tokens are refused with 403, whatever their scopes.
    secret: bool = False
    #: The link is the credential: `expires` and `signature` of its query.
    signed: bool = False


def _header(name: str, about: str, schema: Schema = STRING) -> Parameter:
    return Parameter(name, about, schema, "header")


def _filters(names: Iterable[str]) -> tuple[Parameter, ...]:
    """The query of a list: its page, and the filters its handler knows."""
    return (
        Parameter(
            "page[size]",
            "Items of one page.",
            {"type": "integer", "minimum": 1, "maximum": limits.PAGE_SIZE_MAX},
        ),
        Parameter("page[after]", "A cursor from `pagination.next`."),
        Parameter("page[before]", "A cursor from `pagination.previous`."),
        *(Parameter(name, _about_filter(name)) for name in sorted(names)),
    )


def _about_filter(name: str) -> str:
    if name.endswith("[period]"):
        return "A duration such as `7d`: created no longer ago."
    if name.endswith(("[from]", "[to]")):
        return "Milliseconds since the epoch, included."
    return "One value, or several separated by commas, which are alternatives."


_REQUEST_KEY: Final = _header(
    "x-trigger-request-idempotency-key", "The same key again finds what the first request made."
)
_PART: Final = _header(
    "X-Part-Id",
    "A repeat with the same id adds nothing and is answered the same.",
    {"type": "string", "minLength": 1, "maxLength": limits.PART_ID_CHARS_MAX},
)
_JWT: Final = {
    "x-trigger-jwt": "A public token for what was made.",
    "x-trigger-jwt-claims": "Its claims, as JSON.",
}
_EVENTS: Final[Schema] = {
    "description": "Events `batch`, `ping` and `error`, and data `[DONE]` before an orderly end."
}
_FOLLOWED: Final = {200: (Content(SSE, _EVENTS),)}
_FOLLOW: Final = (
    _header("Last-Event-ID", "Follow from after this `seq_num`."),
    _header(
        "Timeout-Seconds",
        "End after so long without a record.",
        {"type": "integer", "minimum": 1, "maximum": limits.SSE_TIMEOUT_S_MAX},
    ),
    Parameter("includeTrimmed", "Also what is kept below the start; secret keys only."),
)
_FOLLOW_HEADERS: Final = {"X-Stream-Version": "Always `v2`."}
_SHAPE: Final = (
    Parameter(
        "offset", "What the last answer gave; `-1` at first.", {"pattern": r"^(-1|[0-9]+_[0-9]+)$"}
    ),
    Parameter("handle", "What the last answer gave."),
    Parameter("live", "`true`: wait, for 20 s at most, until something differs.", STRING),
    Parameter("skipColumns", "Columns to leave out, separated by commas."),
    _header("x-trigger-electric-version", "Asks for the header names of today."),
)
_ROWS: Final = {200: (Content(JSON, {"type": "array", "items": {"type": "object"}}),)}
_SHAPE_HEADERS: Final = {
    "electric-offset": "`offset` of the next request; of old clients `electric-chunk-last-offset`.",
    "electric-handle": "`handle` of the next request; of old clients `electric-shape-id`.",
    "electric-schema": "Columns and their types, on an answer that is not live.",
}

OPERATIONS: Final[Mapping[Callable[..., Any], Operation]] = {
    health.alive: Operation(),
    described.openapi: Operation({200: (Content(JSON, {"type": "object"}),)}),
    health.ready: Operation({200: a.Ready, 503: a.NotReady}),
    # sessions
    sessions.create: Operation(
        {200: a.CreatedSession, 201: a.CreatedSession}, CreateSession, refusals=(409, 422)
    ),
    sessions.page: Operation({200: a.SessionPage}, parameters=_filters(sessions.FILTERS)),
    sessions.retrieve: Operation({200: a.SessionDetail}),
    sessions.update: Operation({200: a.SessionDetail}, UpdateSession, refusals=(422,), secret=True),
    sessions.close: Operation({200: a.SessionDetail}, CloseSession, secret=True),
    sessions.end_and_continue: Operation(
        {200: a.Continued}, EndAndContinue, refusals=(409, 422), secret=True
    ),
    sessions.snapshot_upload: Operation({200: a.Link}, secret=True),
    sessions.snapshot_download: Operation({200: a.Link}),
    snapshots.read: Operation({200: (Content(JSON, {}),)}, signed=True),
    snapshots.write: Operation(body=(Content(JSON, {}),), signed=True),
    # channels
    channels.append: Operation(
        {200: a.Appended},
        (Content(JSON, {}), Content(TEXT, STRING)),
        optional=True,
        parameters=(_PART,),
        refusals=(409, 413),
        errors=Shape.CHANNEL,
    ),
    channels.append_records: Operation(
        {200: a.AppendedRecords},
        channels.OutRecords,
        refusals=(409, 413),
        errors=Shape.CHANNEL,
        secret=True,
    ),
    channels.initialize: Operation(
        {202: a.StreamVersion},
        errors=Shape.TEXT,
        headers={
            "X-S2-Access-Token": "Opens this channel at the endpoint.",
            "X-S2-Stream-Name": "The channel's name there.",
            "X-S2-Basin": "The environment's name there.",
            "X-S2-Endpoint": "The base URL of the endpoint.",
            "X-S2-Flush-Interval-Ms": "How long to gather records before a write.",
        },
    ),
    reading.follow: Operation(
        _FOLLOWED,
        parameters=(
            *_FOLLOW,
            _header("X-Peek-Settled", "`1`: end at once when the newest turn is complete."),
        ),
        errors=Shape.TEXT,
        headers={**_FOLLOW_HEADERS, "X-Session-Settled": "`true` when it ends at once."},
    ),
    reading.read_json: Operation(
        {200: a.ChannelRecords},
        parameters=(
            Parameter("afterEventId", "Only what comes after this `seq_num`."),
            _FOLLOW[2],
        ),
    ),
    reading.exists: Operation({200: None}, headers={"X-Last-Chunk-Index": "Always `0`."}),
    endpoint.direct: Operation(
        {200: (Content(JSON, a.Ack), Content(PROTOBUF, BYTES), Content(FRAMES, BYTES))},
        (Content(JSON, JsonInput), Content(PROTOBUF, BYTES), Content(FRAMES, BYTES)),
        refusals=(401, 403, 409, 412, 413),
    ),
    # tokens
    auth_tokens.claims: Operation({200: a.TokenClaims}),
    auth_tokens.mint: Operation({200: a.Token}, auth_tokens.Mint),
    auth_tokens.mint_public: Operation({200: a.Token}, auth_tokens.MintPublic),
    # tasks and runs
    tasks.page: Operation({200: a.TaskList}),
    runs.trigger: Operation(
        {200: a.Triggered},
        TriggerBody,
        parameters=(_REQUEST_KEY,),
        refusals=(409, 422),
        headers=_JWT,
    ),
    runs.page: Operation({200: a.RunPage}, parameters=_filters(runs.FILTERS)),
    runs.project_page: Operation(
        {200: a.RunPage}, parameters=_filters(runs.FILTERS | {runs.ENVIRONMENTS})
    ),
    runs.events: Operation({200: a.RunEvents}),
    runs.trace: Operation({200: a.RunTrace}),
    runs.span: Operation({200: a.SpanDetail}),
    runs.retrieve: Operation({200: a.RunDetail}),
    runs.cancel: Operation({200: a.Id}, refusals=(409,)),
    runs.read_metadata: Operation({200: a.RunMetadata}),
    runs.change_metadata: Operation({200: a.RunMetadata}, MetadataChange),
    runs.add_tags: Operation({200: a.Message}, runs.Tags, refusals=(422,)),
    runs.result: Operation({200: a.RunResult}),
    runs.replay: Operation({200: a.Id}, refusals=(422,)),
    runs.reschedule: Operation({200: a.RunDetail}, runs.Reschedule, refusals=(422,)),
    runs.reset_key: Operation({200: a.Id}, runs.KeyReset),
    # batches
    batches.create: Operation(
        {202: a.CreatedBatch},
        CreateBatch,
        parameters=(
            _REQUEST_KEY,
            _header("x-trigger-client", "`browser`: the token in the answer may add the items."),
        ),
        refusals=(422,),
        headers=_JWT,
    ),
    batches.create_whole: Operation(
        {202: a.CreatedBatch},
        WholeBatch,
        parameters=(
            _REQUEST_KEY,
            _header("idempotency-key", "Finds the batch that was made with it."),
        ),
        refusals=(404, 409, 422),
    ),
    batches.add_items: Operation(
        {200: a.FilledBatch}, (Content(NDJSON, BatchItem),), refusals=(409, 413, 415, 422)
    ),
    batches.retrieve: Operation({200: a.BatchDetail}),
    batches.results: Operation({200: a.BatchResults}),
    # packets
    packets.upload: Operation({200: a.PacketLink}),
    packets.download: Operation({200: a.Link}),
    packets.read: Operation({200: (Content(ANY, {}),)}, signed=True),
    packets.write: Operation(body=(Content(ANY, BYTES),), signed=True),
    # following runs
    realtime.run: Operation(_ROWS, parameters=_SHAPE, headers=_SHAPE_HEADERS),
    realtime.runs: Operation(
        _ROWS,
        parameters=(
            *_SHAPE,
            Parameter("tags", "Runs that have all of these, separated by commas."),
            Parameter("createdAt", "A duration: runs created no longer ago than that."),
        ),
        headers=_SHAPE_HEADERS,
    ),
    realtime.batch: Operation(_ROWS, parameters=_SHAPE, headers=_SHAPE_HEADERS),
    # streams of runs
    run_streams.follow: Operation(
        _FOLLOWED, parameters=_FOLLOW, errors=Shape.TEXT, headers=_FOLLOW_HEADERS
    ),
    run_streams.follow_input: Operation(
        _FOLLOWED, parameters=_FOLLOW, errors=Shape.TEXT, headers=_FOLLOW_HEADERS
    ),
    run_streams.send_input: Operation(body=run_streams.InputValue, refusals=(413,)),
    run_streams.initialize: Operation({202: a.StreamVersion}, errors=Shape.TEXT, secret=True),
    run_streams.count: Operation(
        {200: None}, headers={"X-Last-Chunk-Index": "Always `-1`: send everything."}, secret=True
    ),
    run_streams.ingest: Operation(
        body=(Content(NDJSON, {}),),
        optional=True,
        parameters=(
            _header("X-Client-Id", "Whose values these are; they are numbered per client."),
            _header("X-Resume-From-Chunk", "The number of the first value."),
        ),
        refusals=(413,),
        errors=Shape.TEXT,
        secret=True,
    ),
    run_streams.append: Operation(
        body=(Content(TEXT, STRING),),
        optional=True,
        parameters=(_PART,),
        refusals=(413,),
        errors=Shape.TEXT,
        secret=True,
    ),
    # wait tokens
    waitpoints.create: Operation(
        {200: a.CreatedToken},
        CreateToken,
        optional=True,
        parameters=(_REQUEST_KEY,),
        refusals=(422,),
        headers=_JWT,
    ),
    waitpoints.page: Operation({200: a.TokenPage}, parameters=_filters(waitpoints.FILTERS)),
    waitpoints.retrieve: Operation({200: a.TokenDetail}),
    waitpoints.complete: Operation({200: a.Success}, CompleteToken, optional=True),
    waitpoints.callback: Operation(
        {200: a.Success}, (Content(JSON, {}),), optional=True, refusals=(401, 411, 413)
    ),
    # the worker link
    link.link_endpoint: Operation({101: None}, refusals=(401, 404)),
}
