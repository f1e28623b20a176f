"""The newest `@trigger.dev/sdk` (4.8.3) beside 4.5.0: the same scenarios, the same promises.

Each with `ai` 6 on the system's Node and with `ai` 7 on Node 22, which comes as a package. The tests are those of 4.5.0; only the packages differ, and what is said here. Wire-protocol §21.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from driver import CLIENTS, installed
from test_direct_writes import TestTheOfficialClient as DirectWrites
from test_official_client import (  # noqa: F401  # collected here, with the packages below
    test_a_chat_restored_from_last_event_id_sees_only_its_own_turn,
    test_a_client_in_mid_answer_gets_the_whole_answer_after_its_worker_was_killed,
    test_agent_chat_answers_a_message_and_a_follow_up_on_the_same_run,
    test_sessions_start_send_read_list_update_and_close,
    test_stop_ends_the_answer_and_the_next_one_is_whole,
)

# Packages are installed within the first test's time.
pytestmark = [pytest.mark.processes, pytest.mark.timeout(300)]


@pytest.fixture(scope="module", params=["4.8.3", "4.8.3 with ai 7"])
def node_folder(request: pytest.FixtureRequest) -> Path:
    return installed(CLIENTS[request.param])


class TestDirectWrites(DirectWrites):
    """Its writers report the number of the last record itself."""

    past_the_last = 0
