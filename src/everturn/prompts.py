"""`prompts`: declared prompts (`from everturn import prompts`).

`define` and `resolve` work with what the code declares. The calls that manage prompts stored on a
server exist by name and raise Unprocessable: this server stores none.
"""

from __future__ import annotations

from typing import Any

from everturn.chat.prompts import Prompt, ResolvedPrompt, define, not_offered, resolve

__all__ = [
    "Prompt",
    "ResolvedPrompt",
    "create_override",
    "define",
    "list",
    "promote",
    "reactivate_override",
    "remove_override",
    "resolve",
    "update_override",
    "versions",
]


async def list(*args: Any, **options: Any) -> Any:  # the name the API has
    """Prompts stored on the server. Raises Unprocessable."""
    not_offered("list")


async def versions(*args: Any, **options: Any) -> Any:
    """Stored versions of a prompt. Raises Unprocessable."""
    not_offered("versions")


async def promote(*args: Any, **options: Any) -> Any:
    """Make a stored version the current one. Raises Unprocessable."""
    not_offered("promote")


async def create_override(*args: Any, **options: Any) -> Any:
    """Put another text in a prompt's place. Raises Unprocessable."""
    not_offered("create_override")


async def update_override(*args: Any, **options: Any) -> Any:
    """Change the active override. Raises Unprocessable."""
    not_offered("update_override")


async def remove_override(*args: Any, **options: Any) -> Any:
    """Go back to the declared text. Raises Unprocessable."""
    not_offered("remove_override")


async def reactivate_override(*args: Any, **options: Any) -> Any:
    """Make an earlier override the active one. Raises Unprocessable."""
    not_offered("reactivate_override")
