"""The network of a simulated system: what its weather does to connections and requests."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, cast

import anyio
import httpx2
import pytest
from websockets.exceptions import ConnectionClosedError

from everturn.testing.asgi import AsgiTransport
from everturn.testing.faults import Fault, FaultyCalls
from everturn.testing.network import Network, Weather
from everturn.testing.sockets import LinkSocket
from everturn.testing.virtual_loop import LoopClock, run_virtual


class Machine:
    dead = False
    stalled_s = 0.0

    def kill(self) -> None:
        self.dead = True

    def stall(self, seconds: float) -> None:
        self.stalled_s = seconds


class Ends:
    """Both ends of a link, and what each of them heard."""

    def __init__(self, fault: Fault | None = None, nth: int = 0) -> None:
        self.faults = FaultyCalls(fault, nth)
        self.faults.armed = True
        self.network = Network("key", Weather(), self.faults)
        self.machine = Machine()
        self.socket = LinkSocket(self.network, self.machine)
        self.heard: list[bytes | None] = []
        self.answer: Callable[[bytes], Awaitable[None]]

    async def serve(self, scope: Any, receive: Any, send: Any) -> None:
        assert (await receive())["type"] == "websocket.connect"
        await send({"type": "websocket.accept"})

        async def answer(message: bytes) -> None:
            await send({"type": "websocket.send", "bytes": message})

        self.answer = answer
        while True:
            event = await receive()
            self.heard.append(event.get("bytes"))
            if event["type"] == "websocket.disconnect":
                return


def on_a_link(
    script: Callable[[Ends], Awaitable[None]], fault: Fault | None = None, nth: int = 0
) -> Ends:
    """Run a script with an open link on a virtual loop."""
    kept: list[Ends] = []

    async def main() -> None:
        ends = Ends(fault, nth)
        kept.append(ends)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ends.socket.serve, cast("Any", ends.serve))
            await ends.socket.accepted.wait()
            await script(ends)
            tasks.cancel_scope.cancel()

    run_virtual(main)
    return kept[0]


def test_a_dead_direction_carries_nothing_not_even_the_end() -> None:
    async def script(ends: Ends) -> None:
        await ends.socket.send(b"one")
        await anyio.sleep(1)
        ends.socket.to_server.dead = True
        await ends.socket.send(b"two")
        await ends.socket.close()
        await anyio.sleep(600)
        with pytest.raises(ConnectionClosedError):
            await ends.socket.recv()

    assert on_a_link(script).heard == [b"one"]


def test_a_connection_that_is_dead_towards_the_worker_leaves_it_waiting() -> None:
    async def script(ends: Ends) -> None:
        ends.socket.to_worker.dead = True
        await ends.answer(b"lost")
        ends.socket.cut()
        with anyio.move_on_after(600) as waiting:
            await ends.socket.recv()
        assert waiting.cancelled_caught
        await ends.socket.send(b"into nowhere")

    assert on_a_link(script).heard == [None]


def test_a_held_direction_delivers_everything_later_and_in_order() -> None:
    async def script(ends: Ends) -> None:
        ends.socket.to_server.held_until = anyio.current_time() + 20
        for message in (b"one", b"two"):
            await ends.socket.send(message)
        await anyio.sleep(19)
        assert ends.heard == []
        await anyio.sleep(2)

    assert on_a_link(script).heard == [b"one", b"two"]


@pytest.mark.parametrize(
    ("fault", "heard"),
    [
        (Fault.LINK_DEAD_TO_SERVER, [b"one"]),
        (Fault.LINK_DEAD_TO_WORKER, [b"one", b"two"]),
        (Fault.WORKER_STALLED, [b"one", b"two"]),
    ],
)
def test_a_fault_strikes_at_its_message(fault: Fault, heard: list[bytes]) -> None:
    async def script(ends: Ends) -> None:
        for message in (b"one", b"two"):
            await ends.socket.send(message)
            await anyio.sleep(1)

    ends = on_a_link(script, fault, 2)
    assert ends.heard == heard
    assert ends.faults.fired == "to server"
    assert (ends.machine.stalled_s > 0) is (fault is Fault.WORKER_STALLED)


class Bad(Weather):
    """One fate for every request, and bodies in two pieces."""

    def __init__(self, fate: Fault | None) -> None:
        self.fate = fate

    def request_fate(self) -> Fault | None:
        return self.fate

    def split_at(self, size: int) -> int:
        return size // 2


class App:
    """Answers a body with its length, and remembers what came whole."""

    def __init__(self) -> None:
        self.stored: list[bytes] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            event = await receive()
            if event["type"] != "http.request":
                return
            body += event.get("body", b"")
            more = event.get("more_body", False)
        self.stored.append(body)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"stored %d" % len(body)})


def ask(fate: Fault | None) -> tuple[str, App, float]:
    """Post to an application through bad weather: `(answer or error, application, seconds)`."""
    app = App()

    async def main() -> tuple[str, App, float]:
        network = Network("key", Bad(fate), FaultyCalls())
        async with AsgiTransport(cast("Any", app)) as http:
            network.server = cast("Any", type("Reached", (), {"app": app, "http": http}))
            timeout = httpx2.Timeout(60)
            async with httpx2.AsyncClient(transport=network.http(), timeout=timeout) as client:
                began = anyio.current_time()
                try:
                    said = (await client.post("http://x.test/", content=b"0123456789")).text
                except httpx2.TransportError as error:
                    said = type(error).__name__
                return said, app, anyio.current_time() - began

    return run_virtual(main)


@pytest.mark.parametrize(
    ("fate", "said", "stored"),
    [
        (None, "stored 10", [b"0123456789"]),
        (Fault.REQUEST_TORN, "ReadError", []),
        (Fault.RESPONSE_TORN, "ReadError", [b"0123456789"]),
        (Fault.UNANSWERED, "ReadTimeout", [b"0123456789"]),
    ],
)
def test_a_request_meets_its_fate(fate: Fault | None, said: str, stored: list[bytes]) -> None:
    answer, app, took_s = ask(fate)
    assert answer == said
    assert app.stored == stored
    assert (took_s >= 60) is (fate is Fault.UNANSWERED)


def test_a_clock_that_jumps_leaves_the_stopwatch_alone() -> None:
    async def main() -> tuple[int, float]:
        clock = LoopClock()
        wall, stopwatch = clock.now_ms(), clock.monotonic()
        clock.jump(-3_600_000)
        await clock.sleep(1)
        return clock.now_ms() - wall, clock.monotonic() - stopwatch

    assert run_virtual(main) == (-3_599_000, 1.0)
