"""Starting chats from an application's own backend (chat-agent §4.16).

A browser has no secret key. It asks its application for a session, and the application answers
with what this makes: an action that starts the chat, or finds it, and returns a token for exactly
this chat::

    start_session = chat.create_start_session_action("support")

    @app.post("/chat/{chat_id}/start")
    async def start(chat_id: str):
        return (await start_session(chat_id, client_data={"user": 7}))._asdict()

The action is safe to repeat and to race: one chat id is one session, whoever starts it first.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, Literal, NamedTuple

import httpx2

from everturn.client import auth, config, wire
from everturn.client.api import Api, Send
from everturn.errors import InvalidRequest, ProtocolError
from everturn.rules import limits

#: Which of the action's calls an override is asked about.
StartEndpoint = Literal["sessions", "auth"]


class StartContext(NamedTuple):
    """Which call a `request` override is asked to make: `sessions` starts, `auth` mints."""

    endpoint: StartEndpoint
    chat_id: str


StartRequest = Callable[[httpx2.Request, StartContext, Send], Awaitable[httpx2.Response]]

#: Life of a token made by `create_access_token`.
ACCESS_TOKEN_S: Final = 24 * 3600


class StartedChat(NamedTuple):
    """What a browser needs to talk to a chat."""

    public_access_token: str
    run_id: str
    session_id: str


class StartSessionAction:
    """Starts chats of one agent. Made by `create_start_session_action`."""

    def __init__(
        self,
        task_id: str,
        *,
        token_ttl: auth.Expiration | None,
        trigger_config: Mapping[str, Any] | None,
        base_url: str | Callable[[StartEndpoint, str], str] | None,
        request: StartRequest | None,
        api: Api | None,
    ) -> None:
        self._task_id = task_id
        self._token_ttl = token_ttl
        self._config = wire.trigger_config(trigger_config)
        self._base_url = base_url
        self._request = request
        self._api = api

    async def __call__(
        self,
        chat_id: str,
        client_data: Any = None,
        trigger_config: Mapping[str, Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> StartedChat:
        """Start the chat, or find it.

        Args:
            chat_id: the caller's name for it; not empty.
            client_data: what the agent gets with the first run, as `metadata` of its payload.
            trigger_config: wins over the action's own, member by member.
            metadata: stored on the session's row; has nothing to do with the client data.

        Raises:
            InvalidRequest: the chat id is empty.
            SessionClosedError: this chat was closed.
        """
        if not chat_id:
            raise InvalidRequest("a chat id is not empty")
        body = self._body(chat_id, client_data, wire.trigger_config(trigger_config))
        if metadata is not None:
            body["metadata"] = wire.plain(metadata)
        made = await self._api_for("sessions", chat_id).create_session(body)
        token = made.get("publicAccessToken")
        if self._token_ttl is not None:
            token = await auth.create_public_token(
                [f"read:sessions:{chat_id}", f"write:sessions:{chat_id}"],
                expires=self._token_ttl,
                api=self._api_for("auth", chat_id),
            )
        if not isinstance(token, str):
            raise ProtocolError("the server gave no token for the session it made")
        return StartedChat(token, str(made.get("runId", "")), str(made.get("id", "")))

    def _body(self, chat_id: str, client_data: Any, called: Mapping[str, Any]) -> dict[str, Any]:
        merged = {**self._config, **called}
        payload: dict[str, Any] = {
            "trigger": "preload",
            "messages": [],
            **self._config.get("basePayload", {}),
            **called.get("basePayload", {}),
        }
        if client_data is not None:
            payload["metadata"] = wire.plain(client_data)
        payload["chatId"] = chat_id
        merged["basePayload"] = payload
        merged["tags"] = wire.chat_tags(chat_id, merged.get("tags", ()))
        return {
            "type": "chat.agent",
            "externalId": chat_id,
            "taskIdentifier": self._task_id,
            "triggerConfig": merged,
        }

    def _api_for(self, endpoint: StartEndpoint, chat_id: str) -> Api:
        api = self._api or Api()
        base, request = self._base_url, self._request
        url = base(endpoint, chat_id) if callable(base) else base
        if url is not None:
            key = api.target
            target = config.Target(url.rstrip("/"), key.secret_key, key.branch, key.transport)
            api = Api(target, clock=api.clock, ids=api.ids)
        if request is None:
            return api
        made = request

        async def hook(prepared: httpx2.Request, send: Send) -> httpx2.Response:
            return await made(prepared, StartContext(endpoint, chat_id), send)

        return api.hooked(hook)


def create_start_session_action(
    task_id: str,
    *,
    token_ttl: auth.Expiration | None = None,
    trigger_config: Mapping[str, Any] | None = None,
    base_url: str | Callable[[StartEndpoint, str], str] | None = None,
    request: StartRequest | None = None,
    api: Api | None = None,
) -> StartSessionAction:
    """An action that starts chats of an agent, for an application's own backend.

    Args:
        token_ttl: the life of the tokens it returns; left out, the server's token (an hour) is
            returned, and none is minted.
        trigger_config: how the runs of these chats are started: `base_payload`, `machine`,
            `queue`, `tags`, `max_attempts`, `max_duration`, `lock_to_version`, `region`,
            `idle_timeout`. The tag `chat:<chat id>` is put first, 5 at most.
        base_url: another server; text, or a function of the endpoint (`sessions`, `auth`) and
            the chat id.
        request: makes the requests itself.
        api: calls go through this instead of the configured server and key.
    """
    return StartSessionAction(
        task_id,
        token_ttl=token_ttl,
        trigger_config=trigger_config,
        base_url=base_url,
        request=request,
        api=api,
    )


async def create_access_token(task_id: str, *, api: Api | None = None) -> str:
    """A token with which a browser may start runs of an agent by itself, for 24 hours.

    Raises NotAuthenticated without a secret key.
    """
    return await auth.create_trigger_token(
        task_id, multiple_use=True, expires=ACCESS_TOKEN_S, api=api
    )


assert limits.TOKEN_S_MAX >= ACCESS_TOKEN_S
