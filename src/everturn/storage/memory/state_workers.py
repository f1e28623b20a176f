"""Environments, keys, workers and the tasks they declare, in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from everturn.errors import Conflict
from everturn.ids import internal_id
from everturn.rules.run_states import RESIDENT
from everturn.storage.memory.state_tables import Tables, changed
from everturn.storage.ports.rows import ApiKey, Environment, Holding, Run, TaskVersion, Worker
from everturn.storage.ports.texts import check_texts

#: Removed workers that are remembered, so that one that comes back is known (newest kept).
DEPARTED_MAX = 10_000


class Environments(Tables):
    """Environments and their secret keys."""

    async def ensure_environment(
        self, slug: str, *, now_ms: int, id: str | None = None
    ) -> Environment:
        self._check_open()
        for environment in self._environments.values():
            if environment.slug == slug:
                return environment
        made = Environment(
            id=id if id is not None else internal_id(self._ids.new("env")),
            slug=slug,
            created_at_ms=now_ms,
        )
        self._environments[made.id] = made
        return made

    async def environment(self, environment_id: str) -> Environment | None:
        self._check_open()
        return self._environments.get(environment_id)

    async def environments(self) -> Sequence[Environment]:
        self._check_open()
        return tuple(self._environments.values())

    async def add_key(self, key: ApiKey) -> None:
        self._check_open()
        known = self._keys.setdefault(key.sha256, key)
        if known.environment_id != key.environment_id:
            raise Conflict("this key belongs to another environment")

    async def key_by_sha256(self, sha256: str) -> ApiKey | None:
        self._check_open()
        return self._keys.get(sha256)

    async def keys(self, environment_id: str) -> Sequence[ApiKey]:
        self._check_open()
        mine = [key for key in self._keys.values() if key.environment_id == environment_id]
        return tuple(sorted(mine, key=lambda key: key.created_at_ms)[::-1])

    async def revoke_key(self, environment_id: str, key_id: str, *, now_ms: int) -> bool:
        self._check_open()
        for key in await self.keys(environment_id):
            if key.id == key_id and (key.revoked_at_ms is None or key.revoked_at_ms > now_ms):
                self._keys[key.sha256] = changed(key, revoked_at_ms=now_ms)
                return True
        return False


class Workers(Tables):
    """Worker processes, versions, tasks and queue limits."""

    async def register_worker(
        self,
        worker: Worker,
        tasks: Sequence[TaskVersion],
        queues: Mapping[str, int | None],
        *,
        now_ms: int,
    ) -> None:
        self._check_open()
        check_texts(queues=queues)
        known = worker.id in self._workers or worker.id in self._departed
        self._departed.pop(worker.id, None)
        self._workers[worker.id] = worker
        names = frozenset(task.task_id for task in tasks)
        environment, version = worker.environment_id, worker.version
        ranks = self._versions.setdefault(environment, {})
        self._version_tasks[environment, version] = names
        if known and version in ranks:
            return
        ranks[version] = max(ranks.values(), default=0) + 1
        self._tasks.setdefault(environment, {}).update({task.task_id: task for task in tasks})
        for task in tasks:
            if task.queue_limit is not None or not task.queue:
                queue = task.queue or f"task/{task.task_id}"
                self._queues[environment, queue] = task.queue_limit
        for queue, limit in queues.items():
            self._queues[environment, queue] = limit
        self._forget_versions(environment)

    def _forget_versions(self, environment: str) -> None:
        """Versions that no worker has: a version per reload would add up."""
        workers = (*self._workers.values(), *self._departed.values())
        served = {w.version for w in workers if w.environment_id == environment}
        for version in self._versions[environment].keys() - served:
            del self._versions[environment][version]
            self._version_tasks.pop((environment, version), None)

    async def renew_worker(self, worker_id: str, *, lease_until_ms: int) -> bool:
        self._check_open()
        worker = self._workers.get(worker_id)
        if worker is None:
            return False
        self._workers[worker_id] = changed(worker, lease_until_ms=lease_until_ms)
        return True

    async def set_draining(self, worker_id: str) -> None:
        self._check_open()
        worker = self._workers.get(worker_id)
        if worker is not None:
            self._workers[worker_id] = changed(worker, draining=True)

    async def remove_worker(self, worker_id: str) -> Sequence[Run]:
        self._check_open()
        worker = self._workers.pop(worker_id, None)
        if worker is not None:
            self._departed[worker_id] = worker
            while len(self._departed) > DEPARTED_MAX:
                del self._departed[next(iter(self._departed))]
        return await self.held_runs(worker_id)

    async def held_runs(self, worker_id: str) -> Sequence[Run]:
        self._check_open()
        return tuple(run for run in self._in_states(*RESIDENT) if run.worker_id == worker_id)

    async def holdings(self, worker_id: str) -> Sequence[Holding]:
        held = await self.held_runs(worker_id)
        return tuple(Holding(run_id=run.id, fence=run.fence, state=run.state) for run in held)

    async def worker(self, worker_id: str) -> Worker | None:
        self._check_open()
        return self._workers.get(worker_id)

    async def expired_workers(self, *, now_ms: int) -> Sequence[Worker]:
        self._check_open()
        return tuple(w for w in self._workers.values() if w.lease_until_ms <= now_ms)

    async def live_workers(self, environment_id: str, *, now_ms: int) -> Sequence[Worker]:
        self._check_open()
        return tuple(
            worker
            for worker in self._workers.values()
            if worker.environment_id == environment_id and worker.lease_until_ms > now_ms
        )

    async def task(self, environment_id: str, task_id: str) -> TaskVersion | None:
        self._check_open()
        return self._tasks.get(environment_id, {}).get(task_id)

    async def tasks(self, environment_id: str) -> Sequence[TaskVersion]:
        self._check_open()
        declared = self._tasks.get(environment_id, {})
        return tuple(declared[task_id] for task_id in sorted(declared))

    # --- who may serve what ------------------------------------------------------------------

    def _serving(self, environment_id: str, task_id: str, *, now_ms: int) -> set[str]:
        """The versions of live workers that serve a task."""
        return {
            worker.version
            for worker in self._workers.values()
            if worker.environment_id == environment_id
            and worker.lease_until_ms > now_ms
            and not worker.draining
            and task_id in self._version_tasks[environment_id, worker.version]
        }

    def _may_claim(self, worker: Worker, run: Run, *, now_ms: int) -> bool:
        """Whether a version rule stands between this worker and this queued run."""
        environment = worker.environment_id
        if run.task_id not in self._version_tasks[environment, worker.version]:
            return False
        if run.version is not None:
            return run.version == worker.version
        ranks = self._versions[environment]
        newest = max(self._serving(environment, run.task_id, now_ms=now_ms), key=ranks.__getitem__)
        return newest == worker.version
