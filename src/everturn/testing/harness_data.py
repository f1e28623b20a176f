"""Client data that JSON has no form for: a fake model, a stub of a database.

In production `metadata` travels as JSON. A test may hand the agent more than that, and everything
else about the run should stay as it is: so what cannot be written down is kept here, a marker
travels in its place, and the agent under test gets the thing itself.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Final

from everturn.chat.definition import ChatAgent
from everturn.errors import InvalidRequest
from everturn.tasks import codec

_MARK: Final = "$everturn.testing.kept"


class Kept:
    """The things that stay here while their markers travel."""

    def __init__(self) -> None:
        self._things: list[Any] = []

    def portable(self, data: Any) -> Any:
        """Client data as it can be stored; of a mapping only the members that need it are kept."""
        if _has_a_form(data):
            return codec.decode(codec.encode(data))
        if isinstance(data, Mapping):
            return {str(name): self.portable(value) for name, value in data.items()}
        for number, thing in enumerate(self._things):
            if thing is data:
                return {_MARK: number}
        self._things.append(data)
        return {_MARK: len(self._things) - 1}

    def restored(self, data: Any) -> Any:
        """The same with the things themselves again."""
        if not self._things or not isinstance(data, dict):
            return data
        if _MARK in data:
            return self._things[data[_MARK]]
        return {name: self.restored(value) for name, value in data.items()}

    def agent(self, agent: ChatAgent[Any]) -> ChatAgent[Any]:
        """The agent, with client data that has the things themselves; itself where it is plain.

        It shares its hooks with the one it was made of, also those that are added later.
        """
        if not self._things:
            return agent
        same = copy.copy(agent)
        parse = agent.client_data
        same.__dict__["client_data"] = lambda metadata: parse(self.restored(metadata))
        return same


def _has_a_form(data: Any) -> bool:
    try:
        codec.encode(data)
    except (InvalidRequest, TypeError, ValueError):
        return False
    return True
