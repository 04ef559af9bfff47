"""Finds code of others in an object: an attack, a loss or a model that is not this package's, and may do anything."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from functools import partial
from types import BuiltinFunctionType, CellType, FunctionType, MethodType
from typing import Any

KNOWN = {"advseg_bench", "torch", "torchvision", "numpy", "scipy", "monai", "segmentation_models_pytorch", "timm"}
"""Top-level packages whose code leaves the process as it was, beside those of Python."""

_KNOWN = (KNOWN | set(sys.stdlib_module_names)) - {"__main__"}
_PLAIN = (bool, int, float, complex, str, bytes, type(None))
_MOST = 100_000
"""Number of objects to search; what is larger counts as code of others."""


def is_foreign(thing: object) -> bool:
    """Return whether an object is, or holds, a function or an object of a class that others have written.

    Args:
        thing: An attack, a loss, a model. Attributes, modules of a network, closures, containers and arguments of
            `functools.partial` are searched; the object is not called.

    Example:
        >>> import advseg_bench as ab
        >>> def mine(logits, y, valid, task):
        ...     return logits.flatten(1).sum(1)
        >>> is_foreign(ab.attacks.FGSM(loss="dice")), is_foreign(ab.attacks.FGSM(loss=mine))
        (False, True)
    """
    waiting, seen = [thing], dict[int, object]()
    while waiting:
        found = waiting.pop()
        if isinstance(found, _PLAIN) or id(found) in seen:
            continue
        seen[id(found)] = found
        if len(seen) > _MOST:
            return True
        try:
            if not _is_known(found):
                return True
            waiting += _list_parts(found)
        except Exception:  # an object whose attributes raise
            return True
    return False


def _is_known(thing: object) -> bool:
    """Whether the module that defines a function, a class or the class of an object is known."""
    owner = thing if isinstance(thing, (type, FunctionType, BuiltinFunctionType)) else type(thing)
    module = getattr(owner, "__module__", None) or "builtins"
    return module.partition(".")[0] in _KNOWN


def _list_parts(thing: Any) -> Iterator[Any]:
    """What an object holds."""
    if isinstance(thing, Mapping):
        yield from thing.values()
    elif isinstance(thing, (list, tuple, set, frozenset)):
        yield from thing
    elif isinstance(thing, partial):
        yield from (thing.func, thing.args, thing.keywords)
    elif isinstance(thing, MethodType):
        yield from (thing.__func__, thing.__self__)
    elif isinstance(thing, FunctionType):
        yield from thing.__closure__ or ()
    elif isinstance(thing, CellType):
        yield thing.cell_contents
    elif hasattr(thing, "_modules"):  # a network, whose values are no code
        yield from thing._modules.values()
        yield from (value for name, value in vars(thing).items() if not name.startswith("_"))
    elif not isinstance(thing, type) and type(thing).__module__.partition(".")[0] not in ("torch", "numpy"):
        yield from getattr(thing, "__dict__", {}).values()
        names = (name for each in type(thing).__mro__ for name in getattr(each, "__slots__", ()))
        yield from (getattr(thing, name) for name in names if hasattr(thing, name))
