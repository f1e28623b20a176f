"""`everturn mcp`: the chat tools for an assistant, over standard input and output."""

from __future__ import annotations

import functools
from importlib import import_module
from typing import Annotated, Any

import anyio
import cyclopts

from everturn.errors import ConfigurationError, EverturnError
from everturn.mcp import ChatTools, Tool


def mcp(*, read_only: Annotated[bool, cyclopts.Parameter(negative="")] = False) -> None:
    """Offer the chat tools to an assistant: list agents, start, send to and close chats.

    Speaks the Model Context Protocol on standard input and output, until input ends. Server and
    key are the ones every command uses.

    Args:
        read_only: Offer only what changes nothing.
    """
    anyio.run(_server(ChatTools(read_only=read_only)).run_stdio_async)


def _server(tools: ChatTools) -> Any:
    """The library's server with our tools. Raises ConfigurationError where it is not installed."""
    try:
        library = import_module("mcp.server")
    except ModuleNotFoundError as error:
        raise ConfigurationError("`everturn mcp` needs: pip install everturn[mcp]") from error
    tool_error: type[Exception] = import_module("mcp.server.mcpserver.exceptions").ToolError
    server = library.MCPServer("everturn")
    for tool in tools.tools:
        server.add_tool(_told(tool, tool_error))
    return server


def _told(tool: Tool, tool_error: type[Exception]) -> Tool:
    """The tool, with errors of ours in words the assistant reads; others stay hidden from it."""

    @functools.wraps(tool)
    async def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return await tool(*args, **kwargs)
        except EverturnError as error:
            raise tool_error(str(error)) from error

    return call
