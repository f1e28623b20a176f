"""What a run of the OpenAI Agents SDK that continues after a decision begins with.

Imported when such a run starts: this is the one module that subclasses something of the SDK.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any, Final

from agents import Model, ModelResponse, RunContextWrapper, Usage
from agents.items import ToolApprovalItem
from openai.types.responses import Response, ResponseCompletedEvent, ResponseFunctionToolCall

#: The response nobody was asked for.
_RESPONSE_ID: Final = "recorded"


class _Recorded(Model):  # type: ignore[misc]  # the types are checked without the SDK
    """Answers its first request with calls that were made before, and all others by a model."""

    def __init__(self, calls: Sequence[dict[str, Any]], model: Model) -> None:
        self._calls = [ResponseFunctionToolCall.model_validate(call) for call in calls]
        self._model = model

    async def get_response(self, *args: Any, **options: Any) -> ModelResponse:
        calls, self._calls = self._calls, []
        if calls:
            return ModelResponse(output=list(calls), usage=Usage(), response_id=None)
        return await self._model.get_response(*args, **options)

    async def stream_response(self, *args: Any, **options: Any) -> AsyncIterator[Any]:
        calls, self._calls = self._calls, []
        if calls:
            yield ResponseCompletedEvent(
                type="response.completed",
                sequence_number=0,
                response=Response(
                    id=_RESPONSE_ID,
                    created_at=0,
                    model=_RESPONSE_ID,
                    object="response",
                    output=list(calls),
                    parallel_tool_calls=True,
                    tool_choice="auto",
                    tools=[],
                ),
            )
            return
        async for event in self._model.stream_response(*args, **options):
            yield event

    async def close(self) -> None:
        await self._model.close()


def recorded_model(calls: Sequence[dict[str, Any]], model: Any, provider: Any) -> Model:
    """`model` (an SDK model, or a name its provider knows) behind the recorded calls."""
    inner = model if isinstance(model, Model) else provider.get_model(model)
    return _Recorded(calls, inner)


def approvals(
    agent: Any, calls: Sequence[dict[str, Any]], refusals: Sequence[str | None], context: Any
) -> RunContextWrapper[Any]:
    """A context in which each call is decided: refused with words, or approved (None)."""
    given = context if isinstance(context, RunContextWrapper) else RunContextWrapper(context)
    for call, refusal in zip(calls, refusals, strict=True):
        item = ToolApprovalItem(agent=agent, raw_item=dict(call), tool_name=call["name"])
        if refusal is None:
            given.approve_tool(item)
        else:
            given.reject_tool(item, rejection_message=refusal)
    return given
