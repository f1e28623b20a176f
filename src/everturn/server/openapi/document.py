"""The document itself: every route with what it takes and answers, as OpenAPI 3.1.

`document` is given the routes as plain data (`Described`), so that it knows nothing of how they
are served. It holds no host name and no key: `servers` is left out, which means "where you got
this from".
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import version
from typing import Any, Final, NamedTuple

import msgspec

from everturn.protocol.problems import Shape
from everturn.rules import limits
from everturn.server.openapi import answers as a
from everturn.server.openapi.operations import (
    JSON,
    OPERATIONS,
    STRING,
    TEXT,
    Content,
    Operation,
)

_REF: Final = "#/components/schemas/{name}"
_ABOUT: Final = """\
The HTTP interface of everturn. `PROTOCOL.md` says what these routes promise; this document says
what they take and answer, and is made from the routes of the server that serves it.

Ids in paths are percent-encoded as one segment: an external id may hold a slash. Operations with
`x-cors` answer browsers: the origin is echoed, a preflight allows whatever headers it asks for.
Whatever answers `GET` answers `HEAD`. Unknown members of bodies are ignored, and answers may gain
members."""
_SECURITY: Final = {
    "secretKey": {
        "type": "http",
        "scheme": "bearer",
        "description": "A secret key of an environment, `tr_<type>_…`. Opens everything in it.",
    },
    "publicToken": {
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "JWT",
        "description": "A public token; opens what its scopes name.",
    },
    "writeTicket": {
        "type": "http",
        "scheme": "bearer",
        "description": "`X-S2-Access-Token` of the answer that named the endpoint.",
    },
    "signedLink": {
        "type": "apiKey",
        "in": "query",
        "name": "signature",
        "description": "Part of a link that the server made, with `expires`.",
    },
}
_STATUSES: Final[Mapping[int, str]] = {
    400: "The request is malformed.",
    401: "No credential, or none that works here.",
    403: "The credential does not open this.",
    404: "There is no such thing.",
    409: "Its state does not allow this; repeating is useless.",
    411: "The size of the body must be declared.",
    412: "The stream has another fencing token.",
    413: "The body is too large, or its size is not declared.",
    415: "The body is of another type than this route takes.",
    422: "Well formed, but a rule forbids it.",
    429: "Too many requests with this credential.",
    503: "Try again later.",
}
_SUCCESS: Final = {101: "The link is open.", 201: "Made.", 202: "Taken.", 503: "Not ready."}
_PATH_PARAMETERS: Final = {
    "session": "The external id of a session, or its `session_…` id.",
    "io": "`in`: clients to the agent. `out`: the agent to clients.",
    "name": "Any name; it may hold slashes.",
    "target": "`self`, `parent` or `root`: which run of the family the stream belongs to.",
    "key": "The hash of an idempotency key.",
    "hash": "The proof that a callback URL carries.",
    "stream": "A name of the writer's choice.",
}


class Described(NamedTuple):
    """One route with one method."""

    path: str
    method: str
    handler: Callable[..., Any]
    #: Public tokens are accepted.
    public: bool = False
    #: No bearer credential of ours is asked for.
    open: bool = False
    cap: int | None = None
    cors: bool = False
    #: Counted by the rate limits.
    limited: bool = False


def document(routes: Iterable[Described]) -> dict[str, Any]:
    """The OpenAPI document of these routes. Raises KeyError for a handler without an operation."""
    described = list(routes)
    kinds = [kind for route in described for kind in _kinds(OPERATIONS[route.handler])]
    refs, components = _schemas([*kinds, a.Error, a.WriteError, a.RateLimitError])
    paths: dict[str, Any] = {}
    taken: set[str] = set()
    for route in described:
        item = paths.setdefault(_template(route.path), {})
        item[route.method.lower()] = _operation(route, refs, taken)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "everturn",
            "version": version("everturn"),
            "description": _ABOUT,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {"schemas": components, "securitySchemes": _SECURITY},
    }


# --- types ---------------------------------------------------------------------------------------


def _contents(shape: Any) -> tuple[Content, ...]:
    if shape is None:
        return ()
    return shape if isinstance(shape, tuple) else (Content(JSON, shape),)


def _kinds(operation: Operation) -> list[type]:
    shapes = [operation.body, *operation.answers.values()]
    kinds = [content.kind for shape in shapes for content in _contents(shape)]
    return [kind for kind in kinds if isinstance(kind, type)]


def _schemas(kinds: Sequence[type]) -> tuple[dict[type, Any], dict[str, Any]]:
    unique = list(dict.fromkeys(kinds))
    refs, components = msgspec.json.schema_components(unique, ref_template=_REF)
    return dict(zip(unique, refs, strict=True)), components


def _schema(kind: Any, refs: Mapping[type, Any]) -> Any:
    return refs[kind] if isinstance(kind, type) else kind


def _content(shape: Any, refs: Mapping[type, Any]) -> dict[str, Any]:
    return {c.media: {"schema": _schema(c.kind, refs)} for c in _contents(shape)}


# --- one operation -------------------------------------------------------------------------------


def _operation(route: Described, refs: Mapping[type, Any], taken: set[str]) -> dict[str, Any]:
    operation = OPERATIONS[route.handler]
    found: dict[str, Any] = {
        "operationId": _name(route, taken),
        "tags": [_tag(route.handler)],
        "summary": summary(route.handler),
        "security": _security(route, operation),
        "parameters": _parameters(route, operation),
        "responses": _responses(route, operation, refs),
    }
    if operation.body is not None:
        found["requestBody"] = {
            "required": not operation.optional,
            "content": _content(operation.body, refs),
        }
    if route.cap is not None:
        found["x-body-bytes-max"] = route.cap
    if route.cors:
        found["x-cors"] = True
    return found


def _tag(handler: Callable[..., Any]) -> str:
    return handler.__module__.rpartition(".")[2].replace("_", " ")


def _name(route: Described, taken: set[str]) -> str:
    base = f"{route.handler.__module__.rpartition('.')[2]}.{route.handler.__name__}"
    name, number = base, 2
    while name in taken:
        name, number = f"{base}_{number}", number + 1
    taken.add(name)
    return name


def summary(handler: Callable[..., Any]) -> str:
    """The first sentence of a handler's docstring, without its route and its references."""
    line = (inspect.getdoc(handler) or "").partition("\n")[0]
    line = re.sub(r" \([^()]*§[^()]*\)", "", line)
    line = re.sub(r"^(?:GET|HEAD|POST|PUT|PATCH)\b.*?: ", "", line)
    sentence = line.partition(". ")[0].rstrip(".")
    return sentence[:1].upper() + sentence[1:] + "."


def _security(route: Described, operation: Operation) -> list[dict[str, list[str]]]:
    if operation.signed:
        return [{"signedLink": []}]
    if 412 in operation.refusals:
        return [{"writeTicket": []}]
    if route.open:
        return []
    if route.public and not operation.secret:
        return [{"secretKey": []}, {"publicToken": []}]
    return [{"secretKey": []}]


def _template(path: str) -> str:
    return path.replace(":path}", "}")


def _parameters(route: Described, operation: Operation) -> list[dict[str, Any]]:
    found = [_path_parameter(name) for name in re.findall(r"{(\w+)}", _template(route.path))]
    for name, about, schema, place in operation.parameters:
        found.append({"name": name, "in": place, "description": about, "schema": dict(schema)})
    if operation.signed:
        about = "When the link ends, in seconds since the epoch."
        found.append({"name": "expires", "in": "query", "description": about, "schema": STRING})
    return found


def _path_parameter(name: str) -> dict[str, Any]:
    schema: dict[str, Any] = {
        "type": "string",
        "minLength": 1,
        "maxLength": limits.SEGMENT_CHARS_MAX,
    }
    if name == "io":
        schema = {"enum": ["in", "out"]}
    return {
        "name": name,
        "in": "path",
        "required": True,
        "description": _PATH_PARAMETERS.get(name, f"The id of a {name}."),
        "schema": schema,
    }


# --- answers -------------------------------------------------------------------------------------


def _responses(route: Described, operation: Operation, refs: Mapping[type, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for status, shape in operation.answers.items():
        one: dict[str, Any] = {"description": _SUCCESS.get(status, "Done.")}
        found[str(status)] = one
        if content := _content(shape, refs):
            one["content"] = content
        if operation.headers and status < 300:
            one["headers"] = {
                name: {"description": about, "schema": STRING}
                for name, about in operation.headers.items()
            }
    for status in _refusals(route, operation):
        found.setdefault(str(status), _refusal(route, operation, status, refs))
    return dict(sorted(found.items()))


def _refusals(route: Described, operation: Operation) -> list[int]:
    statuses = {400, 503, *operation.refusals}
    if "{" in route.path:
        statuses.add(404)
    if not route.open:
        statuses |= {401, 403} if route.public else {401}
    if operation.signed:
        statuses.add(403)
    if route.cap is not None:
        statuses.add(413)
    if route.limited:
        statuses.add(429)
    return sorted(statuses)


def _refusal(
    route: Described, operation: Operation, status: int, refs: Mapping[type, Any]
) -> dict[str, Any]:
    one: dict[str, Any] = {"description": _STATUSES[status]}
    if route.method == "HEAD":
        return one
    kind = a.WriteError if 412 in operation.refusals else a.Error
    content: dict[str, Any] = {JSON: {"schema": refs[kind]}}
    if status == 429:
        content = {"application/problem+json": {"schema": refs[a.RateLimitError]}}
    elif operation.errors is Shape.TEXT:
        content[TEXT] = {"schema": STRING}
    return one | {"content": content}
