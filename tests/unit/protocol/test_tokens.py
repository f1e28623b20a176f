"""Public tokens and scopes, against the vectors of wire-protocol §23."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from everturn.errors import InvalidRequest, NotAuthenticated
from everturn.protocol import tokens
from everturn.rules import limits

KEY = "tr_dev_abcdefghijklmnopqrstuvwx"
AT_MS = 1767225600_000
VECTOR = (
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJlbnZfMSIsInB1YiI6dHJ1ZSwic2NvcGVzIjpbInJlYWQ6c2Vzc2lvbnM6Y2"
    "hhdC0xIiwid3JpdGU6c2Vzc2lvbnM6Y2hhdC0xIl0sImlzcyI6Imh0dHBzOi8vaWQudHJpZ2dlci5kZXYiLCJhdWQiO"
    "iJodHRwczovL2FwaS50cmlnZ2VyLmRldiIsImlhdCI6MTc2NzIyNTYwMCwiZXhwIjoxNzY3MjI5MjAwfQ.cvtwrgSMq"
    "C1agfcxdZjvWpCE8PjOMFi5YnJ_080rfoo"
)
SCOPES = ("read:sessions:chat-1", "write:sessions:chat-1")


def _token(header: dict[str, Any], payload: object, key: str = KEY) -> str:
    """A token with any header and payload, properly signed."""

    def part(value: object) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()

    signed = f"{part(header)}.{part(payload)}"
    return f"{signed}.{tokens._signature(signed, key)}"


def _payload(**changes: Any) -> dict[str, Any]:
    payload = {
        "sub": "env_1",
        "pub": True,
        "scopes": list(SCOPES),
        "iss": tokens.ISSUER,
        "aud": tokens.AUDIENCE,
        "iat": AT_MS // 1000,
        "exp": AT_MS // 1000 + 60,
    }
    payload.update(changes)
    return {name: value for name, value in payload.items() if value is not None}


def test_the_vector_of_the_specification_is_signed_byte_for_byte() -> None:
    # W-20
    claims = tokens.Claims(sub="env_1", scopes=SCOPES, exp=AT_MS // 1000 + 3600)
    assert tokens.sign(claims, KEY, now_ms=AT_MS) == VECTOR


def test_the_vector_verifies_and_says_what_it_was_signed_with() -> None:
    claims = tokens.verify(VECTOR, KEY, now_ms=AT_MS)
    assert (claims.sub, claims.scopes, claims.iat, claims.exp) == (
        "env_1",
        SCOPES,
        1767225600,
        1767229200,
    )


def test_a_jwt_library_accepts_what_we_sign() -> None:
    key = KEY + "x"  # the library warns below 32 bytes
    token = tokens.sign(tokens.Claims(sub="e", otu=True), key, now_ms=AT_MS)
    payload = jwt.decode(
        token,
        key,
        algorithms=["HS256"],
        audience=tokens.AUDIENCE,
        issuer=tokens.ISSUER,
        options={"verify_exp": False, "verify_iat": False},
    )
    assert payload["otu"] is True
    assert jwt.get_unverified_header(token) == {"alg": "HS256"}


def test_we_accept_the_header_that_libraries_write() -> None:
    token = _token({"alg": "HS256", "typ": "JWT"}, _payload())
    assert tokens.verify(token, KEY, now_ms=AT_MS).sub == "env_1"


def test_a_token_lasts_fifteen_minutes_unless_told_otherwise() -> None:
    token = tokens.sign(tokens.Claims(sub="e"), KEY, now_ms=AT_MS)
    assert tokens.verify(token, KEY, now_ms=AT_MS + 899_999)
    with pytest.raises(NotAuthenticated, match="expired"):
        tokens.verify(token, KEY, now_ms=AT_MS + 900_000)
    assert tokens.LIFETIME_S_DEFAULT == limits.TOKEN_S_DEFAULT


@pytest.mark.parametrize(
    ("header", "changes", "says"),
    [
        ({"alg": "none"}, {}, "HS256"),
        ({"alg": "HS512"}, {}, "HS256"),
        ({}, {}, "HS256"),
        ({"alg": "HS256", "crit": ["x"]}, {}, "HS256"),
        ({"alg": "HS256"}, {"iss": "https://elsewhere"}, "issuer"),
        ({"alg": "HS256"}, {"iss": None}, "issuer"),
        ({"alg": "HS256"}, {"aud": "https://elsewhere"}, "audience"),
        ({"alg": "HS256"}, {"aud": ["https://elsewhere"]}, "audience"),
        ({"alg": "HS256"}, {"exp": AT_MS // 1000}, "expired"),
        ({"alg": "HS256"}, {"exp": None}, "expired"),
        ({"alg": "HS256"}, {"exp": "tomorrow"}, "expired"),
        ({"alg": "HS256"}, {"exp": True}, "expired"),
        ({"alg": "HS256"}, {"nbf": AT_MS // 1000 + 5}, "not valid yet"),
        ({"alg": "HS256"}, {"pub": None}, "not a public token"),
        ({"alg": "HS256"}, {"pub": "true"}, "not a public token"),
        ({"alg": "HS256"}, {"sub": None}, "no environment"),
        ({"alg": "HS256"}, {"sub": ""}, "no environment"),
    ],
)
def test_a_well_signed_token_is_refused_for_what_it_says(
    header: dict[str, Any], changes: dict[str, Any], says: str
) -> None:
    # W-21
    with pytest.raises(NotAuthenticated, match=says):
        tokens.verify(_token(header, _payload(**changes)), KEY, now_ms=AT_MS)


def test_an_audience_may_be_one_of_several() -> None:
    token = _token({"alg": "HS256"}, _payload(aud=["https://elsewhere", tokens.AUDIENCE]))
    assert tokens.verify(token, KEY, now_ms=AT_MS)


def test_another_key_does_not_verify() -> None:
    with pytest.raises(NotAuthenticated, match="signature"):
        tokens.verify(VECTOR, KEY + "x", now_ms=AT_MS)


@given(st.integers(0, len(VECTOR) - 1), st.characters())
def test_a_token_changed_in_any_one_place_is_refused(place: int, letter: str) -> None:
    changed = VECTOR[:place] + letter + VECTOR[place + 1 :]
    if changed == VECTOR:
        return
    with pytest.raises(NotAuthenticated):
        tokens.verify(changed, KEY, now_ms=AT_MS)


@given(st.text() | st.lists(st.text(), min_size=3, max_size=3).map(".".join))
def test_garbage_is_refused_and_peeking_at_it_never_raises(text: str) -> None:
    assert tokens.peek(text) is None or isinstance(tokens.peek(text), dict)
    with pytest.raises(NotAuthenticated):
        tokens.verify(text, KEY, now_ms=AT_MS)


def test_peeking_shows_the_payload_without_trusting_it() -> None:
    payload = tokens.peek(VECTOR[:-4] + "AAAA")
    assert payload is not None
    assert payload["sub"] == "env_1"


def test_claims_of_others_are_carried_along() -> None:
    claims = tokens.Claims(sub="e", extra={"act": {"sub": "u"}}, realtime={"skipColumns": ["a"]})
    read = tokens.verify(tokens.sign(claims, KEY, now_ms=AT_MS), KEY, now_ms=AT_MS)
    assert read.extra == {"act": {"sub": "u"}}
    assert read.realtime == {"skipColumns": ["a"]}


@pytest.mark.parametrize(
    ("scope", "action", "kind", "resource", "expected"),
    [
        ("read:sessions:chat-1", "read", "sessions", "chat-1", True),
        ("read:sessions:chat-1", "write", "sessions", "chat-1", False),
        ("read:sessions:chat-1", "read", "sessions", "chat-2", False),
        ("read:sessions:chat-1", "read", "runs", "chat-1", False),
        ("read:sessions", "read", "sessions", "x", True),
        ("read:sessions:a:b", "read", "sessions", "a:b", True),
        ("read:sessions:a:b", "read", "sessions", "a", False),
        ("read:sessions:x", "read", "sessions", None, False),
        ("read:sessions", "read", "sessions", None, True),
        ("write:tasks:t", "trigger", "tasks", "t", False),
        ("trigger:tasks:t", "trigger", "tasks", "t", True),
        ("read:all", "read", "sessions", "x", True),
        ("read:all", "write", "sessions", "x", False),
        ("admin", "write", "anything", "x", True),
        ("admin:sessions:s", "admin", "sessions", "s", True),
        ("admin:sessions:s", "read", "sessions", "s", False),
        ("read", "read", "sessions", "x", False),
        ("*:runs:r", "write", "runs", "r", True),
        ("*", "read", "runs", "r", False),
        ("", "read", "runs", "r", False),
        ("read:sessions:", "read", "sessions", None, False),
    ],
)
def test_scopes_open_exactly_what_they_say(
    scope: str, action: str, kind: str, resource: str | None, expected: bool
) -> None:
    # W-22
    assert tokens.grants([scope], action, kind, resource) is expected


def test_one_matching_scope_of_several_is_enough_and_none_is_not() -> None:
    assert tokens.grants(["write:runs:r", "read:runs:r"], "read", "runs", "r")
    assert not tokens.grants([], "read", "runs", "r")


def test_nested_scopes_are_flattened_in_order() -> None:
    nested = {
        "read": {"sessions": "a", "runs": ["r1", "r2"], "tags": True, "batch": False},
        "write": {"sessions": "a"},
        "admin": True,
        "trigger": False,
    }
    assert tokens.flatten_scopes(nested) == [
        "read:sessions:a",
        "read:runs:r1",
        "read:runs:r2",
        "read:tags",
        "write:sessions:a",
        "admin",
    ]


@pytest.mark.parametrize("nested", [{"read": "sessions"}, {"read": {"sessions": 5}}])
def test_a_scope_that_is_none_of_the_forms_is_refused(nested: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest):
        tokens.flatten_scopes(nested)


@pytest.mark.parametrize(
    ("span", "seconds"),
    [
        ("15m", 900),
        ("1h", 3600),
        ("2 hours", 7200),
        ("7d", 604800),
        ("1 week from now", 604800),
        ("1.5 min", 90),
        ("10S", 10),
        ("+ 3 days", 259200),
        ("-1h", -3600),
        ("1 hr ago", -3600),
        ("1y", 31557600),
        (timedelta(minutes=2), 120),
        (AT_MS // 1000 + 50, 50),
        (datetime.fromtimestamp(AT_MS // 1000 + 50, UTC), 50),
    ],
)
def test_lifetimes_are_read_as_the_original_reads_them(span: Any, seconds: int) -> None:
    assert tokens.lifetime_s(span, now_ms=AT_MS) == seconds


@pytest.mark.parametrize("span", ["", "5", "m", "5 months", "+1h ago", "1h30m", "१h", True, 1e400])
def test_what_is_no_time_span_is_refused(span: Any) -> None:
    with pytest.raises(InvalidRequest):
        tokens.lifetime_s(span, now_ms=AT_MS)
