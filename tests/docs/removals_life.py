"""Behaviour removed on purpose, of clauses R-067 to R-143: waiting, stops, actions, endings, recovery."""

from __future__ import annotations

from typing import Final

from removal import CHAT, Removal

LIFE: Final = (
    Removal(
        67,
        "the newest message is answered first",
        f"{CHAT}/intake.py",
        "current = item if item is not None else self._fifo.pop(0)",
        "current = item if item is not None else self._fifo.pop()",
    ),
    Removal(
        69,
        "actions are answered as messages are",
        f"{CHAT}/turn_loop.py",
        'if head is not None and head.trigger == "action":',
        "if False:",
    ),
    Removal(
        78,
        "the idle time set in a run counts for nothing",
        f"{CHAT}/turn_loop.py",
        'if phase == "turn" and run.idle_timeout_s is not None:',
        "if False:",
    ),
    Removal(
        78,
        "the idle time set in a run governs the preload window",
        f"{CHAT}/turn_loop.py",
        'if phase == "turn" and run.idle_timeout_s is not None:',
        "if run.idle_timeout_s is not None:",
    ),
    Removal(
        78,
        "the turn timeout set in a run counts for nothing",
        f"{CHAT}/turn_loop.py",
        "if run.turn_timeout_s is not None:",
        "if False:",
    ),
    Removal(
        78,
        "the turn timeout set in a run spares the preload",
        f"{CHAT}/turn_loop.py",
        "if run.turn_timeout_s is not None:",
        'if run.turn_timeout_s is not None and phase != "preload":',
    ),
    Removal(
        82,
        "the hooks are not told of a stop",
        f"{CHAT}/turn_events.py",
        '"stopped": state.stopped,',
        '"stopped": False,',
    ),
    Removal(
        87,
        "a stop ends a suspended run",
        f"{CHAT}/turn_loop.py",
        ("        if run.intake.has_work():\n            return True\n"),
        "        return run.intake.has_work()\n",
    ),
    Removal(
        87,
        "nobody is told that a stop woke the run",
        f"{CHAT}/turn_loop.py",
        (
            '        await _suspend_hook(run, "on_chat_resume", phase)\n'
            "        run.intake.source.open()\n"
            "        if run.intake.has_work():\n"
            "            return True"
        ),
        (
            "        run.intake.source.open()\n"
            "        if run.intake.has_work():\n"
            '            await _suspend_hook(run, "on_chat_resume", phase)\n'
            "            return True"
        ),
    ),
    Removal(
        92,
        "actions count as turns",
        f"{CHAT}/actions.py",
        ("    try:\n        await _handle(run, state)\n"),
        ("    try:\n        await _handle(run, state)\n        run.turn_index += 1\n"),
    ),
    Removal(
        94,
        "an action without a model is emptied",
        f"{CHAT}/definition.py",
        ("        if self.options.action is None:\n            return payload"),
        ("        if self.options.action is None:\n            return None"),
    ),
    Removal(
        95,
        "it is warned of each time",
        f"{CHAT}/actions.py",
        "        if run.agent.task_id not in _warned:\n",
        "        if True:\n",
    ),
    Removal(
        96,
        "what an action returns goes on in the last answer",
        f"{CHAT}/actions.py",
        "message_id = state.restarted_id or options.new_message_id(run.runtime.ids)",
        (
            "last = run.lane.last\n"
            '    message_id = str(last["id"]) if last else '
            "options.new_message_id(run.runtime.ids)"
        ),
    ),
    Removal(
        96,
        "what an action returns is not streamed",
        f"{CHAT}/actions.py",
        "if state.piped == 0 and is_streamable(result):",
        "if False:",
    ),
    Removal(
        98,
        "history that was changed is not stored before it is committed",
        f"{CHAT}/turn_end.py",
        ("    if run.lane.apply():\n        state.history_changed = True"),
        "    run.lane.apply()",
    ),
    Removal(
        100,
        "the start hook is not called",
        f"{CHAT}/turn.py",
        'if not run.started and run.agent.hooks.has("on_chat_start"):',
        "if False:",
    ),
    Removal(
        101,
        "a close is a message like any other",
        f"{CHAT}/turn_loop.py",
        'if head is not None and head.trigger == "close":',
        "if False:",
    ),
    Removal(
        101,
        "a close writes a turn-complete",
        f"{CHAT}/turn_loop.py",
        ("            run.intake.drop_head()\n            break"),
        (
            "            run.intake.drop_head()\n"
            "            from everturn.chat import commit\n"
            "\n"
            "            await commit.turn_complete(run, run.intake.cursor())\n"
            "            break"
        ),
    ),
    Removal(
        102,
        "a close is a message like any other",
        f"{CHAT}/turn_loop.py",
        'if head is not None and head.trigger == "close":',
        "if False:",
    ),
    Removal(
        102,
        "a close cuts the turn",
        f"{CHAT}/intake.py",
        ("            self._fifo.append(item)\n            self._arrival.set()\n"),
        (
            "            self._fifo.append(item)\n"
            '            if item.trigger == "close" and self._stop is not None:\n'
            '                self._stop.abort("close")\n'
            "            self._arrival.set()\n"
        ),
    ),
    Removal(
        107,
        "an end asked for after the turn-complete counts for nothing",
        f"{CHAT}/turn_loop.py",
        "return not run.intake.has_work() and (run.upgrade_requested or run.end_requested)",
        "return not run.intake.has_work() and run.upgrade_requested",
    ),
    Removal(
        108,
        "failed turns do not count",
        f"{CHAT}/turn.py",
        (
            "        await turn_end.fail(run, state, error)\n"
            "    finally:\n"
            "        end(run)\n"
            "    run.turn_index"
        ),
        (
            "        await turn_end.fail(run, state, error)\n"
            "        run.turn_index -= 1\n"
            "    finally:\n"
            "        end(run)\n"
            "    run.turn_index"
        ),
    ),
    Removal(
        109,
        "a cancelled turn takes the error path",
        f"{CHAT}/turn.py",
        (
            "    except Exception as error:  # author code: the turn fails, the run lives\n"
            "        if ends_attempt(error):\n"
            "            raise\n"
            "        await turn_end.fail(run, state, error)\n"
            "    finally:\n"
            "        end(run)\n"
            "    run.turn_index"
        ),
        (
            "    except BaseException as error:\n"
            "        import anyio\n"
            "\n"
            "        with anyio.CancelScope(shield=True):\n"
            "            await turn_end.fail(run, state, error)\n"
            "        raise\n"
            "    finally:\n"
            "        end(run)\n"
            "    run.turn_index"
        ),
    ),
    Removal(
        111,
        "a further attempt reads nothing",
        f"{CHAT}/state.py",
        "self.prior = self.continuation or info.attempt > 1",
        "self.prior = self.continuation",
    ),
    Removal(
        114,
        "the message before the partial is left out",
        f"{CHAT}/boot.py",
        (
            "        chain = ui_messages.accumulate(chain, dict(message) if message else "
            "None, kept.trigger)\n"
        ),
        "",
    ),
    Removal(
        114,
        "the partial is left out",
        f"{CHAT}/boot.py",
        "if recovery.keeps_partial and replay.partial is not None:",
        "if False:",
    ),
    Removal(
        114,
        "the message of the partial is answered again",
        "src/everturn/rules/boot.py",
        ("return base._replace(turns=rest, spliced=spliced, keeps_partial=True, asks_hook=True)"),
        "return base._replace(spliced=spliced, keeps_partial=True, asks_hook=True)",
    ),
    Removal(
        115,
        "the partial answer is dropped",
        "src/everturn/rules/boot.py",
        ("return base._replace(turns=rest, spliced=spliced, keeps_partial=True, asks_hook=True)"),
        ("return base._replace(turns=rest, spliced=spliced, keeps_partial=False, asks_hook=True)"),
    ),
    Removal(
        120,
        "a hook that says nothing drops the partial",
        f"{CHAT}/recovery_hook.py",
        "    if chain is not None:\n",
        ("    if chain is None:\n        run.lane.replace_all(replay.chain)\n    else:\n"),
    ),
    Removal(
        121,
        "a failing recovery hook fails the run",
        f"{CHAT}/recovery_hook.py",
        '        log.exception("hook.failed: on_recovery_boot")\n        return turns, recovery\n',
        "        raise\n",
    ),
    Removal(
        121,
        "nothing is done before boot",
        f"{CHAT}/recovery_hook.py",
        "if answer.before_boot is not None:",
        "if False:",
    ),
    Removal(
        121,
        "what fails before boot is swallowed",
        f"{CHAT}/recovery_hook.py",
        (
            "        result = answer.before_boot()\n"
            "        if inspect.isawaitable(result):\n"
            "            await result"
        ),
        (
            "        try:\n"
            "            result = answer.before_boot()\n"
            "            if inspect.isawaitable(result):\n"
            "                await result\n"
            "        except Exception:\n"
            "            pass"
        ),
    ),
    Removal(
        121,
        "the work before boot is not waited for",
        f"{CHAT}/recovery_hook.py",
        ("        if inspect.isawaitable(result):\n            await result\n    return turns"),
        (
            "        async def later() -> None:\n"
            "            if inspect.isawaitable(result):\n"
            "                await result\n"
            "\n"
            "        run.tasks.start_soon(later)\n"
            "    return turns"
        ),
    ),
    Removal(
        122,
        "borders alone are a partial answer",
        f"{CHAT}/replay.py",
        "if last is None or not _says_something(segments[-1]):",
        "if last is None:",
    ),
    Removal(
        122,
        "the event names no pending calls",
        f"{CHAT}/recovery_hook.py",
        "pending_tool_calls=_pending_calls(replay.partial_raw),",
        "pending_tool_calls=_pending_calls(replay.partial),",
    ),
    Removal(
        125,
        "open actions are not recovered",
        "src/everturn/rules/boot.py",
        "wanted = [item for item in undecided if item.needs_answer]",
        'wanted = [item for item in undecided if item.trigger == "submit-message"]',
    ),
    Removal(
        129,
        "a replayed message is appended",
        f"{CHAT}/replay.py",
        "                self.chain = merge_by_id(self.chain, [settled])",
        "                self.chain = [*self.chain, settled]",
    ),
    Removal(
        131,
        "a snapshot has no input cursor",
        f"{CHAT}/transcript.py",
        'body["lastInEventId"] = str(snapshot.cursor.seq_num)',
        "pass",
    ),
    Removal(
        132,
        "a failed turn is not stored",
        f"{CHAT}/turn_end.py",
        (
            "    await _completed(run, state, seq_num, error=error)\n"
            "    await commit.save_history(run, cursor)\n"
        ),
        "    await _completed(run, state, seq_num, error=error)\n",
    ),
    Removal(
        133,
        "what a lost turn was asked stays lost",
        f"{CHAT}/replay.py",
        "        if data or self.has_snapshot:\n",
        "        if False:\n",
    ),
    Removal(
        133,
        "what a lost turn answered stays lost",
        f"{CHAT}/replay.py",
        "                self.chain = merge_by_id(self.chain, [settled])",
        "                pass",
    ),
    Removal(
        134,
        "only the snapshot says what is answered",
        f"{CHAT}/boot.py",
        "cursor = _newest(stored, committed, _row(run))",
        "cursor = stored",
    ),
    Removal(
        135,
        "a known message is appended",
        f"{CHAT}/ui_messages.py",
        ("            result[places[message_id]] = message\n        else:"),
        ("            result.append(message)\n        else:"),
    ),
    Removal(
        135,
        "messages without an id replace each other",
        f"{CHAT}/ui_messages.py",
        "if message_id and message_id in places:",
        "if message_id in places:",
    ),
    Removal(
        139,
        "part ids are forgotten",
        "src/everturn/storage/memory/streams.py",
        "known = None if new.part_id is None else place.part_ids.get(new.part_id)",
        "known = None",
    ),
    Removal(
        140,
        "the open turn's tool answer is not laid over",
        f"{CHAT}/replay.py",
        "            if item.needs_answer and not self.cursor.covers(item.seq_num):",
        "            if False:",
    ),
    Removal(
        140,
        "a continued answer is reduced from nothing",
        f"{CHAT}/replay.py",
        "    seed = find(chain, segment.message_id)\n",
        "    seed = None\n",
    ),
    Removal(
        141,
        "a continued answer is reduced from nothing",
        f"{CHAT}/replay.py",
        "    seed = find(chain, segment.message_id)\n",
        "    seed = None\n",
    ),
    Removal(
        142,
        "a turn-complete does not close what has no finish",
        f"{CHAT}/replay.py",
        "        data, self.data = self.data, []\n",
        (
            '        finished = any(chunk["type"] == "finish" for _, chunk in self.data)\n'
            "        data, self.data = self.data, ([] if finished else self.data)\n"
        ),
    ),
)
