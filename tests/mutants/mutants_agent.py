"""What worker, agent and client promise: one answer, one history, one cursor."""

from __future__ import annotations

from typing import Final

from mutant import Mutant

WLINK: Final = "tests/unit/worker/test_worker_link.py"
WORKER_GUARDS: Final = "tests/unit/worker/test_worker_guards.py"
CHAT_GUARDS: Final = "tests/unit/chat/test_chat_guards.py"
CLIENT_GUARDS: Final = "tests/unit/client/test_client_guards.py"
RECOVERY: Final = "tests/unit/chat/test_chat_recovery.py"
SERVER_RECOVERY: Final = "tests/unit/server/test_engine_recovery.py"
BOOT: Final = "tests/unit/rules/test_boot_and_trim.py"
REPLAY: Final = "tests/unit/chat/test_messages_replay.py"

AGENTS: Final = (
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
        '        self.reconnect("the lease is over")\n',
        "",
        ("tests/unit/worker/test_worker_link.py", "-k", "stalled_past"),
    ),
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
        "cursor = _newest(stored, committed, _row(run))",
        "cursor = _newest(stored, _row(run))",
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
        "        stored = await run.transcript.save(\n"
        "            messages, last_out=last_out, cursor=cursor, failure=failure\n"
        "        )\n",
        "        stored = True\n",
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
        (SERVER_RECOVERY, "-k", "version_nobody_serves"),
    ),
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
    Mutant(
        "a lease is trusted until the very moment it ends",
        "P-4",
        "src/everturn/worker/lease.py",
        "        until = sent_at + self._lease_s - margin_s\n",
        "        until = sent_at + self._lease_s\n",
        (WLINK,),
    ),
    Mutant(
        "a lease is counted from when its beat was answered",
        "P-4",
        "src/everturn/worker/link.py",
        "                self._lease.renew(sent_at)\n        elif",
        "                self._lease.renew(self._clock.monotonic())\n        elif",
        (WORKER_GUARDS,),
    ),
    Mutant(
        "a worker that lost its lease goes on writing",
        "P-4",
        "src/everturn/worker/link.py",
        "        self._peer.lease_lost()\n"
        '        self.fail_calls(LeaseLost("the lease of this worker is over"))\n',
        '        self.fail_calls(LeaseLost("the lease of this worker is over"))\n',
        (
            WLINK,
            "tests/unit/worker/test_worker_runs.py",
        ),
    ),
    Mutant(
        "a connection that answers no heartbeat is kept",
        "P-3",
        "src/everturn/worker/link.py",
        "            if len(self._beats_sent) >= 2:\n",
        "            if False:\n",
        (WORKER_GUARDS,),
    ),
    Mutant(
        "calls under way are forgotten by a new connection",
        "P-3",
        "src/everturn/worker/link.py",
        "        for call in list(self._calls.values()):\n            self.send(call.frame)\n",
        "",
        (
            WLINK,
            "tests/unit/worker/test_worker_runs.py",
        ),
    ),
    Mutant(
        "a call is made once more under another name",
        "P-5",
        "src/everturn/worker/link.py",
        "            call = self.open_call(run_id, fence, method, params, anyio.Event(), call_id)\n",
        "            call_id = self.next_call_id()\n"
        "            call = self.open_call(run_id, fence, method, params, anyio.Event(), call_id)\n",
        (WORKER_GUARDS,),
    ),
    Mutant(
        "an author's code keeps a run that was let go of",
        "P-10",
        "src/everturn/worker/parking.py",
        "class Evicted(BaseException):\n",
        "class Evicted(Exception):\n",
        (WORKER_GUARDS,),
    ),
    Mutant(
        "the result of a step is not looked up in the journal",
        "P-3",
        "src/everturn/tasks/journal.py",
        "        if stored is None:\n            return place, None\n",
        "        if True:\n            return place, None\n",
        ("tests/unit/tasks",),
    ),
    Mutant(
        "a message is answered before the boot has read what is decided",
        "P-3",
        "src/everturn/rules/boot.py",
        "    return [item for item in inputs if not cursor.covers(item.seq_num)]\n",
        "    return list(inputs)\n",
        (
            RECOVERY,
            BOOT,
        ),
    ),
    Mutant(
        "a stop that came before the message ends it",
        "P-6",
        "src/everturn/rules/boot.py",
        "(_stops_anything(stop) and stop.seq_num > first.seq_num)",
        "_stops_anything(stop)",
        (
            BOOT,
            RECOVERY,
        ),
    ),
    Mutant(
        "a stop from before a crash is forgotten",
        "P-6",
        "src/everturn/rules/boot.py",
        "    stopped = _stopped(wanted, undecided)\n",
        "    stopped = None\n",
        (
            BOOT,
            RECOVERY,
        ),
    ),
    Mutant(
        "a stop that was used is used again after a boot",
        "P-6",
        "src/everturn/chat/intake.py",
        '        elif item.kind == "stop" and not self._stop_arrived(item) and self._open:\n'
        "            self._decided.add(item.seq_num)\n",
        '        elif item.kind == "stop":\n            self._stop_arrived(item)\n',
        (
            "tests/unit/chat/test_chat_loop.py",
            RECOVERY,
            "tests/unit/chat/test_chat_turns.py",
        ),
    ),
    Mutant(
        "a stop for a message that waits is dropped",
        "P-6",
        "src/everturn/chat/intake.py",
        "        self._stops[target] = _Stop(item.seq_num, reason)\n",
        "        pass\n",
        (
            "tests/unit/chat/test_chat_loop.py",
            "tests/unit/chat/test_chat_turns.py",
            RECOVERY,
        ),
    ),
    Mutant(
        "what is open does not hold the committed cursor back",
        "P-3",
        "src/everturn/chat/intake.py",
        "        floor = next(iter(self._open)) - 1 if self._open else tail\n",
        "        floor = tail\n",
        (
            "tests/unit/chat/test_chat_loop.py",
            RECOVERY,
        ),
    ),
    Mutant(
        "a turn does not decide its message",
        "P-3",
        "src/everturn/chat/turn_end.py",
        "    run.intake.decide_turn()\n",
        "",
        (
            "tests/unit/chat/test_chat_loop.py",
            RECOVERY,
        ),
    ),
    Mutant(
        "what joined a turn is answered again",
        "P-3",
        "src/everturn/chat/intake.py",
        "        for item in (self._current, *self._joined):\n",
        "        for item in (self._current,):\n",
        ("tests/unit/chat/test_steering_turns.py",),
    ),
    Mutant(
        "parts that a dead attempt left open stay open",
        "P-8",
        "src/everturn/chat/boot.py",
        "    for part_id in replay.open_text_ids:\n"
        '        yield {"type": "text-end", "id": part_id}\n',
        "",
        (RECOVERY,),
    ),
    Mutant(
        "what a dead attempt wrote is kept in history beside the new answer",
        "P-8",
        "src/everturn/chat/replay.py",
        "            return data[index + 1 :]\n",
        "            return data\n",
        (
            REPLAY,
            RECOVERY,
        ),
    ),
    Mutant(
        "a repeated record is replayed twice",
        "P-8",
        "src/everturn/chat/replay.py",
        "            if part_id in self.seen_parts:\n                return None\n",
        "",
        (REPLAY,),
    ),
    Mutant(
        "history is used as it was found",
        "P-8",
        "src/everturn/chat/ui_messages.py",
        "    return merge_by_id([], [message for message in whole if message is not None])\n",
        "    return list(messages)\n",
        ("tests/unit/chat/test_messages_merge.py",),
    ),
    Mutant(
        "two results of one tool call stay in history",
        "P-8",
        "src/everturn/chat/ui_messages.py",
        "    parts = [_done(part) for part in _one_part_per_call(found)]\n",
        "    parts = [_done(part) for part in found]\n",
        ("tests/unit/chat/test_messages_merge.py",),
    ),
    Mutant(
        "a tool call that never ran is kept by a stopped turn",
        "P-8",
        "src/everturn/chat/ui_messages.py",
        '        if not (is_tool_part(part) and part.get("state") in _UNFINISHED)\n',
        "",
        (
            "tests/unit/chat/test_messages_merge.py",
            "tests/unit/chat/test_chat_turns.py",
        ),
    ),
    Mutant(
        "the partial answer of a stopped turn is thrown away",
        "P-8",
        "src/everturn/chat/turn.py",
        "    run.lane.upsert(message)\n    state.new_ui_messages.append(message)\n",
        "    if not state.stopped:\n"
        "        run.lane.upsert(message)\n"
        "    state.new_ui_messages.append(message)\n",
        (CHAT_GUARDS,),
    ),
    Mutant(
        "the partial answer of a failed turn is thrown away",
        "P-8",
        "src/everturn/chat/turn.py",
        "            _capture(run, state, response, failed=True)\n            raise\n",
        "            raise\n",
        (
            "tests/unit/chat/test_chat_turns.py",
            "tests/unit/chat/test_chat_loop.py",
        ),
    ),
    Mutant(
        "a client may rewrite what was said",
        "P-8",
        "src/everturn/chat/ui_messages.py",
        "            result[_place(result, stored)] = overlay(stored, incoming)\n",
        "            result[_place(result, stored)] = incoming\n",
        ("tests/unit/chat/test_messages_merge.py",),
    ),
    Mutant(
        "a client may approve what needs no approval",
        "P-8",
        "src/everturn/chat/ui_messages.py",
        '    if answer["state"] == "approval-responded" and part.get("state") != "approval-requested":\n',
        "    if False:\n",
        (
            "tests/unit/chat/test_messages_merge.py",
            "tests/unit/chat/test_tools_people.py",
        ),
    ),
    Mutant(
        "history that an author changed is stored after it is committed",
        "P-9",
        "src/everturn/chat/turn_end.py",
        "    if state.history_changed:\n        await commit.save_history(run, cursor)\n",
        "",
        (
            RECOVERY,
            "tests/unit/chat/test_chat_turns.py",
        ),
    ),
    Mutant(
        "a failed turn is an error chunk and later its end",
        "P-3",
        "src/everturn/chat/commit.py",
        '        records.append(run.out.record({"type": "error", "errorText": error}, ours=True))\n',
        "        await run.runtime.append(\n"
        '            [run.out.record({"type": "error", "errorText": error}, ours=True)]\n'
        "        )\n",
        (CHAT_GUARDS,),
    ),
    Mutant(
        "a turn that was handed over is also finished",
        "P-3",
        "src/everturn/chat/boot.py",
        "        if record.control == UPGRADE_REQUIRED:\n            del kept[commit_at:]\n",
        "",
        (CHAT_GUARDS,),
    ),
    Mutant(
        "an upgraded run does not say that it was",
        "P-3",
        "src/everturn/chat/turn.py",
        "    await run.runtime.append([control_record(UPGRADE_REQUIRED)])\n",
        "",
        (
            "tests/unit/chat/test_chat_turns.py",
            RECOVERY,
            "tests/unit/chat/test_chat_loop.py",
        ),
    ),
    Mutant(
        "a client hands out a record twice after it came back",
        "P-2",
        "src/everturn/client/follow.py",
        "            if self._newest is not None and record.seq_num <= self._newest:\n"
        "                continue\n",
        "",
        (CLIENT_GUARDS,),
    ),
    Mutant(
        "a client hands out a part it has seen",
        "P-2",
        "src/everturn/client/follow.py",
        "            if part_id in self._seen_set:\n                return None\n",
        "",
        (CLIENT_GUARDS,),
    ),
    Mutant(
        "a client takes another's turn-complete for its own",
        "P-7",
        "src/everturn/client/turns.py",
        "            if not is_known(cursor) or cursor.covers(seq):\n",
        "            if True:\n",
        ("tests/unit/client",),
    ),
    Mutant(
        "a connection that breaks ends the answer",
        "P-2",
        "src/everturn/client/follow.py",
        "        except (httpx2.TransportError, httpx2.StreamError):\n"
        "            raise _Ended(orderly=False) from None\n",
        "        except (httpx2.TransportError, httpx2.StreamError):\n"
        "            raise _Ended(orderly=True) from None\n",
        (CLIENT_GUARDS,),
    ),
)
