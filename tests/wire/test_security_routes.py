"""Every scope against every route, and every environment against every other (P-12).

The table below says for each route who may pass. It is compared with the application's own list
of routes, so a route without a row fails. Whether a scope opens a row is decided here by a second
reading of wire-protocol §3.5, not by the code under test.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any, NamedTuple

import anyio
import pytest
from http_harness import KEY, Http, Reply, server, session_body

from everturn.protocol import paths
from everturn.server.app import every_route

pytestmark = pytest.mark.anyio

#: No bearer is asked for: nothing is told, or the link carries its own signature.
OPEN = "open"
#: Public tokens are 401: the route does not know them.
SECRET = "secret"
#: Public tokens are 403, whatever they say (rulings §4.2).
REFUSED = "refused"
#: Any valid token.
ANY = "any"

ORIGIN = {"origin": "https://app.example"}
NDJSON = {"content-type": "application/x-ndjson"}
RECORD = {"records": [{"data": {"type": "text-delta"}}]}


class Row(NamedTuple):
    """One route: what it needs, and a request that is good in every other way."""

    template: str
    method: str
    needs: str | tuple[str, ...]  # a word above, or scopes that open it, by their widest id
    body: Any = None
    io: str = "in"
    headers: dict[str, str] = {}


SESSION_READ = ("read:sessions:chat-1", "read:sessions:SESSION")
SESSION_WRITE = ("write:sessions:chat-1", "write:sessions:SESSION")
RUN_READ = ("read:runs:RUN", "read:tasks:job", "read:tags:red")

TABLE = [
    Row(paths.HEALTH, "GET", OPEN),
    Row(paths.READY, "GET", OPEN),
    Row(paths.OPENAPI, "GET", OPEN),
    Row(paths.SNAPSHOT, "GET", OPEN),
    Row(paths.SNAPSHOT, "PUT", OPEN, {}),
    Row(paths.PACKET_DATA, "GET", OPEN),
    Row(paths.PACKET_DATA, "PUT", OPEN, {}),
    Row(paths.WAIT_TOKEN_CALLBACK, "POST", OPEN, {}),
    Row(paths.STREAM_RECORDS, "POST", OPEN, {"records": []}),
    Row(paths.LINK, "GET", SECRET),
    Row(paths.SESSIONS, "POST", ("write:tasks:agent", "write:sessions"), session_body()),
    Row(paths.SESSIONS, "GET", ("read:sessions", "read:tasks")),
    Row(paths.SESSION, "GET", SESSION_READ),
    Row(paths.SESSION, "PATCH", REFUSED, {"tags": ["a"]}),
    Row(paths.SESSION_CLOSE, "POST", REFUSED, {}),
    Row(paths.SESSION_CONTINUE, "POST", REFUSED, {"callingRunId": "RUN", "reason": "x"}),
    Row(paths.SESSION_SNAPSHOT_URL, "GET", SESSION_READ),
    Row(paths.SESSION_SNAPSHOT_URL, "PUT", REFUSED),
    Row(paths.TOKEN_CLAIMS, "POST", SECRET),
    Row(paths.TOKENS, "POST", SECRET, {}),
    Row(paths.PUBLIC_TOKENS, "POST", SECRET, {"scopes": []}),
    Row(paths.TASKS, "GET", SECRET),
    Row(paths.TASK_TRIGGER, "POST", ("trigger:tasks:job",), {"payload": {}}),
    Row(paths.RUNS, "GET", ("read:runs",)),
    Row(paths.RUN, "GET", RUN_READ),
    Row(paths.RUN_CANCEL, "POST", ("write:runs:RUN", "write:tasks:job")),
    Row(paths.RUN_METADATA, "GET", SECRET),
    Row(paths.RUN_METADATA, "PUT", SECRET, {"metadata": {}}),
    Row(paths.RUN_TAGS, "POST", SECRET, {"tags": ["a"]}),
    Row(paths.RUN_RESULT, "GET", SECRET),
    Row(paths.RUN_EVENTS, "GET", RUN_READ),
    Row(paths.RUN_TRACE, "GET", RUN_READ),
    Row(paths.RUN_SPAN, "GET", RUN_READ),
    Row(paths.PROJECT_RUNS, "GET", SECRET),
    Row(paths.RUN_REPLAY, "POST", SECRET),
    Row(paths.RUN_RESCHEDULE, "POST", SECRET, {"delay": "1h"}),
    Row(paths.KEY_RESET, "POST", ("write:runs",), {"taskIdentifier": "job"}),
    Row(paths.BATCHES, "POST", ("batchTrigger:tasks:ANY", "batchTrigger:batch"), {"runCount": 1}),
    Row(
        paths.BATCH_ITEMS,
        "POST",
        ("write:batch:BATCH", "batchTrigger:tasks:job"),
        {"index": 0, "task": "job", "payload": {}},
        headers=NDJSON,
    ),
    Row(paths.BATCH, "GET", ("read:batch:BATCH", "read:runs")),
    Row(paths.BATCH_RESULTS, "GET", SECRET),
    Row(paths.TASKS_BATCH, "POST", SECRET, {"items": [{"task": "job"}]}),
    Row(paths.PACKET_UPLOAD, "PUT", SECRET),
    Row(paths.PACKET, "GET", ANY),
    Row(paths.PACKET, "PUT", SECRET),
    Row(paths.REALTIME_RUN, "GET", RUN_READ),
    Row(paths.REALTIME_RUNS, "GET", ("read:runs", "read:tags")),
    Row(paths.REALTIME_BATCH, "GET", ("read:batch:BATCH", "read:runs")),
    Row(paths.WAIT_TOKENS, "GET", SECRET),
    Row(paths.WAIT_TOKENS, "POST", SECRET, {}),
    Row(paths.WAIT_TOKEN, "GET", SECRET),
    Row(paths.WAIT_TOKEN_COMPLETE, "POST", ("write:waitpoints:TOKEN",), {}),
    Row(paths.CHANNEL, "GET", SESSION_READ, io="out"),
    Row(paths.CHANNEL, "HEAD", SESSION_READ, io="out"),
    Row(paths.CHANNEL, "PUT", SESSION_WRITE),
    Row(paths.CHANNEL, "PUT", REFUSED, io="out"),
    Row(paths.CHANNEL_APPEND, "POST", SESSION_WRITE, {}),
    Row(paths.CHANNEL_APPEND, "POST", REFUSED, {}, io="out"),
    Row(paths.CHANNEL_RECORDS, "GET", SESSION_READ),
    Row(paths.CHANNEL_RECORDS, "POST", REFUSED, RECORD, io="out"),
    Row(paths.RUN_STREAM, "GET", RUN_READ),
    Row(paths.RUN_STREAM_INPUT, "GET", RUN_READ),
    Row(paths.RUN_STREAM_INPUT, "POST", ("write:inputStreams:RUN",), {"data": 1}),
    Row(paths.RUN_STREAM_WRITE, "PUT", REFUSED),
    Row(paths.RUN_STREAM_WRITE, "POST", REFUSED, 1),
    Row(paths.RUN_STREAM_WRITE, "HEAD", REFUSED),
    Row(paths.RUN_STREAM_WRITE + "/append", "POST", REFUSED, "x"),
]
SCOPED = [row for row in TABLE if isinstance(row.needs, tuple)]


def row_id(row: Row) -> str:
    return f"{row.method} {row.template} {row.io}"


class Site(NamedTuple):
    """A server with one of everything, and a second environment with nothing."""

    http: Http
    names: dict[str, str]
    foreign: str  # a secret key of the other environment
    foreign_id: str

    def path(self, row: Row, **other: str) -> str:
        names = self.names | {"io": row.io} | other
        return paths.fill(row.template, **names)

    def scope(self, text: str) -> str:
        for name in ("session_id", "run", "batch", "token"):
            text = text.replace(name.removesuffix("_id").upper(), self.names[name])
        return text

    async def ask(self, row: Row, key: str | None, **other: str) -> Reply:
        reply: Reply | None = None
        with anyio.move_on_after(2):
            reply = await self.http(
                row.method,
                self.path(row, **other),
                row.body,
                key=key,
                headers=dict(row.headers),
            )
        assert reply is not None, f"{row_id(row)} never answered"
        return reply


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    async with server() as http:
        created = await http.create()
        run = await http(
            "POST", "/api/v1/tasks/job/trigger", {"payload": {}, "options": {"tags": ["red"]}}
        )
        batch = await http("POST", paths.BATCHES, {"runCount": 1})
        token = await http("POST", paths.WAIT_TOKENS, {})
        trace = await http("GET", paths.fill(paths.RUN_TRACE, run=run.json["id"]))
        names = {
            "project": "proj_any",
            "span": trace.json["trace"]["rootSpan"]["id"],
            "session": "chat-1",
            "session_id": created["id"],
            "run": run.json["id"],
            "batch": batch.json["id"],
            "token": token.json["id"],
            "task": "job",
            "key": "once",
            "name": "packet.json",
            "environment": http.system.environment.id,
            "hash": "0" * 64,
            "stream": "s",
            "target": "self",
        }
        services = http.system.services
        other = await services.state.ensure_environment("prod", now_ms=http.clock.now_ms())
        _, foreign = await services.keys.create(other)
        yield Site(http, names, foreign, other.id)


def test_every_route_of_the_application_has_a_row() -> None:
    served = {(route.path.replace(":path", ""), route.method) for route in every_route()}
    listed = {(row.template, row.method) for row in TABLE}
    assert served - listed == set(), "routes without a row"
    assert listed - served <= {(paths.CHANNEL, "HEAD")}, "rows without a route"


def opens(scope: str, needs: tuple[str, ...]) -> bool:
    """§3.5 once more: action, type and id, where a scope without an id means all of them."""
    if scope == "admin":
        return True
    action, _, rest = scope.partition(":")
    kind, _, name = rest.partition(":")
    for need in needs:
        wanted_action, _, wanted = need.partition(":")
        wanted_kind, _, wanted_name = wanted.partition(":")
        same_action = action in (wanted_action, "*")
        same_kind = kind in (wanted_kind, "all")
        if same_action and same_kind and (not name or name == wanted_name or wanted_name == "ANY"):
            return True
    return False


def universe() -> Iterator[str]:
    """Every scope some route asks for, and those that are nearly it."""
    yield from (
        "admin",
        "read",
        "write",
        "read:",
        ":",
        "",
        "admin:sessions",
        "*:sessions:chat-1",
        "*:tasks:job",
    )
    for need in sorted({need for row in SCOPED for need in row.needs if "ANY" not in need}):
        action, kind, *name = need.split(":")
        yield need
        yield f"{action}:{kind}"
        yield f"{action}:all"
        yield f"{need}x" if name else f"{need}:x"
        yield f"{'write' if action == 'read' else 'read'}:{kind}{''.join(':' + n for n in name)}"


@pytest.mark.parametrize("row", SCOPED, ids=row_id)
async def test_a_scope_opens_exactly_the_routes_it_names(site: Site, row: Row) -> None:
    needs = tuple(site.scope(need) for need in row.needs)
    wrong = []
    for text in dict.fromkeys(universe()):
        scope = site.scope(text)
        reply = await site.ask(row, site.http.token(scope))
        expected = opens(scope, needs)
        if reply.status == 401 or (reply.status == 403) is expected or reply.status >= 500:
            wrong.append((scope, reply.status, reply.body[:80]))
    assert wrong == []


@pytest.mark.parametrize(
    "row", [row for row in TABLE if row.needs in (SECRET, REFUSED)], ids=row_id
)
async def test_what_only_a_secret_key_may_do_is_refused_to_every_token(
    site: Site, row: Row
) -> None:
    if row.template == paths.LINK:
        return  # a WebSocket: test_security_link.py
    before = await site.http.stored()
    for scope in ("admin", "write:all", "*:all", *SESSION_WRITE):
        reply = await site.ask(row, site.http.token(site.scope(scope)))
        assert reply.status == (401 if row.needs == SECRET else 403), (scope, reply)
    assert await site.http.stored() == before


@pytest.mark.parametrize("row", [row for row in TABLE if row.needs != OPEN], ids=row_id)
async def test_without_a_credential_nothing_opens_and_nothing_is_told(site: Site, row: Row) -> None:
    if row.template == paths.LINK:
        return
    for key in (None, "tr_dev_" + "0" * 24, site.http.token("admin", key="tr_dev_" + "0" * 24)):
        reply = await site.ask(row, key)
        assert reply.status == 401, reply
        assert b"chat-1" not in reply.body


@pytest.mark.parametrize(
    "row", [row for row in TABLE if row.needs == OPEN and "{" in row.template], ids=row_id
)
async def test_a_link_without_its_signature_opens_nothing(site: Site, row: Row) -> None:
    for key in (None, KEY, site.http.token("admin")):
        reply = await site.ask(row, key)
        assert reply.status in (401, 403, 404), reply


NAMED = ["session", "run", "batch", "token"]


@pytest.mark.parametrize(
    "row",
    [r for r in TABLE if r.needs != OPEN and any(f"{{{n}}}" in r.template for n in NAMED)],
    ids=row_id,
)
@pytest.mark.parametrize("credential", ["key", "token"])
async def test_another_environment_cannot_tell_what_exists_from_what_does_not(
    site: Site, row: Row, credential: str
) -> None:
    """The answer for a thing of ours is, to the byte, the answer for a thing that is not."""
    key = site.foreign
    if credential == "token":
        key = site.http.token("admin", key=site.foreign, sub=site.foreign_id)
    before = await site.http.stored()
    absent = {
        "session": "chat-0",
        "run": site.names["run"][:-2] + "zz",
        "batch": site.names["batch"][:-2] + "zz",
        "token": site.names["token"][:-2] + "zz",
    }
    ids = [{}] if "{session}" not in row.template else [{}, {"session": site.names["session_id"]}]
    for named in ids:
        ours = await site.ask(row, key, **named)
        gone = absent | {"session": "session_" + "0" * 25} if named else absent
        nobodys = await site.ask(row, key, **gone)
        assert ours.status == nobodys.status, (ours, nobodys)
        assert neutral(ours, site, named or site.names) == neutral(nobodys, site, gone)
    assert await site.http.stored() == before


def neutral(reply: Reply, site: Site, names: dict[str, str]) -> bytes:
    """A body without the id that was asked for, which an answer may repeat."""
    body = reply.body
    for name in NAMED:
        if name in names:
            body = body.replace(names[name].encode(), b"ID")
    return body


@pytest.mark.parametrize("path", [paths.SESSIONS, paths.RUNS, paths.WAIT_TOKENS])
async def test_lists_of_another_environment_are_empty(site: Site, path: str) -> None:
    reply = await site.http("GET", path, key=site.foreign)
    assert (reply.status, reply.json["data"]) == (200, [])


async def test_the_same_external_id_in_two_environments_is_two_sessions(site: Site) -> None:
    http = site.http
    tasks = http.system.services.state
    from everturn.storage.ports.rows import TaskVersion, Worker

    now_ms = http.clock.now_ms()
    worker = Worker(
        id="worker_2",
        environment_id=site.foreign_id,
        version="v1",
        server_id="server",
        lease_until_ms=now_ms + 30_000,
        registered_at_ms=now_ms,
    )
    await tasks.register_worker(
        worker, [TaskVersion(task_id="agent", kind="agent")], {}, now_ms=now_ms
    )
    theirs = await http("POST", paths.SESSIONS, session_body(), key=site.foreign)
    assert theirs.status == 201
    assert theirs.json["id"] != site.names["session_id"]
    append = "/realtime/v1/sessions/chat-1/in/append"
    assert (await http("POST", append, raw=b"secret", key=site.foreign)).status == 200
    ours = await http("GET", "/realtime/v1/sessions/chat-1/in/records")
    assert b"secret" not in ours.body
    # A token of theirs says "chat-1" too, and still opens theirs only.
    token = http.token("read:sessions:chat-1", key=site.foreign, sub=site.foreign_id)
    found = await http("GET", "/api/v1/sessions/chat-1", key=token)
    assert found.json["id"] == theirs.json["id"]


@pytest.mark.parametrize("row", [row for row in TABLE if row.needs != OPEN], ids=row_id)
async def test_errors_of_routes_a_page_may_call_are_readable_by_it(site: Site, row: Row) -> None:
    (route,) = [
        r
        for r in every_route()
        if (r.path.replace(":path", ""), r.method)
        == (
            row.template,
            "GET" if row.method == "HEAD" and row.template == paths.CHANNEL else row.method,
        )
    ]
    if row.template == paths.LINK:
        return
    reply = await site.http(row.method, site.path(row), row.body, key=None, headers=ORIGIN)
    assert reply.status == 401
    allowed = reply.headers.get("access-control-allow-origin")
    assert allowed == (ORIGIN["origin"] if route.cors else None)
