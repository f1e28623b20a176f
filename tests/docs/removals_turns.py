"""Behaviour removed on purpose, of clauses R-001 to R-066: records, boot, turns."""

from __future__ import annotations

from typing import Final

from removal import CHAT, Removal

TURNS: Final = (
    Removal(
        1,
        "all parts of a run have one id",
        "src/everturn/testing/runtime.py",
        'return f"{self._info.fence}-{self._next_part}"',
        'return f"{self._info.fence}-0"',
    ),
    Removal(
        3,
        "control records are handed out as chunks",
        "src/everturn/client/channels.py",
        "if arrived.record.is_data:",
        "if True:",
    ),
    Removal(
        4,
        "a part that comes again is handed out again",
        "src/everturn/client/follow.py",
        "if part_id in self._seen_set:",
        "if False:",
    ),
    Removal(
        6,
        "a failed turn brings a token too",
        f"{CHAT}/turn_end.py",
        "seq_num = await commit.turn_complete(run, cursor, error=words)",
        'seq_num = await commit.turn_complete(run, cursor, token="t", error=words)',
    ),
    Removal(
        7,
        "turn-completes name no message",
        f"{CHAT}/commit.py",
        "(*headers, *cursor.headers())",
        "tuple(headers)",
    ),
    Removal(
        8,
        "what queues counts as committed",
        f"{CHAT}/intake.py",
        "floor = next(iter(self._open)) - 1 if self._open else tail",
        "floor = tail",
    ),
    Removal(
        10,
        "the first message is not put into the log",
        "src/everturn/server/services/dispatch.py",
        "if run.boot_input is None or run.session_id is None:",
        "if True:",
    ),
    Removal(
        11,
        "an older cursor overrides a newer one at boot",
        f"{CHAT}/boot.py",
        "newest = newest.newest(cursor)",
        "newest = cursor",
    ),
    Removal(
        13,
        "stops of a suspended run are not counted as read",
        f"{CHAT}/intake.py",
        (
            '        elif item.kind == "stop" and not self._stop_arrived(item) and self._open:\n'
            "            self._decided.add(item.seq_num)\n"
        ),
        (
            '        elif item.kind == "stop" and not self._stop_arrived(item):\n'
            "            self._open[item.seq_num] = None\n"
        ),
    ),
    Removal(
        17,
        "an upgrade moves the trim slot and trims",
        f"{CHAT}/turn.py",
        "    await run.runtime.append([control_record(UPGRADE_REQUIRED)])\n",
        (
            "    (seq_num,) = await run.runtime.append([control_record(UPGRADE_REQUIRED)])\n"
            "    target = run.trim.advance(seq_num)\n"
            "    if target is not None:\n"
            "        run.runtime.append([commit.trim_record(target)])\n"
        ),
    ),
    Removal(
        24,
        "the boot hook is not called in a further attempt",
        f"{CHAT}/boot.py",
        'if run.agent.hooks.has("on_boot"):',
        'if run.agent.hooks.has("on_boot") and run.runtime.info.attempt == 1:',
    ),
    Removal(
        25,
        "the preload hook is not called",
        f"{CHAT}/turn_loop.py",
        "await _preload(run, fires=step is FirstStep.PRELOAD)",
        "await _preload(run, fires=False)",
    ),
    Removal(
        27,
        "client data is not validated in a turn",
        f"{CHAT}/turn.py",
        'state.client_data = run.agent.client_data(state.item.payload.get("metadata"))',
        'state.client_data = state.item.payload.get("metadata")',
    ),
    Removal(
        29,
        "only the first turn knows that the run was preloaded",
        f"{CHAT}/turn_view.py",
        "return self._run.preloaded",
        "return self._run.preloaded and self._state.turn == 0",
    ),
    Removal(
        33,
        "the live tail begins where boot began",
        f"{CHAT}/intake.py",
        "            self.source.advance(tail)",
        "            pass",
    ),
    Removal(
        34,
        "a boot does not look at turn-completes",
        f"{CHAT}/boot.py",
        "cursor = _newest(stored, committed, _row(run))",
        "cursor = _newest(stored, _row(run))",
    ),
    Removal(
        34,
        "a boot does not look at the snapshot's cursor",
        f"{CHAT}/boot.py",
        "cursor = _newest(stored, committed, _row(run))",
        "cursor = _newest(committed, _row(run))",
    ),
    Removal(
        39,
        "validation is asked about nothing",
        f"{CHAT}/turn.py",
        'if state.incoming and run.agent.hooks.has("on_validate_messages"):',
        'if run.agent.hooks.has("on_validate_messages"):',
    ),
    Removal(
        39,
        "what validation returns is thrown away",
        f"{CHAT}/turn.py",
        'state.incoming = hooks.message_list(found, "on_validate_messages")',
        'hooks.message_list(found, "on_validate_messages")',
    ),
    Removal(
        41,
        "answers are not laid over hydrated history",
        f"{CHAT}/turn.py",
        ("        if stored is not None:\n            chain = ui_messages"),
        ("        if False:\n            chain = ui_messages"),
    ),
    Removal(
        41,
        "actions do not hydrate",
        f"{CHAT}/actions.py",
        "if run.agent.hydrates:",
        "if False:",
    ),
    Removal(
        41,
        "hydrated history is not the lane",
        f"{CHAT}/turn.py",
        "    run.lane.replace_all(chain)\n",
        "    chain.clear()\n",
    ),
    Removal(
        43,
        "a start hook that failed is called again",
        f"{CHAT}/turn_end.py",
        'run.started = run.started or state.trigger != "action"',
        "pass",
    ),
    Removal(
        44,
        "the turn-start hook does not see the message",
        f"{CHAT}/turn_events.py",
        ('"ui_messages": run.lane.messages,\n        "model_lane"'),
        ('"ui_messages": run.lane.messages[:-1],\n        "model_lane"'),
    ),
    Removal(
        44,
        "the turn-start hook comes after the answer",
        f"{CHAT}/turn.py",
        ("    await _start_hooks(run, state)\n    if run.upgrade_requested:"),
        ("    state.token = await run.tokens.current()\n    if run.upgrade_requested:"),
    ),
    Removal(
        46,
        "the prepare hook has the last word",
        f"{CHAT}/prepare.py",
        "return with_tail(found, tail_of(messages))",
        "return list(found)",
    ),
    Removal(
        46,
        "a tail that was moved is not put back at the end",
        f"{CHAT}/prepare.py",
        "if not tail or list(messages[-len(tail) :]) == tail:",
        "if not tail or all(message in messages for message in tail):",
    ),
    Removal(
        47,
        "what is returned is streamed after a pipe too",
        f"{CHAT}/turn.py",
        "if state.piped == 0 and is_streamable(result):",
        "if is_streamable(result):",
    ),
    Removal(
        47,
        "a list is streamed",
        f"{CHAT}/streamables.py",
        "return isinstance(value, str | AsyncIterable | Iterator) or is_message(value)",
        "return isinstance(value, str | AsyncIterable | Iterable) or is_message(value)",
    ),
    Removal(
        50,
        "an answer is never continued",
        f"{CHAT}/turn.py",
        "if seed is not None:",
        "if False:",
    ),
    Removal(
        50,
        "a continued answer begins empty",
        f"{CHAT}/turn.py",
        "            seed=seed,\n",
        "",
    ),
    Removal(
        54,
        "the answer is not among the new messages",
        f"{CHAT}/turn.py",
        ("    run.lane.upsert(message)\n    state.new_ui_messages.append(message)\n"),
        ("    run.lane.upsert(message)\n"),
    ),
    Removal(
        55,
        "the sum counts the turn in progress twice",
        f"{CHAT}/turn_end.py",
        ("    run.total_usage = add_usage(run.total_usage, state.usage)\n    run.previous"),
        (
            "    run.total_usage = add_usage(add_usage(run.total_usage, state.usage), "
            "state.usage)\n"
            "    run.previous"
        ),
    ),
    Removal(
        59,
        "a failed turn loses its message",
        f"{CHAT}/turn.py",
        (
            "run.lane.replace_all(ui_messages.accumulate(run.lane.messages, message, "
            '"submit-message"))'
        ),
        "pass",
    ),
    Removal(
        60,
        "a model's error comes out of the agent",
        f"{CHAT}/adapters/events.py",
        ("        if ends_attempt(error):\n            raise error"),
        ("        if True:\n            raise error"),
    ),
    Removal(
        60,
        "a model's error ends with another reason",
        f"{CHAT}/adapters/events.py",
        '        self.reason = "error"\n',
        '        self.reason = "stop"\n',
    ),
    Removal(
        61,
        "the agent is not asked what clients read",
        f"{CHAT}/definition.py",
        "told = told or self.options.stream_options.on_error",
        "told = None",
    ),
)
