"""Names provided by installed distributions: discovered by entry points, and imported when first used.

Does not import torch. A name refers to a shipped object, else to the entry point of one distribution, else to
`package.module:object`. Two providers of one name are an error; the package itself counts as a provider.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from operator import attrgetter
from typing import Literal

from advseg_bench.errors import PluginError, one_line, unknown
from advseg_bench.registry import catalogue, sources
from advseg_bench.registry.catalogue_defences import DEFENCES
from advseg_bench.registry.source_files import MAIN, namespace

INSTALL = "Install its package, or set PYTHONPATH to the folder that contains it."
"""The remedy if the module of `package.module:object` cannot be imported."""

Kind = Literal["attack", "architecture", "loss", "defence", "data set"]

GROUPS: dict[Kind, str] = {
    "attack": "advseg_bench.attacks",
    "architecture": "advseg_bench.models",
    "loss": "advseg_bench.losses",
    "defence": "advseg_bench.defences",
    "data set": "advseg_bench.datasets",
}
EQUIVALENTS = "advseg_bench.equivalents"
"""Entry-point group of functions (reference, norm, settings) -> (attack, settings) or None, named by toolkit."""
TOOLKITS = "advseg_bench.toolkits"
"""Entry-point group of toolkits, whose attacks are named `<entry>.<Class>`."""

SHIPPED: dict[Kind, Collection[str]] = {
    "attack": catalogue.ATTACKS,
    "architecture": (*catalogue.ARCHITECTURES, *catalogue.DEFINED_ARCHITECTURES),
    "loss": catalogue.LOSSES,
    "defence": DEFENCES,
    "data set": catalogue.DATASETS,
}
_SHIPPED_TARGETS: dict[tuple[Kind, str], str] = {
    **{("attack", name): attack.target for name, attack in catalogue.ATTACKS.items()},
    **{("loss", name): loss.target for name, loss in catalogue.LOSSES.items()},
    **{("defence", name): defence.target for name, defence in DEFENCES.items()},
}
RESERVED = "none"
"""The attack name of the clean prediction in every record."""


@dataclass(frozen=True, slots=True)
class Plugin:
    """One entry point.

    Attributes:
        name: Name used in suites.
        target: `package.module:object`; a module for a toolkit.
        distribution: Installed distribution that provides it.
    """

    name: str
    target: str
    distribution: str


def list_plugins(group: str) -> tuple[Plugin, ...]:
    """Return the entry points of a group, sorted by name; nothing is imported."""
    return _scan(tuple(sys.path)).get(group, ())


def find_plugin(kind: Kind, name: str) -> Plugin | None:
    """Return the plug-in with a name; None if the name is shipped, or no distribution provides it.

    Raises:
        PluginError: If the name has more than one provider, see `find_conflict`.
    """
    if conflict := find_conflict(kind, name):
        raise PluginError(conflict)
    return next((plugin for plugin in list_plugins(GROUPS[kind]) if plugin.name == name), None)


def find_conflict(kind: Kind, name: str) -> str | None:
    """Return an error message that lists the providers of a name, or None if there is at most one."""
    owners = [plugin.distribution for plugin in list_plugins(GROUPS[kind]) if plugin.name == name]
    if kind == "attack" and ":" not in name:
        toolkit, dot, _ = name.partition(".")
        owners += [t.distribution for t in list_plugins(TOOLKITS) if dot and t.name == toolkit]
    if owners and (name in SHIPPED[kind] or name == RESERVED):
        others = " and ".join(sorted(owners))
        return (
            f"{kind} {name}: expected one provider, got advseg-bench and distribution {others}. A plug-in cannot "
            f"replace a shipped name. Rename the entry point, or uninstall {others}."
        )
    return _describe_conflict(f"{kind} {name}", owners)


def _describe_conflict(where: str, owners: list[str]) -> str | None:
    """Return an error message that lists the distributions that provide a name, or None if there is at most one."""
    if len(owners) < 2:
        return None
    return f"{where}: expected one distribution that provides it, got {', '.join(sorted(owners))}. Uninstall one."


def load_from_group(group: str, name: str, where: str) -> object:
    """Import the entry point of a group that exactly one distribution must provide.

    Args:
        group: Entry-point group, such as `EQUIVALENTS`.
        name: Name of the entry point.
        where: Prefix of error messages.

    Raises:
        PluginError: If no distribution or several provide it, or it cannot be imported.
    """
    found = [plugin for plugin in list_plugins(group) if plugin.name == name]
    if conflict := _describe_conflict(where, [plugin.distribution for plugin in found]):
        raise PluginError(conflict)
    if not found:
        raise PluginError(unknown(where, "entry", name, (plugin.name for plugin in list_plugins(group))))
    owner = f"{where}: plug-in {name!r} of distribution {found[0].distribution}"
    return _import(owner, found[0].target, remedy(found[0]))


def check_name(kind: Kind, name: str, also: Iterable[str] = ()) -> None:
    """Check that a name is known, without importing it.

    Args:
        kind: Type of object, such as "attack".
        name: Shipped name, one of a plug-in, or `package.module:object`.
        also: Further names to suggest.

    Raises:
        PluginError: If the name is unknown, or has more than one provider.
    """
    if find_plugin(kind, name) is None and name not in SHIPPED[kind] and ":" not in name:
        plugins = (plugin.name for plugin in list_plugins(GROUPS[kind]))
        raise PluginError(unknown("", kind, name, {*SHIPPED[kind], *plugins, *also}))


def load_object(kind: Kind, name: str, where: str = "") -> object:
    """Import the object that a name refers to.

    Args:
        kind: Type of object, such as "attack".
        name: A shipped attack or loss, one of a plug-in, or `package.module:object`.
        where: Prefix of error messages; by default type and name.

    Raises:
        PluginError: If it cannot be imported; one line with name, distribution, cause and remedy.
    """
    where = where or f"{kind} {name}"
    plugin = find_plugin(kind, name)
    if plugin is None:
        check_name(kind, name)
        return _import(
            where,
            _SHIPPED_TARGETS.get((kind, name), name),
            INSTALL,
        )
    return _import(
        f"{where}: plug-in {plugin.name!r} of distribution {plugin.distribution}", plugin.target, remedy(plugin)
    )


def remedy(plugin: Plugin) -> str:
    """Return the remedy for a plug-in that does not work, as a sentence."""
    return f"Update or reinstall {plugin.distribution}, or remove it: pip uninstall {plugin.distribution}"


def _import(where: str, target: str, remedy: str) -> object:
    """Import `package.module:object`; every failure is a one-line `PluginError`."""
    module_name, _, path = target.partition(":")
    before, since = set(sys.modules), time.time()
    try:
        module = import_module(module_name)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit, and the exceptions with which test runners and schedulers stop
        raise PluginError(f"{where}: module {module_name!r} cannot be imported: {one_line(error)}. {remedy}") from error
    sources.note_imports(before, since)
    try:
        return attrgetter(path)(module)
    except AttributeError:
        known = namespace(module).items()
        names = [key for key, value in known if callable(value) and not key.startswith("_")]
        remedy = "" if remedy == INSTALL else remedy  # the module was found
        if module_name == MAIN:
            remedy = "Move it to the top level of the script or to a module, or use workers=1."
        raise PluginError(f"{unknown(where, f'object of {module_name}', path, names)} {remedy}".rstrip()) from None
    except Exception as error:
        raise PluginError(f"{where}: {target} cannot be accessed: {one_line(error)}. {remedy}") from error


@lru_cache(maxsize=1)
def _scan(path: tuple[str, ...]) -> dict[str, tuple[Plugin, ...]]:
    """Read the entry points of all distributions on the path, cached by path."""
    found = entry_points()
    groups = [TOOLKITS, EQUIVALENTS, *GROUPS.values()]
    return {group: tuple(sorted(map(_read, found.select(group=group)), key=_order)) for group in groups}


def _read(entry: EntryPoint) -> Plugin:
    try:
        owner = (entry.dist.name if entry.dist else None) or "?"
    except (AttributeError, KeyError, TypeError):  # its METADATA file is missing or damaged
        owner = "?"
    return Plugin(entry.name, entry.value.partition("[")[0].replace(" ", ""), owner)


def _order(plugin: Plugin) -> tuple[str, str]:
    return plugin.name, plugin.distribution
