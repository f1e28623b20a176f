"""What is kept and what is forgotten: histories and their patches, retention, keys, depth."""

from __future__ import annotations

from typing import Final

from mutant import Mutant

HISTORIES: Final = "tests/unit/server/test_server_histories.py"
STATE: Final = "tests/contract/test_state_contract.py"
RETENTION: Final = "tests/wire/test_http_retention.py"
NESTING: Final = "tests/wire/test_security_nesting.py"
STORE: Final = "src/everturn/server/services/histories.py"
FORGET: Final = "src/everturn/storage/sql/retention.py"
DEBOUNCE: Final = "src/everturn/storage/ports/debouncing.py"

KEPT: Final = (
    Mutant(
        "a run that lost its session adds to its history",
        "P-4",
        STORE,
        "            channel_of(session), [record], fence=fence, first_part=part\n",
        "            channel_of(session), [record]\n",
        (HISTORIES, "-k", "whoever_ran_before"),
    ),
    Mutant(
        "a run that lost its session rewrites its history",
        "P-4",
        STORE,
        "await streams.append(channel, [record], fence=fence, first_part=part)",
        "await streams.append(channel, [record])",
        (HISTORIES, "-k", "whoever_ran_before"),
    ),
    Mutant(
        "reading a history to go on from it raises no fence",
        "P-4",
        STORE,
        "await self._services.streams.raise_fence(channel, fence)",
        "pass",
        (HISTORIES, "-k", "whoever_ran_before"),
    ),
    Mutant(
        "a history is said to be in an object before it is",
        "P-9",
        STORE,
        "        await objects.put(name, data)\n"
        "        record = NewRecord(name.encode(), history.headers("
        "history.BASE_HEADER, fence, part))\n"
        "        await streams.append(channel, [record], fence=fence, first_part=part)\n",
        "        record = NewRecord(name.encode(), history.headers("
        "history.BASE_HEADER, fence, part))\n"
        "        await streams.append(channel, [record], fence=fence, first_part=part)\n"
        "        await objects.put(name, data)\n",
        (HISTORIES, "-k", "may_die_at_each"),
    ),
    Mutant(
        "a rewrite that comes late deletes the newest document",
        "P-9",
        STORE,
        "for name in {written, *(name for _, name in named)} - {newest}:",
        "for name in {written, *(name for _, name in named)} - {written}:",
        (HISTORIES,),
    ),
    Mutant(
        "a rewrite trims the record that names its document",
        "P-9",
        STORE,
        "[trim_record(start)]",
        "[trim_record(start + 1)]",
        (HISTORIES,),
    ),
    Mutant(
        "a history whose document is gone is an empty one",
        "P-9",
        STORE,
        "            if name is not None and base is None:\n",
        "            if False:\n",
        (HISTORIES, "-k", "gone or replaced"),
    ),
    Mutant(
        "the current run of a session is forgotten",
        "P-11",
        FORGET,
        "        ~_CURRENT,\n",
        "",
        (STATE, "-k", "sqlite and current_run_of_a_session_is_kept"),
    ),
    Mutant(
        "a run is forgotten that another waits for",
        "P-3",
        FORGET,
        "        ~_WAITED_FOR,\n",
        "",
        (STATE, "-k", "sqlite and kept_while_another_waits"),
    ),
    Mutant(
        "a run is forgotten whose parent may still ask for it",
        "P-3",
        FORGET,
        "        ~_NEEDED_BY_PARENT,\n",
        "",
        (STATE, "-k", "sqlite and its_parent_may_ask"),
    ),
    Mutant(
        "a run is forgotten while its key is good, and a repeat starts another",
        "P-5",
        FORGET,
        "        ~_KEYED,\n",
        "",
        (STATE, "-k", "sqlite and as_long_as_a_key_finds_it"),
    ),
    Mutant(
        "a wait token is forgotten that somebody waits for",
        "P-10",
        FORGET,
        "        ~_AWAITED,\n",
        "",
        (STATE, "-k", "sqlite and completed_tokens_are_forgotten"),
    ),
    Mutant(
        "a packet is forgotten that a run has",
        "P-9",
        FORGET,
        "packets.c.noted_at_ms <= noted_before_ms, ~used)",
        "packets.c.noted_at_ms <= noted_before_ms)",
        (STATE, RETENTION, "-k", "sqlite and packet"),
    ),
    Mutant(
        "a run is forgotten before its streams are",
        "P-12",
        "src/everturn/server/sweeps/retention.py",
        "await services.streams.forget(streams) if streams else frozenset()",
        "frozenset(streams)",
        (RETENTION, "-k", "finished_run"),
    ),
    Mutant(
        "a run that was claimed once expires all the same",
        "P-3",
        "src/everturn/storage/sql/sweeps.py",
        "        runs.c.attempt == 0,\n    )\n    .order_by(runs.c.expire_at_ms",
        "    )\n    .order_by(runs.c.expire_at_ms",
        (STATE, "-k", "sqlite and never_expires"),
    ),
    Mutant(
        "a debounced call changes a run that has started",
        "P-5",
        DEBOUNCE,
        "    if run.state is not RunState.QUEUED or run.attempt > 0:\n        return None\n",
        "",
        (STATE, "-k", "sqlite and begins_a_new_round"),
    ),
    Mutant(
        "a debounced call moves a run to an earlier time",
        "P-3",
        DEBOUNCE,
        "max(run.not_before_ms, (now_ms + debounce.delay_ms) // 1000 * 1000)",
        "(now_ms + debounce.delay_ms) // 1000 * 1000",
        (STATE, "-k", "sqlite and earlier_time"),
    ),
    Mutant(
        "an item of a batch that was sent again starts another run",
        "P-5",
        "src/everturn/server/services/batches.py",
        'request_key=f"batch:{batch.id}:{item.index}"',
        "request_key=None",
        ("tests/unit/server/test_server_batches.py",),
    ),
    Mutant(
        "a tool's task is started again by the attempt that follows",
        "P-5",
        "src/everturn/chat/task_tools.py",
        'wire["requestKey"] = f"tool:{ctx.tool_call_id}"',
        "pass",
        ("tests/crash/test_crash_tools.py", "-k", "carried_out_by_one_run"),
    ),
    Mutant(
        "a packet's type ends its header and begins another",
        "P-12",
        "src/everturn/server/services/packets.py",
        "or not kind.isascii() or not kind.isprintable():",
        "or False:",
        ("tests/wire/test_security_headers.py",),
    ),
    Mutant(
        "an answer repeats whatever host it was asked under",
        "P-12",
        "src/everturn/server/routes/channels.py",
        " or host is None or not _HOST.fullmatch(host):",
        " or host is None:",
        ("tests/wire/test_security_headers.py", "-k", "where_to_write"),
    ),
    Mutant(
        "a stop names a message that is yet to come",
        "P-6",
        "src/everturn/rules/boot.py",
        "target_of(stop) == item.seq_num and item.seq_num < stop.seq_num",
        "target_of(stop) == item.seq_num",
        ("tests/unit/rules/test_boot_and_trim.py",),
    ),
    Mutant(
        "JSON from outside nests as deep as its sender likes",
        "P-12",
        "src/everturn/protocol/nesting.py",
        '    if data.count(b"[") + data.count(b"{") <= most:\n        return False\n',
        "    return False\n",
        (NESTING,),
    ),
    Mutant(
        "a message of any depth is a message",
        "P-8",
        "src/everturn/protocol/records.py",
        "chunk = None if nesting.too_deep(chunk) else lenient.decode(chunk)",
        "chunk = lenient.decode(chunk)",
        ("tests/unit/protocol/test_nesting.py", "-k", "message_past_the_bound"),
    ),
    Mutant(
        "a message that nobody will answer is taken",
        "P-3",
        "src/everturn/server/services/inbox.py",
        '        if body.lstrip()[:1] == b"{" and nesting.too_deep(body):\n',
        "        if False:\n",
        (NESTING, "-k", "at_the_bound"),
    ),
    Mutant(
        "a chunk of any depth becomes part of a history",
        "P-8",
        "src/everturn/chat/chunks.py",
        "    if nesting.too_deep(encoded):\n",
        "    if False:\n",
        ("tests/unit/protocol/test_nesting.py", "-k", "before_it_becomes"),
    ),
    Mutant(
        "a bracket inside a text counts as one of the nesting",
        "P-12",
        "src/everturn/protocol/nesting.py",
        '    if not _PLAIN.fullmatch(data):\n        data = _TEXT.sub(b"", data)\n',
        "",
        ("tests/unit/protocol/test_nesting.py",),
    ),
    Mutant(
        "operations build metadata of any depth",
        "P-12",
        "src/everturn/rules/metadata.py",
        "        if nesting.too_deep(data):\n",
        "        if False:\n",
        (NESTING, "-k", "operations"),
    ),
    Mutant(
        "metadata that is no JSON breaks the run that has it",
        "P-12",
        "src/everturn/server/services/trigger_options.py",
        "        if not _is_json(value):\n",
        "        if False:\n",
        (NESTING, "-k", "metadata_that_is_no_json"),
    ),
)
