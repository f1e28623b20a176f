"""`scripted_model`: a model that says what a test wrote down, and remembers what it was asked.

    model = scripted_model(["Hello!", [Call("weather", {"city": "Oslo"})], "It rains in Oslo."])

Each entry answers one request, in order. An entry is one thing or a list of things, streamed one
after another: text, a `Call`, a `Pause`, or an exception, which is raised at that place. A
function in place of an entry gets the request's messages and returns the entry.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import anyio
import msgspec
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, DeltaToolCalls, FunctionModel

from everturn.errors import EverturnError
from everturn.tasks import runtime as runtimes


class ScriptExhausted(EverturnError):
    """The model was asked more often than its script has entries."""

    code = "script_exhausted"


@dataclass(frozen=True)
class Call:
    """The model calls a tool."""

    tool: str
    input: dict[str, Any] = field(default_factory=dict)
    #: Left out, the call is named after its place: `call-<request>-<n>`, from 1.
    call_id: str | None = None


@dataclass(frozen=True)
class Pause:
    """The model is slow: seconds of the run's clock, which is virtual in the harness."""

    seconds: float


Said = str | Call | Pause | Exception
Entry = Said | Sequence[Said]


class ScriptedModel(FunctionModel):
    """Made by `scripted_model`.

    Attributes:
        requests: the messages of each request it got, oldest first.
        infos: the settings and tools of each request.
    """

    def __init__(self, script: Sequence[Entry | Callable[[list[ModelMessage]], Entry]]) -> None:
        super().__init__(self._respond, stream_function=self._stream, model_name="scripted")
        self._script = list(script)
        self.requests: list[list[ModelMessage]] = []
        self.infos: list[AgentInfo] = []

    def _next(self, messages: list[ModelMessage], info: AgentInfo) -> Sequence[Said]:
        self.requests.append(list(messages))
        self.infos.append(info)
        asked = len(self.requests)
        if asked > len(self._script):
            raise ScriptExhausted(f"request {asked}: the script has {len(self._script)} entries")
        entry = self._script[asked - 1]
        if callable(entry):
            entry = entry(list(messages))
        if isinstance(entry, str | Call | Pause | Exception):
            return [entry]
        return entry

    async def _stream(
        self, messages: list[ModelMessage], info: AgentInfo
    ) -> AsyncIterator[str | DeltaToolCalls]:
        calls = 0
        for said in self._next(messages, info):
            if isinstance(said, str):
                yield said
            elif isinstance(said, Call):
                calls += 1
                arguments = msgspec.json.encode(said.input).decode()
                call_id = said.call_id or f"call-{len(self.requests)}-{calls}"
                yield {
                    calls - 1: DeltaToolCall(
                        name=said.tool, json_args=arguments, tool_call_id=call_id
                    )
                }
            else:
                await _pause_or_raise(said)

    async def _respond(self, messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        parts: list[TextPart | ToolCallPart] = []
        calls = 0
        for said in self._next(messages, info):
            if isinstance(said, str):
                parts.append(TextPart(said))
            elif isinstance(said, Call):
                calls += 1
                call_id = said.call_id or f"call-{len(self.requests)}-{calls}"
                parts.append(ToolCallPart(said.tool, said.input, call_id))
            else:
                await _pause_or_raise(said)
        return ModelResponse(parts=parts)


def scripted_model(
    script: Sequence[Entry | Callable[[list[ModelMessage]], Entry]],
) -> ScriptedModel:
    """A model for tests; see the module. Raises ScriptExhausted when it is asked too often."""
    return ScriptedModel(script)


async def _pause_or_raise(said: Pause | Exception) -> None:
    if isinstance(said, Exception):
        raise said
    runtime = runtimes.current_or_none()
    await (anyio.sleep(said.seconds) if runtime is None else runtime.clock.sleep(said.seconds))
