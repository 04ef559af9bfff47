"""The source code behind a user's names, hashed as it was imported.

The file of a module is hashed when the module is first seen: when it is imported here, or when it is first described.
From then on its hash stands for the code in memory, whatever happens to the file; `begin`, called at the start of a
run, refuses code whose file has changed since. Code that is in no file (a cell of a notebook, standard input) has no
hash.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import sys
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from types import ModuleType

from advseg_bench.errors import PluginError
from advseg_bench.registry.source_compare import is_outdated, is_replaced, is_superseded
from advseg_bench.registry.source_files import MAIN, Files, is_installed, list_files, namespace

ABSENT = "not found"
"""In place of the hash of a module that does not exist; importing it gives the error."""
NO_FILE = "in no file"
"""Start of the text in place of the hash of code that is in no file; it differs between sessions."""


@dataclass(slots=True)
class Session:
    """The code on which one run or one training depends, as it was when it was first described.

    Attributes:
        token: Distinguishes code that is in no file from that of other sessions.
        listed: Top-level module -> its files.
        hashed: Files that were not loaded when they were hashed -> hash. Loading another content is an error.
    """

    token: str = field(default_factory=lambda: secrets.token_hex(8))
    listed: dict[str, Files | None] = field(default_factory=dict)
    hashed: dict[Path, str] = field(default_factory=dict)

    def list_files(self, module: str) -> Files | None:
        """Return the files behind a module, as they were listed first."""
        top = module.partition(".")[0]
        if not self.listed.get(top):
            self.listed[top] = list_files(module)
        return self.listed[top]

    def hash_file(self, path: Path, module: ModuleType | None) -> str:
        """Return the hash of a file: as its module was imported, or as it was hashed first.

        Raises:
            PluginError: If the file changed between its hash or its import and now.
        """
        if module is None:
            if path not in self.hashed:
                self.hashed[path] = _read_digest(path)
            return self.hashed[path]
        digest = _see(path, module, _START)
        if self.hashed.get(path, digest) != digest:
            raise _refuse(path)
        return digest


@dataclass(frozen=True, slots=True)
class _Seen:
    """The file of a module as it was imported.

    Attributes:
        digest: Hash of its content.
        loaded: Identity of the import; `importlib.reload` makes another one.
    """

    digest: str
    loaded: object


_seen: dict[Path, _Seen] = {}


def _find_start() -> float:
    """The time at which this process started, in seconds since the epoch; 0 if the system does not provide it."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):
        return 0.0
    return time.time() - age if age >= 0 else 0.0


_START = _find_start()


def hash_source(module: str, session: Session) -> str:
    """Return a hash of the code of a module, as it was imported or, if it is not loaded, as it is on disk.

    Args:
        module: Dotted name. The hash covers its top-level package, and uninstalled modules that it imports.
        session: What was described before is hashed again as it was then.

    Returns:
        The hash, `ABSENT` or a text that starts with `NO_FILE`.

    Raises:
        PluginError: If a file changed between its first hash or its import and now, so that the code in memory is
            unknown.
    """
    files = session.list_files(module)
    if files == {}:
        return ABSENT
    loaded = _find_loaded(files.values()) if files else {}
    if files is None or any(is_replaced(loaded[path], path) for path in files.values() if path in loaded):
        return f"{NO_FILE}, session {session.token}"
    digest = hashlib.sha256()
    for name, path in sorted(files.items(), key=lambda item: PurePosixPath(item[0]).parts):
        digest.update(f"{name}\0".encode() + bytes.fromhex(session.hash_file(path, loaded.get(path))))
    return digest.hexdigest()[:16]


def begin(modules: Iterable[str]) -> Session:
    """Start a session, and refuse loaded code that differs from its files.

    Args:
        modules: Dotted names.

    Raises:
        PluginError: One line with the file and the remedy.
    """
    session = Session()
    for module in modules:
        files = session.list_files(module) or {}
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
        hash_source(module, session)
    return session


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


def _find_loaded(paths: Iterable[Path]) -> dict[Path, ModuleType]:
    """Those of the files that are loaded as modules."""
    wanted = {str(path): path for path in paths}
    found: dict[Path, ModuleType] = {}
    for name, module in list(sys.modules.items()):
        file = namespace(module).get("__file__")
        if isinstance(file, str) and file in wanted and (name == MAIN or wanted[file] not in found):
            found[wanted[file]] = module
    return found


def _see(path: Path, module: ModuleType, since: float) -> str:
    """The hash of the file of a module as it was imported, at some time after `since`."""
    loaded = namespace(module).get("__spec__") or module
    known = _seen.get(path)
    if known is not None and known.loaded is loaded:
        return known.digest
    if not path.is_file():
        raise _refuse(path)
    digest = _read_digest(path)
    if is_outdated(module, path, since, _belongs_to_package(module, path)):
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
