"""The network that a MONAI bundle defines, read from its configuration without running anything in it.

MONAI itself evaluates every `$` expression of a configuration with Python. Here references (`@key`) and plain
arithmetic are resolved, and everything else is refused, so that a bundle from anywhere can be opened.
"""

from __future__ import annotations

import ast
import json
import operator
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from advseg_bench.errors import SpecError, expected, one_line

NETWORK_KEYS = ("network_def", "network", "net", "model")
"""Where a bundle defines its network."""

_IGNORED = {"_target_", "_requires_", "_desc_", "_disabled_"}
_REFERENCE = re.compile(r"@([A-Za-z_]\w*(?:(?:#|::)\w+)*)")
_OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.USub: operator.neg,
}
_FUNCTIONS: dict[str, Callable[..., Any]] = {"len": len, "int": int, "float": float, "tuple": tuple, "list": list}
_LARGEST = 10_000
"""Longest list or text that is made."""

_MOST_VALUES = 100_000
"""Values that are resolved, since references to references can multiply."""

_LARGEST_FILE = 2**24
"""Bytes of a configuration."""


def read_network(file: Path) -> tuple[str, dict[str, Any]]:
    """Read the class of a bundle's network and its arguments.

    Args:
        file: Configuration, JSON or YAML.

    Returns:
        Name of a class in `monai.networks.nets`, and arguments as plain values.

    Raises:
        SpecError: If the file cannot be read, defines no network, names a class from elsewhere, or has an expression
            that would have to be run.
    """
    config = _read(file)
    for key in NETWORK_KEYS:
        table = config.get(key)
        if isinstance(table, Mapping) and "_target_" in table:
            break
    else:
        raise SpecError(expected(file, f"a network with _target_ under {NETWORK_KEYS[0]!r}", list(config)[:8]))
    target = str(table["_target_"])
    module, _, name = target.rpartition(".")
    if module and not f"{module}.".startswith("monai.networks.nets."):
        remedy = "Name your network as `architecture`, and models/model.pt as `weights`."
        raise SpecError(expected(file, "a network of monai.networks.nets", target, remedy))
    if table.get("_mode_", "default") != "default":
        raise SpecError(expected(file, f"no _mode_ in {key!r}", table["_mode_"], "Remove it."))
    values = _Values(file, config)
    try:
        return name, {k: values.resolve(v, f"{key}#{k}") for k, v in table.items() if k not in _IGNORED | {"_mode_"}}
    except RecursionError:
        raise SpecError(expected(file, "plain values", "too many lists inside each other")) from None


def _read(file: Path) -> Mapping[str, Any]:
    """Read the configuration."""
    try:
        if (size := file.stat().st_size) > _LARGEST_FILE:
            raise ValueError(f"{size:,} bytes")
        text = file.read_text(encoding="utf-8")
        if file.suffix == ".json":
            config = json.loads(text)
        else:
            import yaml

            config = yaml.safe_load(text)
    except Exception as error:  # the parsers have classes of their own
        raise SpecError(expected(file, "a configuration of a MONAI bundle", one_line(error, 160))) from None
    if not isinstance(config, Mapping):
        raise SpecError(expected(file, "a configuration of a MONAI bundle", type(config).__name__))
    return config


class _Values:
    """Resolves references and arithmetic among the values of one configuration."""

    def __init__(self, file: Path, config: Mapping[str, Any]) -> None:
        self.file, self.config = file, config
        self.following: list[str] = []
        self.resolved = 0

    def resolve(self, value: Any, where: str) -> Any:
        """Return a value without references and expressions."""
        self.resolved += 1
        if self.resolved > _MOST_VALUES:
            raise self._refuse(where, f"more than {_MOST_VALUES:,} values")
        if isinstance(value, Mapping):
            if "_target_" in value:
                raise self._refuse(where, f"an object of {value['_target_']}")
            return {key: self.resolve(entry, where) for key, entry in value.items()}
        if isinstance(value, (list, tuple)):
            return tuple(self.resolve(entry, where) for entry in value)
        if not isinstance(value, str):
            return value
        if value.startswith("$"):
            return self._evaluate(value[1:], where)
        if match := _REFERENCE.fullmatch(value):
            return self._follow(match[1], where)
        if value.startswith("%"):
            raise self._refuse(where, f"the macro {value}")
        return value

    def _follow(self, path: str, where: str) -> Any:
        """Return what a reference names."""
        if path in self.following:
            raise self._refuse(where, f"references that go round in a circle: {' -> '.join([*self.following, path])}")
        found: Any = self.config
        for part in re.split("#|::", path):
            try:
                found = found[part] if isinstance(found, Mapping) else found[int(part)]
            except (KeyError, IndexError, ValueError, TypeError):
                raise self._refuse(where, f"a reference to {path!r}, which is not there") from None
        self.following.append(path)
        value = self.resolve(found, where)
        self.following.pop()
        return value

    def _evaluate(self, text: str, where: str) -> Any:
        """Compute an expression of constants, references and arithmetic."""
        names: dict[str, str] = {}

        def name(match: re.Match[str]) -> str:
            names[f"_reference{len(names)}"] = match[1]
            return f"_reference{len(names) - 1}"

        try:
            tree = ast.parse(_REFERENCE.sub(name, text.strip()), mode="eval").body if len(text) < _LARGEST else None
            return self._compute(tree, names, where)
        except (SyntaxError, ValueError, TypeError, ArithmeticError, RecursionError, MemoryError):
            raise self._refuse(where, f"the expression {text!r}") from None

    def _compute(self, node: ast.AST | None, names: Mapping[str, str], where: str) -> Any:
        """Compute a node; a `ValueError` if it is more than arithmetic."""
        match node:
            case ast.Constant(value=bool() | int() | float() | str() | None):
                return node.value
            case ast.Name(id=known) if known in names:
                return self._follow(names[known], where)
            case ast.List(elts=entries) | ast.Tuple(elts=entries):
                return tuple(self._compute(entry, names, where) for entry in entries)
            case ast.UnaryOp(op=ast.USub(), operand=inner):
                return -self._compute(inner, names, where)
            case ast.Call(func=ast.Name(id=function), args=[argument], keywords=[]) if function in _FUNCTIONS:
                return _FUNCTIONS[function](self._compute(argument, names, where))
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
                sides = self._compute(left, names, where), self._compute(right, names, where)
                most = _LARGEST if any(isinstance(side, (str, tuple)) for side in sides) else _LARGEST**2
                if any(isinstance(side, (int, float)) and abs(side) > most for side in sides):
                    raise ValueError
                result = _OPERATORS[type(op)](*sides)
                if isinstance(result, (tuple, str)) and len(result) > _LARGEST:
                    raise ValueError
                return result
        raise ValueError

    def _refuse(self, where: str, found: str) -> SpecError:
        """Word the error for a value that would have to be run to be read."""
        remedy = "Write the value itself there, or name the network as `architecture` with `settings`."
        return SpecError(expected(self.file, f"plain values and references at {where}", found, remedy))
