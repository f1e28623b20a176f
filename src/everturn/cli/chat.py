"""`everturn chat AGENT`: a conversation in the terminal.

Ctrl-C once stops the answer that is being written; twice leaves. What is typed while an answer
streams is sent as the next message. With standard input that is no terminal, each line is one
message and the command ends with the input, so scripts can use it: the exit status is 1 when an
answer failed, and a message that could not be sent ends it at once.

A call that waits for approval is decided by typing yes or no; anything else is the next message.
"""

from __future__ import annotations

import queue
import signal
import sys
import threading
from collections.abc import AsyncIterator, Mapping
from typing import Annotated, Any

import anyio
import anyio.from_thread
import anyio.lowlevel
from cyclopts import Parameter

from everturn.cli.approvals import Approvals
from everturn.cli.output import TRIES, complain, console, print_json, stderr
from everturn.client.agent_chat import AgentChat
from everturn.client.api import Api
from everturn.client.chat_stream import ChatStream
from everturn.errors import EverturnError, Unprocessable

#: Two Ctrl-C within this many seconds leave.
TWICE_S = 2.0


def chat(
    agent: Annotated[str, Parameter(help="Id of the agent.")],
    *,
    id: Annotated[str | None, Parameter(help="Continue this chat, or name a new one.")] = None,
    message: Annotated[
        str | None, Parameter(name=["--message", "-m"], help="Send this one message and leave.")
    ] = None,
    as_json: Annotated[
        bool, Parameter(name="--json", help="With --message: print the result as JSON.")
    ] = False,
) -> None:
    """Talk to an agent. Ctrl-C stops an answer, twice leaves; `/quit` leaves too."""
    conversation = _Conversation(agent, id)
    if message is not None:
        try:
            status = anyio.run(conversation.once, message, as_json)
        except Unprocessable as error:
            status = 1
            complain(str(error), anyio.run(conversation.others))
    else:
        status = anyio.run(conversation.run)
    if status:
        sys.exit(status)


class _Conversation:
    def __init__(self, agent: str, chat_id: str | None) -> None:
        self._agent = agent
        self._chat_id = chat_id
        self._stream: ChatStream | None = None
        self._approvals = Approvals()
        self._interrupted_at: float | None = None

    async def once(self, message: str, as_json: bool) -> int:
        """One message, one answer."""
        async with AgentChat(self._agent, id=self._chat_id) as chat:
            stream = await chat.send_message(message)
            if not as_json:
                status = await self._show(stream)
                if self._approvals.open():
                    stderr().print("[dim]it waits for an approval: leave out -m to be asked[/]")
                return status
            result = await stream.result()
            print_json(
                {
                    "chat": chat.id,
                    "text": result.text,
                    "error": stream.error,
                    "complete": stream.complete,
                    "lastEventId": chat.session.last_event_id,
                }
            )
            return 0 if stream.error is None and stream.complete else 1

    async def run(self) -> int:
        """Messages from standard input until it ends, `/quit`, or two Ctrl-C.

        A person reads what went wrong and tries again; a script stops at a message that could not
        be sent, because its next one would belong to another conversation.
        """
        status = 0
        async with AgentChat(self._agent, id=self._chat_id) as chat:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._watch_interrupts, chat, tasks.cancel_scope)
                if sys.stdin.isatty():
                    stderr().print(f"[dim]chat {chat.id} · Ctrl-C stops an answer, twice leaves[/]")
                async for line in _lines():
                    text = line.strip()
                    if text in ("/quit", "/exit"):
                        break
                    if not text:
                        continue
                    try:
                        self._stream = await self._send(chat, text)
                        status |= await self._show(self._stream)
                        self._ask()
                    except EverturnError as error:
                        status = 1
                        unknown = isinstance(error, Unprocessable)
                        complain(str(error), await self.others() if unknown else None)
                        if not sys.stdin.isatty():
                            break
                    finally:
                        self._stream = None
                tasks.cancel_scope.cancel()
            if sys.stdin.isatty():
                stderr().print(f"[dim]go on with:[/] everturn chat {self._agent} --id {chat.id}")
                return 0
        return status

    async def _send(self, chat: AgentChat, text: str) -> ChatStream:
        """Send what was typed: the decision that the answer before asks for, or a message."""
        decided = self._approvals.decided(text)
        return await (chat.send_message(text) if decided is None else chat.send_raw([decided]))

    def _ask(self) -> None:
        for tool in self._approvals.open():
            stderr().print(f"{tool} waits for your approval: yes or no?", markup=False)

    async def others(self) -> str | None:
        """A hint for a name nobody answers to: the names there are. None when it is one of them."""
        try:
            tasks = await Api(tries=TRIES).list_tasks()
        except EverturnError:
            return None  # what was wrong in the first place has been said
        names = [task["id"] for task in tasks if task["kind"] != "task"]
        if not names:
            return "No worker with an agent has connected there yet: `everturn worker APP`."
        if self._agent in names:
            return None
        return f"Agents that are known there: {', '.join(names)}"

    async def _watch_interrupts(self, chat: AgentChat, scope: anyio.CancelScope) -> None:
        with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as received:
            async for number in received:
                now = anyio.current_time()
                last, self._interrupted_at = self._interrupted_at, now
                if number == signal.SIGTERM or (last is not None and now - last < TWICE_S):
                    scope.cancel()
                    return
                if self._stream is not None:
                    stderr().print("\n[dim]stopping… (Ctrl-C again leaves)[/]")
                    await chat.stop()
                else:
                    stderr().print("\n[dim]Ctrl-C again leaves[/]")

    async def _show(self, stream: ChatStream) -> int:
        """Print an answer as it grows. 0 when it ended well."""
        out = console()
        self._approvals = Approvals()
        async for chunk in stream:
            self._approvals.feed(chunk)
            _print_chunk(chunk)
        out.print()
        if stream.error is not None:
            stderr().print(stream.error, style="red", markup=False)
            return 1
        if not stream.complete:
            stderr().print("[yellow]the answer went silent before its end[/]")
            return 1
        return 0


def _print_chunk(chunk: Mapping[str, Any]) -> None:
    out = console()
    match chunk["type"]:
        case "text-delta":
            out.print(chunk["delta"], end="", markup=False)
        case "reasoning-delta":
            out.print(chunk["delta"], end="", markup=False, style="dim italic")
        case "tool-input-available":
            out.print(f"\n⚙ {chunk['toolName']} {chunk.get('input')}", markup=False, style="dim")
        case "tool-output-available" if not chunk.get("preliminary"):
            out.print(f"⚙ → {_short(chunk.get('output'))}", markup=False, style="dim")
        case "tool-output-error":
            out.print(f"⚙ → {chunk.get('errorText')}", markup=False, style="red")
        case "data-restarted":
            out.print("\n(the worker went away; answered anew)", style="dim")
        case "abort":
            out.print(" (stopped)", style="dim", end="")


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 200 else text[:200] + "…"


async def _lines() -> AsyncIterator[str]:
    """Lines of standard input, read in a daemon thread so that leaving never waits for one."""
    lines: queue.Queue[str | None] = queue.Queue()
    arrived = anyio.Event()
    prompt = "you> " if sys.stdin.isatty() else ""
    wanted = threading.Semaphore(0)

    def read(token: anyio.lowlevel.EventLoopToken) -> None:
        nonlocal arrived
        while True:
            wanted.acquire()
            try:
                lines.put(input(prompt))
            except (EOFError, KeyboardInterrupt):
                lines.put(None)
            anyio.from_thread.run_sync(arrived.set, token=token)

    token = anyio.lowlevel.current_token()
    threading.Thread(target=read, args=(token,), daemon=True, name="stdin").start()
    while True:
        wanted.release()
        await arrived.wait()
        arrived = anyio.Event()
        line = lines.get()
        if line is None:
            return
        yield line
