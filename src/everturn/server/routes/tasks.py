"""What an environment can run: the tasks and agents its workers have registered."""

from __future__ import annotations

from typing import Any

from everturn.server.routes.calls import Answer, Call, answer
from everturn.storage.ports.rows import TaskVersion


async def page(call: Call) -> Answer:
    """GET /api/v1/tasks: every task ever registered, as its newest version declares it, by id."""
    tasks = await call.services.state.tasks(call.caller.environment_id)
    return answer({"data": [_shown(task) for task in tasks]})


def _shown(task: TaskVersion) -> dict[str, Any]:
    shown: dict[str, Any] = {"id": task.task_id, "kind": task.kind}
    for name in ("description", "payloadSchema"):
        if name in task.config:
            shown[name] = task.config[name]
    return shown
