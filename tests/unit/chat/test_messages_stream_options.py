"""Stream options decide what of an answer a client is shown (R-147)."""

from __future__ import annotations

from typing import Any

import pytest

from everturn.chat.stream_options import UIStreamOptions

REASONING = {"type": "reasoning-delta", "id": "r", "delta": "hm"}
SOURCE = {"type": "source-url", "sourceId": "s", "url": "https://a.test"}
TEXT = {"type": "text-delta", "id": "t", "delta": "x"}


def test_reasoning_is_shown_and_sources_are_not_unless_asked_for() -> None:
    options = UIStreamOptions()
    assert options.shown(REASONING) == REASONING
    assert options.shown(SOURCE) is None

    turned = options.over({"send_reasoning": False, "send_sources": True})
    assert turned.shown(REASONING) is None
    assert turned.shown(SOURCE) == SOURCE
    assert turned.shown(TEXT) == TEXT


def test_start_and_finish_can_be_left_out_to_chain_streams() -> None:
    options = UIStreamOptions(send_start=False, send_finish=False)

    assert options.shown({"type": "start"}) is None
    assert options.shown({"type": "finish"}) is None
    assert options.shown({"type": "start-step"}) == {"type": "start-step"}


def test_metadata_is_attached_to_start_and_finish() -> None:
    def metadata(part: Any) -> Any:
        return {"at": part["type"]} if part["type"] == "start" else None

    options = UIStreamOptions(message_metadata=metadata)

    assert options.shown({"type": "start"}) == {
        "type": "start",
        "messageMetadata": {"at": "start"},
    }
    assert options.shown({"type": "finish"}) == {"type": "finish"}


def test_an_option_that_does_not_exist_is_refused() -> None:
    with pytest.raises(TypeError):
        UIStreamOptions().over({"send_everything": True})
