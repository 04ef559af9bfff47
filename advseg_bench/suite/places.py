"""Where in a suite file a mistake is, in words of its author."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, get_args

from pydantic import BaseModel

from advseg_bench.suite.specs import PLUGIN_TAG, PluginData

_ENTRY = re.compile(r"(attack|model)s\.(\d+)(\.?)")


def name_place(message: str, tables: Mapping[str, Any]) -> str:
    """Name the attack or model at which a message begins, by its number from 1 and its name.

    Args:
        message: A message that begins with a path such as "attacks.0.eps".
        tables: The content of the suite file.

    Returns:
        The message; one about another place is unchanged.

    Example:
        >>> name_place("attacks.0.eps: missing.", {"attacks": [{"name": "fgsm"}]})
        'attack 1 (fgsm), eps: missing.'
    """
    found = _ENTRY.match(message)
    if found is None:
        return message
    noun, index, inside = found[1], int(found[2]), found[3]
    entry = tables[f"{noun}s"][index]
    name = entry.get("name") if isinstance(entry, Mapping) else None
    named = f" ({name})" if isinstance(name, str) else ""
    return f"{noun} {index + 1}{named}{', ' if inside else ''}{message[found.end() :]}"


def walk(loc: tuple[str | int, ...], root: type[BaseModel]) -> tuple[list[str], list[type[BaseModel]]]:
    """Resolve the location of a validation error.

    Args:
        loc: The location, as pydantic gives it.
        root: The model that was validated.

    Returns:
        The readable path of the key, and the models whose table contains it.
    """
    place: list[str] = []
    models = [root]
    for i, part in enumerate(loc):
        tagged = [m for m in models if part in _tags(m)]
        if tagged and len(models) > 1:
            models = tagged
            continue
        place.append(str(part))
        if isinstance(part, str) and i + 1 < len(loc):
            fields = {f.alias or n: f for m in models for n, f in m.model_fields.items()}
            if part in fields:
                models = _models_in(fields[part].annotation)
    return place, models


def _tags(model: type[BaseModel]) -> tuple[object, ...]:
    """The tags that pydantic uses for a model of a union in error locations."""
    names = get_args(getattr(model.model_fields.get("name"), "annotation", None))
    return (PLUGIN_TAG,) if model is PluginData else names


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    """All models in a type annotation."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models_in(part)]
