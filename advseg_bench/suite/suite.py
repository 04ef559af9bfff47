"""A suite: which models are trained, attacked and scored. Read from TOML and validated; does not import torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator
from pydantic_core import PydanticCustomError

from advseg_bench.errors import LONGEST_VALUE, SpecError, tidy, unknown
from advseg_bench.registry import catalogue
from advseg_bench.suite.battery import list_members
from advseg_bench.suite.causes import list_causes
from advseg_bench.suite.layers import FILE_KEYS, Tables, overlay, parse_tables, read_tables, unfold
from advseg_bench.suite.places import name_place, walk
from advseg_bench.suite.specs import (
    AttackSpec,
    BatteryChoice,
    Compute,
    DataSpec,
    Inference,
    ModelSpec,
    Recipe,
    Scoring,
    Spec,
    UwMadisonData,
    check_shapes,
    check_split,
    use_all_subjects,
    use_single_volumes,
)
from advseg_bench.suite.specs.limits import LONGEST_NAME, LONGEST_TEXT, MOST_ATTACKS, MOST_MODELS, FileName, Seed
from advseg_bench.suite.specs.radii import PLACED, check_radii


class Suite(Spec):
    """A specification of everything a run depends on: data, models, training, attacks and scoring.

    Attributes:
        schema_version: Version of the file format, `schema` in TOML.
        name: Short name, used in paths and tables.
        title: One line for the report.
        profile: Name of the profile that was applied, "" if none.
        note: A caveat for readers of the report, such as that the run is scaled down.
        seed: Seed of model initialisation, training and all random attacks.
        data: The data set.
        models: The models to attack.
        training: How models without `weights` are trained.
        attacks: The attacks with their losses and budgets; may be empty if there is a battery.
        battery: The standard attacks to run beside them: a name such as "standard", a table, or "none".
        compute: Batch size, threads and model preparation, on which the exact bits of a result depend.
        inference: Sliding windows through which models see images; by default they see whole images.
        scoring: How pixel counts become scores.

    Example:
        >>> import advseg_bench as ab
        >>> suite = ab.Suite.load("quick")
        >>> suite.data.name, suite.data.task, suite.data.size
        ('mni152', 'multilabel', 64)
        >>> [attack.name for attack in suite.attacks]
        ['fgsm', 'random_sign', 'uniform_noise']
    """

    schema_version: Literal[1] = Field(default=1, alias="schema")
    name: FileName = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    title: str = Field(default="", max_length=LONGEST_TEXT)
    profile: str = Field(default="", max_length=LONGEST_NAME, pattern=r"^([A-Za-z0-9][A-Za-z0-9._-]*)?$")
    note: str = Field(default="", max_length=LONGEST_TEXT)
    seed: Seed = 0
    data: DataSpec
    models: tuple[ModelSpec, ...] = Field(min_length=1, max_length=MOST_MODELS)
    training: Recipe = Field(default_factory=lambda: Recipe.model_validate({}))
    attacks: tuple[AttackSpec, ...] = Field(default=(), max_length=MOST_ATTACKS)
    battery: BatteryChoice = None
    compute: Compute = Compute()
    inference: Inference | None = None
    scoring: Scoring = Scoring()

    @field_validator("models")
    @classmethod
    def _check_models(cls, models: tuple[ModelSpec, ...]) -> tuple[ModelSpec, ...]:
        names = [model.name for model in models]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two models are named {name!r}. Rename one")
        folded: dict[str, str] = {}
        for name in names:  # which some file systems ignore
            if (other := folded.setdefault(name.casefold(), name)) != name:
                raise ValueError(f"the names {other!r} and {name!r} differ in case only. Rename one")
        return models

    @model_validator(mode="before")
    @classmethod
    def _fill_by_data(cls, tables: Any) -> Any:
        return use_single_volumes(use_all_subjects(tables))

    @model_validator(mode="after")
    def _data_fit(self) -> Suite:
        """Check that there are attacks, and that models, training and radii support the split and the images."""
        if not self.attacks and self.battery is None:
            message = 'attacks: missing. Add a table [[attacks]], or the key battery = "standard".'
            raise PydanticCustomError(PLACED, "{message}", {"message": message})
        check_split(self.data, self.models)
        check_radii([(attack.norm, attack.eps) for attack in self.attacks], self.data.declared_bounds)
        if self.battery is not None:
            self.battery.check_bounds(self.data.declared_bounds)
        check_shapes(self.data, self.models, self.training, self.inference)
        return self

    @classmethod
    def load(cls, source: str | Path, *, profile: str | None = None, data: str | Path | None = None) -> Suite:
        """Load a shipped suite by name, or a suite from a TOML file.

        Args:
            source: A name from `list_suites`, or the path of a TOML file.
            profile: Name of one of the file's profiles; by default that of its key `profile`. "" applies none.
            data: Folder of the data set; overrides `data.path` of the file.

        Returns:
            The validated suite. Its `data.phantom` is None if `data.path` exists.

        Raises:
            SpecError: If the file cannot be read or a key or value is invalid; one line that names the file, the key,
                what was expected and the nearest known name.

        Example:
            >>> import advseg_bench as ab
            >>> suite = ab.Suite.load("wang2024", profile="cpu")
            >>> suite.profile, len(suite.models), suite.data.size
            ('cpu', 4, 128)
        """
        where, tables = read_tables(source, Path())
        tables = unfold(tables, where, profile, Path(source).parent)
        if data is not None:
            tables = overlay(tables, {"data": {"path": str(data)}})
        suite = _validate(tables, where)
        if isinstance(suite.data, UwMadisonData) and suite.data.path.exists():
            return suite.model_copy(update={"data": suite.data.model_copy(update={"phantom": None})})
        return suite

    def count_cells(self) -> int:
        """Count the cells without making any; one that the battery shares with an attack counts twice.

        Returns:
            An upper limit of the number of cells that `plan` lists.
        """
        count = 0
        for model in self.models:
            least = model.repeats if model.stochastic else 1
            count += least
            for attack in self.attacks:
                arms = attack.combinations * len(attack.losses or ("",))
                count += arms * len(attack.eps) * max(attack.draws, least)
            if self.battery is not None:
                others = [each.name for each in self.models if each.name != model.name]
                members = list_members(self.battery.name, self.battery.profile, self.data.task, others)
                count += sum(1 for _ in members) * len(self.battery.eps) * least
        return count

    def as_json(self) -> dict[str, Any]:
        """Return the suite as JSON values, defaults included.

        Returns:
            A dictionary with the keys of a suite file; `Suite.model_validate` of it returns an equal suite.
        """
        absent = {name for name in ("inference", "battery") if getattr(self, name) is None}
        values = self.model_dump(mode="json", by_alias=True, exclude=absent)
        if isinstance(self.data, UwMadisonData) and self.data.phantom:
            values["data"]["phantom"] = self.data.phantom.model_dump(mode="json")
        return values


def parse_suite(text: str, where: str, profile: str | None = None) -> Suite:
    """Parse and validate TOML text.

    Args:
        text: The content of a suite file.
        where: Name of the source, put before every error message.
        profile: Name of the profile to apply; by default the one that the text names.

    Raises:
        SpecError: If the text is invalid; one line.
    """
    return _validate(unfold(parse_tables(text, where), where, profile, Path()), where)


def _validate(tables: Tables, where: str) -> Suite:
    """Validate the merged tables. Raises: SpecError: one line, prefixed by `where`."""
    try:
        return Suite.model_validate(tables)
    except ValidationError as error:
        first, *rest = list_causes(error)
        others = len(rest)
        more = f" ({others} more problem{'s' if others > 1 else ''} in this file)" if others else ""
        raise SpecError(f"{where}: {name_place(_explain(first), tables)}{more}") from None


def _explain(error: Any) -> str:
    """Format one pydantic error: path of the key, expected value, value found, nearest known key."""
    if error["type"] == PLACED:
        return str(error["msg"])
    place, models = walk(error["loc"], Suite)
    if error["type"] == "extra_forbidden":
        return unknown(".".join(place[:-1]) or "top level", "key", place[-1], {n for m in models for n in _keys(m)})
    where = ".".join(place) or "suite"
    if error["type"] == "union_tag_not_found":
        return f"{where}.name: missing. Known: {', '.join(catalogue.DATASETS)}."
    if error["type"] == "missing":
        return f"{where}: missing. Add this key."
    message = error["msg"].removeprefix("Value error, ")
    found = error["input"]
    shown = (
        f", got {tidy(repr(found), LONGEST_VALUE)}"
        if isinstance(found, (str, int, float)) and "got" not in message
        else ""
    )
    return f"{where}: {message}{shown}." if not message.endswith(".") else f"{where}: {message}"


def _keys(model: type[BaseModel]) -> list[str]:
    """The keys that a TOML table of this model accepts."""
    return [field.alias or name for name, field in model.model_fields.items()] + (FILE_KEYS if model is Suite else [])
