"""Prompts: text with variables, declared in code; and the prompt a chat runs with (§4.8).

`define` declares a prompt, `resolve` fills its variables in. A server of ours stores no prompts,
so what is declared is what is used: version 0, label `local`. Asking for another version or label
fails, as does everything that would change stored ones: a caller who named a version must not
get a different text without being told.

The template grammar is two rules, applied in this order and to the template only, never to what a
variable holds:

* `{{#name}}…{{/name}}` is kept when the variable is truthy, and left out otherwise. Sections of
  different names may stand inside one another; of the same name they may not.
* `{{name}}` is the variable; nothing when it is missing or None. Text and numbers as they are,
  `true` and `false`, everything else as JSON.

`chat.prompt.set(…)` makes a prompt, or plain text, the one of the run; `chat.run_options` takes
from it what a call of the model needs, through `contribution`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final, NoReturn

import msgspec

from everturn.chat.catalog import Catalog
from everturn.chat.state import current_run, current_run_or_none
from everturn.errors import ChatContextError, NotFound, Unprocessable
from everturn.tasks import codec

LOCAL_VERSION: Final = 0
LOCAL_LABEL: Final = "local"
_SECTION: Final = re.compile(r"\{\{#\s*(\w+)\s*\}\}(.*?)\{\{/\s*\1\s*\}\}", re.DOTALL)
_VARIABLE: Final = re.compile(r"\{\{\s*(\w+)\s*\}\}")
_declared: Final = Catalog("prompt")
_prompts: Final[dict[str, Prompt]] = {}


class ResolvedPrompt(msgspec.Struct, frozen=True, kw_only=True):
    """A prompt with its variables filled in.

    Attributes:
        prompt_id: the id it was defined with; empty for plain text.
        version, labels: 0 and `local`: compiled from what the code declares.
        text: the system instructions.
        model: the model the prompt asks for, if it does.
        config: settings of the model: temperature, max_tokens and so on.
        input: the variables it was filled with.
    """

    prompt_id: str
    text: str
    version: int = LOCAL_VERSION
    labels: tuple[str, ...] = (LOCAL_LABEL,)
    model: str | None = None
    config: Mapping[str, Any] = msgspec.field(default_factory=dict)
    input: Mapping[str, Any] = msgspec.field(default_factory=dict)

    def telemetry(self, extra: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Attributes that say on a span which prompt was used; `extra` goes on top."""
        if not self.prompt_id:
            return dict(extra or {})
        named: dict[str, Any] = {
            "prompt.slug": self.prompt_id,
            "prompt.id": self.prompt_id,
            "prompt.version": self.version,
            "prompt.labels": list(self.labels),
            "prompt.model": self.model,
            "prompt.input": codec.encode(self.input).decode() if self.input else None,
        }
        return {**{k: v for k, v in named.items() if v is not None}, **(extra or {})}


class Prompt:
    """A declared prompt. Made by `prompts.define`."""

    def __init__(
        self,
        id: str,
        content: str,
        *,
        description: str | None,
        model: str | None,
        config: Mapping[str, Any] | None,
        variables: Any,
    ) -> None:
        self.id = id
        self.content = content
        self.description = description
        self.model = model
        self.config = dict(config or {})
        self._validate = codec.validator(variables)

    async def resolve(
        self,
        variables: Any = None,
        *,
        version: int | None = None,
        label: str | None = None,
    ) -> ResolvedPrompt:
        """The prompt with `variables` (a mapping, or the declared model) filled in.

        Raises:
            ValueError: the variables do not fit what `define` declared.
            NotFound: a version or label that is not the local one.
        """
        if version not in (None, LOCAL_VERSION) or label not in (None, LOCAL_LABEL):
            asked = f"version {version}" if version is not None else f"label {label!r}"
            raise NotFound(
                f"prompt {self.id!r} has no {asked}: prompts are not stored on this server, "
                f"there is version {LOCAL_VERSION} with label {LOCAL_LABEL!r} only"
            )
        values = _fields(self._validate({} if variables is None else variables))
        return ResolvedPrompt(
            prompt_id=self.id,
            text=compile_template(self.content, values),
            model=self.model,
            config=self.config,
            input=values,
        )

    def __repr__(self) -> str:
        return f"<prompt {self.id!r}>"


def define(
    id: str,
    content: str,
    *,
    description: str | None = None,
    model: str | None = None,
    config: Mapping[str, Any] | None = None,
    variables: Any = None,
) -> Prompt:
    """Declare a prompt.

    Args:
        id: unique in the project.
        content: the template.
        model: the model to call with it, by the name a registry knows.
        config: settings of the model.
        variables: a model, type or validator for the variables.

    Raises ConfigurationError when another line declares the id.
    """
    _declared.declare(id)
    made = _prompts[id] = Prompt(
        id, content, description=description, model=model, config=config, variables=variables
    )
    return made


async def resolve(
    id: str, variables: Any = None, *, version: int | None = None, label: str | None = None
) -> ResolvedPrompt:
    """As the `resolve` of the prompt declared with `id`. Raises NotFound for an id nobody did."""
    found = _prompts.get(id)
    if found is None:
        raise NotFound(f"no prompt {id!r} is defined in this app")
    return await found.resolve(variables, version=version, label=label)


def not_offered(call: str) -> NoReturn:
    """Raises Unprocessable: what every call that manages stored prompts ends in."""
    raise Unprocessable(
        f"prompts.{call} is not offered: this server stores no prompts, they are what the code "
        "declares with prompts.define"
    )


# --- the template ---------------------------------------------------------------------------------


def compile_template(content: str, values: Mapping[str, Any]) -> str:
    """A template with its variables filled in. Never fails: what is missing is empty text."""

    def section(found: re.Match[str]) -> str:
        return _SECTION.sub(section, found[2]) if values.get(found[1]) else ""

    kept = _SECTION.sub(section, content)
    return _VARIABLE.sub(lambda found: _text(values.get(found[1])), kept)


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        return codec.encode(value).decode()
    return str(value)


def _fields(values: Any) -> dict[str, Any]:
    """The fields of a mapping or a model. Raises TypeError for what has none."""
    if isinstance(values, Mapping):
        return dict(values)
    dump = getattr(values, "model_dump", None)
    # By the names the template's author sees in the model, not by their aliases.
    plain = dump(mode="json") if callable(dump) else codec.decode(codec.encode(values))
    if not isinstance(plain, dict):
        raise TypeError(f"the variables of a prompt are named, not a {type(values).__name__}")
    return plain


# --- the prompt of a chat -------------------------------------------------------------------------


class StoredPrompt(msgspec.Struct, frozen=True):
    """What `chat.prompt.set` stored for the run."""

    prompt: ResolvedPrompt
    provider_options: Mapping[str, Any] | None = None


class ChatPrompt:
    """`chat.prompt`: the prompt of the run this is called in."""

    def __call__(self) -> ResolvedPrompt:
        """The stored prompt. Raises ChatContextError before `set`, and outside of a run."""
        stored = current_run().prompt
        if stored is None:
            raise ChatContextError("this chat has no prompt: call chat.prompt.set first")
        return stored.prompt

    def set(
        self, prompt: ResolvedPrompt | str, *, provider_options: Mapping[str, Any] | None = None
    ) -> None:
        """Make a prompt, or plain text, the one of this run, in place of all that was set before.

        Args:
            provider_options: settings of the model that concern the instructions, such as their
                caching; what was set earlier is cleared when left out.
        """
        if isinstance(prompt, str):
            prompt = ResolvedPrompt(prompt_id="", text=prompt)
        elif not isinstance(prompt, ResolvedPrompt):
            raise TypeError(
                f"chat.prompt.set takes text or a resolved prompt, not {type(prompt).__name__}"
            )
        current_run().prompt = StoredPrompt(prompt, provider_options)


prompt: Final = ChatPrompt()


def contribution(telemetry: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What the run's prompt gives to a call of the model, as plain data for `chat.run_options`.

    Keys: `instructions` (text, may be empty), `model` (a name or None), `settings`, `telemetry`
    (with the caller's extras on top) and `provider_options` (a mapping or None).
    """
    run = current_run_or_none()
    stored = run.prompt if run is not None else None
    if stored is None:
        return {
            "instructions": "",
            "model": None,
            "settings": {},
            "telemetry": dict(telemetry or {}),
            "provider_options": None,
        }
    return {
        "instructions": stored.prompt.text,
        "model": stored.prompt.model,
        "settings": dict(stored.prompt.config),
        "telemetry": stored.prompt.telemetry(telemetry),
        "provider_options": stored.provider_options,
    }


def instructions_of(*texts: str) -> str | None:
    """System instructions from their pieces, a blank line between; None when all are empty."""
    return "\n\n".join(text for text in texts if text) or None


def provider_options(
    system: Mapping[str, Any] | None,
    cache_control: Mapping[str, Any] | None,
    stored: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """The model settings that concern the instructions: the first one given, never merged (R-190).

    Args:
        system: `system_provider_options` of the call.
        cache_control: the shorthand `{"type": "ephemeral", "ttl": "5m" | "1h"}`: the stable part
            of the request, tools and instructions, is cached; the conversation is not.
        stored: what came with the prompt.

    Raises ValueError for a shorthand of another form.
    """
    if system is not None:
        return dict(system)
    if cache_control is not None:
        return {"cache": _cache_setting(cache_control)}
    return dict(stored or {})


def _cache_setting(control: Mapping[str, Any]) -> dict[str, Any]:
    ttl = control.get("ttl")
    if control.get("type") != "ephemeral" or ttl not in (None, "5m", "1h"):
        raise ValueError(
            'cache_control is {"type": "ephemeral"}, with a ttl of "5m" or "1h" or none'
        )
    return {"messages": False} if ttl is None else {"retention": ttl, "messages": False}
