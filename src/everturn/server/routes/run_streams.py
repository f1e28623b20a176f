"""Streams of a run over HTTP (wire-protocol §13).

    PUT  …/streams/:run/:target/:stream           which way to write: always the one below
    POST …/streams/:run/:target/:stream           JSON values, one a line
    HEAD …/streams/:run/:target/:stream           how many values of a client are stored
    POST …/streams/:run/:target/:stream/append    one text
    GET  …/streams/:run/:stream                   follow as server-sent events
    POST …/streams/:run/input/:stream             one value from outside to the run
    GET  …/streams/:run/input/:stream             follow it

A writer's values are numbered from 0 per client id, and their part ids say so: a writer that lost
its connection sends everything again, and what is stored already adds nothing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final

import msgspec

from everturn.errors import InvalidRequest, NotFound, RunNotFound, TooLarge
from everturn.protocol import nesting, paths
from everturn.protocol.problems import MethodNotAllowed, Shape
from everturn.protocol.sessions import decode
from everturn.rules import limits
from everturn.rules.access import require, require_secret, run_resources
from everturn.server.routes.calls import (
    SERVICES,
    Answer,
    Call,
    Disconnected,
    answer,
    decode_segment,
    failure,
    origin_of,
    preflight,
    respond,
)
from everturn.server.routes.reading import follow_channel
from everturn.server.services.run_streams import RunStream, channel_of

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from everturn.storage.ports.rows import Run

PREFIX: Final = b"/realtime/v1/streams/"
#: Values stored together, and their bytes.
_VALUES_MAX: Final = 100
_BYTES_MAX: Final = 512 * limits.KIB

Endpoint = Callable[[Call, "Send"], Awaitable[Answer | None]]


class InputValue(msgspec.Struct):
    """Body of `POST …/streams/:run/input/:stream`."""

    data: Any


async def run_streams(scope: Scope, receive: Receive, send: Send) -> None:
    """Everything under `/realtime/v1/streams/`."""
    origin = origin_of(scope)
    if scope["method"] == "OPTIONS":
        await respond(send, preflight(scope), None)
        return
    call = Call(scope[SERVICES], scope, receive, {})
    try:
        segments = [decode_segment(s) for s in scope["raw_path"][len(PREFIX) :].split(b"/")]
        result = await _route(call, segments)(call, send)
    except Disconnected:
        return
    except Exception as error:
        if scope.get("everturn.started"):
            # As in routes/channels.py: an orderly end would say that everything was delivered.
            raise
        result = failure(call, error)
    if result is not None:
        await respond(send, result, origin)


def _route(call: Call, segments: list[str]) -> Endpoint:
    """The endpoint of a path and a method; what the path holds goes to the call's params."""
    params: dict[str, str]
    match segments:
        case [run, stream]:
            template, params = paths.RUN_STREAM, {"run": run, "stream": stream}
        case [run, "input", stream]:
            template, params = paths.RUN_STREAM_INPUT, {"run": run, "stream": stream}
        case [run, target, stream]:
            template = paths.RUN_STREAM_WRITE
            params = {"run": run, "target": target, "stream": stream}
        case [run, target, stream, "append"]:
            template = paths.RUN_STREAM_APPEND
            params = {"run": run, "target": target, "stream": stream}
        case _:
            raise NotFound("Not found", should_retry=False)
    endpoint = TABLE[template].get(call.scope["method"])
    if endpoint is None:
        raise MethodNotAllowed("Method not allowed", allow=", ".join([*TABLE[template], "OPTIONS"]))
    call.params = params
    return endpoint


async def _writable(call: Call) -> RunStream:
    caller = await call.authenticate(public=True)
    require_secret(caller)
    call.shape = Shape.TEXT
    streams = call.services.run_streams
    run = await streams.target(caller.environment_id, call.params["run"], call.params["target"])
    return _stream(run, call.params["stream"])


def _stream(run: Run, name: str, *, is_input: bool = False) -> RunStream:
    channel_of(run, name, is_input=is_input)  # refuses a name that cannot be one, before any body
    return RunStream(run, name, is_input)


async def initialize(call: Call, send: Send) -> Answer:
    """PUT …/streams/:run/:target/:stream: which way to write, always by posting here."""
    await _writable(call)
    return answer({"version": "v1"}, 202)


async def count(call: Call, send: Send) -> Answer:
    """HEAD …/streams/:run/:target/:stream: how many values of a client are stored.

    Nothing is counted per client: it sends all again, and what is known adds nothing.
    """
    await _writable(call)
    return Answer(200, b"", ((b"x-last-chunk-index", b"-1"),))


async def ingest(call: Call, send: Send) -> Answer:
    """POST …/streams/:run/:target/:stream: add JSON values, one a line."""
    stream = await _writable(call)
    client = call.header(b"x-client-id") or call.services.ids.part()
    start = call.header(b"x-resume-from-chunk") or "0"
    if not (start.isascii() and start.isdigit() and len(start) < 10):
        raise InvalidRequest("X-Resume-From-Chunk is a number")
    if len(client) > limits.PART_ID_CHARS_MAX // 2:
        raise InvalidRequest(f"X-Client-Id has at most {limits.PART_ID_CHARS_MAX // 2} characters")
    number, size = int(start), 0
    held: list[tuple[str, bytes]] = []
    async for line in call.lines(limits.CHUNK_BYTES_MAX):
        held.append((f"{client}:{number}", _json_text(line)))
        number += 1
        size += len(line)
        if len(held) >= _VALUES_MAX or size >= _BYTES_MAX:
            await call.services.run_streams.append_values(stream, held)
            held, size = [], 0
    if held:
        await call.services.run_streams.append_values(stream, held)
    return answer({"ok": True})


def _json_text(line: bytes) -> bytes:
    if nesting.too_deep(line):
        raise InvalidRequest(f"Invalid JSON in a stream: {nesting.TOO_DEEP}")
    try:
        return msgspec.json.encode(msgspec.json.decode(line))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"Invalid JSON in a stream: {error}") from error


async def append(call: Call, send: Send) -> Answer:
    """POST …/streams/:run/:target/:stream/append: add one text to a stream of a run."""
    stream = await _writable(call)
    call.check_size(limits.RUN_STREAM_APPEND_BYTES_MAX)
    part_id = call.header(b"x-part-id")
    if part_id is not None and not 1 <= len(part_id) <= limits.PART_ID_CHARS_MAX:
        raise InvalidRequest(f"X-Part-Id has 1 to {limits.PART_ID_CHARS_MAX} characters")
    call.shape = Shape.CHANNEL
    text = (await call.body(limits.RUN_STREAM_APPEND_BYTES_MAX)).decode("utf-8", "replace")
    await call.services.run_streams.append_text(stream, text, part_id)
    return answer({"ok": True})


async def send_input(call: Call, send: Send) -> Answer:
    """POST …/streams/:run/input/:stream: one value from outside to the run."""
    caller = await call.authenticate(public=True)
    call.check_size(limits.APPEND_BODY_BYTES_MAX)
    run_id = call.params["run"]
    require(caller, "write", [("inputStreams", run_id)])
    body = decode(await call.body(limits.APPEND_BODY_BYTES_MAX), InputValue)
    run = await call.services.run_streams.target(caller.environment_id, run_id, "self")
    text = msgspec.json.encode(body.data).decode()
    if len(text) > limits.CHUNK_BYTES_MAX:
        raise TooLarge("Input too large", what="data", bytes_max=limits.CHUNK_BYTES_MAX)
    stream = _stream(run, call.params["stream"], is_input=True)
    await call.services.run_streams.append_text(stream, text, None)
    return answer({"ok": True})


async def follow(call: Call, send: Send) -> None:
    """GET …/streams/:run/:stream: follow a stream of a run as server-sent events."""
    await _follow(call, send, is_input=False)


async def follow_input(call: Call, send: Send) -> None:
    """GET …/streams/:run/input/:stream: follow what was sent to a run as server-sent events."""
    await _follow(call, send, is_input=True)


async def _follow(call: Call, send: Send, *, is_input: bool) -> None:
    caller = await call.authenticate(public=True)
    run = await call.services.state.run(caller.environment_id, call.params["run"])
    if run is None:
        raise RunNotFound("Run not found", should_retry=False)
    require(caller, "read", run_resources(run.id, run.task_id, run.tags, run.batch_id))
    await follow_channel(call, channel_of(run, call.params["stream"], is_input=is_input), send)


#: By template, then by method.
TABLE: Final[dict[str, dict[str, Endpoint]]] = {
    paths.RUN_STREAM: {"GET": follow},
    paths.RUN_STREAM_INPUT: {"GET": follow_input, "POST": send_input},
    paths.RUN_STREAM_WRITE: {"PUT": initialize, "POST": ingest, "HEAD": count},
    paths.RUN_STREAM_APPEND: {"POST": append},
}
