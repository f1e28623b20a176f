"""`everturn doctor`: what is wrong with an installation, a data directory or a server."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

from cyclopts import Parameter

from everturn.cli.output import console, print_json

if TYPE_CHECKING:
    import httpx2

    from everturn.server.doctor import Check

_TIMEOUT_S: Final = 5.0
_SIGNS: Final = {"ok": "[green]✓[/]", "attention": "[red]✗[/]", "skipped": "[dim]-[/]"}


def doctor(
    *,
    data_dir: Annotated[Path, Parameter(help="Where the embedded store lives.")] = Path(
        ".everturn"
    ),
    url: Annotated[
        str | None, Parameter(help="A server to call; its key is EVERTURN_SECRET_KEY.")
    ] = None,
    port: Annotated[
        int | None,
        Parameter(help="A port of this machine that a server is to listen on: is it free?"),
    ] = None,
    as_json: Annotated[bool, Parameter(name="--json", help="Print JSON, for scripts.")] = False,
) -> None:
    """Check this installation and a data directory, and say what to do. Nothing is changed.

    All checksums are read, which takes seconds per gigabyte; a server may run meanwhile. The exit
    status is 1 when something needs attention.
    """
    from everturn.clock import SystemClock
    from everturn.server import doctor as checks_of
    from everturn.server.settings import Settings

    settings = Settings.from_env(data_dir=str(data_dir))
    checks = checks_of.examine(settings, SystemClock())
    if port is not None:
        checks.append(checks_of.port(settings.host, port))
    if url is not None:
        checks.extend(reach(url))
    if as_json:
        print_json([check._asdict() for check in checks])
    else:
        for check in checks:
            _print(check)
    if any(check.status == "attention" for check in checks):
        sys.exit(1)


def _print(check: Check) -> None:
    from rich.markup import escape

    console().print(f"{_SIGNS[check.status]} {check.name:<9} {escape(check.found)}")
    if check.todo is not None:
        console().print(f"  {'':<9} [bold]→ {escape(check.todo)}[/]")


def reach(url: str) -> list[Check]:
    """Whether a server answers at `url`, a worker serves there, and our key opens it."""
    import httpx2

    from everturn.server.doctor import attention

    base = url.rstrip("/")
    found: list[Check] = []
    try:
        with httpx2.Client(base_url=base, timeout=_TIMEOUT_S) as client:
            found.extend(_ask(client, base))
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        todo = "Start it (`everturn server`), or mend the address, a proxy or a firewall."
        found.append(attention("url", f"nothing answers at {base}: {error}", todo))
    return found


def _ask(client: httpx2.Client, base: str) -> list[Check]:
    from everturn.server.doctor import attention, ok

    alive = client.get("/healthz")
    if not _says(alive, "ok"):
        found = f"{base} answers {alive.status_code}, but not as an everturn server does"
        return [attention("url", found, "Something else listens there: check the port.")]
    if _says(client.get("/readyz"), "ready"):
        ready = ok("ready", "a worker serves")
    else:
        todo = f"Start one: everturn worker APP --url {base}"
        ready = attention("ready", "no worker is connected", todo)
    return [ok("url", f"an everturn server answers at {base}"), ready, _key(client)]


def _key(client: httpx2.Client) -> Check:
    from everturn.client.config import ClientConfig, resolve
    from everturn.server.doctor import attention, ok, skipped

    key = resolve(ClientConfig(url=str(client.base_url).rstrip("/"))).secret_key
    if key is None:
        return skipped("key", "EVERTURN_SECRET_KEY is not set")
    answer = client.get("/api/v1/sessions", headers={"authorization": f"Bearer {key}"})
    if answer.status_code == 401:
        source = "EVERTURN_SECRET_KEY" if os.environ.get("EVERTURN_SECRET_KEY") else "dev.json"
        return attention(
            "key",
            f"this server does not know the key of {source}",
            "Use a key of its own: `everturn keys create` where its data directory is.",
        )
    return ok("key", "the secret key opens its environment")


def _says(answer: httpx2.Response, member: str) -> bool:
    """Whether an answer is the JSON object of a health check with this member true."""
    try:
        value = answer.json()
    except ValueError:
        return False
    return isinstance(value, dict) and value.get(member) is True
