"""`run_in_mock_task_context`: code of a plain task, with the run around it played (§7).

    async def test_it_reports(…):
        async def work(task: testing.MockTask) -> None:
            await task.inputs.send("in", {"city": "Oslo"})
            await my_task_code()
            assert await task.outputs.chunks("progress") == [{"done": 1}]

        await testing.run_in_mock_task_context(work, ctx={"run.tags": ["test"]})

The run has a session of its own, so `sessions.open(task.session)` gives the in-run handle: what a
test sends to the stream `in` is what its `in_` reads, and the stream `out` is what it appends.
Any other stream name is a stream of the run (`everturn.streams`). Wait tokens and other tasks are
there too (`nearby`); other calls to a server find nobody: they are answered 404.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar
from urllib.parse import unquote

import anyio
import httpx2
import msgspec

from everturn.chat.local import ChatLocal
from everturn.client import config
from everturn.clock import Clock
from everturn.errors import InvalidRequest
from everturn.protocol.records import open_envelope
from everturn.protocol.runs import RunInfo
from everturn.tasks import registry
from everturn.tasks import scope as scopes
from everturn.tasks.context import TaskContext
from everturn.tasks.definition import Task
from everturn.tasks.own_session import own_session
from everturn.tasks.runtime import running
from everturn.testing.clock import VirtualClock
from everturn.testing.nearby import KEY, URL, Nearby
from everturn.testing.runtime import ENVIRONMENT, MemoryRuntime, World

T = TypeVar("T")


def context_with(context: TaskContext, overrides: Mapping[str, Any]) -> TaskContext:
    """A context with some members replaced.

    Args:
        overrides: nested (`{"attempt": {"number": 2}}`) or dotted (`{"attempt.number": 2}`).

    Raises InvalidRequest for a member that a context does not have.
    """
    for name, value in overrides.items():
        context = _replaced(context, name.split("."), value)
    return context


def _replaced(struct: Any, path: list[str], value: Any) -> Any:
    name, *rest = path
    if not isinstance(struct, msgspec.Struct) or name not in struct.__struct_fields__:
        raise InvalidRequest(f"the context of a run has no member {name!r}")
    current = getattr(struct, name)
    if rest:
        value = _replaced(current, rest, value)
    elif isinstance(value, Mapping) and isinstance(current, msgspec.Struct):
        for key, inner in value.items():
            current = _replaced(current, [key], inner)
        value = current
    elif isinstance(current, tuple) and isinstance(value, list):
        value = tuple(value)
    return msgspec.structs.replace(struct, **{name: value})


class MockInputs:
    """What others send to the run."""

    def __init__(self, world: World) -> None:
        self._world = world

    async def send(self, stream: str, data: Any) -> int:
        """Append one record to `in`; its seq_num. Raises InvalidRequest for other streams."""
        if stream != "in":
            raise InvalidRequest(f"a run reads its input from the stream 'in', not from {stream!r}")
        text = data if isinstance(data, str) else msgspec.json.encode(data).decode()
        return await self._world.post(text)


class MockOutputs:
    """What the run writes for others."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._streams: dict[str, list[Any]] = {}

    async def chunks(self, stream: str = "out") -> list[Any]:
        """Everything written to a stream so far: `out` of the session, or a stream of the run."""
        if stream != "out":
            return list(self._streams.get(stream, ()))
        opened = [open_envelope(r.body) for r in await self._world.read_all("out") if r.is_data]
        return [found[0] for found in opened if found is not None]

    async def answer(self, request: httpx2.Request) -> httpx2.Response:
        """Stand in for the server: keep writes to run streams, else as `Nearby` answers."""
        parts = [unquote(part) for part in request.url.path.split("/")]
        if request.method != "POST" or parts[1:4] != ["realtime", "v1", "streams"]:
            return await self._world.nearby.answer(request)
        values = [msgspec.json.decode(line) for line in request.content.splitlines() if line]
        self._streams.setdefault(parts[-1], []).extend(values)
        return httpx2.Response(200, json={"ok": True})


class MockLocals:
    """Values of `chat.local`, given instead of initialised by the code under test."""

    def set(self, local: ChatLocal[Any], value: Any) -> None:
        """This run's value of `local`, as `local.init(value)` inside the run."""
        local.init(value)


class MockTask:
    """The drivers of one mock run.

    Attributes:
        ctx: what the run knows of itself.
        session: the id of the run's session.
        runtime: tags, journal and what else the run reported.
    """

    def __init__(self, world: World, runtime: MemoryRuntime) -> None:
        self.world = world
        self.runtime = runtime
        self.session = world.session
        self.inputs = MockInputs(world)
        self.outputs = MockOutputs(world)
        self.locals = MockLocals()

    @property
    def ctx(self) -> TaskContext:
        """What the run knows of itself."""
        return scopes.of(self.runtime).context

    @property
    def waiting_tokens(self) -> list[str]:
        """Ids of wait tokens that the code made and nobody has completed, oldest first."""
        return self.world.nearby.waiting_tokens

    def complete_token(self, token: str, data: Any = None) -> None:
        """Complete a wait token, as somebody outside would; the first completion counts."""
        self.world.nearby.complete_token(token, data)

    async def advance(self, seconds: float) -> None:
        """Let virtual time pass; what its timers set off has come to rest on return."""
        assert isinstance(self.world.clock, VirtualClock), "only virtual time can be moved"
        await self.world.clock.advance(seconds)


async def run_in_mock_task_context(
    fn: Callable[[MockTask], Awaitable[T]],
    *,
    ctx: Mapping[str, Any] | None = None,
    payload: Any = None,
    clock: Clock | None = None,
    tasks: Sequence[Task[Any]] | None = None,
) -> T:
    """Call `fn` inside a run that exists only here; its result.

    Args:
        fn: gets the drivers, and calls the code under test.
        ctx: members of the context to replace, nested or dotted.
        clock: virtual when left out.
        tasks: tasks that the code may start: each is run once, in this process. All that are
            registered when left out.

    Raises what `fn` raises, as it was raised.
    """
    world = World("mock-session", clock=clock)
    now = world.clock.now_ms()
    info = RunInfo(
        run_id=world.ids.new("run"),
        task_id="mock-task",
        environment_id=ENVIRONMENT,
        environment_slug="dev",
        fence=await world.next_fence(),
        attempt=1,
        payload=msgspec.json.encode(payload),
        session_id="session_mock",
        session_key=world.session,
        version="v1",
        queue="task/mock-task",
        max_attempts=1,
        created_at_ms=now,
        started_at_ms=now,
    )
    if tasks is None:
        registered = registry.current().definitions.values()
        tasks = [defined for defined in registered if isinstance(defined, Task)]
    world.nearby = Nearby(world, tasks)
    async with anyio.create_task_group() as group:
        world.spawn = group.start_soon
        runtime = MemoryRuntime(world, info, group)
        scope = scopes.of(runtime)
        try:
            scope.context = context_with(scope.context, ctx or {})
            task = MockTask(world, runtime)
            transport = httpx2.MockTransport(task.outputs.answer)
            mock = config.ClientConfig(url=URL, secret_key=KEY, transport=transport)
            with running(runtime), config.use(mock):
                async with own_session(runtime) as own:
                    result = await fn(task)
                    if own is not None:
                        await own.settle()
            await runtime.flush()
        except Exception as error:  # kept out of the group, so that it leaves as it was raised
            failure: Exception | None = error
        else:
            failure = None
        group.cancel_scope.cancel()
    if failure is not None:
        raise failure
    return result
