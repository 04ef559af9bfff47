"""Names that installed distributions add: found by their entry points, and imported only when they are used.

Torch-free. A name stands for what the package ships, else for what one distribution offers under it, else for
`package.module:object`. Two providers of one name are an error, the package itself being one of them.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from operator import attrgetter
from typing import Literal

from advseg_bench.errors import PluginError, one_line, unknown
from advseg_bench.registry import catalogue

Kind = Literal["attack", "architecture", "loss", "data set"]

GROUPS: dict[Kind, str] = {
    "attack": "advseg_bench.attacks",
    "architecture": "advseg_bench.models",
    "loss": "advseg_bench.losses",
    "data set": "advseg_bench.datasets",
}
EQUIVALENTS = "advseg_bench.equivalents"
"""The group of functions (reference, norm, settings) -> (attack, settings) or None; named by toolkit."""
TOOLKITS = "advseg_bench.toolkits"
"""The group whose entries name the attacks `<entry>.<Class>`."""

SHIPPED: dict[Kind, Collection[str]] = {
    "attack": catalogue.ATTACKS,
    "architecture": (*catalogue.ARCHITECTURES, catalogue.TORCHSCRIPT),
    "loss": catalogue.LOSSES,
    "data set": catalogue.DATASETS,
}
_SHIPPED_TARGETS: dict[tuple[Kind, str], str] = {
    **{("attack", name): attack.target for name, attack in catalogue.ATTACKS.items()},
    **{("loss", name): loss.target for name, loss in catalogue.LOSSES.items()},
}
RESERVED = "none"
"""The attack name of the clean prediction in every record."""


@dataclass(frozen=True, slots=True)
class Plugin:
    """One entry point.

    Attributes:
        name: What a suite writes.
        target: `package.module:object`; a module for a toolkit.
        distribution: The installed distribution that offers it.
    """

    name: str
    target: str
    distribution: str


def list_plugins(group: str) -> tuple[Plugin, ...]:
    """Return the entry points of a group in the order of their names; nothing is imported."""
    return _scan(tuple(sys.path)).get(group, ())


def find_plugin(kind: Kind, name: str) -> Plugin | None:
    """Return the plug-in of a name; None if the name is shipped, or no distribution offers it.

    Raises:
        PluginError: If more than one provider has the name; see `find_conflict`.
    """
    if conflict := find_conflict(kind, name):
        raise PluginError(conflict)
    return next((plugin for plugin in list_plugins(GROUPS[kind]) if plugin.name == name), None)


def find_conflict(kind: Kind, name: str) -> str | None:
    """Return the one line that says which providers a name has, if that is more than one."""
    owners = [plugin.distribution for plugin in list_plugins(GROUPS[kind]) if plugin.name == name]
    if kind == "attack" and ":" not in name:
        toolkit, dot, _ = name.partition(".")
        owners += [t.distribution for t in list_plugins(TOOLKITS) if dot and t.name == toolkit]
    if owners and (name in SHIPPED[kind] or name == RESERVED):
        others = " and ".join(sorted(owners))
        return (
            f"{kind} {name}: the name is advseg-bench's own, and distribution {others} offers it too. A plug-in cannot "
            f"replace it. Rename the entry point, or uninstall {others}."
        )
    return _say_shared(f"{kind} {name}", owners)


def _say_shared(where: str, owners: list[str]) -> str | None:
    """Say which distributions offer the same name, if there is more than one."""
    if len(owners) < 2:
        return None
    return f"{where}: more than one distribution offers it: {', '.join(sorted(owners))}. Uninstall one."


def load_from_group(group: str, name: str, where: str) -> object:
    """Import the entry of a group that exactly one distribution must offer.

    Args:
        group: Such as `EQUIVALENTS`.
        name: Of the entry.
        where: Put before every message.

    Raises:
        PluginError: One line; more than one provider among the reasons.
    """
    found = [plugin for plugin in list_plugins(group) if plugin.name == name]
    if conflict := _say_shared(where, [plugin.distribution for plugin in found]):
        raise PluginError(conflict)
    if not found:
        raise PluginError(unknown(where, "entry", name, (plugin.name for plugin in list_plugins(group))))
    owner = f"{where}: plug-in {name!r} of distribution {found[0].distribution}"
    return _import(owner, found[0].target, mend(found[0]))


def check_name(kind: Kind, name: str, also: Iterable[str] = ()) -> None:
    """Check that a name stands for something, without importing it.

    Args:
        kind: What it should name.
        name: Shipped, of a plug-in, or `package.module:object`.
        also: Further names worth proposing.

    Raises:
        PluginError: The name is unknown, or has more than one provider.
    """
    if find_plugin(kind, name) is None and name not in SHIPPED[kind] and ":" not in name:
        plugins = (plugin.name for plugin in list_plugins(GROUPS[kind]))
        raise PluginError(unknown("", kind, name, {*SHIPPED[kind], *plugins, *also}))


def load_object(kind: Kind, name: str, where: str = "") -> object:
    """Import what a name stands for.

    Args:
        kind: What it should name.
        name: A shipped attack or loss, of a plug-in, or `package.module:object`.
        where: Put before every message; by default the kind and the name.

    Raises:
        PluginError: One line with the name, the distribution, the cause and the remedy.
    """
    where = where or f"{kind} {name}"
    plugin = find_plugin(kind, name)
    if plugin is None:
        check_name(kind, name)
        return _import(
            where,
            _SHIPPED_TARGETS.get((kind, name), name),
            "Install its package, or set PYTHONPATH to the folder that holds it.",
        )
    return _import(
        f"{where}: plug-in {plugin.name!r} of distribution {plugin.distribution}", plugin.target, mend(plugin)
    )


def mend(plugin: Plugin) -> str:
    """Word the remedy for a plug-in that does not work."""
    return f"Update or reinstall {plugin.distribution}, or remove it: pip uninstall {plugin.distribution}"


def _import(where: str, target: str, remedy: str) -> object:
    """Import `package.module:object`; whatever goes wrong is one line."""
    module_name, _, path = target.partition(":")
    try:
        module = import_module(module_name)
    except (Exception, SystemExit) as error:
        raise PluginError(f"{where}: module {module_name!r} cannot be imported: {one_line(error)}. {remedy}") from error
    try:
        return attrgetter(path)(module)
    except AttributeError:
        names = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise PluginError(f"{unknown(where, f'object of {module_name}', path, names)} {remedy}") from None


@lru_cache(maxsize=1)
def _scan(path: tuple[str, ...]) -> dict[str, tuple[Plugin, ...]]:
    """Read the entry points of everything on the path, once for each path."""
    found = entry_points()
    groups = [TOOLKITS, EQUIVALENTS, *GROUPS.values()]
    return {group: tuple(sorted(map(_read, found.select(group=group)), key=_order)) for group in groups}


def _read(entry: EntryPoint) -> Plugin:
    owner = (entry.dist.name if entry.dist else None) or "?"
    return Plugin(entry.name, entry.value.partition("[")[0].replace(" ", ""), owner)


def _order(plugin: Plugin) -> tuple[str, str]:
    return plugin.name, plugin.distribution
