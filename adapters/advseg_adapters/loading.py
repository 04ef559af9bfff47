"""Validate the name and settings of a toolkit's attack before anything runs."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from advseg_adapters.foreign import SHARE, Route
from advseg_bench.errors import PluginError, SpecError, expected, unknown

SUPPORT = Path(__file__).with_name("support")
"""The folder of the support tables that `measure_support` writes: one JSON file per toolkit."""

OURS = ("threshold", "rise")
"""Settings of this package for success-gated classes."""


def find_route(toolkit: str, class_name: str, routes: Mapping[str, Route], exported: Collection[str]) -> Route:
    """Return the route of an attack class.

    Args:
        toolkit: Import name of the toolkit.
        class_name: Name of the class, without the toolkit.
        routes: Routes of the adapter, by class name.
        exported: Attack classes of the installed package.

    Returns:
        The route.

    Raises:
        PluginError: The package has no such class, or the adapter has no route for it yet.
    """
    name = f"{toolkit}.{class_name}"
    if class_name not in exported:
        raise PluginError(unknown("", "attack", name, [f"{toolkit}.{known}" for known in exported]))
    if class_name not in routes:
        raise PluginError(
            f"attack {name}: not in the support table yet: the installed {toolkit} is newer than this adapter. "
            "Use another attack or another version of the toolkit."
        )
    return routes[class_name]


def is_batched(toolkit: str, class_name: str) -> bool:
    """Return whether images may share a call of this class, as measured in the support table."""
    path = SUPPORT / f"{toolkit}.json"
    if not path.is_file():
        return False
    rows = {row["name"]: row for row in json.loads(path.read_text(encoding="utf-8"))["rows"]}
    row = rows.get(f"{toolkit}.{class_name}")
    return row is not None and row["batching"] == "batch-preserving"


def check_settings(
    where: str,
    build: Callable[..., object],
    settings: Mapping[str, Any],
    *,
    fixed: Mapping[str, str],
    gated: bool = True,
) -> None:
    """Validate settings against the parameters of a class.

    Args:
        where: "attack <name>", the beginning of error messages.
        build: The class.
        settings: Settings of the user.
        fixed: Parameters that users cannot set -> the reason.
        gated: Whether `threshold` and `rise` are accepted.

    Raises:
        SpecError: A setting is unknown or fixed, or its type differs from that of the default.
    """
    parameters = _parameters(build)
    known = {name for name in parameters if name not in fixed} | (set(OURS) if gated else set())
    for key, value in settings.items():
        if key in fixed and key in parameters:
            raise SpecError(f"{where}: the setting {key!r} is {fixed[key]}. Remove it.")
        if key not in known:
            raise SpecError(unknown(where, "setting", key, known))
        if key not in OURS:
            _check_type(f"{where}: setting {key!r}", parameters[key].default, value)


def _parameters(build: Callable[..., object]) -> dict[str, inspect.Parameter]:
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return {name: p for name, p in inspect.signature(build).parameters.items() if p.kind not in kinds}


def _check_type(where: str, default: Any, value: Any) -> None:
    """Require the type of the default, if that is a bool, a number or a string."""
    if isinstance(default, bool):
        right, what = isinstance(value, bool), "true or false"
    elif isinstance(default, (int, float)):
        is_share = isinstance(value, str) and SHARE.match(value) is not None
        right = is_share or (isinstance(value, (int, float)) and not isinstance(value, bool))
        what = 'a number, or a share of the radius such as "0.25*eps"'
    elif isinstance(default, str):
        right, what = isinstance(value, str), f"a text such as {default!r}"
    else:
        return
    if not right:
        raise SpecError(expected(where, what, value))
