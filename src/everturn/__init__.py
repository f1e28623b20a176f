"""everturn: durable sessions for AI agents.

The public names. Each is imported when it is first used (PEP 562), so a script that only talks to
an agent loads neither the model library nor a database driver nor the server.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from everturn import ai as ai
    from everturn import chat as chat
    from everturn import errors as errors
    from everturn import prompts as prompts
    from everturn import skills as skills
    from everturn import tasks as tasks
    from everturn import testing as testing
    from everturn.client import auth as auth
    from everturn.client import blocking as blocking
    from everturn.client import runs as runs
    from everturn.client import sessions as sessions
    from everturn.client.agent_chat import AgentChat as AgentChat
    from everturn.client.agent_chat import ChatSessionState as ChatSessionState
    from everturn.client.api import Api as Api
    from everturn.client.chat_stream import ChatResult as ChatResult
    from everturn.client.chat_stream import ChatStream as ChatStream
    from everturn.client.config import configure as configure
    from everturn.client.results import Err as Err
    from everturn.client.results import Ok as Ok
    from everturn.errors import AbortTaskRunError as AbortTaskRunError
    from everturn.errors import AgentError as AgentError
    from everturn.errors import ApiError as ApiError
    from everturn.errors import ChatTurnError as ChatTurnError
    from everturn.errors import EverturnError as EverturnError
    from everturn.errors import InvalidRequest as InvalidRequest
    from everturn.errors import NotAllowed as NotAllowed
    from everturn.errors import NotAuthenticated as NotAuthenticated
    from everturn.errors import NotFound as NotFound
    from everturn.errors import NotInRunError as NotInRunError
    from everturn.errors import RunNotFound as RunNotFound
    from everturn.errors import SessionClosedError as SessionClosedError
    from everturn.errors import SessionNotFound as SessionNotFound
    from everturn.errors import StreamAlreadyConsumed as StreamAlreadyConsumed
    from everturn.errors import TaskNotFound as TaskNotFound
    from everturn.errors import WaitTimeoutError as WaitTimeoutError
    from everturn.tasks import batches as batch
    from everturn.tasks import streams as streams
    from everturn.tasks import tags as tags
    from everturn.tasks import waits as wait
    from everturn.tasks.definition import Queue as Queue
    from everturn.tasks.definition import task as task
    from everturn.tasks.metadata import metadata as metadata
    from everturn.tasks.retries import RetryPolicy as RetryPolicy
    from everturn.tasks.signals import Signal as Signal
    from everturn.tasks.steps import step as step

__all__ = [
    "AbortTaskRunError",
    "AgentChat",
    "AgentError",
    "ai",
    "Api",
    "ApiError",
    "auth",
    "batch",
    "blocking",
    "chat",
    "ChatResult",
    "ChatSessionState",
    "ChatStream",
    "ChatTurnError",
    "Compaction",
    "configure",
    "Err",
    "errors",
    "EverturnError",
    "InvalidRequest",
    "metadata",
    "NotAllowed",
    "NotAuthenticated",
    "NotFound",
    "NotInRunError",
    "Ok",
    "PendingMessages",
    "prompts",
    "Queue",
    "RetryPolicy",
    "RunNotFound",
    "runs",
    "SessionClosedError",
    "SessionNotFound",
    "sessions",
    "Signal",
    "skills",
    "step",
    "StreamAlreadyConsumed",
    "streams",
    "tags",
    "task",
    "TaskNotFound",
    "tasks",
    "testing",
    "wait",
    "WaitTimeoutError",
]

#: Public name -> where it lives: a module, or `module:name` in it.
_HOMES: Final[dict[str, str]] = {
    # talking to agents
    "AgentChat": "everturn.client.agent_chat:AgentChat",
    "ChatSessionState": "everturn.client.agent_chat:ChatSessionState",
    "ChatStream": "everturn.client.chat_stream:ChatStream",
    "ChatResult": "everturn.client.chat_stream:ChatResult",
    "Api": "everturn.client.api:Api",
    "Ok": "everturn.client.results:Ok",
    "Err": "everturn.client.results:Err",
    "auth": "everturn.client.auth",
    "blocking": "everturn.client.blocking",
    "configure": "everturn.client.config:configure",
    "runs": "everturn.client.runs",
    "sessions": "everturn.client.sessions",
    # writing agents and tasks
    "Compaction": "everturn.chat.compaction:Compaction",
    "PendingMessages": "everturn.chat.steering:PendingMessages",
    "Queue": "everturn.tasks.definition:Queue",
    "RetryPolicy": "everturn.tasks.retries:RetryPolicy",
    "Signal": "everturn.tasks.signals:Signal",
    "ai": "everturn.ai",
    "chat": "everturn.chat",
    "batch": "everturn.tasks.batches",
    "metadata": "everturn.tasks.metadata:metadata",
    "prompts": "everturn.prompts",
    "skills": "everturn.skills",
    "step": "everturn.tasks.steps:step",
    "streams": "everturn.tasks.streams",
    "tags": "everturn.tasks.tags",
    "task": "everturn.tasks.definition:task",
    "tasks": "everturn.tasks",
    "testing": "everturn.testing",
    "wait": "everturn.tasks.waits",
    # errors
    "errors": "everturn.errors",
    **{
        name: f"everturn.errors:{name}"
        for name in (
            "AbortTaskRunError",
            "AgentError",
            "ApiError",
            "ChatTurnError",
            "EverturnError",
            "InvalidRequest",
            "NotAllowed",
            "NotAuthenticated",
            "NotFound",
            "NotInRunError",
            "RunNotFound",
            "SessionClosedError",
            "SessionNotFound",
            "StreamAlreadyConsumed",
            "TaskNotFound",
            "WaitTimeoutError",
        )
    },
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'everturn' has no attribute {name!r}")
    module_name, _, attribute = home.partition(":")
    try:
        module = import_module(module_name)
    except ModuleNotFoundError as error:
        # Whatever else is missing inside that module is raised as it is: it names what is missing.
        if error.name != module_name:
            raise
        raise AttributeError(f"everturn.{name} is not part of this version") from error
    value = getattr(module, attribute) if attribute else module
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
