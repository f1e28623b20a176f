"""Finding an app: `path/to/app.py` or `pkg.module`, and the version of its code.

Whatever is wrong with an app is one line that says where: this is the first message many people
see of us.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import sys
import sysconfig
import traceback
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Final

from everturn.clock import Clock
from everturn.errors import ConfigurationError, EverturnError
from everturn.tasks import registry as registries
from everturn.tasks.registry import Registry

VERSION_SETTING = "EVERTURN_VERSION"
#: Folders of Python's own modules and of what pip installed.
LIBRARIES: Final = tuple(
    sysconfig.get_path(name) + os.sep for name in ("stdlib", "purelib", "platlib")
)


class App:
    """An imported app: what it defines, and the files it is made of."""

    def __init__(self, name: str, module: ModuleType, registry: Registry) -> None:
        self.name = name
        self.module = module
        self.registry = registry

    @property
    def root(self) -> Path:
        """The folder that holds the app's files."""
        return Path(self.module.__file__ or ".").resolve().parent

    def files(self) -> list[Path]:
        """Python files of the app that were imported: its folder and what lies below."""
        found = set()
        for module in list(sys.modules.values()):
            file = getattr(module, "__file__", None)
            if isinstance(file, str) and file.endswith(".py"):
                path = Path(file).resolve()
                if path.is_relative_to(self.root) and "site-packages" not in path.parts:
                    found.add(path)
        return sorted(found)


def load_app(name: str) -> App:
    """Import an app, and return what it defines.

    Args:
        name: a path to a Python file, or an import path.

    Raises:
        ConfigurationError: one line: the file is missing, does not parse (with its line), fails
            to import (with the cause and its line), or defines no agents and no tasks.
    """
    registry = Registry()
    with registries.collecting(registry):
        module = _guarded(name)
    if not registry.definitions:
        raise ConfigurationError(f"{name} defines no agents and no tasks")
    return App(name, module, registry)


def _guarded(name: str) -> ModuleType:
    try:
        return _import(name)
    except SyntaxError as error:
        raise ConfigurationError(f"{error.filename}:{error.lineno}: {error.msg}") from error
    except ConfigurationError:
        raise
    except EverturnError as error:
        raise ConfigurationError(f"{_where(error, name)}: {error}") from error
    except Exception as error:  # the author's module, whatever it raises at import
        said = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ConfigurationError(f"cannot import {_where(error, name)}: {said}") from error


def _import(name: str) -> ModuleType:
    if not (name.endswith(".py") or os.sep in name):
        return _import_path(name)
    path = Path(name)
    if not path.is_file():
        raise ConfigurationError(f"there is no file {name}")
    path = path.resolve()
    # Modules beside the app are importable, as they are for `python app.py`.
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    module_name = path.stem
    known = sys.modules.get(module_name)
    if known is not None and getattr(known, "__file__", None) != str(path):
        module_name = f"everturn_app_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise ConfigurationError(f"{name} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(module_name, None)
        raise
    return module


def _import_path(name: str) -> ModuleType:
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    if not all(part.isidentifier() for part in name.split(".")):
        raise ConfigurationError(f"{name!r} is neither a Python file nor an import path")
    if name in sys.modules:
        # Import it anew, or its definitions would register nowhere.
        return importlib.reload(sys.modules[name])
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and name.startswith(error.name):
            raise ConfigurationError(f"there is no module {name}") from error
        raise


def _where(error: BaseException, name: str) -> str:
    """`file:line` of the innermost frame of the author's, else the app's name.

    A library that refuses what the app gave it is not where to look, so installed packages count
    only when there is nothing else: the app may be one of them.
    """
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if "importlib" not in frame.filename and f"{os.sep}everturn{os.sep}" not in frame.filename
    ]
    own = [f for f in frames if not f.filename.startswith(LIBRARIES)] or frames
    return f"{own[-1].filename}:{own[-1].lineno}" if own else name


def version_of(app: App, clock: Clock) -> str:
    """The version of an app's code: EVERTURN_VERSION, else `YYYYMMDD.<hash of its files>`.

    The same files on the same day are the same version, on every machine.
    """
    fixed = os.environ.get(VERSION_SETTING)
    if fixed:
        return fixed
    digest = hashlib.sha256()
    for path in app.files():
        digest.update(str(path.relative_to(app.root)).encode() + b"\0")
        digest.update(path.read_bytes() + b"\0")
    day = datetime.fromtimestamp(clock.now_ms() / 1000, UTC).strftime("%Y%m%d")
    return f"{day}.{digest.hexdigest()[:8]}"
