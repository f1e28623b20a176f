"""Messages between a worker, its zygote and its children: msgpack behind a four-byte length."""

from __future__ import annotations

import socket
from typing import Any, Final

import msgspec

from everturn.errors import ProtocolError

_HEAD: Final = 4
PACKET_BYTES_MAX: Final = 64 * 1024 * 1024

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder().decode


def pack(value: Any) -> bytes:
    data = _encode(value)
    return len(data).to_bytes(_HEAD, "big") + data


class Unpacker:
    """Bytes in any cut to messages."""

    def __init__(self) -> None:
        self._held = bytearray()

    def feed(self, data: bytes) -> list[Any]:
        """The messages that are complete now. Raises ProtocolError for one over the bound."""
        self._held += data
        found = []
        while len(self._held) >= _HEAD:
            size = int.from_bytes(self._held[:_HEAD], "big")
            if size > PACKET_BYTES_MAX:
                raise ProtocolError(f"a packet of {size} bytes, at most {PACKET_BYTES_MAX}")
            if len(self._held) < _HEAD + size:
                break
            found.append(_decode(bytes(self._held[_HEAD : _HEAD + size])))
            del self._held[: _HEAD + size]
        return found


def send(sock: socket.socket, value: Any) -> None:
    """Send one message, blocking."""
    sock.sendall(pack(value))


def receive(sock: socket.socket) -> Any:
    """The next message, blocking. Raises EOFError when the other side is gone."""
    size = int.from_bytes(_exactly(sock, _HEAD), "big")
    if size > PACKET_BYTES_MAX:
        raise ProtocolError(f"a packet of {size} bytes, at most {PACKET_BYTES_MAX}")
    return _decode(_exactly(sock, size))


def _exactly(sock: socket.socket, count: int) -> bytes:
    held = bytearray()
    while len(held) < count:
        data = sock.recv(min(count - len(held), 1 << 20))
        if not data:
            raise EOFError("the other side is gone")
        held += data
    return bytes(held)
