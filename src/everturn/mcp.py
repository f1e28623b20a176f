"""Talking to agents from an assistant's tools (chat-agent §4.17).

Four tools as plain functions, so that any host can offer them; `everturn mcp` offers them over
standard input and output, as the Model Context Protocol has it. Which chats were started is kept
in memory, at most CHATS_MAX of them: a host that is restarted has forgotten them, and the agents
live on.

In read-only mode the tools that start, send and close do not exist.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Any, Final

import anyio

from everturn.client.agent_chat import AgentChat
from everturn.client.api import Api
from everturn.errors import EverturnError, InvalidRequest, TooLarge

__all__ = ["ChatTools", "UnknownChat"]

#: Chats that one host may have open at a time.
CHATS_MAX: Final = 1000
#: What an assistant is shown of one answer; more would fill its context.
ANSWER_CHARS_MAX: Final = 100_000

Tool = Callable[..., Awaitable[Any]]


class UnknownChat(InvalidRequest):
    """A tool was asked about a chat that this host has not started."""

    code = "unknown_chat"


class ChatTools:
    """The tools of one host. The functions' docstrings are what an assistant reads."""

    def __init__(self, *, read_only: bool = False, api: Api | None = None) -> None:
        """`api` is the server and key to use; the configured ones when left out."""
        self._api = api or Api()
        self._read_only = read_only
        self._chats: OrderedDict[str, _OpenChat] = OrderedDict()

    @property
    def tools(self) -> tuple[Tool, ...]:
        """The tools this host offers."""
        if self._read_only:
            return (self.list_agents,)
        return (
            self.list_agents,
            self.start_agent_chat,
            self.send_agent_message,
            self.close_agent_chat,
        )

    async def list_agents(self) -> list[dict[str, Any]]:
        """List the chat agents that can be talked to, with their ids and descriptions."""
        found = await self._api.list_tasks()
        return [task for task in found if task.get("kind") in ("agent", "custom-agent")]

    async def start_agent_chat(
        self,
        agent_id: str,
        chat_id: str | None = None,
        client_data: dict[str, Any] | None = None,
        preload: bool = True,
    ) -> str:
        """Start a conversation with an agent. Returns the chat id to use with the other tools.

        Args:
            agent_id: one of `list_agents`.
            chat_id: a name for the conversation; one is made up when it is left out.
            client_data: JSON the agent gets with every message.
            preload: start the agent now and not with the first message.
        """
        self._check_writes()
        if chat_id is not None and chat_id in self._chats:
            return f"Chat {chat_id} is open already: use send_agent_message."
        if len(self._chats) >= CHATS_MAX:
            raise TooLarge(f"{CHATS_MAX} chats are open, which is the most: close some")
        chat = AgentChat(agent_id, chat_id, client_data=client_data, api=self._api)
        self._chats[chat.id] = _OpenChat(chat)
        if preload:
            try:
                await chat.preload()
            except EverturnError:
                del self._chats[chat.id]
                raise
        return f"Chat {chat.id} with agent {agent_id} is open."

    async def send_agent_message(self, chat_id: str, message: str) -> str:
        """Send a message to an agent and return its whole answer.

        Args:
            chat_id: from `start_agent_chat`.
            message: what to say.
        """
        opened = self._opened(chat_id)
        async with opened.speaking:
            stream = await opened.chat.send_message(message)
            result = await stream.result()
        said = result.text or "(no text)"
        if len(said) > ANSWER_CHARS_MAX:
            said = said[:ANSWER_CHARS_MAX] + " … (cut off)"
        lines = [said]
        if result.tool_calls:
            names = dict.fromkeys(call.tool_name for call in result.tool_calls)
            lines.append(f"[tools used: {', '.join(names)}]")
        if result.error is not None:
            lines.append(f"[error: {result.error}]")
        if not result.complete:
            lines.append("[the answer has not ended; it goes on without being watched]")
        return "\n\n".join(lines)

    async def close_agent_chat(self, chat_id: str) -> str:
        """End a conversation with an agent.

        Args:
            chat_id: from `start_agent_chat`.
        """
        opened = self._opened(chat_id)
        del self._chats[chat_id]
        async with opened.speaking:
            await opened.chat.close()
        return f"Chat {chat_id} is closed."

    def _opened(self, chat_id: str) -> _OpenChat:
        self._check_writes()
        opened = self._chats.get(chat_id)
        if opened is None:
            raise UnknownChat(f"there is no open chat {chat_id!r}: start_agent_chat makes one")
        return opened

    def _check_writes(self) -> None:
        if self._read_only:
            raise InvalidRequest("this host is read-only")


class _OpenChat:
    """A chat, and the turn of whoever speaks: one answer is read at a time."""

    def __init__(self, chat: AgentChat) -> None:
        self.chat = chat
        self.speaking = anyio.Lock()
