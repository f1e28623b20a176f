"""Every setting of the server: its type, default, unit, meaning and `EVERTURN_*` name.

`Settings()` is a server in memory on loopback, for tests. `Settings.from_env()` is what the
command line uses: the environment, then what was typed. Combinations that cannot keep the
promises are refused here, at start, with one line (rulings §2.4).
"""

from __future__ import annotations

import dataclasses
import ipaddress
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from everturn.errors import ConfigurationError

PREFIX: Final = "EVERTURN_"
MEMORY_URL: Final = "memory://"

_KEY_FORM: Final = re.compile(r"tr_(dev|prod|stg|preview)_[0-9A-Za-z_]{8,128}")
_SLUG_FORM: Final = re.compile(r"(dev|prod|staging|preview/[^\s/][^\s]{0,199})")
#: A hundred years: more than that is a slip of the hand, and some of it no date at all.
RETENTION_DAYS_MAX: Final = 36_500
#: Nobody waits longer for a server to leave.
SHUTDOWN_S_MAX: Final = 3_600
_TRUE: Final = frozenset({"1", "true", "yes", "on"})
_FALSE: Final = frozenset({"0", "false", "no", "off"})
#: The middle of a secret key for each kind of environment.
KEY_TYPES: Final[Mapping[str, str]] = {"dev": "dev", "prod": "prod", "staging": "stg"}


def _setting(default: Any, meaning: str, *, unit: str = "", secret: bool = False) -> Any:
    return dataclasses.field(
        default=default, metadata={"meaning": meaning, "unit": unit, "secret": secret}
    )


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How one server process runs. Raises ConfigurationError for what cannot work together."""

    host: str = _setting("127.0.0.1", "Address to listen on.")
    port: int = _setting(8030, "Port to listen on; 0 takes a free one.")
    public_url: str | None = _setting(
        None, "Base URL as clients reach it; used where answers hold links. Default: host and port."
    )
    direct_url: str | None = _setting(
        None,
        "Base URL of the write endpoint that TypeScript clients are told; must speak HTTP/2. "
        "Default: `/s2/v1` on this server.",
    )
    data_dir: str | None = _setting(
        None, "Folder of the embedded engines. Without it, and without URLs, all is in memory."
    )
    database_url: str | None = _setting(
        None, "Where state lives: `sqlite:///…`, `postgresql://…` or `memory://`."
    )
    streams_url: str | None = _setting(None, "Where streams live: `sqlite:///…` or `memory://`.")
    objects_url: str | None = _setting(
        None, "Where snapshots live: a bucket URL, `file:///…` or `memory://`."
    )
    environment: str = _setting("dev", "Slug of the environment the server serves by default.")
    secret_key: str | None = _setting(
        None,
        "Fixes the secret key of that environment, and by it the environment's id.",
        secret=True,
    )
    master_key: str | None = _setting(
        None,
        "32 bytes in hex that encrypt secret keys at rest. Default: `master.key` in the data "
        "folder.",
        secret=True,
    )
    sync: bool = _setting(
        True,
        "Whether the embedded engines sync every commit to disk. `false` is for measurements: "
        "acknowledged records may be lost at power loss.",
    )
    servers: int = _setting(
        1, "How many servers share these engines. More than 1 is refused: streams have one owner."
    )
    rate_limits: bool | None = _setting(
        None, "Whether requests under `/api` are limited per key. Default: off on loopback."
    )
    rate_capacity: int = _setting(750, "Requests a secret key may make at once.")
    rate_refill: int = _setting(250, "Requests given back to a secret key", unit="per 10 s")
    public_rate: int = _setting(60, "Requests a public token may make", unit="per minute")
    readers_max: int = _setting(20_000, "Open readers of channels, all together.")
    retention_days: int = _setting(
        30,
        "How long finished runs with their streams, completed wait tokens, batches and packets are "
        "kept; 0 keeps them for ever.",
        unit="days",
    )
    shutdown_s: float = _setting(5.0, "How long a stop waits for open requests.", unit="s")
    log_level: str = _setting("info", "debug, info, warning or error.")

    def __post_init__(self) -> None:
        if self.secret_key is not None and not _KEY_FORM.fullmatch(self.secret_key):
            raise ConfigurationError(
                f"{PREFIX}SECRET_KEY must look like tr_dev_ followed by 24 letters and digits"
            )
        if not _SLUG_FORM.fullmatch(self.environment):
            raise ConfigurationError(
                f"environment {self.environment!r} is not dev, prod, staging or preview/<branch>"
            )
        if self.secret_key is not None and self.secret_key.split("_")[1] != self.key_type:
            raise ConfigurationError(
                f"the fixed secret key is for {self.secret_key.split('_')[1]!r}, "
                f"but the environment is {self.environment!r}"
            )
        if self.master_key is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", self.master_key):
            raise ConfigurationError(f"{PREFIX}MASTER_KEY must be 64 hexadecimal digits")
        if not 0 <= self.port <= 65535:
            raise ConfigurationError(f"port {self.port} is not between 0 and 65535")
        if not 0 <= self.retention_days <= RETENTION_DAYS_MAX:
            raise ConfigurationError(
                f"retention is 0 to {RETENTION_DAYS_MAX} days, not {self.retention_days}"
            )
        for name in ("rate_capacity", "rate_refill", "public_rate", "readers_max"):
            if getattr(self, name) < 1:
                raise ConfigurationError(
                    f"{PREFIX}{name.upper()} is at least 1, not {getattr(self, name)}"
                )
        if not 0 <= self.shutdown_s <= SHUTDOWN_S_MAX:
            raise ConfigurationError(
                f"{PREFIX}SHUTDOWN_S is 0 to {SHUTDOWN_S_MAX} seconds, not {self.shutdown_s}"
            )
        if self.log_level not in ("debug", "info", "warning", "error"):
            raise ConfigurationError(f"log level {self.log_level!r} is not one that exists")
        self._check_engines()

    def _check_engines(self) -> None:
        """Refuse engines that cannot keep the promises together (rulings §2.4)."""
        if self.servers < 1:
            raise ConfigurationError(f"there is at least one server, not {self.servers}")
        local = [url for url in (self.streams, self.database) if not _is_shared(url)]
        if self.servers > 1 and local:
            raise ConfigurationError(
                f"{self.servers} servers cannot share {_scheme(local[0])} engines: "
                "one process owns them, and there is no other stream engine yet."
            )
        if self.streams != MEMORY_URL and self.database == MEMORY_URL:
            raise ConfigurationError(
                "state in memory forgets the sessions whose streams are kept: "
                "give a database URL, or keep both in memory"
            )
        if self.streams == MEMORY_URL and self.database != MEMORY_URL:
            raise ConfigurationError(
                "streams in memory forget what kept sessions refer to: "
                "give a streams URL, or keep both in memory"
            )
        if self.data_dir is None and self.database != MEMORY_URL and self.master_key is None:
            raise ConfigurationError(
                f"without a data folder, {PREFIX}MASTER_KEY must say how keys are encrypted"
            )

    # --- what follows from the rest --------------------------------------------------------------

    @property
    def key_type(self) -> str:
        """The middle of a secret key of this environment: dev, prod, stg or preview."""
        kind = self.environment.partition("/")[0]
        return KEY_TYPES.get(kind, kind)

    @property
    def database(self) -> str:
        """The URL of the state engine."""
        return self.database_url or self._local("sqlite:///", "state.db")

    @property
    def streams(self) -> str:
        """The URL of the stream engine."""
        return self.streams_url or self._local("sqlite:///", "streams.db")

    @property
    def objects(self) -> str:
        """The URL of the object store."""
        return self.objects_url or self._local("file://", "objects")

    def _local(self, prefix: str, name: str) -> str:
        folder = self.folder
        return MEMORY_URL if folder is None else f"{prefix}{folder.absolute() / name}"

    @property
    def folder(self) -> Path | None:
        """The data folder, None when everything is elsewhere or in memory."""
        if self.data_dir is None or self.data_dir == MEMORY_URL:
            return None
        return Path(self.data_dir)

    @property
    def on_loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def limits_rates(self) -> bool:
        """Whether rate limits apply (rulings §4.4)."""
        return not self.on_loopback if self.rate_limits is None else self.rate_limits

    @property
    def base_url(self) -> str:
        """Where clients reach this server, without a trailing slash."""
        if self.public_url is not None:
            return self.public_url.rstrip("/")
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None, **overrides: Any) -> Settings:
        """Settings from `EVERTURN_*`, then from `overrides`; an override of None is not one, and an
        empty one takes back what the environment says.

        Raises ConfigurationError for a value of the wrong type or a combination that cannot work.
        """
        source = os.environ if environ is None else environ
        values: dict[str, Any] = {}
        for field in dataclasses.fields(cls):
            text = source.get(PREFIX + field.name.upper())
            if text:
                values[field.name] = _parse(field, text)
        for name, value in overrides.items():
            if value == "":
                values.pop(name, None)
            elif value is not None:
                values[name] = value
        return cls(**values)

    @classmethod
    def describe(cls) -> list[tuple[str, str, str, str, str]]:
        """`(EVERTURN_* name, type, default, unit, meaning)` of each setting, for the docs."""
        return [
            (
                PREFIX + field.name.upper(),
                str(field.type),
                "" if field.default is None else str(field.default),
                str(field.metadata["unit"]),
                str(field.metadata["meaning"]),
            )
            for field in dataclasses.fields(cls)
        ]

    def __repr__(self) -> str:
        shown = (
            f"{f.name}={'…' if f.metadata['secret'] else getattr(self, f.name)!r}"
            for f in dataclasses.fields(self)
            if getattr(self, f.name) != f.default
        )
        return f"Settings({', '.join(shown)})"


def _parse(field: dataclasses.Field[Any], text: str) -> Any:
    """The value of a setting from its text in the environment."""
    kind = str(field.type).split(" ")[0]
    try:
        if kind == "int":
            return int(text)
        if kind == "float":
            return float(text)
    except ValueError:
        raise ConfigurationError(
            f"{PREFIX}{field.name.upper()} must be a number, not {text!r}"
        ) from None
    if kind == "bool":
        if text.lower() in _TRUE | _FALSE:
            return text.lower() in _TRUE
        raise ConfigurationError(
            f"{PREFIX}{field.name.upper()} must be true or false, not {text!r}"
        )
    return text


def _scheme(url: str) -> str:
    return url.partition(":")[0]


def _is_shared(url: str) -> bool:
    """Whether several server processes may use this engine at once."""
    return _scheme(url).partition("+")[0] in ("postgresql", "postgres")
