"""What changed after 4.5.0, one row of wire-protocol §21 after the other, by the newest client.

Each row works, or is refused in the way that client expects and goes on from. What only runs of a
TypeScript worker say or read (`session-in-consumed-id`, transcripts) has nobody to say it here.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest
from driver import CLIENTS, ROOT, Driver, installed

from everturn.testing.processes import System

# Packages are installed within the first test's time.
pytestmark = [pytest.mark.processes, pytest.mark.timeout(300)]

COUNTED = "".join(f"{number} " for number in range(1, 21))
NEWEST = sorted(set(CLIENTS) - {"4.5.0"})


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    app = ROOT / "tests" / "apps" / "official_chats.py"
    with System(tmp_path_factory.mktemp("newer"), app) as running:
        yield running


@pytest.fixture(params=NEWEST)
def client(request: pytest.FixtureRequest) -> str:
    version: str = request.param
    return version


@pytest.fixture
def drive(client: str, system: System) -> Driver:
    return Driver(installed(CLIENTS[client]), system, "drive_newer.mjs")


@pytest.fixture
def id() -> str:
    return f"chat/{uuid.uuid4().hex[:8]}"


def test_an_append_tells_the_number_by_which_its_answer_is_known(drive: Driver, id: str) -> None:
    assert drive.run("seq", id=id)["inputs"] == [0, 1]


def test_a_closed_session_is_refused_with_its_reason_and_not_asked_again(
    drive: Driver, id: str
) -> None:
    seen = drive.run("closed", id=id)

    error = seen["error"]
    assert (error["status"], error["code"], error["closedReason"]) == (
        409,
        "session_closed",
        "enough",
    )
    assert seen["locally"]["code"] == "session_closed"
    assert seen["told"] == [{"reason": "enough", "source": "append"}]
    assert (seen["status"], seen["reason"]) == ("closed", "enough")


@pytest.mark.parametrize("client", sorted(CLIENTS))
def test_a_pending_version_record_in_mid_answer_disturbs_no_answer(
    client: str, drive: Driver, id: str
) -> None:
    seen = drive.run("controls", id=id)

    assert seen["text"] == seen["next"] == COUNTED
    assert ("run-pending-version" in seen["events"]) is (client != "4.5.0")


@pytest.mark.parametrize("client", sorted(CLIENTS))
def test_a_session_closed_record_ends_the_reading_of_those_who_know_it(
    client: str, drive: Driver, id: str
) -> None:
    seen = drive.run("controls", id=id, closing=True)

    assert seen["text"].startswith("1 2 3 ")
    assert (seen["text"] == COUNTED) is (client == "4.5.0")
    assert seen.get("status") == (None if client == "4.5.0" else "closed")


def test_a_settled_session_is_read_once_and_not_asked_again(drive: Driver, id: str) -> None:
    seen = drive.run("settled", id=id)

    assert seen["text"].startswith("1: one;")
    assert seen["settled"] == ["true"]
    assert seen["isStreaming"] is False


def test_a_reader_from_the_latest_sees_nothing_that_was_said_before(drive: Driver, id: str) -> None:
    assert drive.run("latest", id=id)["text"] == "2: one two; None"


def test_what_is_not_offered_is_refused_at_once(drive: Driver, id: str) -> None:
    seen = drive.run("absent", id=id)

    assert {name: error["status"] for name, error in seen.items()} == {
        "send": 404,
        "read": 404,
        "transcript": 404,
    }


def test_a_public_token_made_by_the_server_opens_its_chat(drive: Driver, id: str) -> None:
    assert drive.run("publicTokens", id=id)["text"].endswith("2: one two; None")


def test_a_replay_that_is_to_differ_is_refused_and_a_plain_one_runs(drive: Driver) -> None:
    seen = drive.run("replay")

    assert seen["plain"] is True
    assert seen["changed"]["status"] == 422


def test_the_packet_of_a_run_is_found_by_its_name_when_it_cannot_be_by_its_field(
    drive: Driver,
) -> None:
    seen = drive.run("packet")

    assert seen["bytes"] == 600_000
    by_field, by_name = seen["asked"]
    assert by_field == ["/api/v1/runs/RUN/packets/payload", 404]
    assert by_name[1] == 200
