"""What the server promises: each message has a reader, each run one holder, each end is settled."""

from __future__ import annotations

from typing import Final

from mutant import Mutant

LINK: Final = "tests/unit/server/test_engine_link.py"
RECOVERY: Final = "tests/unit/server/test_engine_recovery.py"
WAKES: Final = "tests/unit/server/test_engine_wakes.py"
ENDINGS: Final = "tests/unit/server/test_engine_endings.py"
FENCES: Final = "tests/unit/server/test_engine_fences.py"
CRASHES: Final = "tests/unit/server/test_engine_crashes.py"
GUARDS: Final = "tests/unit/server/test_engine_guards.py"
STATE: Final = "tests/contract/test_state_contract.py"
SERVER: Final = "src/everturn/server/services"

SERVICES: Final = (
    Mutant(
        "a claim raises no fence",
        "P-4",
        f"{SERVER}/claims.py",
        "await self._services.streams.raise_fence(out_channel(session), run.fence)",
        "pass",
        ("tests/unit/server/test_engine_claims.py", "tests/unit/server/test_engine_fences.py"),
    ),
    Mutant(
        "the run is looked after before the record is stored",
        "P-3",
        f"{SERVER}/inbox.py",
        "            appended = await services.streams.append(channel, [record])\n"
        "            await services.dispatch.ensure_run(session)\n",
        "            await services.dispatch.ensure_run(session)\n"
        "            appended = await services.streams.append(channel, [record])\n",
        (WAKES, "-k", "stored_when_its_reader"),
    ),
    Mutant(
        "a suspending run does not look at the tail",
        "P-3",
        f"{SERVER}/link_calls.py",
        "    if not await services.waits.wake_if_over(run):\n",
        "    if True:\n",
        (RECOVERY, "-k", "just_before_the_suspension"),
    ),
    Mutant(
        "a failed run check is not repeated",
        "P-3",
        f"{SERVER}/dispatch.py",
        "            self._remember(session)\n",
        "            pass\n",
        (RECOVERY, "-k", "run_check_that_fails"),
    ),
    Mutant(
        "the first message is not put into the log",
        "P-3",
        f"{SERVER}/dispatch.py",
        "if run.boot_input is None or run.session_id is None:",
        "if True:",
        ("tests/unit/server/test_engine_claims.py",),
    ),
    Mutant(
        "an error chunk and its turn-complete are two appends",
        "P-3",
        f"{SERVER}/outbox.py",
        "                NewRecord(data_body(chunk, error_id), (), error_id),\n"
        "                NewRecord(done",
        "                NewRecord(data_body(chunk, error_id), (), error_id),\n"
        "            ],\n"
        "        )\n"
        "        await self.append_guest(\n"
        "            out_channel(session),\n"
        "            [\n"
        "                NewRecord(done",
        ("tests/unit/server/test_engine_crashes.py", "tests/unit/server/test_engine_endings.py"),
    ),
    Mutant(
        "an ended run is never settled again",
        "P-3",
        "src/everturn/server/sweeps/__init__.py",
        '    "unchecked_sessions": runs.unchecked,\n',
        "",
        ("tests/unit/server/test_engine_endings.py", "-k", "found_by_a_sweep"),
    ),
    Mutant(
        "runs of a worker that is gone are not recovered",
        "P-3",
        f"{SERVER}/links.py",
        "            await self._services.recovery.worker_gone(worker_id)\n",
        "            pass\n",
        (RECOVERY, "-k", "grace_of_the_link"),
    ),
    Mutant(
        "deaths in a row are not bounded",
        "P-3",
        "src/everturn/rules/recovery.py",
        "if so_far + 1 >= limits.INTERRUPTIONS_MAX:",
        "if False:",
        ("tests/unit/rules/test_rules_recovery.py",),
    ),
    Mutant(
        "a wake whose answer was lost is not doubted",
        "P-3",
        f"{SERVER}/waits.py",
        "                self._services.links.doubt(run)\n",
        "                pass\n",
        (WAKES, "-k", "whose_answer_the_store_lost"),
    ),
    Mutant(
        "a repeated suspend counts as being awake",
        "P-3",
        f"{SERVER}/link.py",
        "            result = memory.get(call.id)\n",
        "            self.untold.discard(call.run_id)\n            result = memory.get(call.id)\n",
        (WAKES, "-k", "sent_again"),
    ),
    Mutant(
        "a run that went on by itself is told again",
        "P-3",
        f"{SERVER}/link.py",
        "                self.untold.discard(call.run_id)\n",
        "",
        (WAKES, "-k", "went_on_by_itself"),
    ),
    Mutant(
        "an older claim's end releases the newer claim",
        "P-3",
        f"{SERVER}/link.py",
        "if held is not None and held.fence > fence:",
        "if False:",
        (LINK, "-k", "of_an_older_claim"),
    ),
    Mutant(
        "runs a worker does not name stay its own",
        "P-3",
        f"{SERVER}/link.py",
        "        await self._recover_unnamed()\n",
        "",
        (LINK, "-k", "comes_back or never_reached"),
    ),
    Mutant(
        "a lost wake-up is waited for without polling",
        "P-3",
        f"{SERVER}/claims.py",
        "                await waiter.wait(limits.SWEEP_MS / 1000)\n",
        "                await waiter.wait(1e6)\n",
        (WAKES, "-k", "every_hint_is_lost"),
    ),
    Mutant(
        "a run reports its end under a fence it lost",
        "P-4",
        f"{SERVER}/finishing.py",
        "        if run is None or run.fence != fence:\n",
        "        if run is None:\n",
        (GUARDS,),
    ),
    Mutant(
        "a run ends although its fence has moved on",
        "P-4",
        f"{SERVER}/finishing.py",
        "            fence=run.fence,\n            output=",
        "            output=",
        (GUARDS,),
    ),
    Mutant(
        "a call of a run that moved on is carried out",
        "P-4",
        f"{SERVER}/link_calls.py",
        "        if run is None or run.fence != self.call.fence:\n",
        "        if run is None:\n",
        (GUARDS,),
    ),
    Mutant(
        "a zombie may store a snapshot",
        "P-4",
        f"{SERVER}/link_calls.py",
        "    if session.current_run_id != context.call.run_id or session.fence > context.call.fence:\n",
        "    if False:\n",
        (GUARDS,),
    ),
    Mutant(
        "a lost run is judged before its fence is raised",
        "P-4",
        f"{SERVER}/recovery.py",
        "        await self._services.outbox.fence_off(session, run)\n        tail",
        "        tail",
        (
            FENCES,
            RECOVERY,
            CRASHES,
        ),
    ),
    Mutant(
        "the server closes a turn that its run may still write to",
        "P-4",
        f"{SERVER}/finishing.py",
        "            await self._services.outbox.fence_off(session, run)\n",
        "            pass\n",
        (
            FENCES,
            ENDINGS,
            CRASHES,
        ),
    ),
    Mutant(
        "a swap from outside leaves the old run its fence",
        "P-4",
        f"{SERVER}/dispatch.py",
        "            await self._services.outbox.fence_off(session, old)\n",
        "            pass\n",
        (
            FENCES,
            ENDINGS,
            LINK,
        ),
    ),
    Mutant(
        "presence outlives the run it speaks of",
        "P-3",
        f"{SERVER}/finishing.py",
        "        self._forget_presence(run)\n        stored",
        "        stored",
        (GUARDS,),
    ),
    Mutant(
        "presence outlives a suspension",
        "P-3",
        f"{SERVER}/link_calls.py",
        "        services.links.not_live(context.held.session_id)\n",
        "        pass\n",
        (
            WAKES,
            RECOVERY,
            LINK,
        ),
    ),
    Mutant(
        "an ending leaves a check that is under way its mark",
        "P-3",
        f"{SERVER}/links.py",
        "        self._intents.pop(session_id, None)\n",
        "",
        (GUARDS,),
    ),
    Mutant(
        "a turn that is closed twice is closed with two errors",
        "P-5",
        "src/everturn/rules/boot_records.py",
        "    return f\"fail:{run_id}:{'-' if seq_num is None else seq_num}:{what}\"",
        '    import secrets\n\n    return f"fail:{run_id}:{secrets.token_hex(4)}:{what}"',
        (GUARDS,),
    ),
    Mutant(
        "the first message is another record each time it is put into the log",
        "P-5",
        f"{SERVER}/dispatch.py",
        "        part_id = boot_part_id(run.id)\n",
        "        part_id = boot_part_id(run.id) + self._services.ids.part(4)\n",
        (GUARDS,),
    ),
    Mutant(
        "messages that wait when a run ends start no successor",
        "P-3",
        f"{SERVER}/finishing.py",
        "        if ending.start_successor and active:\n",
        "        if False:\n",
        (
            ENDINGS,
            RECOVERY,
        ),
    ),
    Mutant(
        "a turn whose run failed is left open",
        "P-3",
        f"{SERVER}/finishing.py",
        "        if ending.fail_first:\n",
        "        if False:\n",
        (
            ENDINGS,
            RECOVERY,
        ),
    ),
    Mutant(
        "a run that fails before its first turn starts another, for ever",
        "P-3",
        "src/everturn/rules/recovery.py",
        "    if ended_badly and not run.began_a_turn and run.state is not _S.CRASHED:\n",
        "    if False:\n",
        (
            "tests/unit/rules/test_rules_recovery.py",
            ENDINGS,
        ),
    ),
    Mutant(
        "a lost worker with idle chats boots them all",
        "P-10",
        "src/everturn/rules/recovery.py",
        "        if run.state is not _S.CLAIMED and not (run.open_input or run.open_data):\n"
        "            return Finalise()\n",
        "",
        ("tests/unit/rules/test_rules_recovery.py",),
    ),
    Mutant(
        "progress does not begin the count of deaths anew",
        "P-3",
        "src/everturn/rules/recovery.py",
        "    so_far = 0 if run.progress else run.interruptions\n",
        "    so_far = run.interruptions\n",
        ("tests/unit/rules/test_rules_recovery.py",),
    ),
    Mutant(
        "a drain counts as a death",
        "P-3",
        "src/everturn/rules/recovery.py",
        "    if parked or not run.died:\n",
        "    if parked:\n",
        ("tests/unit/rules/test_rules_recovery.py",),
    ),
    Mutant(
        "a worker that is evicting wins against a message",
        "P-10",
        f"{SERVER}/link_calls.py",
        "        gone = await services.finishing.end(run, RunEvent.COMPLETE, only_from=parked) is not None\n",
        "        gone = await services.finishing.end(run, RunEvent.COMPLETE) is not None\n",
        (GUARDS,),
    ),
    Mutant(
        "claims that no worker confirmed stay claimed",
        "P-3",
        "src/everturn/server/sweeps/__init__.py",
        '    "unstarted_runs": runs.unstarted,\n',
        "",
        (GUARDS,),
    ),
    Mutant(
        "runs of a forgotten worker stay with it",
        "P-3",
        "src/everturn/server/sweeps/__init__.py",
        '    "orphaned_runs": runs.orphaned,\n',
        "",
        (GUARDS,),
    ),
    Mutant(
        "a lease that ran out gives nothing away",
        "P-3",
        "src/everturn/server/sweeps/__init__.py",
        '    "expired_workers": runs.expired_workers,\n',
        "",
        (GUARDS,),
    ),
    Mutant(
        "a version that nobody serves keeps its sessions",
        "P-3",
        "src/everturn/server/sweeps/__init__.py",
        '    "stranded_versions": runs.stranded,\n',
        "",
        (GUARDS,),
    ),
    Mutant(
        "a record without its run is not found after a restart",
        "P-3",
        "src/everturn/server/sweeps/__init__.py",
        '    "unread_input": inputs.ensure_readers,\n',
        "",
        (
            CRASHES,
            RECOVERY,
        ),
    ),
    Mutant(
        "after a restart a worker that never comes back keeps its runs",
        "P-3",
        "src/everturn/server/sweeps/__init__.py",
        '    "absent_workers": runs.expect_workers,\n',
        "",
        (GUARDS,),
    ),
    Mutant(
        "input is trimmed past what is decided",
        "P-9",
        f"{SERVER}/outbox.py",
        "        target = committed.seq_num - limits.INPUT_KEPT\n",
        "        target = committed.seq_num + limits.INPUT_KEPT\n",
        (
            ENDINGS,
            RECOVERY,
            "tests/unit/server",
        ),
    ),
    Mutant(
        "whether a channel is settled is not read off its log",
        "P-7",
        "src/everturn/server/routes/reading.py",
        "            return record.control == TURN_COMPLETE\n",
        "            return True\n",
        ("tests/wire/test_http_channels.py",),
    ),
    Mutant(
        "a settled channel is judged by the trim behind its end",
        "P-7",
        "src/everturn/server/routes/reading.py",
        "        if not record.is_command:\n            return",
        "        if True:\n            return",
        ("tests/wire/test_http_channels.py",),
    ),
    Mutant(
        "an append to a closed session is stored",
        "P-3",
        f"{SERVER}/inbox.py",
        "        if session.closed_at_ms is not None:\n",
        "        if False:\n",
        (
            "tests/wire/test_http_channels.py",
            "tests/wire/test_http_sessions.py",
        ),
    ),
    Mutant(
        "the server keeps rows of sessions it should look up again",
        "P-12",
        f"{SERVER}/sessions.py",
        "        cached = self._cached and generation == self._generation\n",
        "        cached = self._cached\n",
        (GUARDS,),
    ),
    Mutant(
        "a wait token completed twice changes what it held",
        "P-3",
        "src/everturn/storage/sql/waitpoints.py",
        "    if found.completed_at_ms is not None:\n",
        "    if False:\n",
        (
            STATE,
            "-k",
            "waitpoint or token",
        ),
    ),
    Mutant(
        "whoever waits for a token is not told of a repeat",
        "P-3",
        f"{SERVER}/waitpoints.py",
        "            if done is not None:\n                # Also for a repeat",
        "            if done is not None and done[1]:\n                # Also for a repeat",
        (
            "tests/unit/server/test_server_wait_tokens.py",
            "tests/wire/test_http_wait_tokens.py",
        ),
    ),
)
