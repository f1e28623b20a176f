"""What of the official packages is offered: one row a function, and the tests that show it.

A row without tests has a reason. `test_functions_page.py` holds the rows against the exports of the
packages and against the tests there are, and `docs/functions.md` against the rows.
"""

from __future__ import annotations

from typing import Final, NamedTuple

#: Files of tests, by the short names the rows use. Each runs with both versions of the packages,
#: or is run again by a file that names the newer ones.
FILES: Final = {
    "browser": "wire/test_browser.py",
    "chat": "wire/test_official_chat.py",
    "client": "wire/test_official_client.py",
    "direct": "wire/test_direct_writes.py",
    "hooks": "wire/test_official_hooks.py",
    "rest": "wire/test_official_rest.py",
    "runs": "wire/test_official_runs.py",
}

_WORKER: Final = (
    "For code that runs in a worker of that package. Workers here are Python's: the same thing is "
    "`everturn`'s own."
)
_NOT_BUILT: Final = "Not offered: "


class Row(NamedTuple):
    """`names` are exports of `entry`; a name that ends with `*` stands for all that begin so."""

    entry: str
    names: str
    tests: str = ""
    reason: str = ""


SDK: Final = "@trigger.dev/sdk"
CHAT: Final = "@trigger.dev/sdk/chat"
REACT: Final = "@trigger.dev/sdk/chat/react"
HOOKS: Final = "@trigger.dev/react-hooks"

SECTIONS: Final = {
    SDK: "`@trigger.dev/sdk`",
    CHAT: "`@trigger.dev/sdk/chat`",
    REACT: "`@trigger.dev/sdk/chat/react`",
    HOOKS: "`@trigger.dev/react-hooks`",
}

#: `file:test`, tests separated by spaces.
ROWS: Final = (
    Row(
        SDK,
        "sessions.start sessions.retrieve sessions.update sessions.close",
        "client:test_sessions_start_send_read_list_update_and_close "
        "rest:test_the_options_of_a_trigger_config_are_those_of_its_run",
    ),
    Row(
        SDK,
        "sessions.list",
        "rest:test_sessions_are_listed_by_every_filter_and_page_by_page",
    ),
    Row(
        SDK,
        "sessions.open SessionHandle SessionInputChannel SessionOutputChannel",
        "client:test_sessions_start_send_read_list_update_and_close "
        "direct:test_append_pipe_writer_control_and_trim_are_stored_and_read_back "
        "direct:test_megabytes_in_many_batches_keep_their_order",
    ),
    Row(
        SDK,
        "tasks.trigger",
        "runs:test_runs_are_replayed_moved_listed_and_their_keys_reset "
        "rest:test_options_of_a_trigger_reach_the_run "
        "rest:test_debounced_triggers_become_one_run "
        "rest:test_a_run_past_its_time_to_live_ends_a_poll "
        "runs:test_a_payload_too_large_for_a_request_travels_as_a_packet",
    ),
    Row(
        SDK,
        "tasks.batchTrigger batch.trigger batch.retrieve",
        "runs:test_a_batch_becomes_runs_in_the_order_of_its_items",
    ),
    Row(SDK, "batch.triggerByTask", "rest:test_a_batch_by_task_objects_becomes_runs_in_order"),
    Row(
        SDK,
        "idempotencyKeys.create idempotencyKeys.reset",
        "rest:test_idempotency_keys_find_expire_and_are_reset",
    ),
    Row(
        SDK,
        "runs.retrieve runs.poll runs.cancel runs.replay runs.reschedule",
        "runs:test_runs_are_replayed_moved_listed_and_their_keys_reset "
        "rest:test_a_run_that_is_not_visible_yet_is_asked_for_again",
    ),
    Row(
        SDK,
        "runs.list",
        "rest:test_runs_are_listed_by_every_filter_and_page_by_page "
        "rest:test_runs_are_listed_by_project",
    ),
    Row(
        SDK,
        "runs.subscribeToRun",
        "runs:test_a_subscription_follows_a_run_to_its_end "
        "rest:test_a_subscription_with_streams_finds_them_by_itself",
    ),
    Row(
        SDK,
        "runs.subscribeToRunsWithTag",
        "runs:test_a_subscription_by_tag_sees_runs_that_start_later",
    ),
    Row(
        SDK,
        "runs.subscribeToBatch",
        "runs:test_a_batch_becomes_runs_in_the_order_of_its_items",
    ),
    Row(SDK, "runs.fetchStream", "rest:test_streams_are_read_by_every_function_there_is"),
    Row(
        SDK,
        "streams.read streams.define",
        "runs:test_a_stream_of_a_run_is_read_from_any_place "
        "rest:test_streams_are_read_by_every_function_there_is",
    ),
    Row(
        SDK,
        "streams.input",
        "rest:test_input_reaches_a_run_that_listens_and_is_refused_after_its_end",
    ),
    Row(
        SDK,
        "streams.append streams.pipe streams.writer",
        "rest:test_writing_a_stream_outside_of_a_run_asks_nothing",
        "Outside of a run they do nothing. " + _WORKER,
    ),
    Row(
        SDK,
        "wait.createToken wait.completeToken wait.retrieveToken wait.listTokens",
        "runs:test_a_run_waits_for_a_token_until_it_is_completed "
        "runs:test_a_third_party_completes_a_token_by_its_url "
        "runs:test_a_run_goes_on_when_its_token_times_out",
    ),
    Row(
        SDK,
        "auth.createPublicToken auth.createTriggerPublicToken auth.createBatchTriggerPublicToken",
        "rest:test_tokens_of_every_kind_open_what_they_say "
        "runs:test_a_batch_token_starts_one_batch_of_its_task",
    ),
    Row(
        SDK,
        "auth.withPublicToken auth.withTriggerPublicToken auth.withBatchTriggerPublicToken",
        "rest:test_calls_within_a_token_are_made_with_it",
    ),
    Row(
        SDK,
        "auth.withAuth auth.configure configure TriggerClient",
        "rest:test_tokens_of_every_kind_open_what_they_say "
        "rest:test_a_refusal_that_repeating_cannot_cure_is_asked_once",
    ),
    Row(
        SDK,
        "ApiError BadRequestError AuthenticationError PermissionDeniedError NotFoundError "
        "ConflictError UnprocessableEntityError",
        "rest:test_a_refusal_that_repeating_cannot_cure_is_asked_once",
    ),
    Row(
        SDK,
        "RateLimitError",
        "rest:test_a_client_past_its_limit_waits_as_it_is_told",
    ),
    Row(
        SDK,
        "InternalServerError",
        "",
        "Sent when a store is away (503), which a test of that package cannot bring about; "
        "clients repeat it.",
    ),
    Row(
        SDK,
        "chat.createStartSessionAction chat.createAccessToken",
        "rest:test_a_start_action_begins_a_chat_and_mints_tokens_for_it",
        "Exported by `@trigger.dev/sdk/ai`. The rest of that entry: " + _WORKER,
    ),
    Row(
        SDK,
        "tasks.triggerAndWait tasks.batchTriggerAndWait tasks.triggerAndSubscribe "
        "batch.triggerAndWait batch.triggerByTaskAndWait wait.for wait.forToken wait.until "
        "tasks.catchError tasks.handleError tasks.middleware tasks.on* task schemaTask toolTask "
        "queue retry.* locals.* metadata.* tags.add usage.* waitUntil heartbeats.* otel.* "
        "prompts.define skills.define defineConfig createCache InMemoryCache "
        "AbortTaskRunError CompleteTaskWithOutput OutOfMemoryError SubtaskUnwrapError "
        "ManualWaitpointPromise WaitpointTimeoutError BatchTriggerError "
        "ChatChunkTooLargeError isChatChunkTooLargeError markChatAgentRunForStreamsWarning "
        "normalizeKeyString concurrencyLimit chatEvent",
        "",
        _WORKER,
    ),
    Row(
        SDK,
        "sessions.defineChannel",
        "",
        _NOT_BUILT + "a session has the channels `in` and `out`.",
    ),
    Row(SDK, "schedules.*", "", _NOT_BUILT + "there are no schedules; a `cron` can trigger."),
    Row(
        SDK,
        "queues.* concurrencyLimits.*",
        "",
        _NOT_BUILT + "limits of queues are declared in code.",
    ),
    Row(SDK, "envvars.*", "", _NOT_BUILT + "a worker has the environment it is started with."),
    Row(
        SDK,
        "deployments.* auth.getOIDCToken OIDCTokenError",
        "",
        _NOT_BUILT + "workers are deployed by you.",
    ),
    Row(
        SDK,
        "prompts.list prompts.resolve prompts.versions prompts.promote prompts.createOverride "
        "prompts.updateOverride prompts.removeOverride prompts.reactivateOverride",
        "",
        _NOT_BUILT + "prompts live in code.",
    ),
    Row(SDK, "query.execute", "", _NOT_BUILT + "state is in a database of yours."),
    Row(
        SDK,
        "webhooks.* webhook webhookSources.* defineWebhookEndpoint providerProducers.* Webhook*",
        "",
        _NOT_BUILT + "`webhooks.constructEvent` asks no server; endpoints are your application's.",
    ),
    Row(SDK, "__set*", "", "For tests of that package."),
    Row(
        CHAT,
        "AgentChat ChatStream",
        "client:test_agent_chat_answers_a_message_and_a_follow_up_on_the_same_run "
        "client:test_a_chat_restored_from_last_event_id_sees_only_its_own_turn "
        "client:test_stop_ends_the_answer_and_the_next_one_is_whole "
        "client:test_a_client_in_mid_answer_gets_the_whole_answer_after_its_worker_was_killed "
        "chat:test_a_preloaded_chat_answers_its_first_message_on_the_run_it_has "
        "chat:test_regenerate_answers_the_same_message_again "
        "chat:test_steer_is_refused_before_the_start_and_disturbs_no_answer "
        "chat:test_an_action_changes_history_and_the_next_answer_knows "
        "chat:test_reconnect_goes_on_where_the_other_reader_was",
    ),
    Row(
        CHAT,
        "TriggerChatTransport createChatTransport",
        "chat:test_a_transport_is_told_where_how_and_with_what_and_is_restored "
        "chat:test_an_action_of_the_transport_ends_and_the_next_answer_knows "
        "chat:test_a_watching_transport_sees_the_turns_of_others_on_one_stream "
        "chat:test_stopping_a_transport_ends_the_answer_and_the_next_one_is_whole "
        "chat:test_an_unknown_session_is_started_again_and_a_closed_one_refused "
        "chat:test_a_head_start_of_the_transport_is_continued_by_the_agent",
    ),
    Row(CHAT, "createSubAgentMessages", "", "Works on messages and asks no server."),
    Row(
        REACT,
        "useTriggerChatTransport",
        "browser:test_an_answer_is_seen_to_grow_word_by_word "
        "browser:test_a_page_reloaded_in_mid_answer_continues_it_without_a_doubled_word",
    ),
    Row(REACT, "useMultiTabChat", "browser:test_two_tabs_follow_one_answer_and_take_turns"),
    Row(
        REACT,
        "usePendingMessages injectedMessageIdsOf injectedMessagesOf collectInjectedMessageIds "
        "isInjectionPart",
        "browser:test_a_message_sent_in_mid_answer_joins_it_at_the_next_step",
    ),
    Row(
        REACT,
        "useChatActions",
        "chat:test_an_action_of_the_transport_ends_and_the_next_answer_knows",
        "A hook around the transport's `sendAction`.",
    ),
    Row(
        REACT,
        "useLoadTranscript seedTranscriptCursor useSubAgentMessages",
        "",
        _NOT_BUILT + "histories come from the application (see `compatibility.md`).",
    ),
    Row(HOOKS, "useRun", "hooks:test_use_run_asks_until_the_run_is_final"),
    Row(
        HOOKS,
        "useRealtimeRun",
        "hooks:test_use_realtime_run_follows_a_run_to_its_end "
        "hooks:test_a_hook_with_the_token_of_another_run_shows_an_error",
    ),
    Row(
        HOOKS,
        "useRealtimeRunsWithTag",
        "hooks:test_use_realtime_runs_with_tag_sees_runs_that_start_later",
    ),
    Row(HOOKS, "useRealtimeBatch", "hooks:test_use_realtime_batch_sees_all_runs_of_a_batch"),
    Row(
        HOOKS,
        "useRealtimeRunWithStreams",
        "hooks:test_use_realtime_run_with_streams_finds_the_streams_of_a_run_by_itself",
    ),
    Row(HOOKS, "useRealtimeStream", "hooks:test_use_realtime_stream_reads_one_stream"),
    Row(HOOKS, "useTaskTrigger", "hooks:test_use_task_trigger_starts_one_run_with_its_token"),
    Row(
        HOOKS,
        "useRealtimeTaskTrigger",
        "hooks:test_use_realtime_task_trigger_goes_on_with_the_token_of_the_run",
    ),
    Row(
        HOOKS,
        "useRealtimeTaskTriggerWithStreams",
        "hooks:test_use_realtime_task_trigger_with_streams_reads_what_the_run_writes",
    ),
    Row(
        HOOKS,
        "useWaitToken",
        "hooks:test_use_wait_token_completes_a_token_and_its_run_goes_on",
    ),
    Row(
        HOOKS,
        "useInputStreamSend",
        "hooks:test_use_input_stream_send_reaches_a_run_that_listens",
    ),
    Row(
        HOOKS,
        "useSessionStream",
        "hooks:test_use_session_stream_of_the_newer_package_follows_a_channel",
    ),
    Row(
        HOOKS,
        "useSessionStreamChannel",
        "",
        _NOT_BUILT + "a session has the channels `in` and `out`.",
    ),
    Row(
        HOOKS,
        "useApiClient useTriggerAuthContext useTriggerAuthContextOptional",
        "",
        "Beneath the hooks above; ask no server themselves.",
    ),
)


def page() -> str:
    """`docs/functions.md`."""
    lines = [
        "# The official packages, function by function",
        "",
        "Every function that `@trigger.dev/sdk` and `@trigger.dev/react-hooks` export in 4.5.0 or",
        "4.8.3, and the tests that show it working against this server, unmodified, or the reason why",
        "there is none. [compatibility.md](compatibility.md) says what an application has to know.",
        "",
        "This page is made from `tests/docs/function_rows.py`; a test holds it against the packages'",
        "exports and against the tests there are.",
    ]
    for entry, title in SECTIONS.items():
        lines += ["", f"## {title}", "", "| function | shown by, or why not |", "|---|---|"]
        for row in ROWS:
            if row.entry == entry:
                names = ", ".join(f"`{name}`" for name in row.names.split())
                lines.append(f"| {names} | {_shown(row)} |")
    return "\n".join(lines) + "\n"


def _shown(row: Row) -> str:
    cited: dict[str, list[str]] = {}
    for test in row.tests.split():
        file, _, name = test.partition(":")
        cited.setdefault(file, []).append(name.removeprefix("test_").replace("_", " "))
    parts = [
        f"[{FILES[file].rpartition('/')[2].removesuffix('.py')}](../tests/{FILES[file]}): "
        + "; ".join(names)
        for file, names in cited.items()
    ]
    return "<br>".join([*parts, row.reason] if row.reason else parts)


if __name__ == "__main__":
    from pathlib import Path

    (Path(__file__).parent.parent.parent / "docs" / "functions.md").write_text(page())
