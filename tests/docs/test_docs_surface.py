"""The names and arguments authors were promised are there (chat-agent §8.3, rulings §5)."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from everturn import (
    AgentChat,
    ChatStream,
    Compaction,
    PendingMessages,
    Signal,
    ai,
    auth,
    chat,
    chat_server,
    prompts,
    sessions,
    skills,
    testing,
    wait,
)
from everturn.chat.output import Writer

#: Callable -> the arguments it takes by these names, `*` for any number.
PROMISED: dict[Any, str] = {
    chat.agent: (
        "id client_data action tools compaction pending_messages stream_options max_turns"
        " turn_timeout idle_timeout preload_idle_timeout preload_timeout exit_after_preload_idle"
        " access_token_ttl oom_machine on_busy on_error more"
    ),
    chat.custom_agent: "id client_data options",
    chat.create_session: (
        "payload signal idle_timeout timeout max_turns compaction pending_messages"
    ),
    chat.LoopTurn.complete: "source",
    chat.LoopTurn.add_response: "message",
    chat.LoopTurn.set_messages: "ui_messages",
    chat.LoopTurn.prepare_step: "",
    chat.LoopTurn.done: "",
    chat.pipe: "source signal span_name",
    chat.pipe_and_capture: "source signal span_name original_messages",
    chat.response.write: "chunk",
    chat.response.data: "name data id transient",
    chat.stream.writer: "",
    chat.stream.pipe: "source signal",
    chat.stream.append: "chunk",
    chat.stream.read: "after limit",
    chat.stream_agent: "agent options",
    Writer.write: "chunk",
    Writer.merge: "source",
    Writer.data: "name data id transient",
    chat.local: "id type_",
    chat.ChatLocal.init: "value",
    chat.ChatLocal.get: "",
    chat.ChatLocal.has_changed: "",
    chat.defer: "work",
    chat.inject: "messages",
    PendingMessages: "should_inject prepare on_received on_injected unconsumed",
    Compaction: "should_compact summarize compact_ui_messages compact_model_messages",
    chat.compact: "messages steps summarize threshold should_compact",
    chat.compaction_step: "summarize threshold should_compact",
    chat.compaction_state: "",
    chat.is_compaction_safe: "ui_messages",
    chat.history.all: "",
    chat.history.get_chain: "",
    chat.history.find_message: "id",
    chat.history.get_pending_tool_calls: "",
    chat.history.get_resolved_tool_calls: "",
    chat.history.extract_new_tool_results: "message",
    chat.history.set: "messages",
    chat.history.remove: "id",
    chat.history.rollback_to: "id",
    chat.history.replace: "id message",
    chat.history.slice: "start end",
    chat.set_messages: "chain",
    chat.prompt.set: "prompt provider_options",
    chat.skills.set: "skills",
    skills.build_tools: "skills",
    skills.define: "id path",
    prompts.define: "id content description model config variables",
    prompts.resolve: "id variables version label",
    chat.run_options: "registry tools telemetry system_provider_options cache_control",
    chat.set_stream_options: "options",
    chat.set_turn_timeout: "duration",
    chat.set_idle_timeout: "duration",
    chat.is_stopped: "",
    chat.request_upgrade: "",
    chat.end_run: "",
    chat.cleanup_aborted_parts: "message",
    chat.stop_signal: "",
    chat.messages.on: "handler",
    chat.messages.once: "timeout",
    chat.messages.wait: "timeout",
    chat.messages.wait_with_idle_timeout: (
        "idle_timeout timeout skip_suspend on_suspend on_resume"
    ),
    chat.messages.peek: "",
    chat.write_turn_complete: "public_access_token",
    chat.MessageAccumulator: "tools compaction pending_messages",
    chat.MessageAccumulator.consume_handover: "payload idle_timeout timeout",
    chat.wait_for_handover: "payload idle_timeout timeout",
    chat.create_start_session_action: "task_id token_ttl trigger_config base_url request api",
    chat.create_access_token: "task_id api",
    chat.upsert_incoming_message: "stored event",
    chat.tool: "function options",
    chat.client_tool: "name description input to_model_output",
    chat_server.head_start: "agent_id run idle_timeout trigger_config api",
    chat_server.start_head_start: (
        "agent_id chat_id messages run metadata idle_timeout trigger_config api"
    ),
    chat_server.open_session: "request agent_id idle_timeout trigger_config api",
    ai.tool_execute: "task",
    ai.tool_call_id: "",
    ai.chat_context: "",
    ai.chat_context_or_raise: "",
    ai.current_tool_options: "",
    AgentChat: (
        "agent id client_data session trigger_config stream_timeout on_triggered on_turn_complete"
        " base_url request close_on_exit api"
    ),
    AgentChat.send_message: "text signal",
    AgentChat.send_raw: "messages trigger signal",
    AgentChat.steer: "text",
    AgentChat.stop: "",
    AgentChat.send_action: "action signal",
    AgentChat.preload: "idle_timeout",
    AgentChat.reconnect: "signal",
    AgentChat.close: "",
    ChatStream.text: "",
    ChatStream.result: "",
    ChatStream.messages: "",
    ChatStream.raise_for_error: "",
    Signal.wait: "",
    Signal.raise_if_aborted: "",
    auth.create_public_token: "scopes expires realtime api",
    sessions.start: "type task external_id tags metadata trigger_config expires_at api",
    sessions.open: "id api",
    wait.create_token: "timeout tags idempotency_key idempotency_key_ttl",
    testing.mock_chat_agent: (
        "agent chat_id client_data mode preload continuation previous_run_id snapshot"
        " head_start_messages task_context setup_locals clock tasks"
    ),
    testing.run_in_mock_task_context: "fn ctx payload clock tasks",
    testing.ChatHarness.send_message: "message fields",
    testing.ChatHarness.send_regenerate: "",
    testing.ChatHarness.send_action: "action",
    testing.ChatHarness.send_stop: "message",
    testing.ChatHarness.send_head_start: "messages",
    testing.ChatHarness.send_handover: "partial is_final message_id",
    testing.ChatHarness.send_handover_skip: "",
    testing.ChatHarness.send_raw: "chunk",
    testing.ChatHarness.seed_snapshot: "snapshot",
    testing.ChatHarness.seed_session_out_tail: "chunks",
    testing.ChatHarness.seed_session_out_partial: "message",
    testing.ChatHarness.seed_session_in_tail: "messages",
    testing.ChatHarness.get_snapshot: "",
    testing.ChatHarness.all_chunks: "",
    testing.ChatHarness.all_raw_chunks: "",
    testing.ChatHarness.settled: "",
    testing.ChatHarness.advance: "seconds",
    testing.ChatHarness.crash: "",
    testing.ChatHarness.restart: "attempt",
    testing.ChatHarness.close: "",
}
HOOKS = (
    "on_boot", "on_recovery_boot", "on_preload", "on_validate_messages", "hydrate_messages",
    "on_chat_start", "on_turn_start", "prepare_messages", "on_action", "on_compacted",
    "on_before_turn_complete", "on_turn_complete", "on_chat_suspend", "on_chat_resume",
    "on_start", "on_success", "on_failure", "on_complete", "on_wait", "on_resume",
)  # fmt: skip
TURN = (
    "messages", "ui_messages", "tools", "chat_id", "session_id", "trigger", "message_id",
    "client_data", "continuation", "previous_run_id", "preloaded", "signal", "cancel_signal",
    "stop_signal", "previous_turn_usage", "total_usage", "ctx", "turn", "deferred_tool_results",
)  # fmt: skip


def named(thing: Any) -> str:
    return f"{thing.__module__}.{thing.__qualname__}"


@pytest.mark.parametrize(("thing", "arguments"), PROMISED.items(), ids=map(named, PROMISED))
def test_a_promised_name_takes_what_was_promised(thing: Any, arguments: str) -> None:
    taken = inspect.signature(thing).parameters
    assert [name for name in arguments.split() if name not in taken] == []


@pytest.mark.parametrize("hook", HOOKS)
def test_a_hook_is_a_decorator_and_an_option(hook: str) -> None:
    assert callable(getattr(chat.ChatAgent, hook))

    def function() -> None:
        pass

    from everturn.tasks import registry

    with registry.collecting(registry.Registry()):
        made = chat.agent("surface", **{hook: function})(function)
    assert made.hooks.has(hook) or made.run_hooks.of(hook) == [function]


def test_a_turn_and_a_signal_have_the_members_they_were_promised() -> None:
    assert [name for name in TURN if not isinstance(vars(chat.Turn).get(name), property)] == []
    assert isinstance(Signal.aborted, property)
    assert isinstance(Signal.reason, property)
    assert callable(Signal.on_abort)
