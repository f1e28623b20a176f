"""Behaviour removed on purpose, of clauses R-144 to R-192: output, context, history."""

from __future__ import annotations

from typing import Final

from removal import CHAT, Removal

CONTENT: Final = (
    Removal(
        144,
        "transient parts are kept",
        f"{CHAT}/output.py",
        'if not str(chunk.get("type")).startswith("data-") or chunk.get("transient"):',
        'if not str(chunk.get("type")).startswith("data-"):',
    ),
    Removal(
        144,
        "data parts are not kept",
        f"{CHAT}/output.py",
        ("        if self._kept is not None:\n            self._kept.add(chunk)"),
        "        pass",
    ),
    Removal(
        144,
        "merged parts are kept",
        f"{CHAT}/output.py",
        ("            await self._out.write_all(source)\n\n\nclass Response"),
        (
            "            async for chunk in items_of(source):\n"
            "                self.write(chunk)\n"
            "\n"
            "\n"
            "class Response"
        ),
    ),
    Removal(
        144,
        "parts that were written come before the stream's",
        f"{CHAT}/output.py",
        (
            '        parts = list(message.get("parts") or ())\n'
            "        for part in self._parts:\n"
            "            _put(parts, part)\n"
            "        self._parts.clear()\n"
            '        return {**message, "parts": parts}'
        ),
        (
            "        parts = list(self._parts)\n"
            '        for part in message.get("parts") or ():\n'
            "            _put(parts, part)\n"
            "        self._parts.clear()\n"
            '        return {**message, "parts": parts}'
        ),
    ),
    Removal(
        148,
        "the limit is a byte too high",
        f"{CHAT}/chunks.py",
        "if size > limits.CHUNK_BYTES_MAX:",
        "if size > limits.CHUNK_BYTES_MAX + 1:",
    ),
    Removal(
        149,
        "metadata is replaced and not merged",
        f"{CHAT}/reducer.py",
        "metadata if before is None else merged(before, metadata)",
        "metadata",
    ),
    Removal(
        149,
        "a part opened again goes on in the old one",
        f"{CHAT}/reducer.py",
        ("        self._parts.append(part)\n        return True\n\n    def _text_delta"),
        (
            '        if not any(p.get("type") == part["type"] for p in self._parts):\n'
            "            self._parts.append(part)\n"
            "        return True\n"
            "\n"
            "    def _text_delta"
        ),
    ),
    Removal(
        149,
        "data of one id is appended",
        f"{CHAT}/reducer.py",
        'if part.get("type") == chunk["type"] and part.get("id") == chunk["id"]:',
        "if False:",
    ),
    Removal(
        152,
        "an output stays preliminary",
        f"{CHAT}/reducer.py",
        'preliminary=chunk.get("preliminary", ABSENT),',
        "preliminary=True,",
    ),
    Removal(
        153,
        "what nobody knows is dropped from history",
        f"{CHAT}/ui_messages.py",
        ("    if not is_tool_part(part):\n        return True\n"),
        ('    if not is_tool_part(part):\n        return part["type"] in ("file", "step-start")\n'),
    ),
    Removal(
        156,
        "tools do not decide how results look",
        f"{CHAT}/conversion.py",
        'getattr(tool, "to_model_output", None)',
        'getattr(tool, "nothing", None)',
    ),
    Removal(
        158,
        "locals are shared by all runs",
        f"{CHAT}/local.py",
        "    held = scope.of(current).locals\n",
        "    held = _declared.__dict__.setdefault('shared', {})\n",
    ),
    Removal(
        163,
        "a turn waits for what its completion hook deferred",
        f"{CHAT}/turn_end.py",
        ('        await logged(lambda: run.hook("on_turn_complete", event), "on_turn_complete")\n'),
        (
            "        state.completed = False\n"
            '        await logged(lambda: run.hook("on_turn_complete", event), '
            '"on_turn_complete")\n'
            "        await drain_deferred(run, state)\n"
        ),
    ),
    Removal(
        164,
        "what was injected is a message for all",
        f"{CHAT}/turn.py",
        "    run.background.place(run.lane.messages)\n",
        (
            "    for text in run.background._queue:\n"
            '        run.lane.upsert({"id": "i", "role": "user", "parts": [{"type": '
            '"text", "text": text}]})\n'
            "    run.background.place(run.lane.messages)\n"
        ),
    ),
    Removal(
        164,
        "what was injected comes before the history",
        f"{CHAT}/background.py",
        "            self._put(ui_messages, self._taken())",
        "            self._put([], self._taken())",
    ),
    Removal(
        164,
        "what was injected is thrown away",
        f"{CHAT}/background.py",
        "        return [made for item in waiting for made in _as_model_messages(item)]\n",
        "        return []\n",
    ),
    Removal(
        167,
        "nobody is told of a message that arrives in mid-turn",
        f"{CHAT}/steering.py",
        "run.tasks.start_soon(_told, self.config.on_received, event)",
        "pass",
    ),
    Removal(
        172,
        "later requests do not hear what was injected",
        f"{CHAT}/conversion.py",
        "            for injected in _injected(part):\n",
        "            for injected in ():\n",
    ),
    Removal(
        172,
        "an injected message is heard after the whole answer",
        f"{CHAT}/conversion.py",
        (
            "            if _says_anything(parts):\n"
            "                yield _envelope(message, parts)\n"
            "            parts = []\n"
            "            for injected"
        ),
        "            for injected",
    ),
    Removal(
        175,
        "the standard hook stays when an author replaces it",
        f"{CHAT}/adapters/pydantic_ai.py",
        (
            "    others = [capability for capability in given or () if not "
            "isinstance(capability, StepHook)]\n"
            "    return others if step_hook is None else [*others, step_hook]"
        ),
        (
            "    return with_step_hook([*(given or ()), *([step_hook] if step_hook is "
            "not None else [])])"
        ),
    ),
    Removal(
        176,
        "the next request starts without the summary",
        f"{CHAT}/compaction.py",
        "return (ModelRequest(parts=[*system, UserPromptPart(content=summary)]),)",
        "return (ModelRequest(parts=[*system]),)",
    ),
    Removal(
        179,
        "what the agent shortened is not kept",
        f"{CHAT}/compaction.py",
        'run.lane.replace_all(hooks.history(shortened, "compact_ui_messages"))',
        "pass",
    ),
    Removal(
        184,
        "the named message is dropped too",
        f"{CHAT}/history.py",
        "self._find().stage(messages[: index + 1])",
        "self._find().stage(messages[:index])",
    ),
    Removal(
        184,
        "an unknown id drops everything",
        f"{CHAT}/history.py",
        ("                self._find().stage(messages[: index + 1])\n                return\n"),
        (
            "                self._find().stage(messages[: index + 1])\n"
            "                return\n"
            "        self._find().stage([])\n"
        ),
    ),
    Removal(
        185,
        "staged history is thrown away",
        f"{CHAT}/history.py",
        "        self.replace_all(staged)\n        self.unsaved = True\n",
        "        self.unsaved = True\n",
    ),
    Removal(
        186,
        "calls of older answers are listed",
        f"{CHAT}/history.py",
        '            if message.get("role") == "assistant":\n',
        (
            '            if message.get("role") == "assistant" and any(\n'
            '                part.get("state") == "input-available" for part in '
            'message.get("parts") or ()\n'
            "            ):\n"
        ),
    ),
    Removal(
        186,
        "approvals are listed as pending calls",
        f"{CHAT}/history.py",
        'if is_tool_part(part) and part.get("state") == "input-available"',
        (
            'if is_tool_part(part) and part.get("state") in ("input-available", '
            '"approval-requested")'
        ),
    ),
    Removal(
        190,
        "the prompt's options join those of the call",
        f"{CHAT}/prompts.py",
        "        return dict(system)\n",
        "        return {**(stored or {}), **system}\n",
    ),
    Removal(
        190,
        "the shorthand beats the call's own options",
        f"{CHAT}/prompts.py",
        (
            "    if system is not None:\n"
            "        return dict(system)\n"
            "    if cache_control is not None:\n"
            '        return {"cache": _cache_setting(cache_control)}'
        ),
        (
            "    if cache_control is not None:\n"
            '        return {"cache": _cache_setting(cache_control)}\n'
            "    if system is not None:\n"
            "        return dict(system)"
        ),
    ),
)
