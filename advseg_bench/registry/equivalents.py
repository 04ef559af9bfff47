"""Attacks of toolkits that implement one of the reference attacks."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from advseg_bench.errors import PluginError, SpecError, expected, one_line, unknown
from advseg_bench.registry.loading import load_attack
from advseg_bench.registry.plugins import EQUIVALENTS, list_plugins, load_from_group
from advseg_bench.registry.toolkits import check_attack
from advseg_bench.types import Norm, Task


def find_equivalents(
    names: Sequence[str], reference: str, norm: Norm, settings: Mapping[str, Any]
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Resolve names of toolkits and attacks into attacks with settings.

    Args:
        names: Toolkits (art, torchattacks, foolbox), each of which stands for its class of the reference attack, or
            names of attacks.
        reference: Name of the reference attack.
        norm: Norm of the budgets.
        settings: Settings of the reference attack.

    Returns:
        A dictionary from attack name to settings, and the toolkits without such an attack.

    Raises:
        PluginError: If the name of an attack is unknown, or the equivalents of a toolkit cannot be loaded or are
            provided by several distributions.
        SpecError: If a name without "." and ":" is neither an attack nor a toolkit.
    """
    toolkits = {plugin.name for plugin in list_plugins(EQUIVALENTS)}
    found: dict[str, dict[str, Any]] = {}
    missing = []
    full = _fill(reference, settings)
    for name in names:
        if name not in toolkits:
            _check_name(name, toolkits)
        equivalent = _ask(name, reference, norm, full) if name in toolkits else (name, {})
        if equivalent is None:
            missing.append(name)
        else:
            found[equivalent[0]] = equivalent[1]
    return found, missing


def _ask(toolkit: str, reference: str, norm: Norm, settings: Mapping[str, Any]) -> tuple[str, dict[str, Any]] | None:
    """A toolkit's class of a reference attack with its settings, or None."""
    where = f"equivalents of {toolkit}"
    find = load_from_group(EQUIVALENTS, toolkit, where)
    what = "a function (reference, norm, settings) -> (attack, settings) or None"
    if not callable(find):
        raise PluginError(expected(where, what, type(find).__name__))
    try:
        found = find(reference, norm, settings)
    except Exception as error:
        raise PluginError(f"{where}: fails for {reference!r}: {one_line(error)}. Expected {what}.") from error
    match found:
        case None:
            return None
        case (str(name), dict(options)):
            return name, options
    raise PluginError(expected(where, what, found))


def _check_name(name: str, toolkits: Collection[str]) -> None:
    """Reject unknown attacks; a name without "." and ":" is reported as an unknown toolkit."""
    try:
        check_attack(name)
    except PluginError:
        if "." in name or ":" in name:
            raise
        raise SpecError(unknown("against", "toolkit", name, toolkits)) from None


def _fill(reference: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Complete the settings of the reference with its defaults, in terms of `ProjectedAscent`."""
    attack = load_attack(reference, {}, "dice", Task("binary", ("a",)))
    filled = {name: getattr(attack, name, None) for name in ("steps", "step_size", "random_start", "decay")}
    filled |= settings
    steps = filled["steps"] or 1
    start = bool(filled["random_start"])
    return filled | {
        "steps": steps,
        "step_size": filled["step_size"] or getattr(attack, "travel", 1.0) / steps,
        "random_start": start,
    }
