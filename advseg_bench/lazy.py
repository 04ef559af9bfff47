"""Lazy exports: a package imports its public names on first use, so importing the package loads no library."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def export_lazily(package: str, homes: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return the module functions `__getattr__` and `__dir__` of a package.

    Args:
        package: The package's `__name__`.
        homes: Public name -> submodule of `package` that defines it; "" if the name is the submodule itself.

    Returns:
        The pair (`__getattr__`, `__dir__`).
    """

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        home = homes[name]
        return getattr(import_module(f"{package}.{home}"), name) if home else import_module(f"{package}.{name}")

    return get, lambda: sorted(homes)
