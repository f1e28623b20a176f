"""`everturn keys` in the wrong place: it says where the keys are, and makes nothing."""

from __future__ import annotations

from pathlib import Path

from commands import Run


def test_an_environment_without_keys_says_which_have_some(everturn: Run) -> None:
    assert everturn("keys", "create", "--env", "staging").returncode == 0

    never_made = everturn("keys", "list")
    assert never_made.returncode == 0
    assert never_made.stdout == ""
    assert "there is no environment prod yet; there are keys in staging" in never_made.stderr
    assert "--env staging" in never_made.stderr

    (key_id,) = (line.split()[0] for line in key_lines(everturn, "prod"))
    assert everturn("keys", "revoke", key_id).returncode == 0
    # What is revoked is listed; a preview that was only asked for was not made by it.
    assert "revoked" in everturn("keys", "list").stdout
    assert "no environment preview/x yet" in everturn("keys", "list", "--env", "preview/x").stderr
    assert "no environment preview/x yet" in everturn("keys", "list", "--env", "preview/x").stderr
    assert everturn("keys", "list", "--env", "preview/x", "--json").stdout.strip() == "[]"


def test_a_key_of_another_environment_is_not_revoked_and_the_hint_says_where_to_look(
    everturn: Run,
) -> None:
    (line,) = key_lines(everturn, "staging")
    shown = everturn("keys", "revoke", line.split()[0])

    assert shown.returncode == 1
    assert "there are keys in staging" in shown.stderr
    assert "active" in everturn("keys", "list", "--env", "staging").stdout


def test_a_folder_without_a_store_is_named_and_stays_as_it_is(everturn: Run, folder: Path) -> None:
    for command in (("list",), ("revoke", "key_1")):
        shown = everturn("keys", *command, "--data-dir", "elsewhere")
        assert shown.returncode == 1
        assert "there is no store in elsewhere" in shown.stderr
        assert "--data-dir" in shown.stderr
    assert not (folder / "elsewhere").exists()


def test_a_revoked_key_that_leaked_after_all_is_ended_at_once(everturn: Run) -> None:
    (line,) = key_lines(everturn, "prod")
    key_id = line.split()[0]

    assert "24 hours" in everturn("keys", "revoke", key_id).stdout
    assert "within seconds" in everturn("keys", "revoke", key_id, "--at-once").stdout
    assert "revoked 1d ago" in everturn("keys", "list").stdout


def test_no_key_is_made_that_the_server_could_not_open(everturn: Run, folder: Path) -> None:
    """The store of the server, reached from a folder that has another master key."""
    (line,) = key_lines(everturn, "prod")
    elsewhere = {"EVERTURN_DATABASE_URL": f"sqlite:///{folder}/.everturn/state.db"}
    create = ("keys", "create", "--data-dir", "elsewhere")

    refused = everturn(*create, **elsewhere)
    assert refused.returncode == 1
    assert refused.stdout == ""
    assert "another master key" in refused.stderr
    assert len(everturn("keys", "list").stdout.splitlines()) == 2

    # It is lost: what it closed is revoked, and new keys are made.
    assert everturn("keys", "revoke", line.split()[0]).returncode == 0
    assert everturn(*create, **elsewhere).stdout.startswith("tr_prod_")
    assert everturn(*create, **elsewhere).returncode == 0


def key_lines(everturn: Run, env: str) -> list[str]:
    """The rows of the table of keys, after one more was made."""
    assert everturn("keys", "create", "--env", env).returncode == 0
    return everturn("keys", "list", "--env", env).stdout.splitlines()[1:]
