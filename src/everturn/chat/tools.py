"""Tools as an author declares them (chat-agent §4.11; rulings §5.4).

Four kinds, one class. A *server* tool is a function. A *streaming* tool is an async generator
whose yields are shown while it works. A *client* tool has no code: the model's call ends the turn,
and whoever sits in front of the chat answers it in a later message. Any tool with code may *need
approval*: the call ends the turn too, and runs when a person has said yes.

Nothing here knows the model library. `chat.run_options(tools=…)` turns these into what it takes;
`tools=` on the agent makes `to_model_output` hold for stored results too.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, get_type_hints, overload

import msgspec

from everturn.chat.state import current_run_or_none
from everturn.errors import ConfigurationError
from everturn.tasks.signals import Signal

Kind = Literal["server", "streaming", "client"]
Function = Callable[..., Any]
#: Always or never, or a function of the input (and the context) that says whether this call does.
NeedsApproval = bool | Callable[..., bool]


class ToolContext(msgspec.Struct, frozen=True, kw_only=True):
    """What a tool knows of the call it serves; given to functions with a second parameter.

    Attributes:
        chat_id: the chat; None when the tool is used outside of one.
        tool_call_id: of this call; stable over restarts while the call waits for approval.
        signal: aborted when the turn is stopped or the run is cancelled.
        client_data: of the turn.
        turn: the turn's index in its run, from 0.
    """

    chat_id: str | None
    tool_call_id: str
    signal: Signal
    client_data: Any = None
    turn: int | None = None


class Tool:
    """A declared tool. Made by `chat.tool`, `chat.streaming_tool` and `chat.client_tool`.

    Calling it calls the plain function, without a chat around it.
    """

    def __init__(
        self,
        kind: Kind,
        function: Function | None,
        *,
        name: str,
        description: str,
        input: Any,
        needs_approval: NeedsApproval = False,
        to_model_output: Function | None = None,
    ) -> None:
        if not name:
            raise ConfigurationError("a tool needs a name")
        self.kind = kind
        self.function = function
        self.name = name
        self.description = description
        self.input = input
        self.needs_approval = needs_approval
        self.to_model_output = to_model_output
        self.__name__ = name
        self.__doc__ = description

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.function is None:
            raise TypeError(f"tool {self.name!r} is answered by the client; it has no code to call")
        return self.function(*args, **kwargs)

    def call(self, given: Any, context: ToolContext) -> Any:
        """The function with what it declares: the input, and the context as a second parameter."""
        assert self.function is not None, "client tools are never called"
        return self.function(*_arguments(self.function, given, context))

    def asks_approval(self, given: Any, context: ToolContext) -> bool:
        """Whether this call has to be approved first."""
        asked = self.needs_approval
        if callable(asked):
            return bool(asked(*_arguments(asked, given, context)))
        return asked

    def __repr__(self) -> str:
        return f"<{self.kind} tool {self.name!r}>"


@overload
def tool(function: Function, /) -> Tool: ...
@overload
def tool(
    function: Function,
    /,
    *,
    name: str | None = None,
    description: str | None = None,
    input: Any = None,
    needs_approval: NeedsApproval = False,
    to_model_output: Function | None = None,
) -> Tool: ...
@overload
def tool(
    *,
    name: str | None = None,
    description: str | None = None,
    input: Any = None,
    needs_approval: NeedsApproval = False,
    to_model_output: Function | None = None,
) -> Callable[[Function], Tool]: ...


def tool(function: Function | None = None, /, **options: Any) -> Any:
    """Declare a tool that runs on the server; as a call, or as a decorator.

    The function gets one validated instance of `input`, and a `ToolContext` if it declares a
    second parameter; it returns something JSON has a form for. An `async def` runs in the run's
    own loop, where `chat.*` works; a `def` runs in a thread, so it may block. What it raises
    becomes the call's error, which the model is told of; the turn goes on.

    A turn whose process died is answered again, and so are its calls: what must happen once keeps
    `ToolContext.tool_call_id`, which an approved call has in every attempt.

    Args:
        name: what the model calls it by; the function's name when left out.
        description: for the model; the docstring when left out.
        input: the model of its arguments; the annotation of the first parameter when left out. A
            function without parameters takes no arguments.
        needs_approval: a person has to approve each call before it runs; or a function of the
            input (and the context) that says whether this one does.
        to_model_output: `(output, input, tool_call_id)`, as many of these as it declares, to what
            the model sees; clients see the whole output. Declare the tool on the agent, or it
            holds only for the turn that made the result.

    Raises:
        ConfigurationError: a name is missing, or what the input is.
    """
    if function is not None:
        return _with_code("server", function, **options)
    return lambda found: _with_code("server", found, **options)


@overload
def streaming_tool(function: Function, /) -> Tool: ...
@overload
def streaming_tool(
    *,
    name: str | None = None,
    description: str | None = None,
    input: Any = None,
    needs_approval: NeedsApproval = False,
    to_model_output: Function | None = None,
) -> Callable[[Function], Tool]: ...


def streaming_tool(function: Function | None = None, /, **options: Any) -> Any:
    """Declare a tool that shows how far it has come: a decorator for an async generator.

    Each yield but the last is a preliminary output, shown at once; the last one is the output.
    A yield is the whole output so far and replaces the one before: a number, a dict, a UI message.
    It is held back only until it is known whether the generator ends there; one that goes on to
    wait for something has its newest yield shown meanwhile.

    Arguments are those of `tool`.

    Raises:
        ConfigurationError: the function is no async generator.
    """
    if function is not None:
        return _with_code("streaming", function, **options)
    return lambda found: _with_code("streaming", found, **options)


def client_tool(
    name: str,
    description: str = "",
    input: Any = None,
    *,
    to_model_output: Function | None = None,
) -> Tool:
    """Declare a tool that a client answers: a question to a person, an action in the browser.

    Its call ends the turn with finish reason `tool-calls`; the run waits at no cost. The answer is
    a message that carries the call's part with its output, and goes on under the same message id.
    """
    return Tool(
        "client",
        None,
        name=name,
        description=description,
        input=input,
        to_model_output=to_model_output,
    )


def context_of(tool_call_id: str) -> ToolContext:
    """The context of a call made right now: by the turn in progress, if there is one."""
    run = current_run_or_none()
    if run is None:
        return ToolContext(chat_id=None, tool_call_id=tool_call_id, signal=Signal())
    turn = run.turn
    return ToolContext(
        chat_id=run.chat_id,
        tool_call_id=tool_call_id,
        signal=turn.signal if turn is not None else run.runtime.cancelled,
        client_data=run.client_data,
        turn=turn.turn if turn is not None else None,
    )


def listed(tools: Any) -> list[Any]:
    """Tools as a list: a mapping by name, an iterable, one tool, or None."""
    if tools is None:
        return []
    if isinstance(tools, Tool):
        return [tools]
    if isinstance(tools, Mapping):
        return list(tools.values())
    return list(tools) if isinstance(tools, Iterable) else [tools]


# --- reading a function ---------------------------------------------------------------------------


def _with_code(
    kind: Kind,
    function: Function,
    *,
    name: str | None = None,
    description: str | None = None,
    input: Any = None,
    needs_approval: NeedsApproval = False,
    to_model_output: Function | None = None,
) -> Tool:
    if inspect.isasyncgenfunction(function) is not (kind == "streaming"):
        is_one = "no" if kind == "streaming" else "an"
        raise ConfigurationError(
            f"tool {_name(function)!r} is {is_one} async generator: those, and only those, are "
            "declared with `chat.streaming_tool`"
        )
    if description is None:
        description = inspect.getdoc(function) or ""
    return Tool(
        kind,
        function,
        name=name or _name(function),
        description=description,
        input=input if input is not None else _input_of(function),
        needs_approval=needs_approval,
        to_model_output=to_model_output,
    )


def _name(function: Function) -> str:
    return str(getattr(function, "__name__", ""))


def _input_of(function: Function) -> Any:
    """What the first parameter is annotated with; None for a function that takes nothing."""
    declared = getattr(function, "input", None)
    if declared is not None:
        return declared
    parameters = _positional(function)
    if not parameters:
        return None
    try:
        hints = get_type_hints(function)
    except (NameError, TypeError):  # a name that exists for the type checker only
        hints = {}
    annotation = hints.get(parameters[0].name)
    if annotation is None or annotation is ToolContext:
        raise ConfigurationError(
            f"tool {_name(function)!r}: say what its input is, by `input=` or an annotation of "
            f"parameter {parameters[0].name!r}"
        )
    return annotation


def _positional(function: Function) -> list[inspect.Parameter]:
    takes = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [p for p in inspect.signature(function).parameters.values() if p.kind in takes]


def _arguments(function: Function, given: Any, context: ToolContext) -> tuple[Any, ...]:
    count = len(_positional(function))
    return (given, context)[: min(count, 2)]
