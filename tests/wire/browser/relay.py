"""The road between a browser and a server, which a test can close and open again."""

from __future__ import annotations

import selectors
import socket
import threading
from contextlib import suppress
from types import TracebackType
from typing import Self

CHUNK_BYTES = 65_536


class Relay:
    """Carries TCP connections of one loopback port to another one.

    `freeze` is what a lost network looks like from inside a browser: connections stay open and
    nothing comes or goes. `thaw` carries new connections again; those that were frozen are reset,
    and nothing of what waited in them is delivered.

    One thread carries everything; the test's own thread only flips its state.
    """

    def __init__(self, target_port: int) -> None:
        self._target = ("127.0.0.1", target_port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._other: dict[socket.socket, socket.socket] = {}
        self._frozen = False
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._carry, name="relay")
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()
        self.thaw()
        self._selector.close()
        self._listener.close()

    def freeze(self) -> None:
        with self._lock:
            self._frozen = True

    def thaw(self) -> None:
        with self._lock:
            for end in list(self._other):
                self._close(end)
            self._frozen = False

    def _carry(self) -> None:
        while not self._ended.is_set():
            if self._frozen:
                # What waits in the sockets keeps them ready: looking at them would never pause.
                self._ended.wait(0.02)
                continue
            ready = self._selector.select(timeout=0.02)
            with self._lock:
                for key, _ in ready if not self._frozen else ():
                    self._serve(key.fileobj)

    def _serve(self, end: object) -> None:
        if end is self._listener:
            self._open()
        elif isinstance(end, socket.socket) and end in self._other:
            data = b""
            with suppress(OSError):
                data = end.recv(CHUNK_BYTES)
            if not data:
                self._close(end)
                return
            with suppress(OSError):
                self._other[end].sendall(data)

    def _open(self) -> None:
        near, _ = self._listener.accept()
        try:
            far = socket.create_connection(self._target, timeout=5)
        except OSError:
            near.close()
            return
        self._other[near], self._other[far] = far, near
        for end in (near, far):
            self._selector.register(end, selectors.EVENT_READ)

    def _close(self, end: socket.socket) -> None:
        """Close a connection, both of its ends."""
        for closing in (end, self._other.get(end)):
            if closing is not None and self._other.pop(closing, None) is not None:
                self._selector.unregister(closing)
                closing.close()
