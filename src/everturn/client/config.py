"""Where the client's calls go, and with which key.

The first of these that says something wins, separately for each member:

1. `use(…)` around a block of code: a worker sets its own server and key around each run, so that
   agents which talk to other agents need no settings of their own;
2. `configure(…)`, once for the process;
3. `EVERTURN_API_URL` and `EVERTURN_SECRET_KEY`;
4. `<data-dir>/dev.json`, which `everturn dev` writes: `{"url": …, "key": …}`. The data directory is
   `EVERTURN_DATA_DIR`, else `.everturn` in the working directory;
5. `http://localhost:8030`, without a key.

The key of `dev.json` is used for the server of `dev.json` only: a development key is never sent
to a server that somebody named in another way.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Final, NamedTuple

import httpx2
import msgspec

from everturn.errors import ConfigurationError

DEFAULT_URL: Final = "http://localhost:8030"
#: A `dev.json` has two short members; anything larger is some other file.
_DEV_FILE_BYTES_MAX: Final = 64 * 1024


class ClientConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What a call needs to know. None means: not said here.

    * `url`: base URL of the server; a trailing slash does not matter.
    * `secret_key`: sent as the bearer of every call, and signs public tokens.
    * `branch`: the environment's branch (wire-protocol §3.2).
    * `transport`: how requests travel; for tests in one process (`testing/asgi.py`) and proxies.
    """

    url: str | None = None
    secret_key: str | None = None
    branch: str | None = None
    transport: httpx2.AsyncBaseTransport | None = None


class Target(NamedTuple):
    """A configuration with everything decided."""

    url: str
    secret_key: str | None
    branch: str | None
    transport: httpx2.AsyncBaseTransport | None


_configured = ClientConfig()
_used: ContextVar[ClientConfig | None] = ContextVar("everturn.client", default=None)


def configure(
    *,
    url: str | None = None,
    secret_key: str | None = None,
    branch: str | None = None,
    transport: httpx2.AsyncBaseTransport | None = None,
) -> None:
    """Set server and key for the whole process; what is not named goes back to the defaults."""
    global _configured
    _configured = ClientConfig(url=url, secret_key=secret_key, branch=branch, transport=transport)


@contextmanager
def use(config: ClientConfig) -> Iterator[None]:
    """Make calls inside the block, and in tasks started by it, go where `config` says."""
    token = _used.set(config)
    try:
        yield
    finally:
        _used.reset(token)


def enter(config: ClientConfig) -> None:
    """`use` for the rest of the task this is called in, for tasks that end with their work."""
    _used.set(config)


def is_set() -> bool:
    """Whether this process has said where its calls go, by `configure` or `use`."""
    return _configured != ClientConfig() or _used.get() is not None


def current() -> Target:
    """What calls made here and now would use."""
    return resolve(_used.get() or ClientConfig(), _configured)


def resolve(*configs: ClientConfig, environ: Mapping[str, str] | None = None) -> Target:
    """Merge configurations, the first ones first, then the environment and `dev.json`."""
    environ = os.environ if environ is None else environ
    named = ClientConfig(
        url=environ.get("EVERTURN_API_URL") or None,
        secret_key=environ.get("EVERTURN_SECRET_KEY") or None,
        branch=environ.get("EVERTURN_BRANCH") or None,
    )
    merged = ClientConfig()
    for config in (*configs, named):
        merged = ClientConfig(
            url=merged.url or config.url,
            secret_key=merged.secret_key or config.secret_key,
            branch=merged.branch or config.branch,
            transport=merged.transport or config.transport,
        )
    url, key = merged.url, merged.secret_key
    if url is None or key is None:
        dev_url, dev_key = _dev_file(environ)
        if url is None and key is None and dev_url is not None:
            url, key = dev_url, dev_key
        elif url is None:
            url = dev_url if key == dev_key else None
        elif dev_url is not None and url.rstrip("/") == dev_url.rstrip("/"):
            key = dev_key
    return Target((url or DEFAULT_URL).rstrip("/"), key, merged.branch, merged.transport)


def _dev_file(environ: Mapping[str, str]) -> tuple[str | None, str | None]:
    path = Path(environ.get("EVERTURN_DATA_DIR") or ".everturn") / "dev.json"
    try:
        with path.open("rb") as file:
            content = msgspec.json.decode(file.read(_DEV_FILE_BYTES_MAX))
    except OSError:
        return None, None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigurationError(
            f"{path} is not the file `everturn dev` writes: {error}"
        ) from error
    if not isinstance(content, dict):
        raise ConfigurationError(f"{path} is not the file `everturn dev` writes")
    url, key = content.get("url"), content.get("key")
    return url if isinstance(url, str) else None, key if isinstance(key, str) else None
