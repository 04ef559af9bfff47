"""Which attacks of toolkits claim to be one of the reference attacks."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from importlib.metadata import entry_points
from typing import Any

from advseg_bench.errors import PluginError, SpecError, unknown
from advseg_bench.registry.loading import load_attack
from advseg_bench.registry.toolkits import check_attack
from advseg_bench.types import Norm, Task

GROUP = "advseg_bench.equivalents"
"""Entry points (reference, norm, settings) -> (attack name, settings) or None; their name is the toolkit's."""


def find_equivalents(
    names: Sequence[str], reference: str, norm: Norm, settings: Mapping[str, Any]
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Turn what the user names into attacks with settings.

    Args:
        names: A toolkit (art, torchattacks, foolbox) stands for its class of the reference attack; anything else is
            an attack's name.
        reference: Name of the reference.
        norm: Norm of the budgets.
        settings: Of the reference.
    Returns: Attack name -> settings, and the toolkits that have no such attack.
    """
    toolkits = {entry.name: entry for entry in entry_points(group=GROUP)}
    found: dict[str, dict[str, Any]] = {}
    missing = []
    full = _fill(reference, settings)
    for name in names:
        if name not in toolkits:
            _check_name(name, toolkits)
        equivalent = toolkits[name].load()(reference, norm, full) if name in toolkits else (name, {})
        if equivalent is None:
            missing.append(name)
        else:
            found[equivalent[0]] = equivalent[1]
    return found, missing


def _check_name(name: str, toolkits: Collection[str]) -> None:
    """Refuse what is no attack; a bare word was meant for a toolkit."""
    try:
        check_attack(name)
    except PluginError:
        if "." in name or ":" in name:
            raise
        raise SpecError(unknown("against", "toolkit", name, toolkits)) from None


def _fill(reference: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The reference's settings with its defaults, in the words of `ProjectedAscent`."""
    attack = load_attack(reference, {}, "dice", Task("binary", ("a",)))
    filled = {name: getattr(attack, name, None) for name in ("steps", "step_size", "random_start", "decay")}
    filled |= settings
    steps = filled["steps"] or 1
    start = bool(filled["random_start"])
    return filled | {"steps": steps, "step_size": filled["step_size"] or 1 / steps, "random_start": start}
