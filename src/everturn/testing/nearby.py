"""What a run in memory finds around it besides its session: wait tokens, and other tasks.

A test completes a token itself (`h.complete_token(…)`), and tasks that the code under test starts
are run at once, one attempt each, in the same process and the same virtual time. The calls that
reach a server over HTTP in production (making a token, a child that writes to its parent's chat)
are answered here too; any other call finds nobody, and is answered 404.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote

import anyio
import httpx2
import msgspec

from everturn.errors import NotFound, RunNotFound
from everturn.protocol import waitpoints
from everturn.protocol.records import NewRecord, data_body
from everturn.protocol.runs import RunInfo, RunResult, TokenResult
from everturn.rules import durations
from everturn.tasks.channels import within
from everturn.tasks.definition import Task
from everturn.tasks.failures import outcome_of
from everturn.tasks.runtime import running

if TYPE_CHECKING:
    from everturn.testing.runtime import World

URL: Final = "http://everturn.test"
KEY: Final = "tr_dev_mock"
_TOKENS: Final = ["", "api", "v1", "waitpoints", "tokens"]
_STATUSES: Final = {"completed": "COMPLETED", "canceled": "CANCELED", "crashed": "CRASHED"}


class _Token:
    """A wait token, open until it is completed or its time is up."""

    def __init__(self, id: str, created_ms: int, until_ms: int | None) -> None:
        self.id = id
        self.created_ms = created_ms
        self.until_ms = until_ms
        self.packet: tuple[bytes | None, str | None] | None = None
        self.completed = anyio.Event()


class _Child:
    """A run that was started by the code under test."""

    def __init__(self) -> None:
        self.scope = anyio.CancelScope()
        self.result: RunResult | None = None
        self.finished = anyio.Event()


class Nearby:
    """The tokens and tasks of one `World`.

    Attributes:
        started: `(task id, payload)` of every run that was started, in order.
    """

    def __init__(self, world: World, tasks: Sequence[Task[Any]] = ()) -> None:
        """`tasks` can be started; of others, and of unknown ones, nobody knows."""
        self._world = world
        self._tasks = {task.task_id: task for task in tasks}
        self._tokens: dict[str, _Token] = {}
        self._by_key: dict[str, str] = {}
        self._children: dict[str, _Child] = {}
        self._by_request: dict[str, str] = {}
        self.started: list[tuple[str, Any]] = []

    # --- wait tokens -----------------------------------------------------------------------------

    def create_token(self, *, until_ms: int | None = None, key: str | None = None) -> _Token:
        """A new token, or the one that was made with this key before."""
        if key is not None and key in self._by_key:
            return self._tokens[self._by_key[key]]
        token = _Token(self._world.ids.new("waitpoint"), self._world.clock.now_ms(), until_ms)
        self._tokens[token.id] = token
        if key is not None:
            self._by_key[key] = token.id
        return token

    def complete_token(self, id: str, data: Any = None) -> None:
        """Give a token its value; the first one counts. Raises NotFound."""
        token = self._token(id)
        if token.packet is None and not self._is_late(token):
            token.packet = waitpoints.packet_of(data)
            token.completed.set()

    def token_result(self, id: str) -> TokenResult:
        """A token as it stands. Raises NotFound."""
        token = self._token(id)
        if token.packet is not None:
            output, kind = token.packet
            return TokenResult(status="COMPLETED", output=output, output_type=kind)
        return TokenResult(status="TIMED_OUT" if self._is_late(token) else "WAITING")

    async def token_settled(self, id: str) -> None:
        """Return when a token is completed, or its time is up. Raises NotFound."""
        token = self._token(id)
        clock = self._world.clock
        left_s = None if token.until_ms is None else (token.until_ms - clock.now_ms()) / 1000
        await within(clock, left_s, token.completed.wait)

    @property
    def waiting_tokens(self) -> list[str]:
        """The ids of tokens that nobody has completed yet, oldest first."""
        return [id for id in self._tokens if self.token_result(id).status == "WAITING"]

    def _token(self, id: str) -> _Token:
        token = self._tokens.get(id)
        if token is None:
            raise NotFound(f"there is no token {id} in this world")
        return token

    def _is_late(self, token: _Token) -> bool:
        return token.until_ms is not None and self._world.clock.now_ms() >= token.until_ms

    # --- other tasks -----------------------------------------------------------------------------

    def start(
        self, task_id: str, payload: bytes, payload_type: str, options: Mapping[str, Any]
    ) -> tuple[str, bool]:
        """Start a run of a task: `(run id, is cached)`. Raises RunNotFound for an unknown task."""
        task = self._tasks.get(task_id)
        if task is None:
            raise RunNotFound(f"there is no task {task_id} in this world: name it in `tasks`")
        request = options.get("requestKey")
        if request is not None and request in self._by_request:
            return self._by_request[request], True
        run_id = self._world.ids.new("run")
        metadata = options.get("metadata")
        now_ms = self._world.clock.now_ms()
        info = RunInfo(
            run_id=run_id,
            task_id=task_id,
            environment_id="env_test",
            environment_slug="dev",
            fence=1,
            attempt=1,
            payload=payload,
            payload_type=payload_type,
            version="v1",
            queue=f"task/{task_id}",
            max_attempts=1,
            tags=tuple(options.get("tags", ())),
            metadata=None if metadata is None else msgspec.json.encode(metadata),
            created_at_ms=now_ms,
            started_at_ms=now_ms,
        )
        if request is not None:
            self._by_request[request] = run_id
        self.started.append((task_id, msgspec.json.decode(payload)))
        self._children[run_id] = child = _Child()
        assert self._world.spawn is not None, "somebody has to run what is started"
        self._world.spawn(self._work, task, info, child)
        return run_id, False

    async def _work(self, task: Task[Any], info: RunInfo, child: _Child) -> None:
        from everturn.testing.runtime import MemoryRuntime, World

        world = World(f"of-{info.run_id}", clock=self._world.clock, ids=self._world.ids)
        world.nearby, world.spawn = self, self._world.spawn
        ended: dict[str, Any] = {"ok": False, "status": "CANCELED"}
        with child.scope:
            async with anyio.create_task_group() as tasks:
                runtime = MemoryRuntime(world, info, tasks)
                try:
                    with running(runtime):
                        output = await task.run(runtime)
                    ended = {"ok": True, "status": "COMPLETED", "output": output}
                except Exception as error:  # how a run ends is what its parent is told
                    outcome = outcome_of(error, runtime)
                    status = _STATUSES.get(outcome.kind, "FAILED")
                    ended = {"ok": False, "status": status, "error": outcome.error}
                tasks.cancel_scope.cancel()
        child.result = RunResult(run_id=info.run_id, task_id=info.task_id, **ended)
        child.finished.set()

    def run_result(self, run_id: str) -> RunResult | None:
        """How a run ended; None while it works. Raises RunNotFound."""
        return self._child(run_id).result

    async def run_finished(self, run_id: str) -> None:
        """Return when a run has ended. Raises RunNotFound."""
        await self._child(run_id).finished.wait()

    def cancel(self, run_id: str) -> None:
        """End a run that is working. Raises RunNotFound."""
        self._child(run_id).scope.cancel()

    def _child(self, run_id: str) -> _Child:
        child = self._children.get(run_id)
        if child is None:
            raise RunNotFound(f"there is no run {run_id} in this world")
        return child

    # --- what arrives over HTTP -------------------------------------------------------------------

    async def answer(self, request: httpx2.Request) -> httpx2.Response:
        """Stand in for a server."""
        parts = [unquote(part) for part in request.url.path.split("/")]
        try:
            if parts[:5] == _TOKENS:
                return self._token_call(request, parts[5:])
            if request.method == "POST" and parts[-2:] == ["out", "records"]:
                return await self._guest_records(request)
        except NotFound as error:
            return httpx2.Response(404, json={"error": str(error)})
        return httpx2.Response(404, json={"error": "a world in memory has no server"})

    def _token_call(self, request: httpx2.Request, rest: list[str]) -> httpx2.Response:
        if request.method == "POST" and not rest:
            body = msgspec.json.decode(request.content)
            until_ms = self._until_ms(body.get("timeout"))
            token = self.create_token(until_ms=until_ms, key=body.get("idempotencyKey"))
            return httpx2.Response(200, json={"id": token.id, "url": self._url(token)})
        if request.method == "POST" and rest[1:] == ["complete"]:
            body = msgspec.json.decode(request.content)
            self.complete_token(rest[0], body.get("data"))
            return httpx2.Response(200, json={"success": True})
        return httpx2.Response(200, json=self._shown(self._token(rest[0] if rest else "")))

    def _until_ms(self, timeout: Any) -> int | None:
        """When a token's time is up; a number is seconds, text a span or a moment."""
        now_ms = self._world.clock.now_ms()
        if timeout is None:
            return None
        if isinstance(timeout, str) and timeout[:4].isdigit() and "T" in timeout:
            return round(datetime.fromisoformat(timeout).timestamp() * 1000)
        return now_ms + round(durations.parse(timeout) * 1000)

    def _url(self, token: _Token) -> str:
        return f"{URL}/api/v1/waitpoints/tokens/{token.id}/callback/test"

    def _shown(self, token: _Token) -> dict[str, Any]:
        found = self.token_result(token.id)
        created = datetime.fromtimestamp(token.created_ms / 1000, UTC).isoformat()
        shown = {
            "id": token.id, "url": self._url(token), "status": found.status, "createdAt": created,
        }  # fmt: skip
        if found.output is not None:
            shown |= {"output": found.output.decode(), "outputType": str(found.output_type)}
        return shown

    async def _guest_records(self, request: httpx2.Request) -> httpx2.Response:
        """Chunks that a child writes to the chat it works for."""
        sent = msgspec.json.decode(request.content)["records"]
        records = [
            NewRecord(
                data_body(msgspec.json.encode(item["data"]), item["partId"]), (), item["partId"]
            )
            for item in sent
        ]
        stored = await self._world.streams.append(self._world.channel("out"), records)
        return httpx2.Response(200, json={"ok": True, "seqNums": list(stored.seq_nums)})
