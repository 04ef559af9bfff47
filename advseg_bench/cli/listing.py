"""The lines of `advseg-bench list`: shipped names, plug-ins, attacks of toolkits. None of them is imported."""

from __future__ import annotations

from collections.abc import Iterator

from advseg_bench.errors import PluginError, SpecError, unknown
from advseg_bench.registry import catalogue, toolkits
from advseg_bench.registry.catalogue_defences import DEFENCES
from advseg_bench.registry.plugins import GROUPS, TOOLKITS, Kind, Plugin, find_conflict, list_plugins

_KINDS: dict[str, Kind] = {group.rpartition(".")[2]: kind for kind, group in GROUPS.items()}


def list_lines(what: str, every: bool = False) -> Iterator[str]:
    """List names, one line each: shipped ones, then those of plug-ins, then attacks of toolkits.

    Args:
        what: "attacks", "models", "losses", "defences", "datasets" or "suites".
        every: Whether to include attacks of toolkits that cannot run on segmentation models, with the reason.

    Raises:
        SpecError: If `what` is none of these.
    """
    if what not in (*_KINDS, "suites"):
        raise SpecError(unknown("list", "category", what, (*_KINDS, "suites")))
    for name, summary in _describe_shipped(what).items():
        yield f"{name:<24} {summary}".rstrip()
    if what == "suites":
        return
    for plugin in list_plugins(GROUPS[_KINDS[what]]):
        conflict = find_conflict(_KINDS[what], plugin.name)
        refused = f"; cannot be used: {conflict}" if conflict else ""
        yield f"{plugin.name:<24} (plug-in of {plugin.distribution}){refused}"
    for toolkit in list_plugins(TOOLKITS) if what == "attacks" else ():
        yield from _list_toolkit(toolkit, every)


def _describe_shipped(what: str) -> dict[str, str]:
    """Shipped names and their descriptions."""
    if what == "attacks":
        return {name: entry.summary for name, entry in catalogue.ATTACKS.items()}
    if what == "losses":
        return {name: f"{entry.summary} ({', '.join(entry.kinds)})" for name, entry in catalogue.LOSSES.items()}
    if what == "defences":
        return {name: entry.summary for name, entry in DEFENCES.items()}
    if what == "models":
        shipped = dict.fromkeys(catalogue.ARCHITECTURES, "") | catalogue.DEFINED_ARCHITECTURES
        return shipped | {"package.module:callable": "your network"}
    if what == "datasets":
        return catalogue.DATASETS
    from advseg_bench.suite.layers import list_suites
    from advseg_bench.suite.suite import Suite

    return {name: Suite.load(name).title for name in list_suites()}


def _list_toolkit(toolkit: Plugin, every: bool) -> Iterator[str]:
    """Describe a toolkit, how to install it if it is missing, and its attacks: view, objective, norms."""
    missing = "" if toolkits.is_installed(toolkit) else f"; not installed. Run: {toolkits.install(toolkit)}"
    try:
        rows = toolkits.read_support(toolkit)
    except PluginError as error:
        yield str(error)
        return
    yield f"{toolkit.name + '.<Class>':<24} (toolkit adapted by {toolkit.distribution}{missing})"
    for name, row in rows.items():
        view = f"{row.view} view" if row.view and row.view != "native" else row.view
        parts = (view, row.objective, "/".join(row.traits.norms))
        if not row.reason:
            yield f"{name:<44} {', '.join(part for part in parts if part)}".rstrip()
        elif every:
            yield f"{name:<44} cannot run: {row.reason}"
    hidden = sum(bool(row.reason) for row in rows.values())
    if hidden and not every:
        yield f"({hidden} more of {toolkit.name} cannot run on segmentation models; --all lists them with the reason)"
