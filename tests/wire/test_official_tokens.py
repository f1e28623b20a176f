"""Tokens that are refused, under the browser's transport in each of `driver.CLIENTS`.

Nobody in front of a page notices: the transport asks the application for another token and does
again what was refused. The one exception is a stream that comes back by itself in mid-answer. It
does so with the token it began with, in every version, and gives up with an error when that one
has expired. Its owner hands in a `fetch` that renews, as the React example does, or reads on.
Wire-protocol §3.3, §8.5.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from driver import CLIENTS, ROOT, Driver, installed

from everturn.protocol.tokens import Claims, sign
from everturn.testing.processes import System

# Packages are installed within the first test's time.
pytestmark = [pytest.mark.processes, pytest.mark.timeout(300)]

COUNTED = "".join(f"{number} " for number in range(1, 61))


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    app = ROOT / "tests" / "apps" / "official_chats.py"
    with System(tmp_path_factory.mktemp("tokens"), app) as running:
        yield running


@pytest.fixture(params=sorted(CLIENTS))
def drive(request: pytest.FixtureRequest, system: System) -> Driver:
    return Driver(installed(CLIENTS[request.param]), system, "drive_tokens.mjs")


@pytest.fixture
def id() -> str:
    return f"chat/{uuid.uuid4().hex[:8]}"


@pytest.fixture(scope="module")
def environment_id(system: System) -> str:
    claims = urllib.request.Request(
        f"{system.url}/api/v1/auth/jwt/claims",
        method="POST",
        headers={"Authorization": f"Bearer {system.key}"},
    )
    with urllib.request.urlopen(claims, timeout=10) as answer:
        return str(json.load(answer)["sub"])


MakeToken = Callable[..., str]


@pytest.fixture
def token(system: System, environment_id: str) -> MakeToken:
    """Makes a token for a chat, as its application's backend would, by whatever clock that has."""

    def make(chat_id: str, *, lives_s: int = 900, clock_s: int = 0, key: str = system.key) -> str:
        scopes = (f"read:sessions:{chat_id}", f"write:sessions:{chat_id}")
        now = int(time.time()) + clock_s
        claims = Claims(sub=environment_id, scopes=scopes, iat=now, exp=now + lives_s)
        return sign(claims, key, now_ms=now * 1000)

    return make


def statuses(seen: Sequence[Sequence[Any]], endpoint: str) -> list[int]:
    return [status for where, status in seen if where == endpoint]


def test_a_token_that_expired_between_two_messages_is_renewed(drive: Driver, id: str) -> None:
    seen = drive.run("between", id=id)

    assert (seen["first"], seen["second"]) == ("1: one; None", "2: one two; None")
    assert seen["asked"] == 1, "once: the new one opens the stream as well"
    assert statuses(seen["seen"], "in") == [200, 401, 200]
    assert 401 not in statuses(seen["seen"], "out")


def test_a_stream_that_comes_back_with_an_expired_token_loses_no_word_when_it_is_renewed(
    drive: Driver, id: str
) -> None:
    seen = drive.run("atReconnect", id=id, renewing=True)

    assert seen["error"] is None
    assert seen["text"] == COUNTED
    assert statuses(seen["seen"], "out") == [200, 401, 200]


def test_a_stream_that_is_not_renewed_ends_in_an_error_and_a_reload_shows_it_whole(
    drive: Driver, id: str
) -> None:
    seen = drive.run("atReconnect", id=id)

    assert seen["error"]["status"] == 401
    assert COUNTED.startswith(seen["text"])
    assert seen["whole"] == COUNTED


def test_a_token_that_was_revoked_with_its_key_is_renewed(
    system: System, drive: Driver, token: MakeToken, id: str
) -> None:
    def keys(*arguments: str) -> str:
        command = [sys.executable, "-m", "everturn", "keys", *arguments, "--env", "dev"]
        place = ["--data-dir", str(system.data_dir)]
        return subprocess.run(
            [*command, *place], check=True, capture_output=True, text=True, timeout=60
        ).stdout

    leaked = json.loads(keys("create", "--json"))
    keys("revoke", leaked["id"], "--at-once")
    seen = drive.run("refused", id=id, token=token(id, key=leaked["key"]))

    assert (seen["text"], seen["error"], seen["asked"]) == ("1: one; None", None, 1)
    assert statuses(seen["seen"], "in") == [401, 200]


def test_a_token_of_another_chat_is_renewed(drive: Driver, token: MakeToken, id: str) -> None:
    seen = drive.run("refused", id=id, token=token("another"))

    assert (seen["text"], seen["error"], seen["asked"]) == ("1: one; None", None, 1)
    assert statuses(seen["seen"], "in") == [403, 200]


def test_an_application_that_gives_tokens_of_another_chat_is_told(
    drive: Driver, token: MakeToken, id: str
) -> None:
    seen = drive.run("refused", id=id, token=token("another"), more=[token("a third")])

    assert seen["error"]["status"] == 403
    assert statuses(seen["seen"], "in") == [403, 403], "and is asked once, not for ever"


@pytest.mark.parametrize("clock_s", [-600, 600])
def test_a_token_made_by_a_clock_ten_minutes_off_opens_its_chat(
    drive: Driver, token: MakeToken, id: str, clock_s: int
) -> None:
    seen = drive.run("refused", id=id, token=token(id, clock_s=clock_s))

    assert (seen["text"], seen["error"], seen["asked"]) == ("1: one; None", None, 0)


def test_tokens_by_a_clock_so_late_that_they_are_born_expired_are_refused_at_once(
    drive: Driver, token: MakeToken, id: str
) -> None:
    late = token(id, clock_s=-3600)
    seen = drive.run("refused", id=id, token=late, more=[late])

    assert seen["error"]["status"] == 401
    assert seen["asked"] == 1
