"""Putting a server together: engines by URL, services on them, the application, the sweeps.

The only module that names engines. `build(settings)` opens them in the order in which they are
needed and closes them in reverse, after the sweeps and the reader clock have ended:

    async with build(Settings(data_dir=".everturn")) as system:
        await serve(system)

Engines are imported when they are chosen, so that a server in memory loads no database driver.

The master key encrypts secret keys at rest. It is the setting if there is one, else the file
`master.key` of the data folder, made on first use and readable by its owner only; without a
folder (tests, all in memory) it lives as long as the process.
"""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import anyio
import anyio.abc

from everturn.clock import Clock, SystemClock
from everturn.errors import ConfigurationError
from everturn.ids import Ids, RandomIds
from everturn.server.app import App
from everturn.server.routes.reading import Readers
from everturn.server.services import Services
from everturn.server.services.keys import Keys, environment_id_of, opens
from everturn.server.settings import MEMORY_URL, Settings
from everturn.server.sweeps import run_sweeps
from everturn.storage.folders import make_folders, write_once

if TYPE_CHECKING:
    from everturn.storage.ports.examination import StateFindings, StreamFindings
    from everturn.storage.ports.rows import ApiKey, Environment
    from everturn.storage.ports.snapshots import ObjectStore
    from everturn.storage.ports.state import StateStore
    from everturn.storage.ports.streams import StreamStore
    from everturn.storage.ports.wakeups import Wakeups

log = logging.getLogger("everturn.server")

MASTER_KEY_FILE: Final = "master.key"
MASTER_KEY_BYTES: Final = 32


@dataclass(frozen=True, kw_only=True)
class System:
    """A running server, apart from its socket."""

    settings: Settings
    services: Services
    #: The ASGI application.
    app: App
    #: The environment the settings name.
    environment: Environment
    #: A secret key of that environment: the fixed one, or in development one that was kept or
    #: made. None when keys are made by hand (`everturn keys`).
    secret_key: str | None

    @property
    def ready(self) -> bool:
        """Whether a worker serves the environment, or any other."""
        return self.services.links.serving


@asynccontextmanager
async def build(
    settings: Settings,
    *,
    clock: Clock | None = None,
    ids: Ids | None = None,
    streams: StreamStore | None = None,
    state: StateStore | None = None,
    objects: ObjectStore | None = None,
    wakeups: Wakeups | None = None,
) -> AsyncIterator[System]:
    """Open the engines, start the sweeps, hand out the system; stop and close at the end.

    Args:
        clock, ids: where time and chance come from; the machine's own by default.
        streams, state, objects, wakeups: opened engines in place of those the settings name; the
            first two are closed at the end.

    Raises ConfigurationError when the settings cannot work.
    """
    clock = clock or SystemClock()
    ids = ids or RandomIds()
    async with AsyncExitStack() as stack:
        _make_data_folder(settings)
        state = state or await _open_state(settings, clock, ids)
        stack.push_async_callback(state.close)
        streams = streams or await _open_streams(settings, clock)
        stack.push_async_callback(streams.close)
        services = Services(
            settings=settings,
            clock=clock,
            ids=ids,
            state=state,
            streams=streams,
            objects=objects or _open_objects(settings),
            wakeups=wakeups or _open_wakeups(),
            master_key=_master_key(settings),
        )
        environment, secret_key = await _open_environment(services)
        readers = Readers(clock, ids, readers_max=settings.readers_max)
        system = System(
            settings=settings,
            services=services,
            app=App(services, readers),
            environment=environment,
            secret_key=secret_key,
        )
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(readers.run, name="readers")
            tasks.start_soon(run_sweeps, services, name="sweeps")
            log.info("server.opened", extra={"environment": environment.slug})
            try:
                yield system
            finally:
                tasks.cancel_scope.cancel()


@dataclass(frozen=True, kw_only=True)
class KeyRing:
    """The secret keys of one environment, without a server around them."""

    state: StateStore
    keys: Keys
    #: None when it was not made yet, and not to be made by asking.
    environment: Environment | None

    async def fits(self) -> bool:
        """Whether any key in use opens under this master key, or there is none in use yet.

        Where it does not, another master key is the server's: tokens signed with a key made here
        would be refused there.
        """
        in_use = [
            key
            for environment in await self.state.environments()
            for key in await self.state.keys(environment.id)
            if key.revoked_at_ms is None
        ]
        return not in_use or any(self.keys.opens(key) for key in in_use)

    async def usable_elsewhere(self) -> tuple[str, ...]:
        """The slugs of other environments that have keys which were not revoked."""
        found = []
        for environment in await self.state.environments():
            keys = await self.state.keys(environment.id)
            if environment != self.environment and any(k.revoked_at_ms is None for k in keys):
                found.append(environment.slug)
        return tuple(found)


@asynccontextmanager
async def open_keys(settings: Settings, *, make: bool = True) -> AsyncIterator[KeyRing]:
    """The keys of the settings' environment, for commands that manage them.

    Opens the state only, which a running server may have open at the same time.

    Args:
        make: whether the environment is made when it is not there.
    """
    _make_data_folder(settings)
    clock, ids = SystemClock(), RandomIds()
    state = await _open_state(settings, clock, ids)
    try:
        slug = settings.environment
        if make:
            await state.ensure_environment(slug, now_ms=clock.now_ms())
        known = await state.environments()
        environment = next((one for one in known if one.slug == slug), None)
        keys = Keys(state, clock, ids, _master_key(settings))
        yield KeyRing(state=state, keys=keys, environment=environment)
    finally:
        await state.close()


# --- looking without opening ---------------------------------------------------------------------


def examine_streams(settings: Settings) -> StreamFindings | None:
    """What the stream store holds, read without opening it; None where there is no file to read.

    Blocking: reads all of it.
    """
    scheme, _, name = settings.streams.partition(":///")
    if scheme != "sqlite" or not Path(name).exists():
        return None
    from everturn.storage.sqlite.examination import examine

    return examine(Path(name))


def examine_state(settings: Settings, *, now_ms: int) -> StateFindings | None:
    """What the state store holds, read without opening it; None for state in memory.

    Blocking. Raises Unavailable when it cannot be read, ConfigurationError for a URL that is none.
    """
    if settings.database == MEMORY_URL:
        return None
    from everturn.storage.sql.examination import examine

    return examine(settings.database, now_ms=now_ms)


def closed_keys(settings: Settings, keys: Sequence[ApiKey]) -> int:
    """How many of these do not open under the master key, which is not made by asking.

    Raises ConfigurationError when there is none, or one that cannot be.
    """
    if settings.master_key is not None:
        master = bytes.fromhex(settings.master_key)
    elif settings.folder is None:
        raise ConfigurationError("there is no master key: no data folder and no setting")
    else:
        path = settings.folder / MASTER_KEY_FILE
        try:
            master = _parsed_master_key(path, path.read_bytes())
        except OSError as error:
            raise ConfigurationError(f"{path}: {error.strerror}") from error
    return sum(not opens(master, key) for key in keys)


def _make_data_folder(settings: Settings) -> None:
    """The folder of the embedded engines, closed to other users. Raises ConfigurationError."""
    folder = settings.folder
    if folder is None:
        return
    try:
        make_folders(folder.absolute().parent, mode=0o777)  # less the umask, as for any folder
        make_folders(folder.absolute())
    except OSError as error:
        raise ConfigurationError(f"{folder} cannot be made: {error.strerror}") from error


# --- engines by URL ------------------------------------------------------------------------------


async def _open_state(settings: Settings, clock: Clock, ids: Ids) -> StateStore:
    url = settings.database
    if url == MEMORY_URL:
        from everturn.storage.memory.state import MemoryState

        return MemoryState()
    from everturn.storage.sql import SqlState

    return await SqlState.open(url, clock=clock, ids=ids, sync=settings.sync)


async def _open_streams(settings: Settings, clock: Clock) -> StreamStore:
    url = settings.streams
    if url == MEMORY_URL:
        from everturn.storage.memory.streams import MemoryStreams

        return MemoryStreams(clock)
    scheme, _, path = url.partition(":///")
    if scheme != "sqlite" or not path:
        raise ConfigurationError(f"no stream engine for {scheme!r}: sqlite and memory exist")
    from everturn.storage.sqlite import SqliteStreams

    return await SqliteStreams.open(Path(path), clock, sync=settings.sync)


def _open_objects(settings: Settings) -> ObjectStore:
    url = settings.objects
    if url == MEMORY_URL:
        from everturn.storage.memory.objects import MemoryObjects

        return MemoryObjects()
    from everturn.storage.objects import open_objects

    if settings.objects_url is None and settings.folder is not None:
        # As a path and not as a URL, because a folder's name may hold what a URL would decode.
        return open_objects(settings.folder.absolute() / "objects")
    return open_objects(url)


def _open_wakeups() -> Any:
    from everturn.storage.memory.wakeups import MemoryWakeups

    return MemoryWakeups()


# --- keys ----------------------------------------------------------------------------------------


def _master_key(settings: Settings) -> bytes:
    """The key that encrypts secret keys. Raises ConfigurationError for a file that is not one."""
    if settings.master_key is not None:
        return bytes.fromhex(settings.master_key)
    if settings.folder is None:
        return os.urandom(MASTER_KEY_BYTES)
    path = settings.folder / MASTER_KEY_FILE
    try:
        return _parsed_master_key(
            path, write_once(path, os.urandom(MASTER_KEY_BYTES).hex().encode())
        )
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}") from error


def _parsed_master_key(path: Path, text: bytes) -> bytes:
    try:
        key = bytes.fromhex(text.decode("ascii").strip())
    except ValueError:
        key = b""
    if len(key) != MASTER_KEY_BYTES:
        raise ConfigurationError(f"{path} is not a master key of {MASTER_KEY_BYTES} bytes in hex")
    return key


async def _open_environment(services: Services) -> tuple[Environment, str | None]:
    """The environment of the settings, and a secret key of it where there should be one.

    A fixed key decides the id of the environment when it is made, so that tokens stay good when
    a data folder is thrown away and the key is not.
    """
    settings, now_ms = services.settings, services.clock.now_ms()
    fixed = settings.secret_key
    environment = await services.state.ensure_environment(
        settings.environment,
        now_ms=now_ms,
        id=None if fixed is None else environment_id_of(fixed),
    )
    if fixed is not None:
        await services.keys.adopt(environment, fixed)
        return environment, fixed
    for key in await services.state.keys(environment.id):
        if key.revoked_at_ms is None:
            return environment, services.keys.reveal(key)
    if environment.type != "dev":
        return environment, None
    return environment, (await services.keys.create(environment))[1]
