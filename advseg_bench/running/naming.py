"""Attack objects as arms: by their name, loss and settings."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import nn

from advseg_bench.attacks.objective import name_loss
from advseg_bench.checks.results import name_of
from advseg_bench.errors import SpecError, expected
from advseg_bench.losses import ClassBalancedCE
from advseg_bench.models.weights import digest_weights
from advseg_bench.protocols import Attack
from advseg_bench.registry import catalogue
from advseg_bench.suite.cells import CLEAN, Arm
from advseg_bench.types import Norm


def name_arms(attacks: object, norm: Norm) -> dict[Arm, Attack]:
    """Attack objects by the arm that identifies them in tables."""
    listed = [attacks] if callable(attacks) else attacks
    if not isinstance(listed, Iterable) or isinstance(listed, str):
        raise SpecError(expected("evaluate", "a list of attacks, or attacks by name", attacks))
    named = listed.items() if isinstance(listed, Mapping) else (("", attack) for attack in listed)
    arms: dict[Arm, Attack] = {}
    for name, attack in named:
        if not callable(attack) or isinstance(attack, type):
            raise SpecError(expected("evaluate", "attack objects, such as ab.attacks.FGSM(loss='dice')", attack))
        loss = getattr(attack, "loss", None)
        called = str(name) or _find_name(attack)
        arm = Arm(called, "" if loss is None else name_loss(loss), _write_settings(called, attack), norm)
        if arm in arms:
            remedy = "Give a mapping of names to attacks."
            raise SpecError(expected("evaluate", "attacks that differ in name, loss or settings", arm.attack, remedy))
        if arm.attack == CLEAN.attack:
            raise SpecError(expected("evaluate", f"another name than {CLEAN.attack!r}, the clean prediction's", name))
        arms[arm] = attack
    if not arms:
        raise SpecError(expected("evaluate", "at least one attack", "none"))
    return arms


def _find_name(attack: Attack) -> str:
    """The name of an attack in the catalogue, or else its own name."""
    target = f"{type(attack).__module__}:{type(attack).__qualname__}"
    entries = catalogue.ATTACKS.items()
    return next((n for n, e in entries if target in (e.target, *e.variants.values())), name_of(attack))


def _write_settings(name: str, attack: Attack) -> str:
    """The settings of an attack that differ from their defaults, without the loss, as canonical JSON."""
    settings: dict[str, Any] = {}
    if isinstance(getattr(attack, "settings", None), Mapping):
        settings = dict(attack.settings)  # type: ignore[attr-defined]
    elif is_dataclass(attack) and not isinstance(attack, type):
        given = {field.name: (getattr(attack, field.name), field.default) for field in fields(attack)}
        changed = {key: value for key, (value, default) in given.items() if key != "loss" and value is not default}
        settings = {k: v for k, v in changed.items() if isinstance(v, torch.Tensor) or v != given[k][1]}
    return json.dumps(settings, sort_keys=True, default=lambda value: _write_value(name, value))


def _write_value(name: str, value: object) -> str:
    """Represent a setting that JSON cannot by a name that is the same in every process."""
    if isinstance(value, nn.Module):
        return f"{type(value).__name__} {digest_weights(value)[:16]}"
    if isinstance(value, ClassBalancedCE):
        return name_loss(value)
    if callable(value) and hasattr(value, "__qualname__"):
        return f"{value.__module__}:{value.__qualname__}"
    what = "settings that are numbers, strings, booleans, lists of them, or functions"
    raise SpecError(expected(f"attack {name}", what, type(value).__name__, "Give a mapping of names to attacks."))
