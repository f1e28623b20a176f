"""What a user must be able to look up is written down, and what is written down is true."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from everturn import errors
from everturn.protocol import link, paths
from everturn.rules.run_states import TRANSITIONS
from everturn.server.settings import Settings

ROOT = Path(__file__).parent.parent.parent
PROTOCOL = (ROOT / "PROTOCOL.md").read_text()
SETTINGS = (ROOT / "docs" / "settings.md").read_text()
README = (ROOT / "README.md").read_text()
ARCHITECTURE = (ROOT / "ARCHITECTURE.md").read_text()


def settings_table() -> str:
    lines = ["| setting | default | unit | meaning |", "|---|---|---|---|"]
    for name, _, default, unit, meaning in Settings.describe():
        shown = f"`{default}`" if default else ""
        lines.append(f"| `{name}` | {shown} | {unit} | {meaning} |")
    return "\n".join(lines)


def test_every_setting_is_described_with_its_default() -> None:
    """To mend: put the table this test prints into docs/settings.md."""
    assert settings_table() in SETTINGS, settings_table()


def request_errors() -> list[type[errors.EverturnError]]:
    found: list[type[errors.EverturnError]] = []
    waiting: list[type[errors.EverturnError]] = [errors.RequestError, errors.Unavailable]
    while waiting:
        kind = waiting.pop()
        found.append(kind)
        waiting.extend(kind.__subclasses__())
    return [kind for kind in found if kind.__module__ == errors.__name__]


@pytest.mark.parametrize("kind", request_errors(), ids=lambda kind: kind.__name__)
def test_every_error_that_reaches_a_client_has_its_code_in_the_protocol(
    kind: type[errors.EverturnError],
) -> None:
    if kind in (errors.RequestError, errors.CursorTrimmed):
        return  # never sent: the root of the tree, and one that reads clamp to
    assert f"`{kind.code}`" in PROTOCOL


def test_every_method_of_the_link_is_named_in_its_module_and_the_protocol_names_the_module() -> (
    None
):
    assert "src/everturn/protocol/link.py" in PROTOCOL
    assert all(text for text in link.METHODS.values())
    assert link.PATH in PROTOCOL
    assert link.SUBPROTOCOL in PROTOCOL


def test_clauses_are_numbered_once() -> None:
    numbers = re.findall(r"^- \*\*([WL]-\d+)\*\*", PROTOCOL, re.MULTILINE)
    assert len(numbers) == len(set(numbers)) > 30


def test_the_health_routes_are_spelled_as_documented() -> None:
    assert paths.HEALTH in PROTOCOL
    assert paths.READY in PROTOCOL


def test_the_road_names_files_that_exist() -> None:
    road = re.findall(r"^ +\d+ +(\S+\.py)", ARCHITECTURE, re.MULTILINE)
    assert len(road) == 12
    missing = [name for name in road if not (ROOT / "src" / "everturn" / name).exists()]
    assert missing == []


def test_the_diagram_of_run_states_is_the_table() -> None:
    """To mend: put the lines this test prints into ARCHITECTURE.md."""
    lines = [f"{a} --{event}--> {b}" for (a, event), b in TRANSITIONS.items()]
    drawn = "\n".join(lines)
    assert drawn in ARCHITECTURE, drawn


def code_blocks(name: str) -> list[str]:
    return re.findall(rf"<!-- example: {name} -->\n```python\n(.*?)```", README, re.DOTALL)


def test_the_first_agent_of_the_readme_loads_and_defines_an_agent(tmp_path: Path) -> None:
    """Its model is replaced by the offline one, because the suite has no key."""
    from everturn.worker.loading import load_app

    (code,) = code_blocks("first_agent")
    assert '"openai:gpt-5"' in code
    code = code.replace('"openai:gpt-5"', "offline_model()").replace(
        "from everturn import chat",
        "from everturn import chat\nfrom everturn.chat.adapters.offline import offline_model",
    )
    (tmp_path / "app.py").write_text(code)
    app = load_app(str(tmp_path / "app.py"))
    assert [d.task_id for d in app.registry.definitions.values()] == ["assistant"]


def test_the_conversation_of_the_readme_is_python() -> None:
    (code,) = code_blocks("talk")
    lines = "\n".join("    " + line for line in code.splitlines())
    compile(f"async def main():\n{lines}\n", "README.md", "exec")


def test_every_command_the_readme_names_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`?make (\w+)", README):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
