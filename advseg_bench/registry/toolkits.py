"""Attacks of adversarial toolkits, `<toolkit>.<Class>`: which toolkits are adapted, and what their classes support.

Imports neither torch nor a toolkit. A distribution registers a toolkit in the entry-point group
`advseg_bench.toolkits`: the entry's name is the toolkit's import name and the distribution's extra, its value a module
with a function `load(class_name, settings, loss, task) -> Attack`. The file `support/<toolkit>.json` beside the module
describes each class.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from advseg_bench.errors import PluginError, one_line, unknown
from advseg_bench.registry.plugins import TOOLKITS, Plugin, check_name, find_conflict, list_plugins, remedy
from advseg_bench.types import Traits


@dataclass(frozen=True, slots=True)
class Row:
    """Support of a toolkit's class for segmentation models.

    Attributes:
        name: "<toolkit>.<Class>".
        reason: Why it cannot attack a segmentation model; "" if it can.
        view: How it accesses the model: "loss", "margin", "native", or "" if it does not use the model.
        objective: "follows loss", "success-gated" or "own loss".
        traits: Measured capabilities; unknown ones have the default.
    """

    name: str
    reason: str
    view: str
    objective: str
    traits: Traits

    @property
    def needs_loss(self) -> bool:
        """Whether a suite must give it losses."""
        return self.view != ""

    def traits_of(self, settings: Mapping[str, object]) -> Traits:
        """Return the traits, whatever the settings: those of toolkits are not known here."""
        return self.traits


def find_toolkit(attack: str) -> Plugin | None:
    """Return the toolkit that an attack's name belongs to, or None.

    Raises:
        PluginError: If another distribution provides the same toolkit or attack.
    """
    toolkit, dot, _ = attack.partition(".")
    found = [entry for entry in list_plugins(TOOLKITS) if dot and ":" not in attack and entry.name == toolkit]
    if found and (conflict := find_conflict("attack", attack)):
        raise PluginError(conflict)
    return found[0] if found else None


def find_row(attack: str) -> Row | None:
    """Return the support of a toolkit's attack; None for other attacks, or without a support table.

    Raises:
        PluginError: See `find_toolkit` and `read_support`.
    """
    toolkit = find_toolkit(attack)
    return read_support(toolkit).get(attack) if toolkit else None


def check_attack(name: str) -> None:
    """Check the name of an attack that is shipped, of a plug-in or of a toolkit, without importing it.

    Raises:
        PluginError: If it is unknown or ambiguous, or cannot attack segmentation models.
    """
    toolkit = find_toolkit(name)
    if toolkit is None:
        check_name("attack", name, {f"{entry.name}.<Class>" for entry in list_plugins(TOOLKITS)})
        return
    rows = read_support(toolkit)
    if rows and name not in rows:
        raise PluginError(unknown("", "attack", name, rows))
    if rows and rows[name].reason:
        raise PluginError(f"attack {name}: cannot attack a segmenter: {rows[name].reason.rstrip('.')}.")


def read_support(toolkit: Plugin) -> Mapping[str, Row]:
    """Return the support table of a toolkit by attack name; empty if there is none.

    Raises:
        PluginError: If the file is damaged.
    """
    package, *inner = toolkit.target.partition(":")[0].split(".")[:-1] or [""]
    spec = _find_top(package) if package else None
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(folder, *inner, "support", f"{toolkit.name}.json")
        if path.is_file():
            try:
                return _read_rows(path, path.stat().st_mtime_ns)
            except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
                where = f"toolkit {toolkit.name} of distribution {toolkit.distribution}"
                cause = f"{path} is an invalid support table: {one_line(error)}"
                raise PluginError(f"{where}: {cause}. {remedy(toolkit)}") from error
    return {}


def is_installed(toolkit: Plugin) -> bool:
    """Return whether the toolkit itself is installed, without importing it."""
    return _find_top(toolkit.name) is not None


def install(toolkit: Plugin) -> str:
    """Return the command that installs a toolkit."""
    return f'pip install "{toolkit.distribution}[{toolkit.name}]"'


def _find_top(name: str) -> ModuleSpec | None:
    """Find the top-level package of a name without an import; None if there is none."""
    try:
        return find_spec(name.partition(".")[0])
    except (ImportError, ValueError):  # ValueError: it was put into sys.modules by hand
        return None


@lru_cache(maxsize=16)
def _read_rows(path: Path, changed: int) -> dict[str, Row]:
    rows = (_read_row(row) for row in json.loads(path.read_text(encoding="utf-8"))["rows"])
    return {row.name: row for row in rows}


def _read_row(row: dict[str, Any]) -> Row:
    """Parse a row; other keys are for documentation only."""
    known: dict[str, Any] = {name: tuple(row[name]) for name in ("norms", "kinds", "dims") if row.get(name)}
    return Row(
        name=row["name"],
        reason="" if row["status"] == "runs" else row["reason"] or row["status"],
        view=row.get("view") or "",
        objective=row.get("objective") or "",
        traits=Traits(random=bool(row.get("random", True)), **known),
    )
