"""The base class of all specifications, and checks that several of them share."""

from __future__ import annotations

import json
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict

from advseg_bench.errors import PluginError
from advseg_bench.registry import plugins, toolkits
from advseg_bench.registry.plugins import Kind


class Spec(BaseModel):
    """Base class of all specifications: frozen, and unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def plain(settings: dict[str, Any]) -> dict[str, Any]:
    """Reject values that JSON cannot represent, such as dates."""
    try:
        json.dumps(settings, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"expected numbers, strings, booleans and lists of them: {error}") from None
    return settings


Settings = Annotated[dict[str, Any], AfterValidator(plain)]


def check_known(kind: Kind, name: str) -> str:
    """Accept a shipped name, one of a plug-in or toolkit, or `package.module:object`."""
    try:
        toolkits.check_attack(name) if kind == "attack" else plugins.check_name(kind, name)
    except PluginError as error:
        raise ValueError(str(error)) from None
    return name
