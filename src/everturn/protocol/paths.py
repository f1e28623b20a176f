"""Every URL template, once.

A template's `{name}` stands for exactly one path segment. `fill` percent-encodes what goes in, so
an id that holds a slash stays one segment; a server therefore splits the *raw* path on `/` first
and decodes each segment afterwards (wire-protocol §1.2).

One route is ours alone. The original writes objects to `.out` from outside a run only through its
store's own protocol (wire-protocol §7); an append over HTTP would store a string (§6.2). So that
guests who hold a secret key can write what readers expect, there is

    POST /realtime/v1/sessions/{session}/out/records        secret key only (403 for tokens)
    {"records": [ {"data": <JSON>, "partId"?: "<id>"}
                | {"control": "<subtype>", "headers"?: [["name", "value"], …]}
                | {"trim": <seq_num>} ]}                     1 to 1000 records, 1 MiB in all
    -> 200 {"ok": true, "seqNums": [<int>, …]}               one number per record, in order

A data record is stored in the envelope of §6.2 with `data` as it is (an object stays one) and
`partId`, or a fresh one, as its id; a part id the channel already holds adds nothing and gets its
first number again. All records are stored together or none is. Errors: 400 for a record that is
none of the three, 403 for a token, 404 for an unknown session, 409 for a closed one, 413 over a
limit.
"""

from __future__ import annotations

from typing import Final
from urllib.parse import quote

HEALTH: Final = "/healthz"
READY: Final = "/readyz"
LINK: Final = "/link/v1"
#: A description of these routes for tools.
OPENAPI: Final = "/openapi.json"

# --- sessions (wire-protocol §4) ------------------------------------------------------------
SESSIONS: Final = "/api/v1/sessions"
SESSION: Final = "/api/v1/sessions/{session}"
SESSION_CLOSE: Final = "/api/v1/sessions/{session}/close"
SESSION_CONTINUE: Final = "/api/v1/sessions/{session}/end-and-continue"
SESSION_SNAPSHOT_URL: Final = "/api/v1/sessions/{session}/snapshot-url"
#: What a signed link leads to; ours alone.
SNAPSHOT: Final = "/api/v1/snapshots/{environment}/{session}"

# --- channels (§5); `{io}` is `in` or `out` --------------------------------------------------
CHANNEL: Final = "/realtime/v1/sessions/{session}/{io}"
CHANNEL_APPEND: Final = "/realtime/v1/sessions/{session}/{io}/append"
#: GET reads as JSON (§5.4); POST on `out` is ours, described at the top of this module.
CHANNEL_RECORDS: Final = "/realtime/v1/sessions/{session}/{io}/records"

# --- direct writes (§7) -----------------------------------------------------------------------
#: What clients append `/streams/:name/records` to. It has a path, because clients add `/v1` to an
#: address without one.
WRITES: Final = "/s2/v1"
STREAM_RECORDS: Final = "/s2/v1/streams/{stream}/records"

# --- tokens (§3.4) --------------------------------------------------------------------------
TOKEN_CLAIMS: Final = "/api/v1/auth/jwt/claims"
TOKENS: Final = "/api/v1/auth/jwt"
PUBLIC_TOKENS: Final = "/api/v1/auth/public-tokens"

# --- tasks and runs (§9) --------------------------------------------------------------------
#: Ours: what workers have registered, for tools that let people choose.
TASKS: Final = "/api/v1/tasks"
TASK_TRIGGER: Final = "/api/v1/tasks/{task}/trigger"
RUNS: Final = "/api/v1/runs"
RUN: Final = "/api/v3/runs/{run}"
RUN_CANCEL: Final = "/api/v2/runs/{run}/cancel"
RUN_METADATA: Final = "/api/v1/runs/{run}/metadata"
RUN_TAGS: Final = "/api/v1/runs/{run}/tags"
RUN_RESULT: Final = "/api/v1/runs/{run}/result"
RUN_REPLAY: Final = "/api/v1/runs/{run}/replay"
RUN_RESCHEDULE: Final = "/api/v1/runs/{run}/reschedule"
RUN_EVENTS: Final = "/api/v1/runs/{run}/events"
RUN_TRACE: Final = "/api/v1/runs/{run}/trace"
RUN_SPAN: Final = "/api/v1/runs/{run}/spans/{span}"
#: The same list by the name of a project: a server is one project, whatever it is called.
PROJECT_RUNS: Final = "/api/v1/projects/{project}/runs"
KEY_RESET: Final = "/api/v1/idempotencyKeys/{key}/reset"

# --- batches (§10) --------------------------------------------------------------------------
BATCHES: Final = "/api/v3/batches"
BATCH_ITEMS: Final = "/api/v3/batches/{batch}/items"
BATCH: Final = "/api/v2/batches/{batch}"
#: All items in one request, as clients before the two phases sent them.
TASKS_BATCH: Final = "/api/v2/tasks/batch"
BATCH_RESULTS: Final = "/api/v1/batches/{batch}/results"

# --- packets (§11); a name may hold slashes, encoded or not ----------------------------------
PACKET_UPLOAD: Final = "/api/v2/packets/{name}"
PACKET: Final = "/api/v1/packets/{name}"
#: What a signed link leads to; ours alone.
PACKET_DATA: Final = "/api/v1/packet-data/{environment}/{name}"

# --- realtime run subscriptions (§12) -------------------------------------------------------
REALTIME_RUN: Final = "/realtime/v1/runs/{run}"
REALTIME_RUNS: Final = "/realtime/v1/runs"
REALTIME_BATCH: Final = "/realtime/v1/batches/{batch}"

# --- streams of runs (§13) ------------------------------------------------------------------
RUN_STREAM: Final = "/realtime/v1/streams/{run}/{stream}"
RUN_STREAM_WRITE: Final = "/realtime/v1/streams/{run}/{target}/{stream}"
RUN_STREAM_APPEND: Final = "/realtime/v1/streams/{run}/{target}/{stream}/append"
RUN_STREAM_INPUT: Final = "/realtime/v1/streams/{run}/input/{stream}"

# --- wait tokens (§14) ----------------------------------------------------------------------
WAIT_TOKENS: Final = "/api/v1/waitpoints/tokens"
WAIT_TOKEN: Final = "/api/v1/waitpoints/tokens/{token}"
WAIT_TOKEN_COMPLETE: Final = "/api/v1/waitpoints/tokens/{token}/complete"
WAIT_TOKEN_CALLBACK: Final = "/api/v1/waitpoints/tokens/{token}/callback/{hash}"


def encode_segment(value: str) -> str:
    """Percent-encode one path segment as JavaScript's `encodeURIComponent` does.

    Letters, digits and ``- _ . ! ~ * ' ( )`` stay. The segments `.` and `..` are encoded all the
    same, because URL libraries would otherwise resolve them away before anything is sent.

    Raises UnicodeEncodeError for a lone surrogate, where JavaScript raises URIError.
    """
    if value in (".", ".."):
        return "%2E" * len(value)
    return quote(value, safe="-_.!~*'()")


def fill(template: str, **segments: str) -> str:
    """The path of a template with its segments filled in and encoded.

    Raises KeyError when a segment of the template is missing.
    """
    return template.format_map({name: encode_segment(value) for name, value in segments.items()})
