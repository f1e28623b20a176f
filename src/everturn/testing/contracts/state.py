"""The contract of the state port: every sentence of `storage/ports/state.py`, on any engine.

A test module imports the classes and defines two fixtures: `state`, an empty engine, and
`small_state`, an empty engine with an environment limit of 3. Asynchronous tests run through
anyio's pytest plugin, so the module also needs `pytestmark = pytest.mark.anyio`.
"""

from __future__ import annotations

from everturn.testing.contracts.state_moves import TestFinishing, TestMoves, TestQueueingAgain
from everturn.testing.contracts.state_retention import (
    TestDebouncing,
    TestExpiry,
    TestForgetting,
    TestStreamsOfRuns,
)
from everturn.testing.contracts.state_runs import (
    TestCreatingARun,
    TestIdempotencyKeys,
    TestListingRuns,
    TestWhatARunCollects,
)
from everturn.testing.contracts.state_session_lists import (
    TestListingSessions,
    TestSessionsOfOtherEnvironments,
)
from everturn.testing.contracts.state_sessions import (
    TestARunThatEndsWhileItsSessionIsOpened,
    TestChangingASession,
    TestContinuingASession,
    TestCursors,
    TestOpeningASession,
    TestUncheckedSessions,
)
from everturn.testing.contracts.state_sweeps import TestSweeps
from everturn.testing.contracts.state_texts import TestTexts
from everturn.testing.contracts.state_waitpoints import (
    TestBatches,
    TestRunsByRequest,
    TestWaitTokens,
)
from everturn.testing.contracts.state_workers import (
    TestClaims,
    TestClosing,
    TestEnvironments,
    TestKeys,
    TestSlots,
    TestVersions,
    TestWorkers,
)

__all__ = [
    "TestARunThatEndsWhileItsSessionIsOpened",
    "TestBatches",
    "TestChangingASession",
    "TestClaims",
    "TestClosing",
    "TestContinuingASession",
    "TestCreatingARun",
    "TestCursors",
    "TestDebouncing",
    "TestEnvironments",
    "TestExpiry",
    "TestFinishing",
    "TestForgetting",
    "TestIdempotencyKeys",
    "TestKeys",
    "TestListingRuns",
    "TestListingSessions",
    "TestMoves",
    "TestOpeningASession",
    "TestQueueingAgain",
    "TestRunsByRequest",
    "TestSessionsOfOtherEnvironments",
    "TestSlots",
    "TestStreamsOfRuns",
    "TestSweeps",
    "TestTexts",
    "TestUncheckedSessions",
    "TestVersions",
    "TestWaitTokens",
    "TestWhatARunCollects",
    "TestWorkers",
]
