"""`@task`: a named function that runs durably.

    @task(id="resize", retry=RetryPolicy(max_attempts=5))
    async def resize(payload: Image, ctx: TaskContext) -> Thumbnail: ...

    handle = await resize.trigger(image)                 # from anywhere
    thumb = await resize.trigger_and_wait(image).unwrap()  # inside another run

The payload is plain data unless the annotation of the function's first parameter, or `payload=`,
names a model to validate it into. Other parameters are filled by name: ctx, init, signal, task.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Final, Generic, TypeVar, Unpack, get_type_hints

from everturn.errors import ConfigurationError
from everturn.protocol.runs import TaskDeclaration
from everturn.rules.durations import Duration, parse
from everturn.tasks import bridge, codec, registry, triggers
from everturn.tasks.execution import Execution
from everturn.tasks.hooks import HookSet
from everturn.tasks.results import PendingResult, RunHandle
from everturn.tasks.retries import RetryPolicy
from everturn.tasks.runtime import RunRuntime
from everturn.tasks.steps import return_type
from everturn.tasks.triggers import TriggerOptions

O = TypeVar("O")  # noqa: E741 - the output type, as the papers name it

MAX_DURATION_S_MIN: Final = 5
NO_TIMEOUT: Final = 2_147_483_647
#: Parameters that are filled by name and can therefore not be the payload.
_NAMED: Final = frozenset({"ctx", "init", "signal", "task"})


class Queue:
    """A named queue that several tasks may share.

    Attributes:
        concurrency_limit: runs of it that execute at the same time; None is unlimited.
    """

    def __init__(self, name: str, *, concurrency_limit: int | None = None) -> None:
        if not name:
            raise ConfigurationError("a queue needs a name")
        if concurrency_limit is not None and concurrency_limit < 1:
            raise ConfigurationError(f"queue {name!r}: a concurrency limit is at least 1")
        self.name = name
        self.concurrency_limit = concurrency_limit
        registry.current().register_queue(name, concurrency_limit)

    def __repr__(self) -> str:
        return f"Queue({self.name!r}, concurrency_limit={self.concurrency_limit})"


class Task(HookSet, Generic[O]):
    """A task: a Definition a worker runs, and the means to trigger it.

    Hooks are added by decorating with its methods: `@resize.on_failure`.
    """

    kind: Final = "task"

    def __init__(
        self,
        fn: Callable[..., Any],
        task_id: str,
        *,
        queue: Queue | str | None,
        retry: RetryPolicy | None,
        max_duration: Duration | None,
        schema: Any,
        description: str | None,
        machine: str | None,
        ttl: Duration | None,
    ) -> None:
        super().__init__()
        self.fn = fn
        self.task_id = task_id
        #: `file:line` of the function, where it has one.
        self.place: str | None = None
        self.queue = Queue(queue) if isinstance(queue, str) else queue
        self.retry = retry
        self.max_duration_s = _max_duration(max_duration)
        self.description = description or inspect.getdoc(fn)
        self.machine = machine
        self.ttl_s = None if ttl is None else round(parse(ttl))
        self.payload_name = _payload_name(fn)
        self.schema = schema if schema is not None else _annotation(fn, self.payload_name)
        self._validate = codec.validator(self.schema)
        self._output_type = return_type(fn)
        self.__doc__ = fn.__doc__
        self.__name__ = getattr(fn, "__name__", task_id)

    def __repr__(self) -> str:
        return f"Task({self.task_id!r})"

    @property
    def hooks(self) -> HookSet:
        return self

    def validate(self, payload: Any) -> Any:
        """The payload as the function gets it. Raises what the schema raises."""
        return self._validate(payload)

    def declaration(self) -> TaskDeclaration:
        """What the server has to know about it."""
        config: dict[str, Any] = {}
        if self.retry is not None:
            config["retry"] = self.retry.wire()
            config["maxAttempts"] = self.retry.max_attempts
        if self.max_duration_s is not None:
            config["maxDuration"] = self.max_duration_s
        if self.description:
            config["description"] = self.description
        if self.machine is not None:
            config["machine"] = self.machine
        if self.ttl_s is not None:
            config["ttl"] = self.ttl_s
        schema = codec.json_schema(self.schema)
        if schema is not None:
            config["payloadSchema"] = schema
        if self.place is not None:
            config["file"] = self.place.rpartition("/")[2]
        return TaskDeclaration(
            task_id=self.task_id,
            kind="task",
            queue=self.queue.name if self.queue else "",
            queue_limit=self.queue.concurrency_limit if self.queue else None,
            config=config,
        )

    async def run(self, runtime: RunRuntime) -> bytes | None:
        """Work one attempt (tasks-and-runs §3.4)."""
        return await Execution(self, runtime).run()

    @bridge.either
    async def trigger(self, payload: Any = None, **options: Unpack[TriggerOptions]) -> RunHandle[O]:
        """Start a run, and return once it is stored.

        Raises:
            What the schema raises, before anything is sent, when the payload does not fit.
        """
        self._validate(_plain(payload))
        return await triggers.trigger(self.task_id, payload, options)

    def trigger_and_wait(
        self, payload: Any = None, **options: Unpack[TriggerOptions]
    ) -> PendingResult[O]:
        """Start a run and suspend until it is final: `await` it, or `await ….unwrap()`."""

        async def start() -> Any:
            self._validate(_plain(payload))
            return await triggers.trigger_and_wait(
                self.task_id, payload, options, self._output_type
            )

        if bridge.blocking():
            # A sync task gets the result itself; it unwraps the same way.
            return bridge.run(start())
        return PendingResult(start)

    async def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The plain function, without a run around it: for tests and for reuse."""
        result = self.fn(*args, **kwargs)
        return await result if inspect.isawaitable(result) else result


def task(
    id: str,
    *,
    queue: Queue | str | None = None,
    retry: RetryPolicy | None = None,
    max_duration: Duration | None = None,
    payload: Any = None,
    schema: Any = None,
    description: str | None = None,
    machine: str | None = None,
    ttl: Duration | None = None,
) -> Callable[[Callable[..., Any]], Task[Any]]:
    """Make a function a task.

    Args:
        id: unique among everything the app defines.
        queue: a Queue, or the name of one; its own queue when left out.
        retry: how failures are repeated; the server's default policy when left out.
        max_duration: seconds (or any duration) one attempt may run, waits not counted; at least
            five. `NO_TIMEOUT` for none.
        payload: what the payload is validated into (a model, a TypeAdapter, a function); taken
            from the annotation of the first parameter when left out. `schema` is the same.
        description: shown to people, and to models when the task backs a tool.
        machine: preset name.
        ttl: a run that waits in its queue for longer expires.

    Raises:
        ConfigurationError: the id is taken or malformed, or an option is out of its bounds.
    """

    def decorate(fn: Callable[..., Any]) -> Task[Any]:
        made: Task[Any] = Task(
            fn,
            id,
            queue=queue,
            retry=retry,
            max_duration=max_duration,
            schema=payload if payload is not None else schema,
            description=description,
            machine=machine,
            ttl=ttl,
        )
        code = getattr(fn, "__code__", None)
        place = f"{code.co_filename}:{code.co_firstlineno}" if code is not None else None
        made.place = place
        registry.register(made, place=place)
        return made

    return decorate


def _payload_name(fn: Callable[..., Any]) -> str | None:
    """The parameter that takes the payload: the first that is not filled by name."""
    for name, parameter in inspect.signature(fn).parameters.items():
        if name == "payload" or (
            name not in _NAMED and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        ):
            return name
    return None


def _annotation(fn: Callable[..., Any], name: str | None) -> Any:
    """The payload's annotation where it names a type to validate into, else None."""
    if name is None:
        return None
    try:
        found = get_type_hints(fn).get(name)
    except (NameError, TypeError):
        return None  # a name that exists for the type checker only
    return None if found in (Any, dict, None) or isinstance(found, TypeVar) else found


def _max_duration(duration: Duration | None) -> int | None:
    if duration is None:
        return None
    seconds = min(round(parse(duration)), NO_TIMEOUT)
    return max(seconds, MAX_DURATION_S_MIN)


def _plain(payload: Any) -> Any:
    """The payload as it will arrive: what JSON makes of it."""
    return codec.decode(codec.encode(payload))
