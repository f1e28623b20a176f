"""What comes from outside: who may do what, and how much of it (P-12)."""

from __future__ import annotations

from typing import Final

from mutant import Mutant

ROUTES: Final = "tests/wire/test_security_routes.py"
INPUT: Final = "tests/wire/test_security_input.py"
ACCESS: Final = "tests/wire/test_http_access.py"
TOKENS: Final = "tests/unit/protocol/test_tokens.py"
KEYS: Final = "tests/unit/server/test_server_keys.py"
STATE: Final = "tests/contract/test_state_contract.py"
FUZZ: Final = "tests/fuzz/test_fuzz_decoders.py"
FUZZ_SERVER: Final = "tests/fuzz/test_fuzz_server.py"

OUTSIDE: Final = (
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
        (STATE, "-k", "sqlite and nvironment"),
    ),
    Mutant(
        "a public token writes out",
        "P-12",
        "src/everturn/server/routes/channels.py",
        '    if io == "out":\n        require_secret(caller, NO_OUT)\n',
        "",
        (
            ROUTES,
            ACCESS,
        ),
    ),
    Mutant(
        "a public token does what only a secret key may",
        "P-12",
        "src/everturn/rules/access.py",
        "    if not caller.is_secret:\n        raise NotAllowed(message)\n",
        "",
        (
            ROUTES,
            ACCESS,
        ),
    ),
    Mutant(
        "a channel of any session is read with any token",
        "P-12",
        "src/everturn/server/routes/reading.py",
        '    if not may(caller, "read", session_resources(*forms)):\n',
        "    if False:\n",
        (
            ROUTES,
            ACCESS,
        ),
    ),
    Mutant(
        "trimmed records are shown to a browser",
        "P-12",
        "src/everturn/server/routes/reading.py",
        "    if not call.caller.is_secret:\n"
        "        raise NotAllowed(UNAUTHORIZED)\n"
        "    return True\n",
        "    return True\n",
        (
            ROUTES,
            ACCESS,
            "tests/wire/test_http_channels.py",
        ),
    ),
    Mutant(
        "a session is opened by one form of its id only",
        "P-12",
        "src/everturn/server/routes/channels.py",
        "    return session_resources(key, session.id, session.external_id)\n",
        "    return session_resources(session.id)\n",
        (
            ROUTES,
            ACCESS,
        ),
    ),
    Mutant(
        "a scope for one thing opens the collection",
        "P-12",
        "src/everturn/protocol/tokens.py",
        "        if len(parts) == 2 or (resource_id is not None and parts[2] == resource_id):\n",
        "        if len(parts) == 2 or resource_id is None or parts[2] == resource_id:\n",
        (
            TOKENS,
            ACCESS,
        ),
    ),
    Mutant(
        "a scope for one session opens another",
        "P-12",
        "src/everturn/protocol/tokens.py",
        "(resource_id is not None and parts[2] == resource_id)",
        "(resource_id is not None and resource_id.startswith(parts[2]))",
        (INPUT,),
    ),
    Mutant(
        "reading is allowed to whoever may write",
        "P-12",
        "src/everturn/protocol/tokens.py",
        '            or parts[0] not in (action, "*")\n',
        '            or parts[0] not in (action, "*", "write")\n',
        (
            TOKENS,
            ACCESS,
        ),
    ),
    Mutant(
        "a session of another environment is found by its own id",
        "P-12",
        "src/everturn/storage/sql/sessions.py",
        "    if row is None or row.environment_id != environment_id:\n",
        "    if row is None:\n",
        (
            STATE,
            "-k",
            "sqlite and nvironment",
        ),
    ),
    Mutant(
        "a worker takes the name of one in another environment",
        "P-12",
        "src/everturn/server/services/links.py",
        "        if known is not None and known.environment_id != environment.id:\n",
        "        if False:\n",
        (
            FUZZ_SERVER,
            "-k",
            "environment",
        ),
    ),
    Mutant(
        "a run is carried on by a worker that never had it",
        "P-12",
        "src/everturn/server/services/link.py",
        "            or run.worker_id != self.worker_id\n"
        "            or run.state not in RESIDENT\n"
        "        ):\n"
        "            return False\n",
        "            or run.state not in RESIDENT\n        ):\n            return False\n",
        ("tests/unit/server/test_engine_guards.py",),
    ),
    Mutant(
        "a link opens with a public token",
        "P-12",
        "src/everturn/server/routes/link.py",
        'header.decode("latin-1"), public=False)',
        'header.decode("latin-1"), public=True)',
        ("tests/wire/test_security_link.py",),
    ),
    Mutant(
        "a token's signature is not looked at",
        "P-12",
        "src/everturn/protocol/tokens.py",
        '    if not hmac.compare_digest(expected.encode(), parts[2].encode("utf-8", "replace")):\n',
        "    if False:\n",
        (
            TOKENS,
            INPUT,
        ),
    ),
    Mutant(
        "a token names its own algorithm",
        "P-12",
        "src/everturn/protocol/tokens.py",
        'header.get("alg") != "HS256" or ',
        "False or ",
        (
            TOKENS,
            INPUT,
        ),
    ),
    Mutant(
        "a token never expires",
        "P-12",
        "src/everturn/protocol/tokens.py",
        "    if expires is None or expires <= now_ms // 1000:\n",
        "    if False:\n",
        (
            TOKENS,
            INPUT,
        ),
    ),
    Mutant(
        "a token is good before its time",
        "P-12",
        "src/everturn/protocol/tokens.py",
        "        if begins is None or begins > now_ms // 1000:\n",
        "        if False:\n",
        (
            TOKENS,
            INPUT,
        ),
    ),
    Mutant(
        "a token of another issuer is good",
        "P-12",
        "src/everturn/protocol/tokens.py",
        '    if payload.get("iss") != ISSUER:\n',
        "    if False:\n",
        (
            TOKENS,
            INPUT,
        ),
    ),
    Mutant(
        "a token for another audience is good",
        "P-12",
        "src/everturn/protocol/tokens.py",
        "    if AUDIENCE not in (audience if isinstance(audience, list) else [audience]):\n",
        "    if False:\n",
        (
            TOKENS,
            INPUT,
        ),
    ),
    Mutant(
        "a token that was checked once is good for ever",
        "P-12",
        "src/everturn/server/services/tokens.py",
        "        return caller if forget_at > clock.monotonic() and expires_ms > clock.now_ms() else None\n",
        "        return caller\n",
        (
            INPUT,
            ACCESS,
            "tests/unit/server/test_server_access.py",
        ),
    ),
    Mutant(
        "a token for one use starts two runs",
        "P-12",
        "src/everturn/server/services/runs.py",
        '            request_key = f"otu:{token_otu}"\n',
        "            pass\n",
        (
            ACCESS,
            "tests/wire/test_http_runs.py",
        ),
    ),
    Mutant(
        "a revoked key works for ever",
        "P-12",
        "src/everturn/server/services/keys.py",
        "        return age_ms < limits.REVOKED_KEY_GRACE_MS\n",
        "        return True\n",
        (
            INPUT,
            ACCESS,
        ),
    ),
    Mutant(
        "a key that leaked is ended a day later",
        "P-12",
        "src/everturn/server/services/keys.py",
        "(limits.REVOKED_KEY_GRACE_MS if at_once else 0)",
        "0",
        (
            INPUT,
            ACCESS,
        ),
    ),
    Mutant(
        "a stored key opens in another environment",
        "P-12",
        "src/everturn/server/services/keys.py",
        '    return f"{environment_id}:{digest}".encode()\n',
        "    return digest.encode()\n",
        (KEYS,),
    ),
    Mutant(
        "a key is stored as it is",
        "P-12",
        "src/everturn/server/services/keys.py",
        "            ciphertext=nonce + sealed,\n",
        "            ciphertext=nonce + sealed + secret.encode(),\n",
        (KEYS,),
    ),
    Mutant(
        "a signed link opens for any verb",
        "P-12",
        "src/everturn/server/services/snapshots.py",
        '        text = "\\n".join((environment_id, session_id, verb, str(expires)))\n',
        '        text = "\\n".join((environment_id, session_id, str(expires)))\n',
        (
            INPUT,
            ROUTES,
            "tests/wire/test_http_sessions.py",
        ),
    ),
    Mutant(
        "a signed link never expires",
        "P-12",
        "src/everturn/server/services/snapshots.py",
        "        if int(expires) * 1000 <= self._services.clock.now_ms():\n",
        "        if False:\n",
        (
            INPUT,
            "tests/wire/test_http_sessions.py",
        ),
    ),
    Mutant(
        "a link needs no signature",
        "P-12",
        "src/everturn/server/services/snapshots.py",
        '        if not hmac.compare_digest(expected.encode(), signature.encode("utf-8", "replace")):\n',
        "        if False:\n",
        (
            INPUT,
            ROUTES,
        ),
    ),
    Mutant(
        "a packet's link needs no signature",
        "P-12",
        "src/everturn/server/services/packets.py",
        '        if not hmac.compare_digest(expected.encode(), signature.encode("utf-8", "replace")):\n',
        "        if False:\n",
        (INPUT,),
    ),
    Mutant(
        "a callback address needs no secret",
        "P-12",
        "src/everturn/server/services/waitpoints.py",
        '            if hmac.compare_digest(expected.encode(), proof.encode("utf-8", "replace")):\n',
        "            if True:\n",
        ("tests/wire/test_http_wait_tokens.py",),
    ),
    Mutant(
        "a secret key has no rate limit",
        "P-12",
        "src/everturn/server/rates.py",
        "        if left < 1:\n",
        "        if False:\n",
        (ACCESS, "-k", "rate or limit or bucket"),
    ),
    Mutant(
        "a public token has no rate limit",
        "P-12",
        "src/everturn/server/rates.py",
        "max(-1, left), WINDOW_S",
        "max(0, left), WINDOW_S",
        (ACCESS,),
    ),
    Mutant(
        "a rate limit never lets go",
        "P-12",
        "src/everturn/server/rates.py",
        "        if now - since >= WINDOW_S:\n",
        "        if False:\n",
        (ACCESS,),
    ),
    Mutant(
        "a body may be longer than it says",
        "P-12",
        "src/everturn/server/routes/calls.py",
        "            size += len(piece)\n            if size > bytes_max:\n",
        "            size += len(piece)\n            if False:\n",
        (INPUT,),
    ),
    Mutant(
        "a body may say any length",
        "P-12",
        "src/everturn/server/routes/calls.py",
        "        if declared is None or not _SIZE.fullmatch(declared) or int(declared) > bytes_max:\n",
        "        if False:\n",
        (INPUT,),
    ),
    Mutant(
        "a line of a batch may have any length",
        "P-12",
        "src/everturn/server/routes/calls.py",
        "            if max((len(held), *map(len, whole))) > line_bytes_max:\n",
        "            if False:\n",
        (
            INPUT,
            "tests/wire/test_http_batches.py",
        ),
    ),
    Mutant(
        "an id may hold anything",
        "P-12",
        "src/everturn/server/routes/calls.py",
        '    if not text or "\\0" in text or len(text) > limits.SEGMENT_CHARS_MAX:\n',
        "    if False:\n",
        (INPUT,),
    ),
    Mutant(
        "a page may have any size",
        "P-12",
        "src/everturn/server/routes/calls.py",
        "        if not 1 <= limit <= limits.PAGE_SIZE_MAX:\n",
        "        if False:\n",
        (
            INPUT,
            "tests/wire/test_http_sessions.py",
        ),
    ),
    Mutant(
        "a filter that is misspelled answers with everything",
        "P-12",
        "src/everturn/server/routes/calls.py",
        '        if name.startswith("filter[") and name not in known:\n',
        "        if False:\n",
        (
            INPUT,
            "tests/wire/test_http_sessions.py",
            "tests/wire/test_http_runs.py",
        ),
    ),
    Mutant(
        "pages of any origin may read with credentials",
        "P-12",
        "src/everturn/server/routes/calls.py",
        '        (b"access-control-allow-origin", origin),\n'
        '        (b"vary", b"Origin"),\n'
        '        (b"access-control-expose',
        '        (b"access-control-allow-origin", origin),\n'
        '        (b"access-control-allow-credentials", b"true"),\n'
        '        (b"vary", b"Origin"),\n'
        '        (b"access-control-expose',
        (INPUT,),
    ),
    Mutant(
        "an error says what went wrong inside",
        "P-12",
        "src/everturn/protocol/problems.py",
        "    text = error.message if status != 500 and isinstance(error, EverturnError) else _hidden(shape)\n",
        "    text = str(error)\n",
        ("tests/unit/server/test_server_problems.py",),
    ),
    Mutant(
        "readers are not counted",
        "P-12",
        "src/everturn/server/routes/reading.py",
        "        if self.count >= self._max:\n",
        "        if False:\n",
        ("tests/wire/test_security_bounds.py",),
    ),
    Mutant(
        "frames nested without end break the link's decoder",
        "P-12",
        "src/everturn/protocol/link.py",
        "_MALFORMED: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)",
        "_MALFORMED: Final = (msgspec.DecodeError, UnicodeDecodeError)",
        (
            FUZZ,
            "-k",
            "kept_input",
        ),
    ),
    Mutant(
        "text that is no UTF-8 breaks the link's decoder",
        "P-12",
        "src/everturn/protocol/link.py",
        "_MALFORMED: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)",
        "_MALFORMED: Final = (msgspec.DecodeError, RecursionError)",
        (
            FUZZ,
            "-k",
            "kept_input",
        ),
    ),
    Mutant(
        "empty slices are held without end",
        "P-12",
        "src/everturn/protocol/link.py",
        "_PIECE_COST: Final = 4096",
        "_PIECE_COST: Final = 0",
        (
            FUZZ,
            "-k",
            "slices",
        ),
    ),
    Mutant(
        "slices are held without end",
        "P-12",
        "src/everturn/protocol/link.py",
        "        if self._held_bytes > self._max:\n",
        "        if False:\n",
        (
            FUZZ,
            "tests/unit/test_protocol_link.py",
            "-k",
            "slice",
        ),
    ),
    Mutant(
        "an event grows without end",
        "P-12",
        "src/everturn/protocol/sse.py",
        "        if self._size > self._max:\n",
        "        if False:\n",
        (
            FUZZ,
            "-k",
            "empty_lines",
        ),
    ),
    Mutant(
        "empty lines of an event cost nothing",
        "P-12",
        "src/everturn/protocol/sse.py",
        "            self._size += 1 - (len(line) - len(value))\n",
        "            self._size -= len(line) - len(value)\n",
        (
            FUZZ,
            "-k",
            "empty_lines",
        ),
    ),
    Mutant(
        "a number too long to convert breaks a cursor",
        "P-12",
        "src/everturn/protocol/records.py",
        " and len(text) <= 18 else None",
        " else None",
        (
            FUZZ,
            "-k",
            "kept_input",
        ),
    ),
    Mutant(
        "an envelope nested without end breaks its reader",
        "P-12",
        "src/everturn/protocol/records.py",
        "        envelope = lenient.decode(body)\n"
        "    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):\n",
        "        envelope = lenient.decode(body)\n"
        "    except (msgspec.DecodeError, UnicodeDecodeError):\n",
        (
            FUZZ,
            "-k",
            "kept_input",
        ),
    ),
    Mutant(
        "a token nested without end breaks its reader",
        "P-12",
        "src/everturn/protocol/tokens.py",
        "    except (binascii.Error, msgspec.DecodeError, UnicodeDecodeError, RecursionError):\n",
        "    except (binascii.Error, msgspec.DecodeError, UnicodeDecodeError):\n",
        (
            FUZZ,
            "-k",
            "kept_input",
        ),
    ),
    Mutant(
        "a message of many empty records costs more than its size",
        "P-12",
        "src/everturn/protocol/s2_frames.py",
        "        if self.left < 0:\n",
        "        if False:\n",
        (
            "tests/unit/protocol/test_s2_frames.py",
            FUZZ,
            "-k",
            "kept_input and s2 or frame or field or record",
        ),
    ),
    Mutant(
        "a frame of any length is waited for",
        "P-12",
        "src/everturn/protocol/s2_frames.py",
        "        if length > self._bytes_max:\n",
        "        if False:\n",
        (
            "tests/unit/protocol/test_s2_frames.py",
            FUZZ,
            "-k",
            "kept_input and s2 or frame or field or record",
        ),
    ),
    Mutant(
        "a payload nested without end breaks its trigger",
        "P-12",
        "src/everturn/server/services/trigger_options.py",
        "    if nesting.too_deep(text):\n        return False\n",
        "",
        (FUZZ, "-k", "kept_input and triggers"),
    ),
    Mutant(
        "a packet that is not what it says breaks its reader",
        "P-12",
        "src/everturn/tasks/codec.py",
        "        except (TypeError, ValueError, OverflowError) as error:\n",
        "        except OverflowError as error:\n",
        (FUZZ, "-k", "kept_input and packets"),
    ),
)
