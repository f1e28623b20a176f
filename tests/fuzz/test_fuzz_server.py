"""A server that is sent anything at all answers with a refusal, and goes on serving others."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any
from urllib.parse import quote

import anyio
import httpx2
import msgspec
import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal
from fuzz_targets import EXAMPLES, inputs, seeds
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from everturn.errors import ProtocolError
from everturn.protocol import link
from everturn.protocol.runs import TaskDeclaration
from everturn.server.assembly import System, build
from everturn.server.settings import Settings
from everturn.testing.asgi import AsgiTransport

bounded = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    derandomize=EXAMPLES <= 150,
)
_TASKS = [TaskDeclaration(task_id="agent", kind="agent"), TaskDeclaration(task_id="job")]


class Running:
    """A server on a loop of its own, asked from a test that is not asynchronous."""

    def __init__(self, portal: BlockingPortal, system: System, client: httpx2.AsyncClient) -> None:
        self._portal = portal
        self.system = system
        #: A run that waits in its queue.
        self.run_id = ""
        self.client = client

    def ask(self, method: str, path: str, **members: Any) -> httpx2.Response:
        async def asked() -> httpx2.Response:
            with anyio.fail_after(5):
                return await self.client.request(method, path, **members)

        return self._portal.call(asked)

    def call(self, work: Any, *arguments: Any) -> Any:
        return self._portal.call(work, *arguments)


@pytest.fixture(scope="module", params=["memory", "embedded"])
def running(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    """Over both stores: what is only a number to one is too large for the columns of the other."""
    folder = None if request.param == "memory" else str(tmp_path_factory.mktemp("fuzz") / "data")
    with ExitStack() as stack:
        portal = stack.enter_context(start_blocking_portal("asyncio"))

        def opened(manager: Any) -> Any:
            return stack.enter_context(portal.wrap_async_context_manager(manager))

        system = opened(build(Settings(data_dir=folder)))
        transport = opened(AsgiTransport(system.app))
        headers = {"authorization": f"Bearer {system.secret_key}"}
        client = opened(
            httpx2.AsyncClient(base_url="http://test", transport=transport, headers=headers)
        )
        found = Running(portal, system, client)
        found.call(_register, system)
        for key in ("s", "closed"):
            created = found.ask("POST", "/api/v1/sessions", json=session(key))
            assert created.status_code == 201, created.text
        found.run_id = found.ask("POST", "/api/v1/tasks/job/trigger", json={}).json()["id"]
        yield found


def session(key: str) -> dict[str, Any]:
    return {
        "type": "chat.agent",
        "externalId": key,
        "taskIdentifier": "agent",
        "triggerConfig": {"basePayload": {}},
    }


async def _register(system: System) -> None:
    """As if a worker had been here: its tasks are known, nobody runs them."""
    async with anyio.create_task_group() as tasks:
        peer = Peer()
        tasks.start_soon(_serve, system, peer)
        peer.say(hello("worker_once"))
        await peer.hears(link.Welcome)
        peer.raw(None)


LISTS = ("/api/v1/sessions", "/api/v1/runs", "/api/v1/waitpoints/tokens", "/api/v1/tasks")
NAMES = (
    *("page[size]", "page[after]", "page[before]", "filter[type]", "filter[tags]"),
    *("filter[status]", "filter[createdAt][period]", "filter[createdAt][from]"),
    *("filter[createdAt][to]", "filter[externalId]", "filter[isTest]", "filter[tag]"),
    *("filter[taskIdentifier]", "filter[batch]", "filter[version]", "filter[nothing]"),
)
VALUES = (
    *("0", "1", "100", "101", "-1", "1d", "7d", "99999999999999999999", "9" * 5000, "1e9"),
    *("ACTIVE", "ACTIVE,CLOSED", ",", "true", "false", "%", "session_x", "run_x", "\0", "é"),
)
_query = st.lists(
    st.tuples(
        st.sampled_from(NAMES) | st.text(max_size=12),
        st.sampled_from(VALUES) | st.text(max_size=30),
    ),
    max_size=6,
)


def _item_line(value: Any) -> bytes:
    """A line of a batch whose members are right and whose values are not."""
    return msgspec.json.encode({"index": 0, "task": "job", "payload": value, "options": value})


def _encoded(text: str) -> str:
    return quote(text.encode("utf-8", "surrogatepass"), safe="")


@bounded
@given(path=st.sampled_from(LISTS), query=_query)
def test_any_filter_of_a_list_is_refused_or_applied(
    running: Running, path: str, query: list[tuple[str, str]]
) -> None:
    text = "&".join(f"{_encoded(name)}={_encoded(value)}" for name, value in query)
    assert running.ask("GET", f"{path}?{text}").status_code in (200, 400)


BODIES = (
    ("POST", "/api/v1/sessions"),
    ("PATCH", "/api/v1/sessions/s"),
    ("POST", "/api/v1/sessions/s/close"),
    ("POST", "/api/v1/sessions/s/end-and-continue"),
    ("POST", "/api/v1/tasks/job/trigger"),
    ("POST", "/api/v3/batches"),
    ("POST", "/api/v1/waitpoints/tokens"),
    ("POST", "/api/v1/waitpoints/tokens/w/complete"),
    ("POST", "/api/v1/auth/jwt"),
    ("POST", "/api/v1/auth/public-tokens"),
    ("PUT", "/api/v1/runs/run_x/metadata"),
    ("POST", "/api/v1/runs/run_x/tags"),
    ("POST", "/api/v1/runs/run_x/reschedule"),
    ("POST", "/api/v1/idempotencyKeys/k/reset"),
    ("POST", "/realtime/v1/sessions/s/in/append"),
    ("POST", "/realtime/v1/sessions/s/out/records"),
    ("POST", "/realtime/v1/streams/run_x/self/s"),
    ("POST", "/realtime/v1/streams/run_x/input/s"),
    ("POST", "/s2/v1/streams/in-x/records"),
)


@bounded
@given(route=st.sampled_from(BODIES), body=inputs)
def test_any_body_is_refused_or_taken(
    running: Running, route: tuple[str, str], body: bytes
) -> None:
    reply = running.ask(*route, content=body)
    assert reply.status_code < 500, reply.text


_scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.sampled_from([2**31, 2**53, 2**63, -(2**63) - 1, 2**64, 1e18, 1e300])
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(
        ["", "1d", "0s", "9" * 30 + "d", "2026-01-01", "0001-01-01T00:00:00+23:59", "\0", "x"]
    )
    | st.text(max_size=10)
)
_anything = (
    _scalars | st.lists(_scalars, max_size=3) | st.dictionaries(st.text(max_size=3), _scalars)
)
_options = st.dictionaries(
    st.sampled_from(
        [
            *("payloadType", "queue", "concurrencyKey", "delay", "ttl", "idempotencyKey"),
            *("idempotencyKeyTTL", "maxAttempts", "maxDuration", "machine", "priority", "tags"),
            *("metadata", "metadataType", "lockToVersion", "test", "parentRunId"),
            *("resumeParentOnCompletion", "idempotencyKeyOptions"),
        ]
    ),
    _anything,
    max_size=5,
)


@bounded
@given(options=_options, payload=_anything)
def test_any_options_of_a_trigger_are_refused_or_taken(
    running: Running, options: dict[str, Any], payload: Any
) -> None:
    body = {"payload": payload, "options": options}
    reply = running.ask("POST", "/api/v1/tasks/job/trigger", content=msgspec.json.encode(body))
    assert reply.status_code < 500, (body, reply.text)


_config = st.dictionaries(
    st.sampled_from(
        [
            *("basePayload", "queue", "machine", "maxAttempts", "maxDuration", "tags"),
            *("idleTimeoutInSeconds", "lockToVersion", "metadata"),
        ]
    ),
    _anything,
    max_size=4,
)


@bounded
@given(
    config=_config,
    members=st.dictionaries(
        st.sampled_from(["externalId", "expiresAt", "tags", "metadata", "type", "taskIdentifier"]),
        _anything,
        max_size=2,
    ),
)
def test_any_session_is_refused_or_made(
    running: Running, config: dict[str, Any], members: dict[str, Any]
) -> None:
    body = {**session("f"), "triggerConfig": {"basePayload": {}, **config}, **members}
    reply = running.ask("POST", "/api/v1/sessions", content=msgspec.json.encode(body))
    assert reply.status_code < 500, (body, reply.text)


@bounded
@given(
    path=st.sampled_from(
        [
            ("PATCH", "/api/v1/sessions/s"),
            ("POST", "/api/v1/runs/{run}/reschedule"),
            ("PUT", "/api/v1/runs/{run}/metadata"),
            ("POST", "/api/v1/runs/{run}/tags"),
            ("POST", "/api/v1/waitpoints/tokens"),
            ("POST", "/api/v3/batches"),
            ("POST", "/api/v1/auth/jwt"),
            ("POST", "/api/v1/auth/public-tokens"),
            ("POST", "/realtime/v1/sessions/s/out/records"),
        ]
    ),
    body=st.dictionaries(
        st.sampled_from(
            [
                *("tags", "metadata", "externalId", "delay", "operations", "timeout"),
                *("idempotencyKey", "idempotencyKeyTTL", "runCount", "parentRunId", "scopes"),
                *("expirationTime", "claims", "realtime", "records", "oneTimeUse"),
            ]
        ),
        _anything,
        max_size=4,
    ),
)
def test_any_members_of_a_change_are_refused_or_taken(
    running: Running, path: tuple[str, str], body: dict[str, Any]
) -> None:
    method, template = path
    reply = running.ask(
        method, template.format(run=running.run_id), content=msgspec.json.encode(body)
    )
    assert reply.status_code < 500, (body, reply.text)


SUBSCRIPTIONS = ("/realtime/v1/runs", "/realtime/v1/runs/{run}", "/realtime/v1/batches/b")
_parameters = st.dictionaries(
    st.sampled_from(["offset", "handle", "createdAt", "tags", "skipColumns", "log", "cursor"]),
    st.sampled_from(["-1", "0_0", "1_2", "9" * 20 + "_" + "9" * 18, "runs-" + "9" * 15, "_", "1d"])
    | st.text(max_size=20),
    max_size=4,
)


@bounded
@given(path=st.sampled_from(SUBSCRIPTIONS), parameters=_parameters)
def test_any_parameters_of_a_subscription_are_refused_or_answered(
    running: Running, path: str, parameters: dict[str, str]
) -> None:
    text = "&".join(f"{name}={_encoded(value)}" for name, value in parameters.items())
    reply = running.ask("GET", f"{path.format(run=running.run_id)}?{text}")
    assert reply.status_code < 500, reply.text


READS = (
    "/realtime/v1/sessions/s/out/records",
    "/realtime/v1/sessions/s/in/records",
    "/realtime/v1/sessions/s/out",
    "/realtime/v1/streams/{run}/s",
)
_header_values = st.sampled_from(
    ["0", "1", "-1", "9" * 18, "9" * 40, "1.5", "+5", " 7", "12abc", "\u00b2", "é"]
) | st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=20)
_headers = st.dictionaries(
    st.sampled_from(["last-event-id", "timeout-seconds", "x-peek-settled", "x-part-id", "host"]),
    _header_values,
    max_size=4,
)


@bounded
@given(
    path=st.sampled_from(READS),
    headers=_headers,
    after=st.none() | _header_values,
)
def test_any_cursor_of_a_reader_is_refused_or_clamped(
    running: Running, path: str, headers: dict[str, str], after: str | None
) -> None:
    raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    raw.append((b"authorization", f"Bearer {running.system.secret_key}".encode()))
    url = path.format(run=running.run_id)
    if after is not None:
        url += f"?afterEventId={_encoded(after)}"
    assert running.call(_status_of, running, url, raw) < 500


async def _status_of(running: Running, url: str, raw: list[tuple[bytes, bytes]]) -> int:
    """The status of an answer that may be a stream without an end."""
    with anyio.fail_after(5):
        async with running.client.stream("GET", url, headers=raw) as reply:
            status: int = reply.status_code
            return status


@bounded
@given(lines=st.lists(inputs | st.builds(_item_line, _anything), max_size=4))
def test_any_items_of_a_batch_are_refused_or_run(running: Running, lines: list[bytes]) -> None:
    made = running.ask("POST", "/api/v3/batches", json={"runCount": 3}).json()
    reply = running.ask("POST", f"/api/v3/batches/{made['id']}/items", content=b"\n".join(lines))
    assert reply.status_code < 500, reply.text


@bounded
@given(name=st.text(min_size=1, max_size=40), data=st.binary(max_size=200), kind=_header_values)
def test_any_packet_is_refused_or_read_back(
    running: Running, name: str, data: bytes, kind: str
) -> None:
    made = running.ask("PUT", f"/api/v1/packets/{_encoded(name)}")
    assert made.status_code < 500, made.text
    if made.status_code != 200:
        return
    raw = [(b"content-type", kind.encode("latin-1").strip())]
    stored = running.ask("PUT", made.json()["presignedUrl"], content=data, headers=raw)
    assert stored.status_code < 500, stored.text
    if stored.status_code == 200:
        found = running.ask("GET", f"/api/v1/packets/{_encoded(name)}").json()
        assert running.ask("GET", found["presignedUrl"]).content == data


@bounded
@given(path=st.text(max_size=40), method=st.sampled_from(["GET", "POST", "PUT", "HEAD", "BREW"]))
def test_any_path_is_answered(running: Running, path: str, method: str) -> None:
    for prefix in ("/", "/api/v1/sessions/", "/realtime/v1/sessions/", "/realtime/v1/streams/"):
        reply = running.ask(method, prefix + _encoded(path), content=b"{}")
        assert reply.status_code < 500, reply.text


@bounded
@given(credential=inputs)
def test_any_credential_is_refused(running: Running, credential: bytes) -> None:
    text = credential.decode("latin-1").replace("\r", "").replace("\n", "").replace("\0", "")
    for value in (text, f"Bearer {text}"):
        raw = [(b"authorization", value.strip().encode("latin-1"))]
        assert running.ask("GET", "/api/v1/sessions", headers=raw).status_code == 401


# --- the link ------------------------------------------------------------------------------------


class Peer:
    """A worker's end of a link, by hand: the transport, and what came over it."""

    def __init__(self) -> None:
        self._to_server: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._frames: asyncio.Queue[link.ServerFrame] = asyncio.Queue()
        self._packer = link.Packer(64 * 1024)
        self._unpacker: link.Unpacker[link.ServerFrame] = link.Unpacker(link.ServerFrame, 1 << 24)

    async def receive(self) -> bytes | None:
        return await self._to_server.get()

    async def send(self, message: bytes) -> None:
        for frame in self._unpacker.decode(message):
            self._frames.put_nowait(frame)

    def say(self, *frames: link.WorkerFrame) -> None:
        for frame in frames:
            self.raw(self._packer.message(self._packer.encode(frame)))

    def raw(self, message: bytes | None) -> None:
        self._to_server.put_nowait(message)

    async def hears(self, kind: type) -> Any:
        with anyio.fail_after(5):
            while not isinstance(frame := await self._frames.get(), kind):
                pass
        return frame


def hello(worker_id: str) -> link.Hello:
    return link.Hello(worker_id, "v1", _TASKS, {}, [])


async def _serve(system: System, peer: Peer) -> None:
    try:
        await system.services.links.serve(system.environment, peer)
    except ProtocolError:
        pass  # What its route answers by closing this connection, and no other.


async def _garbage(system: System, messages: list[bytes]) -> None:
    """One worker speaks garbage; another, connected all the while, is answered as ever."""
    good, bad, late = Peer(), Peer(), Peer()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_serve, system, good)
        good.say(hello("worker_good"))
        await good.hears(link.Welcome)
        tasks.start_soon(_serve, system, bad)
        bad.say(hello("worker_bad"))
        for message in messages:
            bad.raw(message)
        bad.raw(None)
        tasks.start_soon(_serve, system, late)
        for message in messages:
            late.raw(message)
        late.raw(None)
        good.say(link.Beat(7))
        assert (await good.hears(link.Beat)).n == 7
        good.raw(None)


@bounded
@given(messages=st.lists(inputs, min_size=1, max_size=4))
def test_a_worker_that_sends_garbage_ends_its_own_link_and_no_other(
    running: Running, messages: list[bytes]
) -> None:
    running.call(_garbage, running.system, messages)


def test_every_kept_input_on_a_link_ends_no_other(running: Running) -> None:
    for seed in seeds():
        running.call(_garbage, running.system, [seed])


_ids = st.sampled_from(["", "run_x", "worker_good", "\0", "x" * 300])
_numbers = st.sampled_from([-(2**63), -1, 0, 1, 2**31, 2**63 - 1])
_values = st.none() | st.booleans() | _numbers | st.text(max_size=5) | st.binary(max_size=5)
_frames = (
    st.builds(link.Credit, _numbers)
    | st.builds(link.Started, _ids, _numbers)
    | st.builds(link.Append, _ids, _numbers, _numbers, st.just([]))
    | st.builds(link.Tail, _numbers, _ids, st.sampled_from(["in", "out", "x"]), _numbers)
    | st.builds(link.Untail, _numbers)
    | st.builds(link.Beat, _numbers)
    | st.builds(
        link.Call,
        _ids,
        _ids,
        _numbers,
        st.sampled_from([*link.METHODS, "nothing"]),
        st.dictionaries(
            st.sampled_from(["io", "after", "limit", "data", "outcome", "task_id", "token"]),
            _values | st.lists(_values, max_size=2),
            max_size=4,
        ),
    )
)


@bounded
@given(frames=st.lists(_frames, min_size=1, max_size=6))
def test_frames_in_any_order_about_runs_of_nobody_end_no_other_link(
    running: Running, frames: list[link.WorkerFrame]
) -> None:
    messages = [b"".join([link.Packer.message(link.Packer(1 << 20).encode(f))]) for f in frames]
    running.call(_garbage, running.system, messages)


def test_a_worker_of_one_environment_cannot_take_the_name_of_another_s(running: Running) -> None:
    """P-12: its name would end the other's connection and open what its calls answered."""

    async def both(system: System) -> None:
        state = system.services.state
        other = await state.ensure_environment("prod", now_ms=system.services.clock.now_ms())
        good, thief = Peer(), Peer()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_serve, system, good)
            good.say(hello("worker_mine"))
            await good.hears(link.Welcome)
            thief.say(hello("worker_mine"))
            with pytest.raises(ProtocolError, match="not of this environment"):
                await system.services.links.serve(other, thief)
            good.say(link.Beat(1))
            assert (await good.hears(link.Beat)).n == 1
            good.raw(None)

    running.call(both, running.system)
