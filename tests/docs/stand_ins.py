"""Commands of a page that a suite may not run for real, and what stands for them.

`pip install` links what this suite runs on into the page's environment; `npm install` links the
packages that the React example was installed with. `systemctl` starts the `ExecStart` of a unit as
systemd would: in its folder, with its environment file, stopped by SIGTERM and waited for.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

#: What the environment of a project has besides Python: the scripts and what they start.
SCRIPTS = {
    "everturn": "from everturn.cli import main; main()",
    "uvicorn": "from uvicorn.main import main; main()",
    "pytest": "import pytest; raise SystemExit(pytest.main())",
}


def put_on_path(folder: Path) -> None:
    """Write a command for each stand-in, all of which call this file."""
    folder.mkdir()
    for name in ("python3", "npm", "systemctl", "sudo", "useradd", "install"):
        command = folder / name
        command.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{__file__}" {name} "$@"\n')
        command.chmod(0o755)


def python3(*arguments: str) -> int:
    """`python3 -m venv FOLDER`: an environment whose `pip install` is a link."""
    assert arguments[:2] == ("-m", "venv"), arguments
    folder = Path(arguments[2]).absolute()
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    pip = folder / "bin" / "pip"
    pip.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{__file__}" pip "{folder}" "$@"\n')
    pip.chmod(0o755)
    return 0


def pip(environment: str, verb: str, *packages: str) -> int:
    """What is installed here, in that environment too."""
    assert verb == "install", verb
    folder = Path(environment)
    [site] = (folder / "lib").glob("python*/site-packages")
    ours = sysconfig.get_paths()["purelib"]
    (site / "suite.pth").write_text(f"import site; site.addsitedir({ours!r})\n")
    for name, code in SCRIPTS.items():
        script = folder / "bin" / name
        script.write_text(f"#!{folder}/bin/python\n{code}\n")
        script.chmod(0o755)
    return 0


def npm(prefix: str, folder: str, *verb: str) -> int:
    """The packages of the React example, if they are what the page asks for; all else is npm's."""
    assert prefix == "--prefix", prefix
    if verb != ("install",):
        return subprocess.run([os.environ["REAL_NPM"], prefix, folder, *verb]).returncode
    installed = Path(os.environ["NODE_PACKAGES"])
    have = json.loads((installed.parent / "package.json").read_text())
    known = {**have["dependencies"], **have["devDependencies"]}
    asked = json.loads((Path(folder) / "package.json").read_text())["dependencies"]
    assert asked == {name: known[name] for name in asked}
    (Path(folder) / "node_modules").symlink_to(installed)
    return 0


def systemctl(verb: str, *names: str) -> int:
    """Start and stop units of the folder that stands for `/etc/systemd/system`."""
    units = Path(os.environ["UNITS"])
    for name in (name for name in names if not name.startswith("-")):
        if verb in ("enable", "start"):
            _start(units, name)
        else:
            _stop(units / f"{name}.pid")
    return 0


def _start(units: Path, name: str) -> None:
    template, at, instance = name.partition("@")
    text = (units / f"{template}{at}.service").read_text().replace("%i", instance)
    said = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    env = dict(os.environ)
    if "EnvironmentFile" in said:
        lines = Path(said["EnvironmentFile"]).read_text().splitlines()
        env.update(line.split("=", 1) for line in lines)
    with (units / f"{name}.log").open("ab") as log:
        process = subprocess.Popen(
            shlex.split(said["ExecStart"]),
            cwd=said["WorkingDirectory"],
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    (units / f"{name}.pid").write_text(str(process.pid))


def _stop(pid_file: Path) -> None:
    """SIGTERM, and wait for the end, as `systemctl stop` does."""
    pid = int(pid_file.read_text())
    pid_file.unlink()
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + 40
    while _runs(pid):
        assert time.monotonic() < deadline, f"{pid_file.stem} does not stop"
        time.sleep(0.05)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def stop_all(units: Path) -> None:
    """Stop what is left running."""
    for pid_file in units.glob("*.pid"):
        _stop(pid_file)


def sudo(_: str, _user: str, *command: str) -> int:
    """As ourselves."""
    return subprocess.run(command).returncode


def useradd(*_: str) -> int:
    """Nobody is added."""
    return 0


def install(*arguments: str) -> int:
    """`install -d -o USER -m MODE FOLDER…`, for ourselves."""
    assert arguments[:2] == ("-d", "-o"), arguments
    for folder in arguments[5:]:
        Path(folder).mkdir(parents=True, mode=int(arguments[4], 8))
    return 0


if __name__ == "__main__":
    raise SystemExit(globals()[sys.argv[1]](*sys.argv[2:]))
