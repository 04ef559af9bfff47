"""Specification of the battery of a suite."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from advseg_bench.errors import unknown
from advseg_bench.suite.battery import ALIASES, BATTERIES
from advseg_bench.suite.specs.base import Spec
from advseg_bench.suite.specs.limits import MOST_BATTERY_RADII
from advseg_bench.suite.specs.radii import PLACED, Eps, find_excess
from advseg_bench.types import Norm


class BatterySpec(Spec):
    """The standard attacks, beside those of the suite; `battery = "standard"` has every default.

    Attributes:
        name: Name of a battery, such as "standard-1", which never changes its meaning; "standard" is the newest one.
        profile: "full", or "fast" for about a tenth of its cost.
        eps: Radii in image units; by default 2/255 and 4/255, for L_inf radii of images in [0, 1] only.
        norm: Norm of the budgets.
        skip: Whether an image whose score is 0 at a budget is left out by the members that follow at that budget.
        warm_start: Whether the best result at the smaller radii is kept where a larger one finds no better.
    """

    name: str
    profile: str = Field(default="full", json_schema_extra={"enum": ["full", "fast"]})
    eps: tuple[Eps, ...] = Field(default=(2 / 255, 4 / 255), min_length=1, max_length=MOST_BATTERY_RADII)
    norm: Norm = "linf"
    skip: bool = True
    warm_start: bool = True

    @field_validator("name")
    @classmethod
    def _find_battery(cls, name: str) -> str:
        full = ALIASES.get(name, name)
        if full not in BATTERIES:
            raise ValueError(unknown("", "battery", name, (*ALIASES, *BATTERIES)))
        return full

    @field_validator("profile")
    @classmethod
    def _check_profile(cls, profile: str, info: ValidationInfo) -> str:
        known = BATTERIES.get(info.data.get("name", ""))
        if known is not None and profile not in known:
            raise ValueError(unknown("", "profile", profile, known))
        return profile

    @field_validator("eps", mode="before")
    @classmethod
    def _check_list(cls, eps: Any) -> Any:
        if not isinstance(eps, (list, tuple)) or not eps:
            raise ValueError('expected a list of radii, such as ["4/255"]')
        return eps

    @field_validator("eps")
    @classmethod
    def _check_radii(cls, eps: tuple[float, ...]) -> tuple[float, ...]:
        if len(set(eps)) < len(eps):
            raise ValueError("a radius is listed twice. Remove one")
        if 0 in eps:
            raise ValueError("expected radii above 0, got 0. Remove it")
        return eps

    def check_bounds(self, bounds: tuple[float, float] | None) -> None:
        """Check that the radii suit the range of the intensities.

        Args:
            bounds: Range of the intensities; None if only the data have it.

        Raises:
            PydanticCustomError: Of type `PLACED`, whose message begins with the key.
        """
        problem = find_excess(self.norm, self.eps, bounds)
        if "eps" not in self.model_fields_set and (self.norm != "linf" or bounds != (0, 1)):
            problem = f"missing, as {self.norm} radii of these images have no default. Add radii in image units."
        if problem:
            raise PydanticCustomError(PLACED, "{message}", {"message": f"battery.eps: {problem}"})


def _read_battery(value: Any) -> Any:
    """Read a name alone as a table, and "none" as no battery, since TOML has no null."""
    if value == "none":
        return None
    if isinstance(value, str):
        return {"name": value}
    if value is None or isinstance(value, (dict, BatterySpec)):
        return value
    raise ValueError('expected a name such as "standard", or a table [battery]')


def _accept_name(schema: dict[str, Any]) -> None:
    """Add the name alone to the JSON schema of the key."""
    schema["anyOf"] = [{"type": "string"}, *schema["anyOf"]]


BatteryChoice = Annotated[BatterySpec | None, BeforeValidator(_read_battery), Field(json_schema_extra=_accept_name)]
"""The key `battery` of a suite: a name, a table, or nothing."""
