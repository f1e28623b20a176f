"""The unmodified npm package @trigger.dev/react-hooks, 4.5.0 and 4.8.3: every hook of runs.

Wire-protocol §18.8. The components are mounted by React in a page of jsdom; what they render is
what the test sees. That browsers are let in (CORS) is tested in `test_http_access.py`.
"""

from __future__ import annotations

from typing import Any

import pytest
from driver import played, saw

from everturn.testing.processes import System

# Packages are installed within the first test's time.
pytestmark = [pytest.mark.processes, pytest.mark.timeout(300)]


@pytest.fixture(scope="module", params=["node-react", "node-react-newest"])
def pages(request: pytest.FixtureRequest, tasks_system: System) -> dict[str, Any]:
    """What the components of each scenario saw."""
    return played(request.param, "drive_hooks.mjs", tasks_system)


def test_use_run_asks_until_the_run_is_final(pages: dict[str, Any]) -> None:
    assert saw(pages, "useRun") == {"status": "COMPLETED", "output": {"steps": 3}, "id": True}


def test_use_realtime_run_follows_a_run_to_its_end(pages: dict[str, Any]) -> None:
    seen = saw(pages, "useRealtimeRun")

    assert seen["output"] == {"steps": 3}
    assert seen["completed"] is True
    assert seen["steps"] == sorted(seen["steps"])


def test_a_hook_with_the_token_of_another_run_shows_an_error(pages: dict[str, Any]) -> None:
    assert saw(pages, "refused")["status"] == 403


def test_use_realtime_runs_with_tag_sees_runs_that_start_later(pages: dict[str, Any]) -> None:
    seen = saw(pages, "useRealtimeRunsWithTag")
    assert seen["seen"] == seen["ids"]


def test_use_realtime_batch_sees_all_runs_of_a_batch(pages: dict[str, Any]) -> None:
    assert saw(pages, "useRealtimeBatch") == {"doubled": [2, 4, 6]}


def test_use_realtime_run_with_streams_finds_the_streams_of_a_run_by_itself(
    pages: dict[str, Any],
) -> None:
    assert saw(pages, "useRealtimeRunWithStreams")["streams"] == {
        "story": [{"line": 0}, {"line": 1}, {"line": 2}],
        "letters": ["a", "b", "c"],
    }


def test_use_realtime_stream_reads_one_stream(pages: dict[str, Any]) -> None:
    assert saw(pages, "useRealtimeStream")["parts"] == [{"line": 0}, {"line": 1}, {"line": 2}]


def test_use_task_trigger_starts_one_run_with_its_token(pages: dict[str, Any]) -> None:
    seen = saw(pages, "useTaskTrigger")

    assert seen["token"] == "string"
    assert (seen["task"], seen["output"]) == ("double", {"doubled": 42})
    assert len(seen["tags"]) == 1
    assert seen["status"] == 422


def test_use_realtime_task_trigger_goes_on_with_the_token_of_the_run(pages: dict[str, Any]) -> None:
    assert saw(pages, "useRealtimeTaskTrigger") == {"output": {"doubled": 42}}


def test_use_realtime_task_trigger_with_streams_reads_what_the_run_writes(
    pages: dict[str, Any],
) -> None:
    assert saw(pages, "useRealtimeTaskTriggerWithStreams") == {"story": [{"line": 0}, {"line": 1}]}


def test_use_wait_token_completes_a_token_and_its_run_goes_on(pages: dict[str, Any]) -> None:
    assert saw(pages, "useWaitToken") == {"output": {"said": {"yes": True}}}


def test_use_input_stream_send_reaches_a_run_that_listens(pages: dict[str, Any]) -> None:
    assert saw(pages, "useInputStreamSend") == {
        "output": {"heard": ["hello", "bye"]},
        "error": None,
    }


def test_use_session_stream_of_the_newer_package_follows_a_channel(pages: dict[str, Any]) -> None:
    seen = saw(pages, "useSessionStream")
    assert seen == {"absent": True} or '"hello' in seen["records"][0].replace("\\", "")
