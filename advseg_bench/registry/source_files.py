"""Lists the source files behind a module: its top-level package, and the uninstalled modules that it imports.

Nothing is imported: imports are read from the syntax tree.
"""

from __future__ import annotations

import ast
import site
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

Files = dict[str, Path]
"""Name of a file that does not depend on its folder -> the file."""

NOT_FOLLOWED = {"advseg_bench", "advseg_adapters"}
"""Packages of this project, whose version is part of every result."""
MAIN = "__main__"
_DYNAMIC = {"import_module", "__import__"}
"""Functions that import a module by a string."""
_INSTALLED = {"site-packages", "dist-packages"}
"""Names of folders that hold installed packages of another Python."""


def list_files(module: str) -> Files | None:
    """List the files that the results of a module depend on.

    These are the Python files of its top-level package, or its single file; and, unless it is installed, the modules
    that these files import from places that are not installed, and those that they import in turn.

    Args:
        module: Dotted name; `__main__` is the script that was started.

    Returns:
        Name -> file; empty if there is no such module, None if it has no file.
    """
    top = module.partition(".")[0]
    folder, files = _list_main() if top == MAIN else _list_top(top)
    if folder is None or not files:
        return files
    return files if is_installed(folder) else _add_imported(files, folder, top)


def _list_main() -> tuple[Path | None, Files | None]:
    """The file of the script, or the package of `python -m package.module`."""
    main = sys.modules[MAIN]
    if package := (namespace(main).get("__package__") or "").partition(".")[0]:
        return _list_top(package)
    file = namespace(main).get("__file__")
    path = Path(file).absolute() if file else None
    if path is None or not path.is_file():
        return None, None
    return path.parent, {MAIN: path}


def _list_top(top: str) -> tuple[Path | None, Files | None]:
    """The folder of a top-level package or module, and its files."""
    try:
        spec = find_spec(top)
    except (ImportError, ValueError):  # ValueError: it was put into sys.modules by hand
        spec = None
    if spec is None:
        return None, None if top in sys.modules else {}
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()]
    files = {path.relative_to(folder).as_posix(): path for folder in folders for path in folder.rglob("*.py")}
    if folders:
        return folders[0].parent, files or None
    origins = (spec.origin, getattr(spec.loader, "archive", None))  # a module in a zip file has its archive
    path = next((Path(origin) for origin in origins if origin and Path(origin).is_file()), None)
    return (path.parent, {top: path}) if path else (None, None)


def is_installed(folder: Path) -> bool:
    """Return whether a folder belongs to the standard library or holds installed distributions."""
    return _is_installed(folder, tuple(sys.path))


@lru_cache(maxsize=64)
def _is_installed(folder: Path, path: tuple[str, ...]) -> bool:
    places = {*sysconfig.get_paths().values(), *site.getsitepackages(), site.getusersitepackages()}
    return str(folder) in places or any(folder.glob("*.dist-info"))


def _add_imported(files: Files, folder: Path, top: str) -> Files:
    """Add the modules that these files import from the same folder, or from any folder that is not installed."""
    found, known, skipped = dict(files), set(files.values()), {top, MAIN, *NOT_FOLLOWED}
    waiting = list(files.values())
    while waiting:
        names = _read_imports(waiting.pop())
        beside = {f"../{path.relative_to(folder).as_posix()}": path for path in _find_siblings(names, folder, skipped)}
        resolved = {path.resolve() for path in (*known, *beside.values())}
        elsewhere = {name: path for name, path in _find_elsewhere(names, skipped) if path.resolve() not in resolved}
        for name, path in (beside | elsewhere).items():
            if path not in known:
                known.add(path)
                waiting.append(path)
                found[name] = path
    return found


def _find_elsewhere(names: Iterable[str], skipped: set[str]) -> Iterator[tuple[str, Path]]:
    """The files that imports of dotted names load by `sys.path` or a finder, and their names, unless installed."""
    for top in sorted({name.partition(".")[0] for name in names} - skipped):
        try:
            spec = find_spec(top)
        except (ImportError, ValueError, AttributeError):  # it was put into sys.modules by hand
            continue
        if spec is None:
            continue
        folders = [Path(place).parent for place in spec.submodule_search_locations or ()]
        if not folders and spec.origin and spec.origin.endswith(".py"):
            folders = [Path(spec.origin).parent]
        for folder in reversed(folders):  # of files of one name the first counts
            if not is_installed(folder) and not _INSTALLED & {*folder.parts}:
                mine = [name for name in names if name.partition(".")[0] == top]
                for path in _find_siblings(mine, folder, skipped):
                    yield f"sys.path/{path.relative_to(folder).as_posix()}", path


def _find_siblings(names: Iterable[str], folder: Path, skipped: set[str]) -> Iterator[Path]:
    """The files in a folder that imports of dotted names load; all files of a package."""
    for name in names:
        place = folder
        for part in name.split(".") if name.partition(".")[0] not in skipped else ():
            if (place / part / "__init__.py").is_file():
                yield from (place / part).rglob("*.py")
                break
            if (file := place / f"{part}.py").is_file():
                yield file
                break
            place = place / part


def _read_imports(path: Path) -> tuple[str, ...]:
    """Dotted names that a file imports absolutely or by `import_module`; none if it is not Python."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, OSError, RecursionError):
        return ()
    names: dict[str, None] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= dict.fromkeys(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= dict.fromkeys(f"{node.module}.{alias.name}" for alias in node.names)
    return tuple(names | dict.fromkeys(_read_dynamic(tree)))


def _read_dynamic(tree: ast.Module) -> Iterator[str]:
    """Names that `import_module` or `__import__` may import: its literals, or any string if it is used otherwise."""
    nodes = list(ast.walk(tree))
    used = [node for node in nodes if isinstance(node, (ast.Name, ast.Attribute)) and _last(node) in _DYNAMIC]
    calls = [node for node in nodes if isinstance(node, ast.Call) and any(node.func is each for each in used)]
    given = [argument for call in calls for argument in (*call.args, *(each.value for each in call.keywords))]
    first = [(*call.args, *(each.value for each in call.keywords if each.arg == "name"))[:1] for call in calls]
    literal = len(calls) == len(used) and all(each and _is_text(each[0]) for each in first)
    renamed = any(isinstance(node, ast.alias) and node.name in _DYNAMIC and node.asname for node in nodes)
    for node in given if literal and not renamed else nodes:
        text = str(node.value).rstrip(".") if isinstance(node, ast.Constant) and _is_text(node) else ""
        if all(part.isidentifier() for part in text.split(".")):
            yield text


def _last(node: ast.Name | ast.Attribute) -> str:
    return node.id if isinstance(node, ast.Name) else node.attr


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def namespace(module: ModuleType | None) -> dict[str, Any]:
    """Return the attributes of a module without running its `__getattr__`; empty for an odd object."""
    try:
        return dict(object.__getattribute__(module, "__dict__"))
    except (AttributeError, TypeError):
        return {}
