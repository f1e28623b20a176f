"""Every bound, with its unit, its reason, and its relation to the others."""

from __future__ import annotations

from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * 1024

# --- records (wire-protocol §6.4, chat-agent §1.5) -----------------------------------------
#: Metered size of one stored record; the original's cap, which its clients know.
RECORD_BYTES_MAX: Final = 1 * MIB
#: A chunk leaves room for its envelope.
CHUNK_BYTES_MAX: Final = RECORD_BYTES_MAX - 1024
#: Records of one append (S2 has the same bound).
BATCH_RECORDS_MAX: Final = 1000
#: Bytes handed to a reader at once, so that one slow reader cannot hold megabytes.
READ_BYTES_MAX: Final = 1 * MIB
READ_RECORDS_MAX: Final = 1000
PART_ID_CHARS_MAX: Final = 256
#: Parts of a lease whose numbers are asked for in one call, by a link that resends.
PARTS_ASKED_MAX: Final = 10_000

# --- the SQLite stream engine (figures: a 2-core machine, ratios to a raw log) ---------------
#: Bytes of appends that wait for a commit; past it `append` itself waits.
STREAM_WAITING_BYTES_MAX: Final = 16 * MIB
#: Bytes of one group commit: a larger one would hold up those behind it.
STREAM_COMMIT_BYTES_MAX: Final = 4 * MIB
#: Compaction starts at either; what is not compacted is in memory and is scanned at open.
STREAM_COMPACT_RECORDS: Final = 100_000
STREAM_COMPACT_BYTES: Final = 48 * MIB
#: Memory for tails, by estimate; compacted records are let go of first.
STREAM_TAIL_BYTES_MAX: Final = 96 * MIB
#: Bytes that wait for compaction; past it `append` waits for the compactor.
STREAM_UNCOMPACTED_BYTES_MAX: Final = 80 * MIB
assert STREAM_COMPACT_BYTES < STREAM_UNCOMPACTED_BYTES_MAX < STREAM_TAIL_BYTES_MAX
#: Bytes of records in one segment, which is also the page of a replay.
STREAM_SEGMENT_BYTES: Final = 256 * KIB
#: Free-form part ids remembered in memory; the others are looked up.
STREAM_PART_IDS_MAX: Final = 32_768
#: Channels whose state is in memory without need, to spare a look-up.
STREAM_CHANNELS_MAX: Final = 50_000
#: Decoded segments kept for readers that replay the same history.
STREAM_PAGES_BYTES_MAX: Final = 16 * MIB

# --- HTTP bodies (wire-protocol §4, §5, §9) -------------------------------------------------
APPEND_BODY_BYTES_MAX: Final = 1 * MIB
CREATE_BODY_BYTES_MAX: Final = 1 * MIB  # rulings §4.3; the original's 32 KiB breaks head starts
UPDATE_BODY_BYTES_MAX: Final = 32 * KIB
SMALL_BODY_BYTES_MAX: Final = 1 * KIB
WAIT_BODY_BYTES_MAX: Final = 10 * KIB
TRIGGER_BODY_BYTES_MAX: Final = 3 * MIB
#: What a wait token is completed with.
TOKEN_DATA_BYTES_MAX: Final = 3 * MIB
IDEMPOTENCY_RESET_BYTES_MAX: Final = 10 * KIB
SNAPSHOT_BODY_BYTES_MAX: Final = 64 * MIB
#: What a turn adds to the stored history in one record; more is stored with the whole of it.
HISTORY_PATCH_BYTES_MAX: Final = 512 * KIB
#: Patches of a history that is written whole for the first time, or is smaller than this.
HISTORY_PATCHES_BYTES_MIN: Final = 128 * KIB
HEADER_BYTES_MAX: Final = 64 * KIB
#: One decoded path segment; the longest id anybody may choose fits.
SEGMENT_CHARS_MAX: Final = 512

# --- sessions -------------------------------------------------------------------------------
EXTERNAL_ID_CHARS_MAX: Final = 256
TASK_ID_CHARS_MAX: Final = 128
SESSION_TYPE_CHARS_MAX: Final = 64
SESSION_TAGS_MAX: Final = 10
RUN_TAGS_MAX: Final = 10
CONFIG_TAGS_MAX: Final = 5
TAG_CHARS_MAX: Final = 128
CLOSE_REASON_CHARS_MAX: Final = 256
CONTINUE_REASON_CHARS_MAX: Final = 64
PAGE_SIZE_MAX: Final = 100
SESSIONS_PAGE_SIZE: Final = 20
RUNS_PAGE_SIZE: Final = 25
METADATA_BYTES_MAX: Final = 256 * KIB
IDEMPOTENCY_KEY_CHARS_MAX: Final = 2048
DEBOUNCE_KEY_CHARS_MAX: Final = 512
OUTPUT_BYTES_MAX: Final = 10 * MIB
#: One stored packet: the payload of a run, which travels whole in its claim.
PACKET_BYTES_MAX: Final = 10 * MIB
#: From this size on our client stores a payload as a packet, as the original's does (§9.2).
PACKET_BYTES_MIN: Final = 128 * KIB
PACKET_NAME_CHARS_MAX: Final = 512
#: Related runs shown with one run.
RELATED_RUNS_MAX: Final = 100

# --- streams of runs (wire-protocol §13) ----------------------------------------------------
RUN_STREAM_CHARS_MAX: Final = 128
#: Streams of one run, input streams counted in: their names are kept on its row.
RUN_STREAMS_MAX: Final = 1000
RUN_STREAM_APPEND_BYTES_MAX: Final = 512 * KIB

# --- batches (wire-protocol §10) ------------------------------------------------------------
BATCH_ITEMS_MAX: Final = 1000
BATCH_BODY_BYTES_MAX: Final = 128 * KIB
BATCH_LINE_BYTES_MAX: Final = 3 * MIB

# --- realtime run subscriptions (wire-protocol §12) -----------------------------------------
#: How long a live request is held when nothing changes.
REALTIME_HOLD_S: Final = 20.0
#: How often a held request looks without a hint.
REALTIME_POLL_S: Final = 2.0
#: Rows of one subscription, newest first; older ones are left out.
REALTIME_RUNS_MAX: Final = 1000
REALTIME_WINDOW_S_MAX: Final = 7 * 24 * 3600
#: Live requests held at once by one server.
REALTIME_HELD_MAX: Final = 10_000

# --- SSE (wire-protocol §5.3) ---------------------------------------------------------------
SSE_TIMEOUT_S_DEFAULT: Final = 60
SSE_TIMEOUT_S_MAX: Final = 600
PING_S_MIN: Final = 5.0
PING_S_MAX: Final = 15.0

# --- leases (rulings §2.6) ------------------------------------------------------------------
LEASE_MS: Final = 30_000
HEARTBEAT_MS: Final = 10_000
assert HEARTBEAT_MS * 3 <= LEASE_MS, "a worker may miss two heartbeats"
#: A worker stops its work this long before the server may give it to somebody else.
LEASE_MARGIN_MS: Final = 5_000
assert LEASE_MARGIN_MS < LEASE_MS - 2 * HEARTBEAT_MS
#: A claimed run that no worker confirmed within this time is queued again.
START_MS_MAX: Final = 10_000
assert START_MS_MAX < LEASE_MS
#: A row whose time lies further ahead of the clock than servers may disagree was written before
#: the clock was set back: its age is unknown, and it counts as old.
CLOCK_AHEAD_MS: Final = 10_000
#: How long a lost link may take to come back before its runs are given away.
LINK_GRACE_MS: Final = 3_000
assert LINK_GRACE_MS < LEASE_MS
#: The same after a restart of the server: its workers may be in the middle of a pause of up to
#: two seconds before they try again.
RESTART_GRACE_MS: Final = 5_000
assert LINK_GRACE_MS < RESTART_GRACE_MS < LEASE_MS
SWEEP_MS: Final = 2_000
#: A session run that no worker of its version can claim moves to the newest version.
VERSION_WAIT_MS: Final = 5_000
#: Deaths of the process in a row, without a committed turn between, that end a run.
INTERRUPTIONS_MAX: Final = 3
DRAIN_S: Final = 20.0
ATTEMPTS_MAX: Final = 250
#: Numbers among the options of a run: seconds, attempts. The columns of every engine hold them, in
#: milliseconds too, and 68 years are enough.
OPTION_NUMBER_MAX: Final = 2**31 - 1

# --- the link (rulings §3) ------------------------------------------------------------------
LINK_SLICE_BYTES_MAX: Final = 64 * KIB
#: Bytes a run may have sent without an acknowledgement; past it the writer waits.
RUN_WINDOW_BYTES: Final = 256 * KIB
#: One WebSocket message.
LINK_MESSAGE_BYTES_MAX: Final = 16 * MIB
#: One frame, joined from its slices: a whole history is the largest there is.
LINK_FRAME_BYTES_MAX: Final = SNAPSHOT_BODY_BYTES_MAX + 8 * MIB
assert RECORD_BYTES_MAX * 2 < LINK_MESSAGE_BYTES_MAX
assert PACKET_BYTES_MAX < LINK_MESSAGE_BYTES_MAX, "a claim carries its payload"

# --- tokens ---------------------------------------------------------------------------------
TOKEN_S_DEFAULT: Final = 15 * 60
SESSION_TOKEN_S: Final = 3600
TOKEN_S_MAX: Final = 30 * 24 * 3600
REVOKED_KEY_GRACE_MS: Final = 24 * 3600 * 1000

# --- chat (chat-agent §1.5) -----------------------------------------------------------------
MAX_TURNS: Final = 100
TURN_TIMEOUT_S: Final = 3600.0
IDLE_TIMEOUT_S: Final = 30.0
CAPTURE_S_MAX: Final = 2.0
DEFERRED_S_MAX: Final = 5.0
#: Deferred work of one run at the same time.
DEFERRED_MAX: Final = 1000
#: Injected messages of one run: waiting for a request, and remembered for later ones.
INJECTED_MAX: Final = 1000
HANDOVER_WAIT_S: Final = 60.0
#: How long a stopped model stream may take to close its parts before it is cut off.
STOP_S_MAX: Final = 2.0
#: What a skill's `readFile` returns of a file, and `bash` of each of its streams (R-191).
SKILL_FILE_BYTES_MAX: Final = 1 * MIB
SKILL_STREAM_BYTES_MAX: Final = 64 * KIB
#: `SKILL.md` is for a model to read.
SKILL_MD_BYTES_MAX: Final = 1 * MIB
#: A command of a skill that nobody stops ends by itself.
SKILL_COMMAND_S_MAX: Final = 600.0
DEDUPE_WINDOW: Final = 5000
#: Records of `.in` a run holds in memory, waiting for a turn or a reader; past it, it reads no more.
INPUT_BUFFER_MAX: Final = 10_000
#: `.in` keeps this many decided records below the committed cursor (rulings §1.17).
INPUT_KEPT: Final = 10_000
#: Deleted bytes stay readable this long for the dashboard and audits (`includeTrimmed`).
RETENTION_MS: Final = 7 * 24 * 3600 * 1000
