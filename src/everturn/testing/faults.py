"""Faults at the ports, at the link and at the HTTP boundary: one at a time, at the n-th call.

After the way SQLite is tested: fail the first call, then the second, until a whole scenario
outruns the fault. `FaultyCalls` counts the calls at the fault's place and says when it is due;
wrappers around the ports, and the network of `testing/cluster.py`, ask it. Production code has no
test switches.

Two kinds of a failing call are told apart everywhere, because code that gets one right often gets
the other wrong: the call did not take effect, or it did and the answer was lost.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from enum import Enum
from typing import Any, Final, Protocol

import anyio

from everturn.errors import Unavailable


class Place(Enum):
    """Where calls are counted."""

    PORT = "calls of the server into its stores"
    LINK = "messages on worker links, in either direction"
    HTTP = "HTTP requests of clients and of agents"


class Fault(Enum):
    """What happens at the n-th call. The value is what a person reads."""

    REFUSED = "store call refused"
    ANSWER_LOST = "store call carried out, answer lost"
    SERVER_KILLED_BEFORE = "server killed before a store call"
    SERVER_KILLED_AFTER = "server killed after a store call"
    LINK_CUT_BEFORE = "link cut, message lost"
    LINK_CUT_AFTER = "link cut behind a message"
    WORKER_KILLED_BEFORE = "worker killed, message lost"
    WORKER_KILLED_AFTER = "worker killed behind a message"
    LINK_DEAD_TO_SERVER = "link dead towards the server, unnoticed"
    LINK_DEAD_TO_WORKER = "link dead towards the worker, unnoticed"
    WORKER_STALLED = "worker stalled past its lease"
    REQUEST_LOST = "HTTP request lost"
    RESPONSE_LOST = "HTTP request carried out, answer lost"
    REQUEST_TORN = "HTTP request cut short"
    RESPONSE_TORN = "HTTP request carried out, answer cut short"
    UNANSWERED = "HTTP request carried out, never answered"

    @property
    def place(self) -> Place:
        if self in _AT_LINK:
            return Place.LINK
        return Place.HTTP if self in _AT_HTTP else Place.PORT


_AT_LINK: Final = frozenset(
    {
        Fault.LINK_CUT_BEFORE,
        Fault.LINK_CUT_AFTER,
        Fault.WORKER_KILLED_BEFORE,
        Fault.WORKER_KILLED_AFTER,
        Fault.LINK_DEAD_TO_SERVER,
        Fault.LINK_DEAD_TO_WORKER,
        Fault.WORKER_STALLED,
    }
)
_AT_HTTP: Final = frozenset(
    {
        Fault.REQUEST_LOST,
        Fault.RESPONSE_LOST,
        Fault.REQUEST_TORN,
        Fault.RESPONSE_TORN,
        Fault.UNANSWERED,
    }
)


class FaultyCalls:
    """Counts calls; one of them fails.

    Attributes:
        calls: how many calls were made at the fault's place (anywhere, without a fault).
        fired: the name of the call that failed, None until then.
        counts: calls by place.
    """

    def __init__(
        self, fault: Fault | None = None, nth: int = 0, *, only: str | None = None
    ) -> None:
        """Without a fault nothing fails, and all places are counted.

        `only` names the calls that are counted, such as `state.wake_run`; all when None.
        """
        self._fault = fault
        self._nth = nth
        self._only = only
        self.counts: dict[Place, int] = dict.fromkeys(Place, 0)
        self.fired: str | None = None
        self.armed = False

    @property
    def calls(self) -> int:
        if self._fault is None:
            return sum(self.counts.values())
        return self.counts[self._fault.place]

    def due(self, place: Place, name: str) -> Fault | None:
        """Count one call; the fault, if this call is the one that fails."""
        if not self.armed or (self._only is not None and name != self._only):
            return None
        self.counts[place] += 1
        fault = self._fault
        if fault is None or fault.place is not place or self.counts[place] != self._nth:
            return None
        self.fired = name
        return fault

    def store_delay_s(self) -> float:
        """How long a store call, or its answer, is on its way: calls overtake each other."""
        return 0.0


class Process(Protocol):
    """What makes the calls. A dead one can make none."""

    @property
    def dead(self) -> bool: ...

    def kill(self) -> None:
        """End it as `kill -9` does: nothing it does from now on has an effect."""
        ...


#: Its place moves when it answers, so nobody may be cancelled between the answer and its use.
_SUBSCRIPTION: Final = "subscription"


class _Faulty:
    """Every coroutine method of an object of one server process may fail."""

    def __init__(self, target: Any, name: str, faults: FaultyCalls, process: Process) -> None:
        self._target = target
        self._name = name
        self._faults = faults
        self._process = process

    def __getattr__(self, name: str) -> Any:
        member = getattr(self._target, name)
        if not inspect.iscoroutinefunction(member):
            return member
        call = self._guarded(member, f"{self._name}.{name}")
        setattr(self, name, call)  # found without this method from now on
        return call

    def _guarded(self, method: Callable[..., Any], name: str) -> Callable[..., Any]:
        async def call(*args: Any, **options: Any) -> Any:
            self._require_alive()
            fault = self._faults.due(Place.PORT, name)
            if fault is Fault.SERVER_KILLED_BEFORE:
                self._process.kill()
            if fault in (Fault.REFUSED, Fault.SERVER_KILLED_BEFORE):
                raise Unavailable(f"{name} was refused")
            await self._on_the_way()
            answer = await method(*args, **options)
            if self._name != _SUBSCRIPTION:
                await self._on_the_way()
            self._require_alive()
            if fault is Fault.SERVER_KILLED_AFTER:
                self._process.kill()
            if fault is not None:
                raise Unavailable(f"the answer of {name} was lost")
            return answer

        return call

    async def _on_the_way(self) -> None:
        delay_s = self._faults.store_delay_s()
        if delay_s:
            await anyio.sleep(delay_s)
            self._require_alive()

    def _require_alive(self) -> None:
        if self._process.dead:
            raise Unavailable("this process is dead")


class FaultyPort(_Faulty):
    """Stands for a port of one server process.

    Closing it does nothing: the engine outlives the process, as a database does.
    """

    async def close(self) -> None:
        pass

    def subscribe(self, *args: Any) -> Any:
        """A place in a channel, whose `next` may fail too."""
        self._require_alive()
        place = self._target.subscribe(*args)
        return _Faulty(place, _SUBSCRIPTION, self._faults, self._process)
