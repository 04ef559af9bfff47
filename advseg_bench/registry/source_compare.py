"""Compares a module in memory with its file: was it imported from what the file contains?"""

from __future__ import annotations

import ast
import marshal
import os
import sys
from collections.abc import Iterator, Mapping
from importlib.machinery import SourceFileLoader
from importlib.util import MAGIC_NUMBER
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any, TypeGuard

from advseg_bench.registry.source_files import MAIN, namespace

MARGIN = 2.0
"""Seconds by which the clocks of a file system and of this machine may differ."""
_SCRIPTS = (MAIN, "__mp_main__")
"""Names of the script that was started, in its own process and in worker processes."""
_HEADER = 16
"""Bytes before the code in a .pyc file: magic number, flags, time of the source, size of the source."""


def is_outdated(module: ModuleType, path: Path, since: float, installed: bool) -> bool:
    """Return whether a module was imported from other content than its file has.

    A file that did not change since before the import is equal. Otherwise compiled code is compared: that of the .pyc
    file, and that of every function, method and plain constant in memory.

    Args:
        module: A module in memory.
        path: Its file.
        since: A time before its import, in seconds since the epoch; 0 if none is known.
        installed: Whether it belongs to an installed package, of which only the .pyc file is compared.
    """
    spec = namespace(module).get("__spec__")
    script = namespace(module).get("__name__") in _SCRIPTS
    if not script and type(getattr(spec, "loader", None)) is not SourceFileLoader:
        return False
    compiled = None if installed else _compile(path)
    if not script and _is_stale(getattr(spec, "cached", None), path, compiled):
        return True
    if path.stat().st_ctime < since - MARGIN or installed:
        return False
    return compiled is None or _differs(module, path, compiled)


def _compile(path: Path) -> CodeType | None:
    """The code of a file as `import` compiles it; None if it is no valid Python."""
    try:
        return compile(path.read_bytes(), str(path), "exec", dont_inherit=True)
    except (SyntaxError, ValueError):
        return None


def _is_stale(cached: str | None, path: Path, compiled: CodeType | None) -> bool:
    """Whether the .pyc file, which the last import wrote or read, is of other content than the source file.

    Python takes a .pyc file for current if time (in whole seconds) and size of the source are equal, so one that
    differs in its code is noticed here alone.
    """
    try:
        data = Path(cached or "").read_bytes()
    except OSError:
        return False
    if len(data) < _HEADER or data[:4] != MAGIC_NUMBER or any(data[4:8]):
        return False
    found = path.stat()
    current = [int(value) & 0xFFFFFFFF for value in (found.st_mtime, found.st_size)]
    read = [int.from_bytes(data[i : i + 4], "little") for i in (8, 12)] == current
    written = not sys.dont_write_bytecode and os.access(Path(cached or "").parent, os.W_OK)
    if not (read or written):
        return False
    try:
        return not read if compiled is None else bool(marshal.loads(data[_HEADER:]) != compiled)
    except (ValueError, EOFError, TypeError):
        return False


def _differs(module: ModuleType, path: Path, compiled: CodeType) -> bool:
    """Whether functions or plain constants of a module differ from those that its file defines."""
    known: dict[str, list[CodeType]] = {}
    for code in _walk(compiled):
        known.setdefault(code.co_qualname, []).append(code)
    for function in list_functions(module):
        code = function.__code__
        if Path(code.co_filename).absolute() == path and code not in known.get(code.co_qualname, []):
            return True
    values = namespace(module)
    literals = _read_literals(path).items()
    return any(name in values and (type(values[name]), values[name]) != (type(v), v) for name, v in literals)


def _walk(code: CodeType) -> Iterator[CodeType]:
    """All code objects inside one."""
    for value in code.co_consts:
        if isinstance(value, CodeType):
            yield value
            yield from _walk(value)


def _read_literals(path: Path) -> dict[str, Any]:
    """Names that a file assigns once, at its top level, to a number, a string or a tuple of them."""
    tree = ast.parse(path.read_bytes())
    changed = {name for node in ast.walk(tree) if isinstance(node, ast.Global) for name in node.names}
    stores = [n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]
    found: dict[str, Any] = {}
    for node in tree.body:
        if not isinstance(node, (ast.Assign, ast.AnnAssign)) or node.value is None:
            continue
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        names = [target.id for target in targets if isinstance(target, ast.Name)]
        try:
            value = ast.literal_eval(node.value)
        except (ValueError, TypeError, RecursionError):
            continue
        if isinstance(value, (bool, int, float, str, bytes, tuple)):
            found |= {name: value for name in names if name not in changed and stores.count(name) == 1}
    return found


def list_functions(module: ModuleType) -> Iterator[FunctionType]:
    """Yield the functions that a module holds or its classes hold, other than imported ones and those of generators."""
    owner = namespace(module).get("__name__")
    for value in namespace(module).values():
        if type(value) is FunctionType:
            yield from (each for each in _unwrap(value) if each.__module__ in (owner, MAIN))
        elif _is_class(value) and value.__module__ == owner:
            yield from _list_methods(vars(value), owner)


def _is_class(value: object) -> TypeGuard[type]:
    """Whether an object is a class, without reading its attributes, which may run code."""
    return issubclass(type(value), type)


def _list_methods(values: Mapping[str, Any], owner: str) -> Iterator[FunctionType]:
    """The functions in the namespace of a class, and in that of classes inside."""
    for value in values.values():
        if _is_class(value) and value.__module__ == owner and value.__dict__ is not values:
            yield from _list_methods({k: v for k, v in vars(value).items() if not _is_class(v)}, owner)
        parts = [value.fget, value.fset, value.fdel] if isinstance(value, property) else [value]
        for part in parts:
            yield from _unwrap(part.__func__ if isinstance(part, (staticmethod, classmethod)) else part)


def _unwrap(value: object) -> Iterator[FunctionType]:
    """A function, and those that decorators have wrapped."""
    seen: set[int] = set()
    while type(value) is FunctionType and id(value) not in seen:
        yield value
        seen.add(id(value))
        value = value.__dict__.get("__wrapped__")


def is_replaced(module: ModuleType, path: Path) -> bool:
    """Return whether a module holds code that is not of its file: typed in a session, or replaced by the script."""
    main = namespace(sys.modules.get(MAIN)).get("__file__")
    script = namespace(module).get("__name__") in _SCRIPTS
    for function in list_functions(module):
        name = function.__code__.co_filename
        if function.__module__ != MAIN or (script and name == "<string>"):  # such as the methods of data classes
            continue
        file = Path(name).absolute()
        if file != path and (name == main or not file.is_file()):
            return True
    return False


def is_superseded(module: ModuleType, others: Mapping[str, ModuleType]) -> str | None:
    """Return the name of a module that was imported anew while this one still holds functions or classes of the old.

    Args:
        module: A module in memory.
        others: Modules in memory by name.
    """
    for value in namespace(module).values():
        if not (type(value) is FunctionType or _is_class(value)) or value.__module__ not in others:
            continue
        other = others[value.__module__]
        current = namespace(other).get(value.__qualname__) if other is not module else value
        if type(current) is type(value) and _list_code(current) != _list_code(value):
            return value.__module__
    return None


def _list_code(value: object) -> list[CodeType]:
    """The code of a function, without its decorators, or of the methods of a class."""
    methods = _list_methods(vars(value), value.__module__) if _is_class(value) else [*_unwrap(value)][-1:]
    return [function.__code__ for function in methods]
