"""A server that is sent anything at all answers with a refusal, and goes on serving others."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any
from urllib.parse import quote

import anyio
import httpx2
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
        self._client = client

    def ask(self, method: str, path: str, **members: Any) -> httpx2.Response:
        async def asked() -> httpx2.Response:
            with anyio.fail_after(5):
                return await self._client.request(method, path, **members)

        return self._portal.call(asked)

    def call(self, work: Any, *arguments: Any) -> Any:
        return self._portal.call(work, *arguments)


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    with ExitStack() as stack:
        portal = stack.enter_context(start_blocking_portal("asyncio"))

        def opened(manager: Any) -> Any:
            return stack.enter_context(portal.wrap_async_context_manager(manager))

        system = opened(build(Settings()))
        transport = opened(AsgiTransport(system.app))
        headers = {"authorization": f"Bearer {system.secret_key}"}
        client = opened(
            httpx2.AsyncClient(base_url="http://test", transport=transport, headers=headers)
        )
        yield Running(portal, system, client)


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
