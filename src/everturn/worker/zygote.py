"""The zygote: a process that has imported the app, and forks a child for each sync run.

`python -m everturn.worker.zygote <control fd> <app>`. Importing what an agent needs takes a
second, a fork of a process that has done so milliseconds; and a fork is safe only in a process
without threads and loops, which is why the worker does not fork itself.

On the control socket, from the worker: a byte with the descriptor of a new run's socket (fork),
or a process id in a message (kill it). To the worker: `["ready"]` or `["failed", text]` once,
`["forked", pid]` for each run in order, and `["exit", pid, status]` when a child has ended. When
the worker is gone, the zygote kills what it forked and leaves.
"""

from __future__ import annotations

import array
import contextlib
import gc
import os
import select
import signal
import socket
import struct
import sys
from typing import Final

from everturn.errors import ConfigurationError
from everturn.worker import packets

FORK: Final = b"f"
KILL: Final = b"k"
#: Every message of the worker has this size: a letter and a process id.
MESSAGE: Final = struct.Struct(">cI")


def main(control_fd: int, app_name: str) -> int:
    """Import the app and serve forks until the worker is gone."""
    from everturn.worker.child import run_child
    from everturn.worker.loading import load_app

    control = socket.socket(fileno=control_fd)
    # The worker decides when its children end; a terminal's Ctrl-C goes to all of us.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        app = load_app(app_name)
    except ConfigurationError as error:
        packets.send(control, ["failed", error.message])
        return 1
    gc.collect()
    gc.freeze()
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    packets.send(control, ["ready"])
    children: set[int] = set()
    sources: list[int] = [control.fileno(), wake_read]
    while True:
        ready, _, _ = select.select(sources, [], [])
        if wake_read in ready:
            os.read(wake_read, 4096)
            _reap(control, children)
        if control.fileno() not in ready:
            continue
        message, descriptors = _receive(control)
        if message is None:
            for pid in children:
                os.kill(pid, signal.SIGKILL)
            return 0
        letter, pid = message
        if letter == KILL and pid in children:
            os.kill(pid, signal.SIGKILL)
        if letter == FORK:
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                control.close()
                os.close(wake_read)
                os.close(wake_write)
                os._exit(run_child(app, socket.socket(fileno=descriptors[0])))
            for descriptor in descriptors:
                os.close(descriptor)
            children.add(pid)
            packets.send(control, ["forked", pid])


def _receive(control: socket.socket) -> tuple[tuple[bytes, int] | None, list[int]]:
    """One message and the descriptors that came with it; None when the worker is gone."""
    descriptors = array.array("i")
    data = b""
    while len(data) < MESSAGE.size:
        piece, ancillary, _, _ = control.recvmsg(MESSAGE.size - len(data), socket.CMSG_SPACE(4))
        if not piece:
            return None, []
        data += piece
        for level, kind, content in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                descriptors.frombytes(content[: len(content) - len(content) % 4])
    letter, pid = MESSAGE.unpack(data)
    return (letter, pid), list(descriptors)


def _reap(control: socket.socket, children: set[int]) -> None:
    while children:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        children.discard(pid)
        with contextlib.suppress(OSError):
            packets.send(control, ["exit", pid, os.waitstatus_to_exitcode(status)])


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2]))
