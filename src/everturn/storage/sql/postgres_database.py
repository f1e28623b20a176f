"""PostgreSQL: verbs run over psycopg's asyncio connections, several at a time.

SQLAlchemy's asyncio bridge lets the same plain functions run here as on SQLite's thread. The
isolation level is READ COMMITTED, and verbs lock the rows they decide by; where two lock in a ring
all the same, PostgreSQL ends one of them, and it is run again from the start.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Concatenate, Final, ParamSpec, TypeVar

from sqlalchemy import URL, Connection
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from everturn.clock import Clock
from everturn.errors import Conflict, InvalidRequest, Unavailable
from everturn.storage.sql.transaction import Settings, Tx

P = ParamSpec("P")
R = TypeVar("R")

#: serialization_failure and deadlock_detected: nothing happened, and trying again is the cure.
RETRIED: Final = frozenset({"40001", "40P01"})
ATTEMPTS_MAX: Final = 8
BACKOFF_S: Final = 0.01
CONNECTIONS_MAX: Final = 20
#: How long a call waits for a free connection.
POOL_WAIT_S: Final = 10


class PostgresDatabase:
    """Runs verbs on a PostgreSQL database that any number of servers share."""

    def __init__(self, url: URL, settings: Settings, clock: Clock) -> None:
        """`url` names the psycopg driver. Nothing is connected yet."""
        self._settings = settings
        self._clock = clock
        self._closed = False
        self._engine: AsyncEngine = create_async_engine(
            url,
            pool_size=CONNECTIONS_MAX,
            max_overflow=0,
            pool_timeout=POOL_WAIT_S,
            isolation_level="READ COMMITTED",
        )

    async def write(
        self, verb: Callable[Concatenate[Tx, P], R], *args: P.args, **kwargs: P.kwargs
    ) -> R:
        """Run a verb as one transaction, again if the database asks for it."""

        def whole(connection: Connection) -> R:
            return verb(Tx(connection, self._settings), *args, **kwargs)

        for attempt in range(1, ATTEMPTS_MAX + 1):
            try:
                return await self._transact(whole)
            except DBAPIError as error:
                if _sqlstate(error) not in RETRIED or attempt == ATTEMPTS_MAX:
                    raise _translated(error) from error
            longest = BACKOFF_S * 2**attempt
            await self._clock.sleep(self._settings.ids.uniform(longest / 2, longest))
        raise AssertionError("the last attempt returns or raises")

    async def read(
        self, verb: Callable[Concatenate[Tx, P], R], *args: P.args, **kwargs: P.kwargs
    ) -> R:
        """Run a verb that changes nothing."""
        return await self.write(verb, *args, **kwargs)

    async def _transact(self, whole: Callable[[Connection], R]) -> R:
        if self._closed:
            raise Unavailable("the state store is closed")
        try:
            async with self._engine.begin() as connection:
                return await connection.run_sync(whole)
        except PoolTimeout as error:
            raise Unavailable("no connection to the state database is free") from error
        except OSError as error:
            raise Unavailable(f"the state database cannot be reached: {error}") from error

    async def close(self) -> None:
        """Close the connections. Calls in progress should have ended before."""
        self._closed = True
        await self._engine.dispose()


def _sqlstate(error: DBAPIError) -> str | None:
    state: str | None = getattr(error.orig, "sqlstate", None)
    return state


def _translated(error: DBAPIError) -> Unavailable | Conflict | InvalidRequest:
    if isinstance(error, IntegrityError):
        return Conflict(f"the state database refused: {error.orig}")
    if isinstance(error, DataError) and "NUL" in str(error.orig):
        # Of what is looked for: what is stored was checked before (`ports/texts.py`).
        return InvalidRequest("what is asked for holds a NUL character (U+0000)")
    return Unavailable(f"the state database failed: {error.orig}")
