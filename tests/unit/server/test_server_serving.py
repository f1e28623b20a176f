"""What a process does to itself before it serves."""

from __future__ import annotations

import gc

from everturn.server.serving import THRESHOLDS, calm_collector


def test_a_server_process_keeps_the_collector_from_what_its_start_has_made() -> None:
    before, frozen = gc.get_threshold(), gc.get_freeze_count()
    try:
        calm_collector()
        assert gc.get_freeze_count() > frozen
        assert gc.get_threshold() == THRESHOLDS
    finally:
        gc.unfreeze()
        gc.set_threshold(*before)
