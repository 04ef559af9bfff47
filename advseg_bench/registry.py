"""From a name to the object: the catalogue first, then entry points, then `package.module:object`."""

from __future__ import annotations

import json
from importlib.metadata import EntryPoint, entry_points
from typing import Any, cast

from advseg_bench import catalogue
from advseg_bench.cells import Cell
from advseg_bench.errors import PluginError, SpecError, unknown
from advseg_bench.losses import Loss, probe
from advseg_bench.types import Attack, Task


def load_attack(cell: Cell, task: Task) -> Attack:
    """Build the attack of a cell: its class (or callable) with its settings and its loss.

    Raises:
        PluginError: if the name cannot be loaded.
        SpecError: if the attack does not take the settings.
        IncompatibleError: if the loss is not one: see `losses.probe`.
    """
    entry = catalogue.ATTACKS.get(cell.attack)
    target = _load("attack", cell.attack, entry.target if entry else None)
    settings: dict[str, Any] = json.loads(cell.settings)
    if cell.loss:
        settings["loss"] = load_loss(cell.loss, task)
    if not isinstance(target, type):
        if settings:
            raise SpecError(f"attack {cell.attack}: is a plain function, so it takes neither settings nor losses.")
        return cast(Attack, target)
    try:
        return cast(Attack, target(**settings))
    except (TypeError, ValueError) as error:
        raise SpecError(f"attack {cell.attack}: does not take these settings: {error}") from None


def load_loss(name: str, task: Task) -> Loss:
    """Return a loss and check that it is one, by `losses.probe`.

    Raises: PluginError, IncompatibleError.
    """
    entry = catalogue.LOSSES.get(name)
    loss = cast(Loss, _load("loss", name, entry.target if entry else None))
    probe(loss, task, name)
    return loss


def _load(kind: str, name: str, target: str | None) -> object:
    """Import what a name stands for."""
    if target is None:
        group = {"attack": "advseg_bench.attacks", "loss": "advseg_bench.losses"}[kind]
        found = entry_points(group=group, name=name)
        if len(found) > 1:
            owners = ", ".join(sorted(e.dist.name if e.dist else "?" for e in found))
            raise PluginError(f"{kind} {name}: more than one distribution provides it: {owners}. Remove one.")
        if found:
            return _import(kind, name, next(iter(found)))
        if ":" not in name:
            known = catalogue.ATTACKS if kind == "attack" else catalogue.LOSSES
            raise PluginError(unknown("", kind, name, known))
        target = name
    return _import(kind, name, EntryPoint(name, target, ""))


def _import(kind: str, name: str, entry: EntryPoint) -> object:
    """Import an entry point; whatever goes wrong is told in one line that names the culprit."""
    try:
        return entry.load()
    except Exception as error:
        owner = f" of distribution {entry.dist.name}" if entry.dist else ""
        raise PluginError(
            f"{kind} {name}: {entry.value}{owner} could not be imported: {type(error).__name__}: {error}. "
            "Check the spelling and that its package is installed."
        ) from error
