"""What a table of the command line shows can be copied."""

from __future__ import annotations

import pytest

from everturn.cli.output import print_table


def test_a_cell_is_never_cut_however_narrow_the_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    session = "session_" + "a1b2c3d4e5" * 10

    print_table(("SESSION", "AGENT"), [(session, "assistant")], empty="none")

    heading, row = capsys.readouterr().out.splitlines()
    assert heading.split() == ["SESSION", "AGENT"]
    assert row.split() == [session, "assistant"]
