"""`/openapi.json` says what is really there: compared with the routes, and with a live server."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec
import pytest
from http_harness import KEY, server

from everturn.protocol import paths
from everturn.server.app import ROUTES, every_route
from everturn.server.openapi.document import document, summary
from everturn.server.openapi.operations import OPERATIONS
from everturn.testing.processes import System

HERE = Path(__file__).parent
DOCUMENT = document(every_route())
METHODS = {"get", "head", "post", "put", "patch", "delete"}


def operations() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, item in DOCUMENT["paths"].items():
        for method, operation in item.items():
            yield path, method, operation


# --- the document and the routes -----------------------------------------------------------------


def test_every_template_of_the_protocol_is_a_path_of_the_document() -> None:
    """W-9: `protocol/paths.py` holds every route; a base to append to is not one."""
    templates = {
        value
        for name, value in vars(paths).items()
        if name.isupper() and isinstance(value, str) and value != paths.WRITES
    }
    assert set(DOCUMENT["paths"]) == templates


def test_every_route_of_the_table_is_in_the_document() -> None:
    described = {re.sub(r":path}", "}", route.path) for route in ROUTES}
    assert described <= set(DOCUMENT["paths"])


def test_every_described_handler_is_routed() -> None:
    assert set(OPERATIONS) == {route.handler for route in every_route()}


def test_names_of_operations_are_unique_and_summaries_are_sentences() -> None:
    names = [operation["operationId"] for _, _, operation in operations()]
    assert len(names) == len(set(names)) > 50
    for route in every_route():
        text = summary(route.handler)
        assert re.fullmatch(r"[A-Z0-9`].{8,}\.", text), (route.handler, text)
        assert "§" not in text


def test_every_answer_of_an_operation_says_what_it_is() -> None:
    for path, method, operation in operations():
        assert set(DOCUMENT["paths"][path]) <= METHODS
        statuses = {int(status) for status in operation["responses"]}
        assert any(status < 300 for status in statuses), (path, method)
        assert 500 not in statuses
        if operation["security"]:
            refused = 403 if operation["security"] == [{"signedLink": []}] else 401
            assert refused in statuses, (path, method)
        for name in re.findall(r"{(\w+)}", path):
            assert any(p["name"] == name and p["in"] == "path" for p in operation["parameters"]), (
                path,
                method,
            )


def test_public_tokens_are_named_only_where_they_are_welcome() -> None:
    """W-25, in the document."""
    welcome = {
        (method, path)
        for path, method, operation in operations()
        if {"publicToken": []} in operation["security"]
    }
    assert ("post", paths.SESSIONS) in welcome
    assert ("post", paths.CHANNEL_APPEND) in welcome
    for refused in (
        ("patch", paths.SESSION),
        ("post", paths.SESSION_CLOSE),
        ("post", paths.SESSION_CONTINUE),
        ("post", paths.CHANNEL_RECORDS),
        ("put", paths.SESSION_SNAPSHOT_URL),
        ("post", paths.TOKEN_CLAIMS),
    ):
        assert refused not in welcome


def test_references_lead_somewhere() -> None:
    text = json.dumps(DOCUMENT)
    referenced = set(re.findall(r'"#/components/schemas/(\w+)"', text))
    assert referenced <= set(DOCUMENT["components"]["schemas"])


@pytest.mark.anyio
async def test_it_is_served_to_anybody_and_tells_no_secret() -> None:
    """W-9"""
    async with server() as http:
        reply = await http(
            "GET", "/openapi.json", key=None, headers={"origin": "https://tool.example"}
        )
        environment_id = http.system.environment.id

    assert reply.status == 200
    assert reply.headers["access-control-allow-origin"] == "https://tool.example"
    assert msgspec.json.decode(msgspec.json.encode(DOCUMENT)) == reply.json
    for secret in (KEY, environment_id, "127.0.0.1", "localhost"):
        assert secret not in reply.text


@pytest.mark.anyio
async def test_methods_that_the_document_leaves_out_are_refused() -> None:
    """W-3"""
    async with server() as http:
        for path, item in DOCUMENT["paths"].items():
            if path in (paths.LINK, paths.STREAM_RECORDS):
                continue  # one is a WebSocket; the other has a grammar of errors of its own
            filled = re.sub(r"{\w+}", "x", path.replace("{io}", "in"))
            for method in sorted(METHODS - set(item) - ({"head"} if "get" in item else set())):
                reply = await http(method.upper(), filled)
                assert reply.status == 405, (method, path)
                assert reply.headers["allow"]


# --- the document and a live server --------------------------------------------------------------

_CHECKS = ",".join(
    (
        "not_a_server_error",
        "status_code_conformance",
        "content_type_conformance",
        "response_headers_conformance",
        "response_schema_conformance",
        "unsupported_method",
        "allow_header_conformance",
        "ignored_auth",
    )
)
#: One that a page may hold: it reads and writes a good deal, and is not a secret key.
_SCOPES = ("read:all", "write:sessions", "write:runs", "write:inputStreams", "write:waitpoints")
_TRIGGERS = ("trigger:tasks", "batchTrigger:tasks", "write:tasks", "write:batch")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    with System(tmp_path_factory.mktemp("openapi"), HERE.parent / "apps" / "tasks.py") as system:
        yield system


def posted(system: System, path: str, body: Any) -> Any:
    request = urllib.request.Request(
        system.url + path,
        data=json.dumps(body).encode(),
        headers={"Authorization": f"Bearer {system.key}", "Content-Type": "application/json"},
        method="POST",
    )
    with urllib.request.urlopen(request, timeout=10) as reply:
        return json.load(reply)


def public_token(system: System) -> str:
    body = {"scopes": [*_SCOPES, *_TRIGGERS], "expirationTime": "1h"}
    token: str = posted(system, "/api/v1/auth/jwt", body)["token"]
    return token


def residents(system: System) -> dict[str, str]:
    """Ids of things that exist, by the path parameter they belong to."""
    trigger = {"basePayload": {}}
    session = {"type": "t", "taskIdentifier": "double", "triggerConfig": trigger}
    run = posted(
        system, "/api/v1/tasks/double/trigger", {"payload": {"n": 1}, "options": {"delay": "1h"}}
    )
    return {
        "path.session": posted(system, "/api/v1/sessions", session)["id"],
        "path.run": run["id"],
        "path.task": "double",
        "path.batch": posted(system, "/api/v3/batches", {"runCount": 2})["id"],
        "path.token": posted(system, "/api/v1/waitpoints/tokens", {})["id"],
        "path.target": "self",
    }


@pytest.mark.processes
@pytest.mark.slow
@pytest.mark.parametrize(
    ("who", "ids", "seconds"),
    [
        ("a secret key", "of nothing", 20),
        ("a secret key", "of things that exist", 25),
        ("a public token", "of things that exist", 20),
        ("nobody", "of things that exist", 10),
    ],
)
def test_generated_requests_find_no_server_error_and_no_undocumented_answer(
    who: str, ids: str, seconds: int, running: System, tmp_path: Path
) -> None:
    """Bounded: followers end after a second, held subscriptions and the link are left out."""
    known = residents(running) if ids == "of things that exist" else {}
    headers = {
        "a secret key": ["--header", f"Authorization: Bearer {running.key}"],
        "a public token": ["--header", f"Authorization: Bearer {public_token(running)}"],
        "nobody": [],
    }[who]
    settings = {"query.live": "false", "header.Timeout-Seconds": "1", **known}
    config = tmp_path / "schemathesis.toml"
    lines = [f'"{name}" = "{quote(value)}"' for name, value in settings.items()]
    hooks = json.dumps(str(HERE / "schemathesis_hooks.py"))
    config.write_text("\n".join([f"hooks = {hooks}", "[parameters]", *lines]))
    outcome = subprocess.run(
        [
            str(Path(sys.executable).with_name("st")),
            *("--config-file", str(config), "run", running.url + "/openapi.json"),
            *headers,
            *("--phases", "coverage,fuzzing", "--max-time", str(seconds)),
            *("--checks", _CHECKS, "--exclude-operation-id", "link.link_endpoint"),
            *("--request-timeout", "15", "--continue-on-failure", "--warnings", "off"),
            *("--generation-deterministic", "--no-color"),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert outcome.returncode == 0, outcome.stdout[-8000:] + outcome.stderr[-2000:]
