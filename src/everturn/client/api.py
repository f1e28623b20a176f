"""The HTTP API, a method per route.

Bodies go in and come out as the wire has them (camelCase dictionaries); `sessions.py` and
`runs.py` give them types. Everything here is safe to repeat: an append carries one part id and a
create or trigger one request key over all tries, so a try whose answer was lost does no harm.

Tries (wire-protocol §17.4): five, with pauses of 1 s growing by 1.6. Network failures, 408, 409,
429 and everything from 500 up are tried again; `x-should-retry` overrules that in both
directions; a 429 that says when its limit resets is waited for, up to a minute.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, Literal

import anyio
import httpx2
import msgspec

from everturn.client import config, pool, problems
from everturn.clock import Clock, SystemClock
from everturn.errors import ApiError, EverturnError, NotAuthenticated, ProtocolError
from everturn.ids import Ids, RandomIds
from everturn.protocol import paths
from everturn.protocol.records import Io

TRIES: Final = 5
PAUSE_S: Final = 1.0
PAUSE_FACTOR: Final = 1.6
PAUSE_S_MAX: Final = 30.0
#: A rate limit that resets later than this is the caller's to handle.
RATE_LIMIT_S_MAX: Final = 60.0

Endpoint = Literal["in", "out"]
Send = Callable[[httpx2.Request], Awaitable[httpx2.Response]]
#: `(request, send) -> response`: called for every try instead of `send`, which it may call.
RequestHook = Callable[[httpx2.Request, Send], Awaitable[httpx2.Response]]


class Api:
    """Calls one server with one key.

    Args:
        target: server and key; those of the surrounding code when None, looked up at each call.
        hook: wraps every request.
        tries: how often a failing call is made in all.
    """

    def __init__(
        self,
        target: config.Target | None = None,
        *,
        clock: Clock | None = None,
        ids: Ids | None = None,
        hook: RequestHook | None = None,
        tries: int = TRIES,
    ) -> None:
        self._target = target
        self.clock: Clock = clock if clock is not None else SystemClock()
        self.ids: Ids = ids if ids is not None else RandomIds()
        self._hook = hook
        self._tries = tries

    @property
    def target(self) -> config.Target:
        """Which server and key calls go to."""
        return self._target if self._target is not None else config.current()

    def hooked(self, hook: RequestHook) -> Api:
        """The same calls with every request going through `hook`."""
        return Api(self._target, clock=self.clock, ids=self.ids, hook=hook, tries=self._tries)

    # --- sessions (§4) -------------------------------------------------------------------------

    async def create_session(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Raises SessionClosedError when the external id belongs to a closed session."""
        return await self._json("POST", paths.SESSIONS, body=body, subject="session")

    async def retrieve_session(self, session: str) -> dict[str, Any]:
        """A session by either of its ids. Raises SessionNotFound."""
        path = paths.fill(paths.SESSION, session=session)
        return await self._json("GET", path, subject="session")

    async def update_session(self, session: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Change a session's tags or metadata. Raises SessionNotFound."""
        path = paths.fill(paths.SESSION, session=session)
        return await self._json("PATCH", path, body=body, subject="session")

    async def close_session(self, session: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Close a session for good; safe to repeat. Raises SessionNotFound."""
        path = paths.fill(paths.SESSION_CLOSE, session=session)
        return await self._json("POST", path, body=body, subject="session")

    async def history_link(self, session: str) -> str:
        """A link to a session's stored history, for an hour. Raises SessionNotFound."""
        path = paths.fill(paths.SESSION_SNAPSHOT_URL, session=session)
        answer = await self._json("GET", path, subject="session")
        return str(answer["presignedUrl"])

    async def list_sessions(self, query: Mapping[str, str]) -> dict[str, Any]:
        """One page of sessions: `data` and `pagination`."""
        return await self._json("GET", paths.SESSIONS, query=query)

    # --- channels (§5) -------------------------------------------------------------------------

    async def append(
        self, session: str, io: Io, text: str, *, part_id: str, base_url: str | None = None
    ) -> int | None:
        """Append one record; returns its seq_num, or None from a server that does not say.

        The text is stored as it is, as a string. Raises SessionNotFound and SessionClosedError.
        """
        path = paths.fill(paths.CHANNEL_APPEND, session=session, io=io)
        answer = await self._json(
            "POST",
            path,
            content=text.encode(),
            headers={"X-Part-Id": part_id},
            subject="session",
            base_url=base_url,
        )
        seq = answer.get("seq")
        return seq if isinstance(seq, int) else None

    async def write_records(self, session: str, records: Sequence[Mapping[str, Any]]) -> list[int]:
        """Write to `.out` from outside a run; needs the secret key (see `protocol/paths.py`)."""
        path = paths.fill(paths.CHANNEL_RECORDS, session=session, io="out")
        answer = await self._json("POST", path, body={"records": records}, subject="session")
        return list(answer["seqNums"])

    async def read_records(
        self, session: str, io: Io, *, after: int | None = None, include_trimmed: bool = False
    ) -> list[dict[str, Any]]:
        """Everything stored after a cursor, without waiting (§5.4).

        What was trimmed is kept a while longer, for secret keys that ask for it.
        """
        path = paths.fill(paths.CHANNEL_RECORDS, session=session, io=io)
        query = {} if after is None else {"afterEventId": str(after)}
        if include_trimmed:
            query["includeTrimmed"] = "true"
        answer = await self._json("GET", path, query=query, subject="session")
        records = answer.get("records")
        if not isinstance(records, list):
            raise ProtocolError("the answer to a read of records has none")
        return records

    async def open_stream(
        self,
        session: str,
        io: Io,
        *,
        after: int | None,
        timeout_s: int | None = None,
        peek_settled: bool = False,
        base_url: str | None = None,
    ) -> httpx2.Response:
        """One request for an event stream, answered 2xx, its body unread (§5.3). Not retried.

        The caller closes the response. Raises what `problems.error_for` makes of other statuses,
        and ApiError without a status when no answer came in time.
        """
        path = paths.fill(paths.CHANNEL, session=session, io=io)
        return await self.open_events(
            path,
            after=after,
            timeout_s=timeout_s,
            peek_settled=peek_settled,
            subject="session",
            base_url=base_url,
        )

    async def open_events(
        self,
        path: str,
        *,
        after: int | None,
        timeout_s: int | None = None,
        peek_settled: bool = False,
        subject: problems.Subject = "other",
        base_url: str | None = None,
    ) -> httpx2.Response:
        """`open_stream` for any path that answers events."""
        headers = {"Accept": "text/event-stream", "Accept-Encoding": "identity"}
        if after is not None:
            headers["Last-Event-ID"] = str(after)
        if timeout_s is not None:
            headers["Timeout-Seconds"] = str(timeout_s)
        if peek_settled:
            headers["X-Peek-Settled"] = "1"
        request, send = await self._request("GET", path, headers=headers, base_url=base_url)
        try:
            with anyio.fail_after(pool.CONNECT_S):
                response = await send(request)
                if response.is_success:
                    return response
                content = await _read(response)
        except (httpx2.TransportError, TimeoutError) as error:
            raise _unanswered(request, error) from error
        raise _refusal(response, content, subject)

    # --- tokens (§3.4), tasks and runs (§9) ----------------------------------------------------

    async def token_claims(self) -> dict[str, Any]:
        """What every token of this environment says: `sub` and `pub`."""
        return await self._json("POST", paths.TOKEN_CLAIMS)

    async def list_tasks(self) -> list[dict[str, Any]]:
        """What workers have registered, by id: `{id, kind, description?, payloadSchema?}`."""
        answer = await self._json("GET", paths.TASKS)
        return list(answer["data"])

    async def trigger(
        self, task: str, body: Mapping[str, Any]
    ) -> tuple[dict[str, Any], Mapping[str, str]]:
        """Start a run. Returns the body and the response headers (`x-trigger-jwt`)."""
        path = paths.fill(paths.TASK_TRIGGER, task=task)
        response = await self._call("POST", path, body=body, subject="task")
        return _object(response), response.headers

    async def retrieve_run(self, run: str) -> dict[str, Any]:
        """A run with its attempts. Raises RunNotFound."""
        return await self._json("GET", paths.fill(paths.RUN, run=run), subject="run")

    async def list_runs(self, query: Mapping[str, str]) -> dict[str, Any]:
        """One page of runs: `data` and `pagination`."""
        return await self._json("GET", paths.RUNS, query=query)

    async def cancel_run(self, run: str) -> dict[str, Any]:
        """End a run that is not final; safe to repeat. Raises RunNotFound."""
        return await self._json("POST", paths.fill(paths.RUN_CANCEL, run=run), subject="run")

    async def replay_run(self, run: str) -> dict[str, Any]:
        """Start a new run with the payload of another. Raises RunNotFound."""
        return await self._json("POST", paths.fill(paths.RUN_REPLAY, run=run), subject="run")

    async def reschedule_run(self, run: str, delay: str) -> dict[str, Any]:
        """Move a delayed run. Raises RunNotFound."""
        path = paths.fill(paths.RUN_RESCHEDULE, run=run)
        return await self._json("POST", path, body={"delay": delay}, subject="run")

    async def reset_key(self, key: str, task: str) -> dict[str, Any]:
        """Forget an idempotency key of a task."""
        path = paths.fill(paths.KEY_RESET, key=key)
        return await self._json("POST", path, body={"taskIdentifier": task})

    # --- wait tokens (§14) -----------------------------------------------------------------------

    async def create_wait_token(
        self, body: Mapping[str, Any]
    ) -> tuple[dict[str, Any], Mapping[str, str]]:
        """Make a wait token. Returns the body and the response headers (`x-trigger-jwt`)."""
        response = await self._call("POST", paths.WAIT_TOKENS, body=body)
        return _object(response), response.headers

    async def list_wait_tokens(self, query: Mapping[str, str]) -> dict[str, Any]:
        """One page of wait tokens."""
        return await self._json("GET", paths.WAIT_TOKENS, query=query)

    async def retrieve_wait_token(self, token: str) -> dict[str, Any]:
        """A wait token with its state. Raises NotFound."""
        return await self._json("GET", paths.fill(paths.WAIT_TOKEN, token=token))

    async def complete_wait_token(self, token: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Give a wait token its value; the first one counts. Raises NotFound."""
        path = paths.fill(paths.WAIT_TOKEN_COMPLETE, token=token)
        return await self._json("POST", path, body=body)

    # --- batches (§10) ---------------------------------------------------------------------------

    async def create_batch(
        self, body: Mapping[str, Any]
    ) -> tuple[dict[str, Any], Mapping[str, str]]:
        """Phase 1. Returns the body and the response headers (`x-trigger-jwt`)."""
        response = await self._call("POST", paths.BATCHES, body=body)
        return _object(response), response.headers

    async def add_batch_items(self, batch: str, lines: bytes) -> dict[str, Any]:
        """Phase 2: items, one JSON object a line. Sending an item again adds nothing."""
        headers = {"Content-Type": "application/x-ndjson"}
        path = paths.fill(paths.BATCH_ITEMS, batch=batch)
        return await self._json("POST", path, content=lines, headers=headers)

    async def retrieve_batch(self, batch: str) -> dict[str, Any]:
        """A batch and how far it has come. Raises NotFound."""
        return await self._json("GET", paths.fill(paths.BATCH, batch=batch))

    # --- packets (§11) ---------------------------------------------------------------------------

    async def upload_packet(self, name: str, data: bytes, kind: str) -> str:
        """Store a large payload; returns what stands for it in a trigger."""
        answer = await self._json("PUT", paths.fill(paths.PACKET_UPLOAD, name=name))
        await self._at_link("PUT", str(answer["presignedUrl"]), content=data, kind=kind)
        return str(answer.get("storagePath") or name)

    async def download(self, link: str) -> tuple[bytes, str]:
        """What a signed link leads to, and its type."""
        response = await self._at_link("GET", link)
        return response.content, response.headers.get("content-type", "application/json")

    async def _at_link(
        self, method: str, link: str, *, content: bytes | None = None, kind: str | None = None
    ) -> httpx2.Response:
        # The link is the credential; our key is not for whoever may be behind it.
        return await self._call(
            method, "", content=content, base_url=link, link=True, headers=_type_of(kind)
        )

    # --- streams of runs (§13) -------------------------------------------------------------------

    async def write_run_stream(
        self, run: str, target: str, stream: str, lines: bytes, *, client_id: str
    ) -> dict[str, Any]:
        """Add values, one JSON text a line; those of one client id are stored once."""
        path = paths.fill(paths.RUN_STREAM_WRITE, run=run, target=target, stream=stream)
        headers = {"Content-Type": "application/x-ndjson", "X-Client-Id": client_id}
        return await self._json("POST", path, content=lines, headers=headers, subject="run")

    async def send_run_input(
        self, run: str, stream: str, body: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Send a value to a run's input stream. Raises RunNotFound."""
        path = paths.fill(paths.RUN_STREAM_INPUT, run=run, stream=stream)
        return await self._json("POST", path, body=body, subject="run")

    # --- realtime (§12) --------------------------------------------------------------------------

    async def shape(self, path: str, query: Mapping[str, str]) -> httpx2.Response:
        """One request of a subscription; a live one is held until something changes."""
        headers = {"x-trigger-electric-version": "1.0.0-beta.1"}
        return await self._call("GET", path, query=query, headers=headers, subject="run")

    # --- how --------------------------------------------------------------------------------------

    async def _json(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        return _object(await self._call(method, path, **options))

    async def _call(
        self,
        method: str,
        path: str,
        *,
        body: Mapping[str, Any] | None = None,
        content: bytes | None = None,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        subject: problems.Subject = "other",
        base_url: str | None = None,
        link: bool = False,
    ) -> httpx2.Response:
        """One call over all its tries. Raises the error of the last one."""
        if body is not None:
            content = msgspec.json.encode(body)
        fixed = {"x-trigger-request-idempotency-key": self.ids.part()}
        for attempt in range(self._tries):
            request, send = await self._request(
                method,
                path,
                content=content,
                query=query,
                headers={**({} if link else fixed), **(headers or {})},
                base_url=base_url,
                link=link,
            )
            last = attempt + 1 == self._tries
            try:
                response = await send(request)
                answer = await _read(response)
            except httpx2.TransportError as error:
                if last:
                    raise _unanswered(request, error) from error
                await self._pause(attempt, None)
                continue
            if response.is_success:
                return response
            if last or not _may_retry(response):
                raise _refusal(response, answer, subject)
            if not await self._pause(attempt, response):
                raise _refusal(response, answer, subject)
        raise AssertionError("the last try returns or raises")

    async def _request(
        self,
        method: str,
        path: str,
        *,
        content: bytes | None = None,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        base_url: str | None = None,
        link: bool = False,
    ) -> tuple[httpx2.Request, Send]:
        """`link`: the URL carries its own credential and gets none of ours."""
        target = self.target
        if not target.secret_key and not link:
            raise NotAuthenticated(
                "no secret key: set EVERTURN_SECRET_KEY, call everturn.configure(secret_key=…), "
                "or run `everturn dev` in this directory"
            )
        client = await pool.client(target.transport)
        always: dict[str, str] = {}
        if not link:
            always = {"Authorization": f"Bearer {target.secret_key}", "x-trigger-source": "sdk"}
            if target.branch:
                always["x-trigger-branch"] = target.branch
        if content is not None and "Content-Type" not in (headers or {}):
            always["Content-Type"] = "application/json"
        request = client.build_request(
            method,
            (base_url or target.url).rstrip("/") + path,
            content=content,
            params=dict(query) if query else None,
            headers={**(headers or {}), **always},
        )

        async def send(prepared: httpx2.Request) -> httpx2.Response:
            return await client.send(prepared, stream=True)

        hook = self._hook
        if hook is None:
            return request, send

        async def hooked(prepared: httpx2.Request) -> httpx2.Response:
            return await hook(prepared, send)

        return request, hooked

    async def _pause(self, attempt: int, response: httpx2.Response | None) -> bool:
        """Wait before the next try. False when the server asks for a longer wait than allowed."""
        seconds = min(PAUSE_S * PAUSE_FACTOR**attempt, PAUSE_S_MAX)
        if response is not None and response.status_code == 429:
            reset_ms = _reset_ms(response)
            if reset_ms is not None:
                seconds = max(0.0, (reset_ms - self.clock.now_ms()) / 1000)
                if seconds > RATE_LIMIT_S_MAX:
                    return False
                seconds += self.ids.uniform(0, 1)
        await self.clock.sleep(seconds)
        return True


async def _read(response: httpx2.Response) -> bytes:
    try:
        return await response.aread()
    finally:
        await response.aclose()


def _unanswered(request: httpx2.Request, error: Exception) -> ApiError:
    where = f"{request.url.scheme}://{request.url.netloc.decode()}"
    why = str(error) or type(error).__name__
    if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout):
        return ApiError(f"cannot reach the server at {where}: {why}")
    return ApiError(f"no answer from {where}: {why}")


def _refusal(response: httpx2.Response, content: bytes, subject: problems.Subject) -> EverturnError:
    return problems.error_for(
        response.status_code, content, subject=subject, headers=response.headers
    )


def _type_of(kind: str | None) -> dict[str, str]:
    return {} if kind is None else {"Content-Type": kind}


def _may_retry(response: httpx2.Response) -> bool:
    asked = response.headers.get("x-should-retry")
    if asked in ("true", "false"):
        return asked == "true"
    return response.status_code in (408, 409, 429) or response.status_code >= 500


def _reset_ms(response: httpx2.Response) -> int | None:
    headers = response.headers
    reset = headers.get("x-ratelimit-reset", "")
    known = "x-ratelimit-limit" in headers and "x-ratelimit-remaining" in headers
    digits = reset.isascii() and reset.isdigit() and len(reset) <= 18
    return int(reset) if known and digits else None


def _object(response: httpx2.Response) -> dict[str, Any]:
    try:
        body = msgspec.json.decode(response.content)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"the answer to {response.request.url.path} is no JSON") from error
    if not isinstance(body, dict):
        raise ProtocolError(f"the answer to {response.request.url.path} is no JSON object")
    return body
