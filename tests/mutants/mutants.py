"""Deliberate breaks, each of a guarantee, that the suite must catch.

A mutant is one exact piece of text replaced in one file. `tests` is what must fail then: the
narrowest choice that shows the promise broken, so that a run of all of them stays affordable. A
mutant whose text is not found any more is an error: whoever moves the code moves the mutant too.
"""

from __future__ import annotations

from typing import Final, NamedTuple

LINK: Final = "tests/unit/server/test_engine_link.py"
RECOVERY: Final = "tests/unit/server/test_engine_recovery.py"
WAKES: Final = "tests/unit/server/test_engine_wakes.py"
STREAMS: Final = "tests/contract/test_streams_contract.py"
SERVER: Final = "src/everturn/server/services"


class Mutant(NamedTuple):
    name: str
    promise: str
    file: str
    text: str
    replacement: str
    tests: tuple[str, ...]


MUTANTS: Final = (
    # --- engines ----------------------------------------------------------------------------
    Mutant(
        "the memory engine checks no fence",
        "P-4",
        "src/everturn/storage/memory/streams.py",
        "if fence < place.fence:",
        "if False:",
        (STREAMS, "-k", "TestFences"),
    ),
    Mutant(
        "the SQLite engine checks no fence",
        "P-4",
        "src/everturn/storage/sqlite/commit.py",
        "if fence < channel.fence:",
        "if False:",
        (STREAMS, "-k", "TestFences"),
    ),
    Mutant(
        "the memory engine forgets part ids",
        "P-5",
        "src/everturn/storage/memory/streams.py",
        "known = None if new.part_id is None else place.part_ids.get(new.part_id)",
        "known = None",
        (STREAMS, "-k", "TestPartIds"),
    ),
    Mutant(
        "the SQLite engine does not write part ids down",
        "P-5",
        "src/everturn/storage/sqlite/commit.py",
        '_PART_IDS = "INSERT INTO part_ids VALUES (?, ?, ?)"',
        '_PART_IDS = "SELECT ?, ?, ?"',
        ("tests/contract", "-k", "streams and repeated_part_ids_are_known"),
    ),
    Mutant(
        "SQLite streams are not synced",
        "P-1",
        "src/everturn/storage/sqlite/schema.py",
        "PRAGMA synchronous = {'FULL' if sync else 'OFF'}",
        "PRAGMA synchronous = {'OFF' if sync else 'OFF'}",
        ("tests/crash/test_crash_power_loss.py",),
    ),
    Mutant(
        "SQLite state is not synced",
        "P-1",
        "src/everturn/storage/sql/sqlite_database.py",
        "PRAGMA synchronous={'FULL' if sync else 'OFF'}",
        "PRAGMA synchronous={'OFF' if sync else 'OFF'}",
        ("tests/crash/test_crash_power_loss.py",),
    ),
    Mutant(
        "a snapshot is not synced",
        "P-9",
        "src/everturn/storage/objects/files.py",
        "            os.fsync(file.fileno())\n",
        "",
        ("tests/crash/test_crash_power_loss.py",),
    ),
    # --- server -----------------------------------------------------------------------------
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
        ("tests/unit/server/test_engine_crashes.py",),
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
        "            self._services.links.doubt(run)\n",
        "",
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
    # --- access -----------------------------------------------------------------------------
    Mutant(
        "a token opens everything",
        "P-12",
        "src/everturn/rules/access.py",
        "return caller.is_secret or any(",
        "return True or any(",
        ("tests/unit/server/test_server_access.py", "tests/wire/test_http_access.py"),
    ),
    Mutant(
        "sessions of other environments are found",
        "P-12",
        "src/everturn/storage/sql/sessions.py",
        'sessions.c.environment_id == bindparam("environment_"),',
        'bindparam("environment_") == bindparam("environment_"),',
        ("tests/contract/test_state_contract.py", "-k", "Session or nvironment"),
    ),
    # --- worker -----------------------------------------------------------------------------
    Mutant(
        "what was not acknowledged is not sent again",
        "P-1",
        "src/everturn/worker/runtime.py",
        "        for frame in self._out.frames():\n            self._link.send(frame)\n",
        "",
        ("tests/unit/worker/test_worker_link.py", "-k", "unacknowledged_appends"),
    ),
    Mutant(
        "a worker without a lease keeps its connection",
        "P-3",
        "src/everturn/worker/link.py",
        "            self._lease_over.set()\n",
        "",
        ("tests/unit/worker/test_worker_link.py", "-k", "stalled_past"),
    ),
    # --- chat -------------------------------------------------------------------------------
    Mutant(
        "the committed cursor is off by one",
        "P-3",
        "src/everturn/protocol/records.py",
        "seq_num <= self.seq_num) or seq_num in self.decided",
        "seq_num < self.seq_num) or seq_num in self.decided",
        ("tests/unit/chat/test_chat_recovery.py",),
    ),
    Mutant(
        "a boot does not look at turn-completes",
        "P-3",
        "src/everturn/chat/boot.py",
        "cursor=_newest(stored, committed, _row(run)),",
        "cursor=_newest(stored, _row(run)),",
        ("tests/unit/chat/test_chat_recovery.py",),
    ),
    Mutant(
        "an answer given again is not marked",
        "P-8",
        "src/everturn/chat/turn.py",
        '    run.out.write({"type": RESTARTED_CHUNK, "data": data}, ours=True)\n',
        "",
        ("tests/unit/chat/test_chat_recovery.py",),
    ),
    Mutant(
        "a stop ends whatever is being answered",
        "P-6",
        "src/everturn/chat/intake.py",
        "        target = target_of(item)\n",
        "        target = None\n",
        ("tests/unit/chat/test_chat_loop.py", "-k", "stop"),
    ),
    Mutant(
        "a trim does not wait for the snapshot",
        "P-9",
        "src/everturn/rules/trimming.py",
        "            target = min(target, self._covered)\n",
        "",
        ("tests/unit/rules/test_boot_and_trim.py",),
    ),
    Mutant(
        "history is not stored",
        "P-9",
        "src/everturn/chat/commit.py",
        "    if await run.transcript.save(run.lane.messages, last_out=last_out, cursor=cursor):\n",
        "    if True:\n",
        ("tests/unit/chat/test_chat_recovery.py",),
    ),
    Mutant(
        "a lost answer stands for the answer",
        "P-3",
        "src/everturn/chat/boot.py",
        "return past.wrote_ourselves and run.payload.get(ANSWERS_AGAIN) is True",
        "return False",
        ("tests/unit/chat/test_chat_recovery.py", "-k", "given_again"),
    ),
    Mutant(
        "a guest's answer is given again for a lost run",
        "P-3",
        "src/everturn/chat/boot.py",
        "return past.wrote_ourselves and run.payload.get(ANSWERS_AGAIN) is True",
        "return run.payload.get(ANSWERS_AGAIN) is True",
        ("tests/unit/chat/test_chat_recovery.py", "-k", "only_a_guest_wrote"),
    ),
    Mutant(
        "a continuation is not told to answer again",
        "P-3",
        "src/everturn/rules/boot_records.py",
        "    payload[ANSWERS_AGAIN] = True\n",
        "",
        (RECOVERY, "-k", "version_nobody_serves"),
    ),
    # --- client -----------------------------------------------------------------------------
    Mutant(
        "a client goes on from one record too far back",
        "P-2",
        "src/everturn/client/follow.py",
        "                after=self._cursor,\n",
        "                after=None,\n",
        (
            "tests/unit/client/test_client_channels.py",
            "tests/unit/client/test_client_agent_chat.py",
        ),
    ),
)
