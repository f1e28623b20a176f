"""What chats are less often asked for by `@trigger.dev/sdk`, in each of `driver.CLIENTS`.

AgentChat's preload, regenerate, steer, actions and reconnect; the browser's transport with all that
needs no browser. Wire-protocol §8.5, §8.7, §18.2, §18.3.
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


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    app = ROOT / "tests" / "apps" / "official_chats.py"
    with System(tmp_path_factory.mktemp("chats"), app) as running:
        yield running


@pytest.fixture(params=sorted(CLIENTS))
def client(request: pytest.FixtureRequest) -> str:
    """The version of the client, one of `driver.CLIENTS`."""
    version: str = request.param
    return version


@pytest.fixture
def drive(client: str, system: System) -> Driver:
    return Driver(installed(CLIENTS[client]), system, "drive_chat.mjs")


@pytest.fixture
def id() -> str:
    return f"chat/{uuid.uuid4().hex[:8]}"


def test_a_preloaded_chat_answers_its_first_message_on_the_run_it_has(
    drive: Driver, id: str
) -> None:
    seen = drive.run("preload", id=id)

    assert (seen["preloaded"], seen["runs"]) == (1, 1)
    assert seen["text"].startswith("1: hi;")


def test_regenerate_answers_the_same_message_again(drive: Driver, id: str) -> None:
    seen = drive.run("regenerate", id=id)

    assert seen["first"] == seen["again"] == "1: hi; {'n': 1}"


def test_steer_is_refused_before_the_start_and_disturbs_no_answer(drive: Driver, id: str) -> None:
    seen = drive.run("steer", id=id)

    assert (seen["before"], seen["steered"]) == (False, True)
    assert seen["text"] == COUNTED


def test_an_action_changes_history_and_the_next_answer_knows(drive: Driver, id: str) -> None:
    assert drive.run("action", id=id)["after"].startswith("1: two;")


def test_reconnect_goes_on_where_the_other_reader_was(drive: Driver, id: str) -> None:
    seen = drive.run("reconnect", id=id)

    assert seen["never"] is None
    assert seen["seen"] + seen["rest"] == COUNTED


def test_a_transport_is_told_where_how_and_with_what_and_is_restored(
    drive: Driver, id: str
) -> None:
    seen = drive.run("transport", id=id)

    assert seen["first"] == "1: one; {'n': 1}"
    assert seen["second"] == "2: one two; None"
    assert {"in", "out", "fetch in", "fetch out"} <= set(seen["asked"])
    assert seen["changes"][-2:] == [True, False]
    assert seen["idle"] is None


def test_an_action_of_the_transport_ends_and_the_next_answer_knows(drive: Driver, id: str) -> None:
    seen = drive.run("transportAction", id=id)

    assert seen["after"].startswith("1: two;")


def test_a_watching_transport_sees_the_turns_of_others_on_one_stream(
    drive: Driver, id: str
) -> None:
    assert drive.run("watch", id=id)["text"] == "1: one; None2: one two; None"


def test_stopping_a_transport_ends_the_answer_and_the_next_one_is_whole(
    drive: Driver, id: str
) -> None:
    seen = drive.run("stopGeneration", id=id)

    assert seen["stopped"] is True
    assert seen["text"].startswith("1 2 3 ")
    assert "20" not in seen["text"]
    assert seen["next"] == COUNTED


def test_leaving_a_resumed_answer_stops_it_with_the_older_client_only(
    client: str, drive: Driver, id: str
) -> None:
    """Why the example stops with `stopGeneration`, which every version means."""
    seen = drive.run("abortResumed", id=id)

    assert "20" not in seen["seen"]
    assert (seen["whole"] == COUNTED) is client.startswith("4.8.3")


def test_an_unknown_session_is_started_again_and_a_closed_one_refused(
    drive: Driver, id: str
) -> None:
    seen = drive.run("lost", id=id)

    assert seen["starts"] == 1
    assert seen["text"].startswith("1: one;")
    assert seen["refused"]["status"] == 409
    assert "closed" in seen["refused"]["message"]


def test_a_head_start_of_the_transport_is_continued_by_the_agent(drive: Driver, id: str) -> None:
    seen = drive.run("headStart", id=id)

    assert seen["first"] == "warm hello"
    assert seen["second"].startswith("2: one two;")
