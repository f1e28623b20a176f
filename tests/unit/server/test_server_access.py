"""Access rules: who may do what (wire-protocol §3.5)."""

from __future__ import annotations

import pytest

from everturn.errors import NotAllowed
from everturn.rules.access import (
    Caller,
    may,
    require,
    require_secret,
    run_resources,
    session_resources,
)

SECRET = Caller(environment_id="c1", is_secret=True)


def token(*scopes: str) -> Caller:
    return Caller(environment_id="c1", is_secret=False, scopes=scopes)


def test_a_secret_key_may_do_everything() -> None:
    assert may(SECRET, "admin", [])
    require_secret(SECRET)


def test_any_one_of_the_alternatives_suffices() -> None:
    resources = run_resources("run_1", "job", ["a", "b"])
    for scope in ("read:runs:run_1", "read:tasks:job", "read:tags:b", "read:runs", "read:all"):
        assert may(token(scope), "read", resources), scope
    for scope in ("read:runs:run_2", "read:tags:c", "write:runs:run_1", "read"):
        assert not may(token(scope), "read", resources), scope


def test_a_session_is_opened_by_either_form_of_its_id() -> None:
    forms = session_resources("session_c1", "session_c1", "a:b", None)
    assert forms == (("sessions", "session_c1"), ("sessions", "a:b"))
    assert may(token("read:sessions:a:b"), "read", forms)
    assert may(token("read:sessions:session_c1"), "read", forms)


def test_some_actions_are_closed_to_tokens_whatever_their_scopes() -> None:
    with pytest.raises(NotAllowed):
        require_secret(token("admin"))
    with pytest.raises(NotAllowed):
        require(token("read:sessions:x"), "read", [("sessions", None)])
