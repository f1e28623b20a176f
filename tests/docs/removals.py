"""Behaviour removed on purpose: for a clause, one exact piece of text and what replaces it.

`sample.py` applies each in a copy of the tree, and the tests of the clause must fail then. A text
that is not found exactly once is an error: whoever moves the code moves the removal too.
"""

from __future__ import annotations

from typing import Final, NamedTuple

CHAT: Final = "src/everturn/chat"


class Removal(NamedTuple):
    name: str
    file: str
    text: str
    replacement: str


REMOVALS: Final[dict[int, Removal]] = {
    1: Removal(
        "all parts of a run have one id",
        "src/everturn/testing/runtime.py",
        'return f"{self._info.fence}-{self._next_part}"',
        'return f"{self._info.fence}-0"',
    ),
    3: Removal(
        "control records are handed out as chunks",
        "src/everturn/client/channels.py",
        "if arrived.record.is_data:",
        "if True:",
    ),
    6: Removal(
        "a failed turn brings a token too",
        f"{CHAT}/turn.py",
        "seq_num = await commit.turn_complete(run, cursor, error=run.error_text(error))",
        "seq_num = await commit.turn_complete(\n"
        '        run, cursor, token="t", error=run.error_text(error)\n    )',
    ),
    7: Removal(
        "turn-completes name no message",
        f"{CHAT}/commit.py",
        "(*headers, *cursor.headers())",
        "tuple(headers)",
    ),
    8: Removal(
        "what queues counts as committed",
        f"{CHAT}/intake.py",
        "floor = next(iter(self._open)) - 1 if self._open else tail",
        "floor = tail",
    ),
    25: Removal(
        "the preload hook is not called",
        f"{CHAT}/turn_loop.py",
        "await _preload(run, fires=step is FirstStep.PRELOAD)",
        "await _preload(run, fires=False)",
    ),
    27: Removal(
        "client data is not validated in a turn",
        f"{CHAT}/turn.py",
        'state.client_data = run.agent.client_data(state.item.payload.get("metadata"))',
        'state.client_data = state.item.payload.get("metadata")',
    ),
    33: Removal(
        "the live tail begins where boot began",
        f"{CHAT}/intake.py",
        "            self.source.advance(tail)",
        "            pass",
    ),
    54: Removal(
        "the answer is not among the new messages",
        f"{CHAT}/turn.py",
        "    state.new_ui_messages.append(message)\n\n\ndef empty_response",
        "\n\ndef empty_response",
    ),
    59: Removal(
        "a failed turn loses its message",
        f"{CHAT}/turn.py",
        "run.lane.replace_all(ui_messages.accumulate("
        'run.lane.messages, message, "submit-message"))',
        "pass",
    ),
    61: Removal(
        "the agent is not asked what clients read",
        f"{CHAT}/definition.py",
        "told = told or self.options.stream_options.on_error",
        "told = None",
    ),
    69: Removal(
        "actions are answered as messages are",
        f"{CHAT}/turn_loop.py",
        'if head is not None and head.trigger == "action":',
        "if False:",
    ),
    82: Removal(
        "the hooks are not told of a stop",
        f"{CHAT}/turn.py",
        '"stopped": state.stopped,',
        '"stopped": False,',
    ),
    98: Removal(
        "history that was changed is not stored before it is committed",
        f"{CHAT}/turn.py",
        "    if run.lane.apply():\n        state.history_changed = True",
        "    run.lane.apply()",
    ),
    100: Removal(
        "the start hook is not called",
        f"{CHAT}/turn.py",
        'if not run.started and run.agent.hooks.has("on_chat_start"):',
        "if False:",
    ),
    111: Removal(
        "a further attempt reads nothing",
        f"{CHAT}/state.py",
        "self.prior = self.continuation or info.attempt > 1",
        "self.prior = self.continuation",
    ),
    115: Removal(
        "the partial answer is dropped",
        "src/everturn/rules/boot.py",
        "return base._replace(turns=rest, spliced=spliced, keeps_partial=True, asks_hook=True)",
        "return base._replace(turns=rest, spliced=spliced, keeps_partial=False, asks_hook=True)",
    ),
    125: Removal(
        "open actions are not recovered",
        "src/everturn/rules/boot.py",
        "wanted = [item for item in undecided if item.needs_answer]",
        'wanted = [item for item in undecided if item.trigger == "submit-message"]',
    ),
    131: Removal(
        "a snapshot has no input cursor",
        f"{CHAT}/transcript.py",
        'body["lastInEventId"] = str(snapshot.cursor.seq_num)',
        "pass",
    ),
    139: Removal(
        "part ids are forgotten",
        "src/everturn/storage/memory/streams.py",
        "known = None if new.part_id is None else place.part_ids.get(new.part_id)",
        "known = None",
    ),
    152: Removal(
        "an output stays preliminary",
        f"{CHAT}/reducer.py",
        'preliminary=chunk.get("preliminary", ABSENT),',
        "preliminary=True,",
    ),
    156: Removal(
        "tools do not decide how results look",
        f"{CHAT}/conversion.py",
        'getattr(tool, "to_model_output", None)',
        'getattr(tool, "nothing", None)',
    ),
    167: Removal(
        "nobody is told of a message that arrives in mid-turn",
        f"{CHAT}/steering.py",
        "run.tasks.start_soon(_told, self.config.on_received, event)",
        "pass",
    ),
    176: Removal(
        "the next request starts without the summary",
        f"{CHAT}/compaction.py",
        "return (ModelRequest(parts=[*system, UserPromptPart(content=summary)]),)",
        "return (ModelRequest(parts=[*system]),)",
    ),
    179: Removal(
        "what the agent shortened is not kept",
        f"{CHAT}/compaction.py",
        'run.lane.replace_all(hooks.message_list(shortened, "compact_ui_messages"))',
        "pass",
    ),
    185: Removal(
        "staged history is thrown away",
        f"{CHAT}/history.py",
        "        self.replace_all(staged)\n        return True",
        "        return True",
    ),
    195: Removal(
        "calls without a result reach the model",
        f"{CHAT}/conversion.py",
        "if state not in FINAL_STATES and not (keep_decided and _is_decided(part)):",
        "if False:",
    ),
    196: Removal(
        "a run with a past reads nothing",
        f"{CHAT}/state.py",
        "self.prior = self.continuation or info.attempt > 1",
        "self.prior = False",
    ),
    197: Removal(
        "a call that was denied with a reason runs",
        f"{CHAT}/conversion.py",
        'approvals[part["toolCallId"]] = ToolDenied(message=approval["reason"])',
        'approvals[part["toolCallId"]] = True',
    ),
    206: Removal(
        "a loop does not end at its last turn",
        f"{CHAT}/loop.py",
        "if self._ended or self.cancelled or self._turns >= self._max_turns:",
        "if self._ended or self.cancelled:",
    ),
    214: Removal(
        "a final handover runs the agent",
        f"{CHAT}/turn.py",
        "if state.handover is not None and state.handover.is_final:",
        "if False:",
    ),
    226: Removal(
        "a cached session is read from its start",
        "src/everturn/client/agent_chat.py",
        "                self._state.last_seq = newest\n",
        "                pass\n",
    ),
    229: Removal(
        "steering sends nothing",
        "src/everturn/client/agent_chat.py",
        'seq = await self._append_message({"message": message, "trigger": _SUBMIT})',
        "seq = None",
    ),
    231: Removal(
        "a stop is not sent",
        "src/everturn/client/agent_chat.py",
        "await self._send_stop(unsettled[0] if len(unsettled) == 1 else None)",
        "return",
    ),
    251: Removal(
        "nobody is told of a suspension",
        "src/everturn/tasks/channels.py",
        "if on_suspend is not None:",
        "if False:",
    ),
    254: Removal(
        "trimming goes back",
        "src/everturn/storage/memory/streams.py",
        "if target is not None and min(target, seq_num) > self.first:",
        "if target is not None:",
    ),
    258: Removal(
        "virtual time wakes nobody",
        "src/everturn/testing/clock.py",
        "            event.set()\n            await at_rest()",
        "            await at_rest()",
    ),
    263: Removal(
        "an unknown agent is another error",
        "src/everturn/testing/harness.py",
        "raise LookupError(",
        "raise ValueError(",
    ),
}
