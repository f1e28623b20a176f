"""The contract of `storage.ports.streams`, as test classes any engine can be put through.

A test module provides two fixtures and imports the classes:

* `engine`: a `StreamsEngine` holding an empty, open store;
* `durable_engine`: the same, but only for engines whose capabilities say `survives_reopen`.

The suite never asks which engine it has. What an engine lacks it says in `Capabilities`.
"""

from __future__ import annotations

from everturn.testing.contracts.streams_life import TestAfterReopening, TestClose, TestForgetting
from everturn.testing.contracts.streams_reading import TestReads, TestSubscriptions, TestTrims
from everturn.testing.contracts.streams_scene import Capabilities, SteppedClock, StreamsEngine
from everturn.testing.contracts.streams_writing import (
    TestAppend,
    TestFences,
    TestPartIds,
    TestParts,
)

__all__ = [
    "Capabilities",
    "SteppedClock",
    "StreamsEngine",
    "TestAfterReopening",
    "TestAppend",
    "TestClose",
    "TestFences",
    "TestForgetting",
    "TestPartIds",
    "TestParts",
    "TestReads",
    "TestSubscriptions",
    "TestTrims",
]
