"""The source code behind a user's names, hashed as it was imported.

The files of a module are hashed when it is first seen: when it is imported here, or when it is first described. From
then on its hash stands for the code in memory, whatever happens to the files; `begin`, called at the start of a run,
refuses code whose file has changed since. Code that no file contains (a notebook's cell, standard input) has no hash.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import sys
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import ModuleType

from advseg_bench.errors import PluginError
from advseg_bench.registry.source_compare import is_outdated, is_replaced, is_superseded
from advseg_bench.registry.source_files import MAIN, Files, is_installed, list_files, namespace

ABSENT = "not found"
"""In place of the hash of a module that does not exist; importing it gives the error."""
NO_FILE = "in no file"
"""Start of what stands in place of a hash of code that no file contains; never the same in two runs."""


@dataclass(frozen=True, slots=True)
class _Seen:
    """A file as it was first seen.

    Attributes:
        digest: Hash of its content.
        loaded: Its module's import, None if it was not loaded. `importlib.reload` makes another import.
    """

    digest: str
    loaded: object | None


_seen: dict[Path, _Seen] = {}
_listed: dict[str, Files | None] = {}


def _find_start() -> float:
    """The time at which this process started, in seconds since the epoch; 0 if the system does not show it."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):
        return 0.0
    return time.time() - age if age >= 0 else 0.0


_START = _find_start()


def hash_source(module: str, session: str = "") -> str:
    """Return a hash of the code of a module, as it was imported or, if it is not loaded, as it is on disk.

    Args:
        module: Dotted name. The hash covers its top-level package, and modules beside it that it imports.
        session: What distinguishes code that no file contains; by default it is never equal to any other.

    Returns:
        The hash, `ABSENT` or a text that starts with `NO_FILE`.

    Raises:
        PluginError: If a file changed between its import, or its first hash, and now, so that the code in memory is
            unknown.
    """
    files = _list_files(module)
    if files == {}:
        return ABSENT
    loaded = _find_loaded(files.values()) if files else {}
    if files is None or any(is_replaced(loaded[path], path) for path in files.values() if path in loaded):
        return f"{NO_FILE}, session {session or secrets.token_hex(8)}"
    digest = hashlib.sha256()
    for name, path in sorted(files.items(), key=lambda item: PurePosixPath(item[0]).parts):
        digest.update(f"{name}\0".encode() + bytes.fromhex(_see(path, loaded.get(path), _START)))
    return digest.hexdigest()[:16]


def begin(modules: Iterable[str]) -> None:
    """Start a run: hash what is not loaded anew, and refuse loaded code that is not what its files contain.

    Args:
        modules: Dotted names.

    Raises:
        PluginError: One line with the file and the remedy.
    """
    _listed.clear()
    for path in [path for path, seen in _seen.items() if seen.loaded is None]:
        del _seen[path]
    for module in modules:
        files = _list_files(module) or {}
        loaded = _find_loaded(files.values())
        for path, found in loaded.items():
            if _see(path, found, _START) != (_read_digest(path) if path.is_file() else None):
                raise _refuse(path)
        names = {namespace(found).get("__name__", ""): found for found in loaded.values()}
        for path, found in loaded.items():
            if not is_installed(path.parent) and (other := is_superseded(found, names)):
                raise PluginError(
                    f"{path}: expected the code of module {other!r} as it was imported last, got that of an earlier "
                    "import, before it changed on disk. Restart the session."
                )


def note_imports(before: Collection[str], since: float) -> None:
    """Hash the user's modules that were just imported.

    Args:
        before: Names of the modules that were loaded before.
        since: A time before the import.

    Raises:
        PluginError: If a file changed during the import.
    """
    for name in [name for name in sys.modules if name not in before]:
        file = namespace(sys.modules.get(name)).get("__file__")
        if not isinstance(file, str) or not file.endswith(".py"):
            continue
        path, top = Path(file), name.partition(".")[0]
        depth = name.count(".") + (path.name == "__init__.py")
        folder = path.parents[depth] if depth < len(path.parents) else path.parent
        if top != "advseg_bench" and path.is_file() and not is_installed(folder):
            _see(path, sys.modules[name], since)


def _list_files(module: str) -> Files | None:
    """The files behind a module, as listed when it was first described in this run."""
    top = module.partition(".")[0]
    if top not in _listed or not _listed[top]:
        _listed[top] = list_files(module)
    return _listed[top]


def _find_loaded(paths: Iterable[Path]) -> dict[Path, ModuleType]:
    """Those of the files that are loaded as modules."""
    wanted = {str(path): path for path in paths}
    found: dict[Path, ModuleType] = {}
    for name, module in list(sys.modules.items()):
        file = namespace(module).get("__file__")
        if isinstance(file, str) and file in wanted and (name == MAIN or wanted[file] not in found):
            found[wanted[file]] = module
    return found


def _see(path: Path, module: ModuleType | None, since: float) -> str:
    """The hash of a file as it was first seen, or as its module was imported."""
    loaded = None if module is None else namespace(module).get("__spec__") or module
    known = _seen.get(path)
    if known is not None and (loaded is None or known.loaded is loaded):
        return known.digest
    if not path.is_file():
        raise _refuse(path)
    digest = _read_digest(path)
    hashed_before = known is not None and known.loaded is None and known.digest != digest
    if hashed_before or (module is not None and is_outdated(module, path, since, _belongs_to_package(module, path))):
        raise _refuse(path)
    _seen[path] = _Seen(digest, loaded)
    return digest


def _belongs_to_package(module: ModuleType, path: Path) -> bool:
    """Whether a module's top-level package is installed."""
    depth = str(namespace(module).get("__name__", "")).count(".") + (path.name == "__init__.py")
    return is_installed(path.parents[min(depth, len(path.parents) - 1)])


def _read_digest(path: Path) -> str:
    """The hash of a file's content."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _refuse(path: Path) -> PluginError:
    what = "expected the source code as it was imported, got a file that has changed on disk since it was imported"
    return PluginError(f"{path}: {what}. Restart the session (and delete __pycache__ if this recurs).")
