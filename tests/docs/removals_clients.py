"""Behaviour removed on purpose, of clauses R-193 to R-263: tools, loops, clients, channels, harness."""

from __future__ import annotations

from typing import Final

from removal import CHAT, Removal

CLIENTS: Final = (
    Removal(
        195,
        "calls without a result reach the model",
        f"{CHAT}/conversion.py",
        "if state not in FINAL_STATES and not (keep_decided and _is_decided(part)):",
        "if False:",
    ),
    Removal(
        196,
        "a run with a past reads nothing",
        f"{CHAT}/state.py",
        "self.prior = self.continuation or info.attempt > 1",
        "self.prior = False",
    ),
    Removal(
        197,
        "a call that was denied with a reason runs",
        f"{CHAT}/conversion.py",
        'approvals[part["toolCallId"]] = ToolDenied(message=approval["reason"])',
        'approvals[part["toolCallId"]] = True',
    ),
    Removal(
        197,
        "a rule of the author's is not asked",
        f"{CHAT}/tools.py",
        "return bool(asked(*_arguments(asked, given, context)))",
        "return False",
    ),
    Removal(
        197,
        "an approved call is not carried out",
        f"{CHAT}/conversion.py",
        'approvals[part["toolCallId"]] = True',
        "continue",
    ),
    Removal(
        197,
        "no call is asked about",
        f"{CHAT}/tools.py",
        "        asked = self.needs_approval\n",
        "        asked: NeedsApproval = False\n",
    ),
    Removal(
        199,
        "a task's chunks go nowhere",
        f"{CHAT}/guest_output.py",
        'self._waiting.append({"data": chunk, "partId": part_id})',
        "pass",
    ),
    Removal(
        200,
        "interim outputs are not shown",
        f"{CHAT}/toolsets.py",
        "            shown.add(newest)\n",
        "            pass\n",
    ),
    Removal(
        200,
        "interim outputs are final",
        f"{CHAT}/adapters/events.py",
        'tool_call_id=event.tool_call_id or "", output=event.output, preliminary=True',
        'tool_call_id=event.tool_call_id or "", output=event.output',
    ),
    Removal(
        202,
        "leaving a chat never ends its run",
        "src/everturn/client/agent_chat.py",
        "            if self._close_on_exit:\n",
        "            if False:\n",
    ),
    Removal(
        202,
        "a conversation's id is not kept",
        "src/everturn/client/agent_chat.py",
        "self.id = id if id is not None else _random_uuid(self._api.ids)",
        "self.id = _random_uuid(self._api.ids)",
    ),
    Removal(
        206,
        "a loop does not end at its last turn",
        f"{CHAT}/loop.py",
        "if self._ended or self.cancelled or self._turns >= self._max_turns:",
        "if self._ended or self.cancelled:",
    ),
    Removal(
        214,
        "a final handover runs the agent",
        f"{CHAT}/turn.py",
        "if state.handover is not None and state.handover.is_final:",
        "if False:",
    ),
    Removal(
        215,
        "after a skip the run waits on",
        f"{CHAT}/turn_loop.py",
        ("        if not await _head_start(run):\n            step = FirstStep.END\n"),
        "        await _head_start(run)\n",
    ),
    Removal(
        221,
        "a token may write the answers",
        "src/everturn/server/routes/channels.py",
        ("        require_secret(caller, NO_OUT)\n    body"),
        ("        pass\n    body"),
    ),
    Removal(
        221,
        "a token opens any chat",
        "src/everturn/rules/access.py",
        "return caller.is_secret or any(",
        "return True or any(",
    ),
    Removal(
        221,
        "a token opens one form of the id",
        "src/everturn/rules/access.py",
        ('return tuple(("sessions", form) for form in dict.fromkeys(forms) if form is not None)'),
        'return tuple(("sessions", form) for form in forms[:1] if form is not None)',
    ),
    Removal(
        223,
        "an answer has no text",
        "src/everturn/mcp.py",
        'said = result.text or "(no text)"',
        'said = "(no text)"',
    ),
    Removal(
        223,
        "an unknown chat is started",
        "src/everturn/mcp.py",
        ("        if opened is None:\n            raise UnknownChat"),
        (
            "        if opened is None:\n"
            "            opened = _OpenChat(AgentChat('agent', chat_id, api=self._api))\n"
            "        if False:\n"
            "            raise UnknownChat"
        ),
    ),
    Removal(
        223,
        "a read-only host writes",
        "src/everturn/mcp.py",
        ("        if self._read_only:\n            return (self.list_agents,)\n"),
        "",
    ),
    Removal(
        226,
        "a cached session is read from its start",
        "src/everturn/client/looking.py",
        "    cursor = state.last_seq\n",
        "    return\n",
    ),
    Removal(
        227,
        "an answer can be read twice",
        "src/everturn/client/chat_stream.py",
        "if self._mode is not None:",
        "if False:",
    ),
    Removal(
        227,
        "the text leaves out half",
        "src/everturn/client/chat_stream.py",
        '            self._text = "".join(collected.text)',
        '            self._text = "".join(collected.text[::2])',
    ),
    Removal(
        229,
        "steering sends nothing",
        "src/everturn/client/agent_chat.py",
        'seq = await self._append_message({"message": message, "trigger": _SUBMIT})',
        "seq = None",
    ),
    Removal(
        231,
        "a stop is not sent",
        "src/everturn/client/agent_chat.py",
        "await self._send_stop(unsettled[0] if len(unsettled) == 1 else None)",
        "return",
    ),
    Removal(
        238,
        "a message is sent whole",
        "src/everturn/client/agent_chat.py",
        "wire.slim(wire.plain(messages[-1]))",
        "wire.plain(messages[-1])",
    ),
    Removal(
        238,
        "the first message is sent",
        "src/everturn/client/agent_chat.py",
        "wire.slim(wire.plain(messages[-1]))",
        "wire.slim(wire.plain(messages[0]))",
    ),
    Removal(
        238,
        "nothing can be submitted",
        "src/everturn/client/agent_chat.py",
        ("            if not messages:\n                raise ValueError"),
        (
            "            if not messages:\n"
            "                messages = [{}]\n"
            "            if False:\n"
            "                raise ValueError"
        ),
    ),
    Removal(
        238,
        "a regenerate brings its message",
        "src/everturn/client/agent_chat.py",
        ("        if trigger == _SUBMIT:\n            if not messages:"),
        ("        if trigger == _SUBMIT or messages:\n            if not messages:"),
    ),
    Removal(
        240,
        "a change of version ends the stream",
        "src/everturn/client/turns.py",
        "if arrived.record.control == TURN_COMPLETE or kind == _LEGACY_TURN_COMPLETE:",
        "if arrived.record.control is not None or kind == _LEGACY_TURN_COMPLETE:",
    ),
    Removal(
        240,
        "a change of version is a chunk",
        "src/everturn/client/turns.py",
        (
            "        if not isinstance(data, dict) or not isinstance(kind, str) or "
            "kind.startswith(_LEGACY):\n"
            "            return None\n"
        ),
        (
            "        if arrived.record.control is not None:\n"
            '            return {"type": "data-control", "data": arrived.record.control}\n'
            "        if not isinstance(data, dict) or not isinstance(kind, str):\n"
            "            return None\n"
        ),
    ),
    Removal(
        241,
        "a closed session is a conflict like any other",
        "src/everturn/client/problems.py",
        'if subject == "session" and status in (400, 409) and _refused(body):',
        "if False:",
    ),
    Removal(
        241,
        "a closed session takes messages",
        "src/everturn/server/services/inbox.py",
        ("        if session.closed_at_ms is not None:\n            raise SessionClosedError"),
        ("        if False:\n            raise SessionClosedError"),
    ),
    Removal(
        241,
        "an expired session takes messages",
        "src/everturn/server/services/inbox.py",
        "        if session.expires_at_ms is not None and (",
        "        if False and session.expires_at_ms is not None and (",
    ),
    Removal(
        242,
        "the stop of a browser is refused",
        "src/everturn/server/routes/channels.py",
        ("    body = await call.body(limits.APPEND_BODY_BYTES_MAX)\n    seq_num"),
        (
            "    body = await call.body(limits.APPEND_BODY_BYTES_MAX)\n"
            '    if b\'"kind":"stop"\' in body:\n'
            "        raise InvalidRequest('no')\n"
            "    seq_num"
        ),
    ),
    Removal(
        242,
        "a reader that comes back begins anew",
        "src/everturn/server/routes/reading.py",
        'digits = _DIGITS.match(call.header(b"last-event-id") or "")',
        "digits = None",
    ),
    Removal(
        243,
        "a wait that is over is a value",
        "src/everturn/client/results.py",
        "        raise self.error",
        "        return None  # type: ignore",
    ),
    Removal(
        251,
        "nobody is told of a suspension",
        "src/everturn/tasks/channels.py",
        "if on_suspend is not None:",
        "if False:",
    ),
    Removal(
        254,
        "trimming goes back",
        "src/everturn/storage/memory/streams.py",
        "if target is not None and min(target, seq_num) > self.first:",
        "if target is not None:",
    ),
    Removal(
        256,
        "the last reason counts",
        "src/everturn/storage/memory/state_sessions.py",
        (
            "if session is None or session.closed_at_ms is not None:\n"
            "            return session\n"
            "        session = changed(session, closed_at_ms"
        ),
        (
            "if session is None:\n"
            "            return session\n"
            "        session = changed(session, closed_at_ms"
        ),
    ),
    Removal(
        256,
        "an external id can be changed",
        "src/everturn/server/services/sessions.py",
        "if isinstance(body.externalId, str | None) and body.externalId != row.external_id:",
        "if False:",
    ),
    Removal(
        256,
        "a closed session's id opens it again",
        "src/everturn/storage/memory/state_sessions.py",
        ('        if status != "ACTIVE":\n            raise SessionClosedError'),
        ("        if False:\n            raise SessionClosedError"),
    ),
    Removal(
        257,
        "tools are resolved after validation",
        f"{CHAT}/turn.py",
        ("    await resolve(run, state)\n    await _validate(run, state)\n    before"),
        ("    await _validate(run, state)\n    await resolve(run, state)\n    before"),
    ),
    Removal(
        257,
        "the snapshot comes before the completion hook",
        f"{CHAT}/turn_end.py",
        (
            "    await _completed(run, state, seq_num, error=None)\n"
            "    await commit.save_history(run, cursor)\n"
            "\n"
            "\n"
            "def decided"
        ),
        (
            "    await commit.save_history(run, cursor)\n"
            "    await _completed(run, state, seq_num, error=None)\n"
            "\n"
            "\n"
            "def decided"
        ),
    ),
    Removal(
        258,
        "virtual time wakes nobody",
        "src/everturn/testing/clock.py",
        ("            event.set()\n            await at_rest()"),
        "            await at_rest()",
    ),
    Removal(
        260,
        "seeds are planted at once",
        "src/everturn/testing/harness_session.py",
        ("        if self.alive:\n            self._seeds"),
        ("        if False:\n            self._seeds"),
    ),
    Removal(
        260,
        "the snapshot is the seed",
        "src/everturn/testing/runtime.py",
        ("        await self.world.objects.put(SNAPSHOT, data)\n        self.world.stored"),
        "        self.world.stored",
    ),
    Removal(
        260,
        "locals are set after the run",
        "src/everturn/testing/harness.py",
        (
            "                        await self._set_locals()\n"
            "                        await self.kept.agent(self.agent).run(runtime, self)"
        ),
        (
            "                        await self.kept.agent(self.agent).run(runtime, self)\n"
            "                        await self._set_locals()"
        ),
    ),
    Removal(
        261,
        "two harnesses have one log",
        "src/everturn/testing/runtime.py",
        "        self.streams = MemoryStreams(self.clock)\n",
        (
            "        self.streams = World.__dict__.get('_one') or MemoryStreams(self.clock)\n"
            "        World._one = self.streams\n"
        ),
    ),
    Removal(
        263,
        "an unknown agent is another error",
        "src/everturn/testing/harness.py",
        "raise LookupError(",
        "raise ValueError(",
    ),
)
