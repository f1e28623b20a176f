"""Settings: where they come from, and which combinations are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from everturn.errors import ConfigurationError
from everturn.server.assembly import _master_key, build
from everturn.server.settings import Settings

KEY = "tr_dev_abcdefghijklmnopqrstuvwx"
MASTER = "ab" * 32


def test_the_environment_is_read_and_what_was_typed_wins() -> None:
    environ = {
        "EVERTURN_PORT": "9000",
        "EVERTURN_HOST": "0.0.0.0",
        "EVERTURN_SECRET_KEY": KEY,
        "EVERTURN_SHUTDOWN_S": "1.5",
        "EVERTURN_RATE_LIMITS": "off",
        "TRIGGER_PORT": "1",
    }
    settings = Settings.from_env(environ, port=9001, host=None)

    assert (settings.port, settings.host, settings.secret_key) == (9001, "0.0.0.0", KEY)
    assert (settings.shutdown_s, settings.rate_limits) == (1.5, False)


def test_an_empty_override_takes_back_what_the_environment_says() -> None:
    assert Settings.from_env({"EVERTURN_SECRET_KEY": KEY}, secret_key="").secret_key is None


def test_every_setting_says_what_it_means() -> None:
    for name, kind, _default, _unit, meaning in Settings.describe():
        assert name.startswith("EVERTURN_")
        assert kind
        assert meaning.endswith(".") or "Requests" in meaning


def test_secrets_do_not_show() -> None:
    assert KEY not in repr(Settings(secret_key=KEY))
    assert MASTER not in repr(Settings(master_key=MASTER))


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"secret_key": "secret"}, "must look like tr_dev_"),
        ({"secret_key": KEY, "environment": "prod"}, "the fixed secret key is for 'dev'"),
        ({"environment": "moon"}, "is not dev, prod, staging or preview"),
        ({"master_key": "ab"}, "64 hexadecimal digits"),
        ({"port": 70_000}, "is not between 0 and 65535"),
        ({"log_level": "loud"}, "log level"),
        ({"servers": 2, "data_dir": "x"}, "2 servers cannot share sqlite engines"),
        (
            {"servers": 2, "database_url": "postgresql://h/d", "streams_url": "sqlite:////x"},
            "2 servers cannot share sqlite engines",
        ),
        ({"servers": 0}, "at least one server"),
        ({"servers": 2, "streams_url": "nats://h"}, "2 servers cannot share nats engines"),
        ({"shutdown_s": float("nan")}, "EVERTURN_SHUTDOWN_S is 0 to 3600 seconds"),
        ({"shutdown_s": -1.0}, "EVERTURN_SHUTDOWN_S is 0 to 3600 seconds"),
        ({"retention_days": -1}, "retention is 0 to 36500 days"),
        ({"retention_days": 10**12}, "retention is 0 to 36500 days"),
        # A rate of nothing would be divided by with every request.
        ({"rate_refill": 0}, "EVERTURN_RATE_REFILL is at least 1, not 0"),
        ({"rate_capacity": -1}, "EVERTURN_RATE_CAPACITY is at least 1"),
        ({"public_rate": 0}, "EVERTURN_PUBLIC_RATE is at least 1"),
        ({"readers_max": 0}, "EVERTURN_READERS_MAX is at least 1"),
        ({"streams_url": "sqlite:////x"}, "state in memory forgets"),
        ({"database_url": "sqlite:////x"}, "streams in memory forget"),
        (
            {"database_url": "sqlite:////x", "streams_url": "sqlite:////y"},
            "EVERTURN_MASTER_KEY must say",
        ),
    ],
)
def test_what_cannot_work_is_refused_with_one_line(values: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        Settings(**values)
    assert text in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "text"),
    [("PORT", "many"), ("SHUTDOWN_S", "long"), ("RATE_LIMITS", "perhaps")],
)
def test_a_value_of_the_wrong_type_is_refused_by_name(name: str, text: str) -> None:
    with pytest.raises(ConfigurationError, match=f"EVERTURN_{name} must be"):
        Settings.from_env({f"EVERTURN_{name}": text})


def test_the_data_folder_says_where_everything_lives(tmp_path: Path) -> None:
    settings = Settings(data_dir=str(tmp_path))

    assert settings.database == f"sqlite:///{tmp_path}/state.db"
    assert settings.streams == f"sqlite:///{tmp_path}/streams.db"
    assert settings.objects == f"file://{tmp_path}/objects"
    assert Settings().database == Settings(data_dir="memory://").streams == "memory://"


def test_rate_limits_are_off_on_loopback_and_on_elsewhere() -> None:
    assert not Settings(host="127.0.0.1").limits_rates
    assert not Settings(host="::1").limits_rates
    assert not Settings(host="localhost").limits_rates
    assert Settings(host="0.0.0.0").limits_rates
    assert Settings(rate_limits=True).limits_rates


def test_the_master_key_is_made_once_and_readable_by_its_owner_only(tmp_path: Path) -> None:
    settings = Settings(data_dir=str(tmp_path))
    first = _master_key(settings)
    file = tmp_path / "master.key"

    assert len(first) == 32
    assert _master_key(settings) == first
    assert file.stat().st_mode & 0o777 == 0o600
    file.write_text("nonsense")
    with pytest.raises(ConfigurationError, match="is not a master key"):
        _master_key(settings)


@pytest.mark.anyio
@pytest.mark.parametrize("name", ["a b", "a%20b", "a?b=c", "a#b", "%(here)s", "x?mode=memory"])
async def test_a_data_folder_may_be_called_anything_and_holds_all_there_is(
    tmp_path: Path, name: str
) -> None:
    """Read as a URL, the names of two folders could lead to one database."""
    folder = tmp_path / name
    async with build(Settings(data_dir=str(folder))) as first:
        pass
    async with build(Settings(data_dir=str(folder))) as again:
        assert again.secret_key == first.secret_key
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert {"master.key", "state.db", "streams.db"} <= {path.name for path in folder.iterdir()}
