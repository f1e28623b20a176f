"""What `make demo` runs: a conversation whose worker is killed -9 in the middle of an answer.

Starts a server and a worker as processes of their own on a temporary directory, talks to the
example agent, kills the worker while it streams, starts another one, and keeps reading the same
stream: the answer is begun anew and completed without sending anything again. At the end it
reads the session's records back and checks that nothing was lost or doubled. Exits 0 if so.
"""

from __future__ import annotations

import json
import sys
import tempfile
import urllib.request
from pathlib import Path

import anyio
from rich.console import Console

from everturn import AgentChat, runs, sessions
from everturn.client.config import configure
from everturn.protocol.records import Record, data_body
from everturn.testing.checker import check_history
from everturn.testing.processes import System

HERE = Path(__file__).parent
QUESTIONS = (
    "Hello! Who are you?",
    "Tell me why conversations should survive a crash.",
    "Thank you. Did you notice anything?",
)
console = Console(highlight=False, soft_wrap=True)


async def ask(chat: AgentChat, question: str, *, kill_after: int = 0, system: System) -> str:
    """Send one question and show the answer as it grows. Returns the answer as it ended."""
    console.print(f"[bold]you[/]        {question}")
    stream = await chat.send_message(question)
    console.print("[bold]assistant[/]  ", end="")
    answer, words = "", 0
    async for chunk in stream:
        if chunk["type"] == "data-restarted":
            console.print(
                "\n[dim]           … answered again by the next attempt:[/]\n           ", end=""
            )
            answer = ""
        elif chunk["type"] == "text-delta":
            console.print(chunk["delta"], end="")
            answer += chunk["delta"]
            words += 1
            if words == kill_after:
                await kill_and_replace(system)
    console.print()
    stream.raise_for_error()
    if not stream.complete:
        raise SystemExit("the answer ended without its turn-complete")
    return answer


async def kill_and_replace(system: System) -> None:
    pid = system.workers[-1].pid
    system.kill_worker()
    console.print(f"\n[red]           ✗ worker {pid} killed -9 in the middle of its answer[/]")
    await anyio.to_thread.run_sync(lambda: system.start_worker(wait=False))
    console.print(f"[dim]           started worker {system.workers[-1].pid}[/]")


def stored(system: System, key: str, io: str) -> list[Record]:
    """Every record ever stored on a channel, trimmed ones included."""
    request = urllib.request.Request(
        f"{system.url}/realtime/v1/sessions/{key}/{io}/records?includeTrimmed=true",
        headers={"Authorization": f"Bearer {system.key}"},
    )
    with urllib.request.urlopen(request, timeout=20) as answer:
        found = json.load(answer)["records"]
    return [
        Record(
            record["seqNum"],
            0,
            tuple((name, value) for name, value in record.get("headers", [])),
            data_body(json.dumps(record["data"]).encode(), record["id"]) if record["id"] else b"",
        )
        for record in found
    ]


async def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        system = System(Path(folder), HERE / "assistant.py")
        with system:
            configure(url=system.url, secret_key=system.key)
            console.print(f"[dim]server on {system.url}, worker {system.workers[0].pid}[/]\n")
            async with AgentChat("assistant") as chat:
                for number, question in enumerate(QUESTIONS):
                    await ask(chat, question, kill_after=8 if number == 1 else 0, system=system)
                console.print("\n[bold]the runs that served it[/]")
                session = await sessions.retrieve(chat.id)
                async for run in runs.list(tag=f"chat:{chat.id}"):
                    detail = await runs.retrieve(run.id)
                    current = " (current)" if run.id == session.current_run_id else ""
                    console.print(
                        f"  {run.id}  {detail.status:<10} attempts: {detail.attempt_count}{current}"
                    )
                return await anyio.to_thread.run_sync(check, system, chat.id)


def check(system: System, chat_id: str) -> int:
    """Judge the whole log: every question once in `in`, each answered by one turn on `out`."""
    asked = stored(system, chat_id, "in")
    turns = check_history(asked, stored(system, chat_id, "out"))  # raises for a broken promise
    restarts = sum(turn.restarts for turn in turns)
    console.print(
        f"\n[bold]checked[/]    {len(QUESTIONS)} sent, {len(asked)} stored, {len(turns)} answered, "
        f"each once; {restarts} answer begun anew"
    )
    return 0 if len(asked) == len(turns) == len(QUESTIONS) and restarts == 1 else 1


if __name__ == "__main__":
    sys.exit(anyio.run(main))
