"""`chat.run_options`: what a chat gives a model call besides its messages (chat-agent §4.8).

One mapping of keyword arguments for `turn.stream(agent, **chat.run_options(…))`. Each feature
adds its own keys in a function of its own, and none of them adds a key it has nothing for, so an
author's own arguments beside the mapping never meet an empty one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from everturn.chat import prompts
from everturn.chat.skills import contribution as skills_contribution
from everturn.chat.state import current_run_or_none
from everturn.chat.tools import listed


def run_options(
    *,
    registry: Mapping[str, Any] | Callable[[str], Any] | None = None,
    tools: Any = None,
    telemetry: Mapping[str, Any] | None = None,
    system_provider_options: Mapping[str, Any] | None = None,
    cache_control: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Keyword arguments for `turn.stream` and `chat.stream_agent`.

    From the prompt of the run come instructions, settings and the model it names; from its skills
    more instructions and three tools; from the runtime the step hook, always, and during a turn
    a cancellation token. With that one a run that an author awaits himself,
    `await agent.run(…, **chat.run_options())`, ends when the turn is stopped: it raises the
    library's RunCancelled, which fails no stopped turn.

    Args:
        registry: models by the names prompts use; without one a prompt's model is not used.
        telemetry: attributes for the model run, on top of those that name the prompt.
        system_provider_options: model settings that concern the instructions, in place of those
            set with the prompt.
        cache_control: the same in short, `{"type": "ephemeral", "ttl": "5m" | "1h"}`.
        tools: what the model may call, usually `turn.tools`: tools of `chat.tool`,
            `chat.streaming_tool` and `chat.client_tool`, functions, and tools and toolsets of the
            model library. They are added to the agent's own. One of the name of a skill tool
            takes its place.
    """
    prompt, skill = prompts.contribution(telemetry), skills_contribution()
    settings = {
        **prompt["settings"],
        **prompts.provider_options(
            system_provider_options, cache_control, prompt["provider_options"]
        ),
    }
    return {
        **_given(
            instructions=prompts.instructions_of(prompt["instructions"], skill["instructions"]),
            model=_model(registry, prompt["model"]),
            model_settings=settings or None,
            metadata=prompt["telemetry"] or None,
        ),
        **_tools(_with_skills(skill["tools"], tools)),
        **_step_hook(),
        **_cancellation(),
    }


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _model(registry: Mapping[str, Any] | Callable[[str], Any] | None, name: str | None) -> Any:
    if registry is None or name is None:
        return None
    return registry(name) if callable(registry) else registry[name]


def _with_skills(own: Mapping[str, Any], tools: Any) -> list[Any]:
    """The caller's tools, and those of skills whose names they leave free."""
    given = listed(tools)
    taken = {getattr(tool, "name", None) or getattr(tool, "__name__", None) for tool in given}
    return [*(tool for name, tool in own.items() if name not in taken), *given]


def _step_hook() -> dict[str, Any]:
    """Always: compaction, waiting messages and background messages before each request."""
    from everturn.chat.step_hook import with_step_hook

    return {"capabilities": with_step_hook(None)}


def _cancellation() -> dict[str, Any]:
    run = current_run_or_none()
    if run is None or run.turn is None:
        return {}
    from everturn.chat.adapters.pydantic_ai import TurnToken

    return {"cancellation_token": TurnToken(run.turn.signal)}


def _tools(tools: Any) -> dict[str, Any]:
    given = listed(tools)
    if not given:
        return {}
    from everturn.chat.toolsets import toolsets_of

    return {"toolsets": toolsets_of(given)}
