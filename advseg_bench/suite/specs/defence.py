"""Specification of a defence of a model."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, model_serializer, model_validator

from advseg_bench.registry.catalogue_defences import DEFENCES
from advseg_bench.suite.specs.base import Settings, Spec, check_known
from advseg_bench.types import DefenceTraits, TaskKind

DefenceName = Annotated[str, AfterValidator(partial(check_known, "defence"))]


class DefenceSpec(Spec):
    """One defence of a model; keys other than these two are its settings.

    Attributes:
        name: Name of a shipped defence (see `list defences`) or of a plug-in, or "package.module:object".
        settings: Constructor arguments of the defence; they may stand beside `name` instead.
    """

    name: DefenceName
    settings: Settings = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _gather_settings(cls, tables: Any) -> Any:
        """Move the keys beside `name` into `settings`; a bare string is a name."""
        if isinstance(tables, str):
            return {"name": tables}
        if not isinstance(tables, dict) or not isinstance(tables.get("settings", {}), dict):
            return tables
        beside = {key: value for key, value in tables.items() if key not in ("name", "settings")}
        if twice := sorted(set(beside) & set(tables.get("settings", {}))):
            raise ValueError(f"{twice[0]}: is beside `name` and in `settings`. Remove one")
        named = {key: value for key, value in tables.items() if key == "name"}
        return named | {"settings": tables.get("settings", {}) | beside}

    @model_serializer
    def _write(self) -> dict[str, Any]:
        return {"name": self.name, "settings": self.settings}

    def traits_of(self, axes: int = 2) -> DefenceTraits | None:
        """Return the traits on images with a number of space axes; None for a plug-in, which is not imported here."""
        entry = DEFENCES.get(self.name)
        return None if entry is None else entry.traits_of(self.settings, axes)

    @property
    def is_random(self) -> bool:
        """Whether a shipped defence is random; a plug-in's model declares `stochastic`."""
        traits = self.traits_of()
        return traits is not None and traits.random

    def why_not(self, kind: TaskKind, axes: int) -> str | None:
        """Return why a shipped defence does not fit a task type or a number of space axes, or None."""
        traits = self.traits_of(axes)
        if traits is None:
            return None
        if kind not in traits.kinds:
            return f"expected a task of type {' or '.join(traits.kinds)} for {self.name!r}, got {kind}"
        if axes not in traits.dims:
            dims = " or ".join(map(str, traits.dims))
            return f"expected images with {dims} space axes for {self.name!r}, got {axes}"
        return None


def _as_list(value: object) -> object:
    """Read one defence as a list of one."""
    return list(value) if isinstance(value, (list, tuple)) else [value]


Defences = Annotated[tuple[DefenceSpec, ...], BeforeValidator(_as_list)]
