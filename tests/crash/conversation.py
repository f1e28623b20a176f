"""What the crash tests do to a real system: talk, kill, restart, read the records back."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable
from functools import partial
from urllib.parse import quote

import anyio

from everturn.client.agent_chat import AgentChat
from everturn.protocol.records import Record
from everturn.testing.checker import Turn, check_history
from everturn.testing.processes import System

SETTLE_S = 30.0


class Conversations:
    """Helpers around one system. Everything that blocks runs in a thread."""

    def __init__(self, system: System) -> None:
        self.system = system

    async def in_thread(self, work: Callable[..., object], *arguments: object) -> None:
        await anyio.to_thread.run_sync(partial(work, *arguments))

    async def restart_worker(self) -> None:
        """kill -9 the worker, and start another; returns as soon as it is started."""
        self.system.kill_worker()
        await self.in_thread(partial(self.system.start_worker, wait=False))

    async def restart_server(self) -> None:
        """kill -9 the server, and start it again; returns when it answers."""
        self.system.kill_server()
        await self.in_thread(self.system.start_server)

    async def restart_both(self) -> None:
        self.system.kill_server()
        self.system.kill_worker()
        await self.in_thread(self.system.start_server)
        await self.in_thread(self.system.start_worker)

    async def ask(self, chat: AgentChat, text: str) -> str:
        """One message and its whole answer, as a reader ends up with it."""
        stream = await chat.send_message(text)
        answer = await stream.text()
        assert stream.complete, f"the answer to {text!r} ended early\n{self.system.logs()}"
        stream.raise_for_error()
        return answer

    async def records(self, session: str, io: str) -> list[Record]:
        """Every record ever stored on a channel, trimmed ones included."""
        return await anyio.to_thread.run_sync(self._records, session, io)

    def _records(self, session: str, io: str) -> list[Record]:
        url = (
            f"{self.system.url}/realtime/v1/sessions/{quote(session, safe='')}/{io}"
            "?includeTrimmed=true"
        )
        request = urllib.request.Request(
            url, headers={"Authorization": f"Bearer {self.system.key}", "Timeout-Seconds": "1"}
        )
        found: list[Record] = []
        with urllib.request.urlopen(request, timeout=20) as answer:
            for line in answer:
                if line.startswith(b'data: {"records"'):
                    for r in json.loads(line[6:])["records"]:
                        headers = tuple((n, v) for n, v in r.get("headers", []))
                        body = r.get("body", "").encode()
                        found.append(Record(r["seq_num"], r["timestamp"], headers, body))
        return found

    async def settled(self, session: str, turns: int) -> list[Turn]:
        """Wait until that many turns are complete, then check the whole history."""
        with anyio.move_on_after(SETTLE_S):
            while True:
                out = await self.records(session, "out")
                if sum(1 for r in out if r.control == "turn-complete") >= turns:
                    break
        history = check_history(
            await self.records(session, "in"), await self.records(session, "out")
        )
        assert len(history) == turns, f"{len(history)} turns\n{self.system.logs()}"
        return history
