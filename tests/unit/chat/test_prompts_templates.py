"""Prompts: the template, local resolution and the prompt of a chat (§4.8; R-188, R-190)."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel, Field, ValidationError

from everturn import chat, prompts
from everturn.chat.prompts import (
    compile_template,
    contribution,
    instructions_of,
    provider_options,
)
from everturn.errors import ChatContextError, ConfigurationError, NotFound, Unprocessable
from everturn.testing.harness import mock_chat_agent

pytestmark = pytest.mark.anyio


class Customer(BaseModel):
    name: str
    plan: str | None = Field(default=None, alias="planName")


greeting = prompts.define(
    "test-greeting",
    "Greet {{name}}.{{#plan}} Their plan is {{plan}}.{{/plan}}",
    model="openai:gpt",
    config={"temperature": 0.1, "max_tokens": 10},
    variables=Customer,
)


@pytest.mark.parametrize(
    ("template", "values", "text"),
    [
        ("Hi {{name}}!", {"name": "Ada"}, "Hi Ada!"),
        ("Hi {{ name }}!", {"name": "Ada"}, "Hi Ada!"),
        ("Hi {{name}}!", {}, "Hi !"),
        ("Hi {{name}}!", {"name": None}, "Hi !"),
        ("{{n}} {{yes}} {{list}}", {"n": 3, "yes": True, "list": ["a"]}, '3 true ["a"]'),
        ("a{{#x}} b {{x}}{{/x}} c", {"x": 1}, "a b 1 c"),
        ("a{{#x}} b {{x}}{{/x}} c", {"x": 0}, "a c"),
        ("{{#x}}1{{#y}}2{{/y}}{{/x}}", {"x": True, "y": True}, "12"),
        ("{{#x}}\nline\n{{/x}}", {"x": "yes"}, "\nline\n"),
        ("{{#x}} unclosed", {"x": 1}, "{{#x}} unclosed"),
        ("{{name}}", {"name": "{{secret}}{{#a}}b{{/a}}", "secret": "s", "a": 1},
         "{{secret}}{{#a}}b{{/a}}"),
    ],
)  # fmt: skip
def test_a_template_is_filled_in_once_and_what_is_missing_is_empty(
    template: str, values: dict[str, Any], text: str
) -> None:
    """R-188."""
    assert compile_template(template, values) == text


async def test_a_prompt_resolves_to_version_0_with_what_it_declares() -> None:
    made = await greeting.resolve({"name": "Ada", "planName": "pro"})

    assert made.text == "Greet Ada. Their plan is pro."
    assert (made.prompt_id, made.version, made.labels) == ("test-greeting", 0, ("local",))
    assert (made.model, made.config["temperature"]) == ("openai:gpt", 0.1)
    assert made.telemetry({"team": "x"}) == {
        "prompt.slug": "test-greeting",
        "prompt.id": "test-greeting",
        "prompt.version": 0,
        "prompt.labels": ["local"],
        "prompt.model": "openai:gpt",
        "prompt.input": '{"name":"Ada","plan":"pro"}',
        "team": "x",
    }
    assert (await prompts.resolve("test-greeting", Customer(name="Bo"))).text == "Greet Bo."


async def test_wrong_variables_versions_and_ids_are_refused() -> None:
    with pytest.raises(ValidationError):
        await greeting.resolve({})
    with pytest.raises(NotFound, match="no version 3"):
        await greeting.resolve({"name": "Ada"}, version=3)
    with pytest.raises(NotFound, match="'production'"):
        await greeting.resolve({"name": "Ada"}, label="production")
    with pytest.raises(NotFound, match="'nobody'"):
        await prompts.resolve("nobody")
    with pytest.raises(ConfigurationError, match="declared twice"):
        prompts.define("test-greeting", "again")


@pytest.mark.parametrize(
    "call",
    [
        prompts.list,
        prompts.versions,
        prompts.promote,
        prompts.create_override,
        prompts.update_override,
        prompts.remove_override,
        prompts.reactivate_override,
    ],
)
async def test_calls_that_manage_stored_prompts_say_that_there_are_none(call: Any) -> None:
    with pytest.raises(Unprocessable, match=f"prompts.{call.__name__} is not offered"):
        await call("test-greeting")


async def test_a_chat_has_the_prompt_that_was_set_last_and_nothing_of_the_one_before() -> None:
    """R-188."""
    resolved = await greeting.resolve({"name": "Ada"})
    seen: list[Any] = []

    @chat.agent("prompted")
    async def agent(turn: Any) -> str:
        with pytest.raises(ChatContextError, match="no prompt"):
            chat.prompt()
        seen.append(contribution({"extra": 1}))
        chat.prompt.set(resolved, provider_options={"cache": True})
        seen.append(contribution({"extra": 1}))
        chat.prompt.set("plain text")
        seen.append(contribution())
        with pytest.raises(TypeError):
            chat.prompt.set(3)  # type: ignore[arg-type]  # the mistake this is about
        return chat.prompt().text

    async with mock_chat_agent(agent) as h:
        turn = await h.send_message("go")
    assert (turn.errors, turn.text) == ([], "plain text")
    unset, full, plain = seen
    assert unset["instructions"] == ""
    assert unset["telemetry"] == {"extra": 1}
    assert full["instructions"] == "Greet Ada."
    assert full["model"] == "openai:gpt"
    assert full["settings"] == {"temperature": 0.1, "max_tokens": 10}
    assert full["telemetry"]["prompt.version"] == 0
    assert full["provider_options"] == {"cache": True}
    assert plain == {
        "instructions": "plain text",
        "model": None,
        "settings": {},
        "telemetry": {},
        "provider_options": None,
    }


def test_provider_options_are_the_first_that_is_given_and_never_merged() -> None:
    """R-190."""
    ephemeral = {"type": "ephemeral", "ttl": "1h"}

    assert provider_options({"a": 1}, ephemeral, {"b": 2}) == {"a": 1}
    assert provider_options(None, ephemeral, {"b": 2}) == {
        "cache": {"retention": "1h", "messages": False}
    }
    assert provider_options(None, {"type": "ephemeral"}, None) == {"cache": {"messages": False}}
    assert provider_options(None, None, {"b": 2}) == {"b": 2}
    assert provider_options(None, None, None) == {}
    with pytest.raises(ValueError, match="cache_control"):
        provider_options(None, {"type": "ephemeral", "ttl": "2h"}, None)


def test_instructions_are_joined_with_a_blank_line_and_absent_when_empty() -> None:
    assert instructions_of("a", "b") == "a\n\nb"
    assert instructions_of("", "b") == "b"
    assert instructions_of("", "") is None
