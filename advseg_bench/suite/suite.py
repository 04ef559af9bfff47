"""A suite: which models are trained, attacked and scored. Read from TOML and validated; does not import torch."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from advseg_bench.errors import SpecError, expected, unknown
from advseg_bench.registry import catalogue
from advseg_bench.suite.specs import (
    PLUGIN_TAG,
    AttackSpec,
    Compute,
    DataSpec,
    ImageData,
    Inference,
    ModelSpec,
    PluginData,
    Recipe,
    Scoring,
    Spec,
    UwMadisonData,
    check_shapes,
    check_split,
    use_all_subjects,
    use_single_volumes,
)

Tables = dict[str, Any]
FILE_KEYS = ["extends", "profiles"]
"""Keys of a file that are resolved before validation: the suite it extends, and its profiles."""


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
        attacks: The attacks with their losses and budgets.
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
    name: str = Field(min_length=1, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    title: str = ""
    profile: str = ""
    note: str = ""
    seed: int = Field(default=0, ge=0)
    data: DataSpec
    models: tuple[ModelSpec, ...] = Field(min_length=1)
    training: Recipe = Field(default_factory=lambda: Recipe.model_validate({}))
    attacks: tuple[AttackSpec, ...] = Field(min_length=1)
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
        return models

    @model_validator(mode="before")
    @classmethod
    def _fill_by_data(cls, tables: Any) -> Any:
        return use_single_volumes(use_all_subjects(tables))

    @model_validator(mode="after")
    def _data_fit(self) -> Suite:
        """Check that models and training support the split and the shape of the images."""
        check_split(self.data, self.models)
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
        where, tables = _read_tables(source, Path())
        tables = _unfold(tables, where, profile, Path(source).parent)
        if data is not None:
            tables = _overlay(tables, {"data": {"path": str(data)}})
        suite = _validate(tables, where)
        if isinstance(suite.data, UwMadisonData) and suite.data.path.exists():
            return suite.model_copy(update={"data": suite.data.model_copy(update={"phantom": None})})
        return suite

    def as_json(self) -> dict[str, Any]:
        """Return the suite as JSON values, defaults included.

        Returns:
            A dictionary with the keys of a suite file; `Suite.model_validate` of it returns an equal suite.
        """
        values = self.model_dump(mode="json", by_alias=True, exclude=None if self.inference else {"inference"})
        if isinstance(self.data, UwMadisonData) and self.data.phantom:
            values["data"]["phantom"] = self.data.phantom.model_dump(mode="json")
        return values


def list_suites() -> list[str]:
    """Return the names of the shipped suites.

    Returns:
        Names for `Suite.load`, sorted.

    Example:
        >>> import advseg_bench as ab
        >>> ab.list_suites()
        ['quick', 'smoke', 'wang2024']
    """
    return sorted(
        f.name.removesuffix(".toml") for f in files("advseg_bench.suite.shipped").iterdir() if f.name.endswith(".toml")
    )


def parse_suite(text: str, where: str, profile: str | None = None) -> Suite:
    """Parse and validate TOML text.

    Args:
        text: The content of a suite file.
        where: Name of the source, put before every error message.
        profile: Name of the profile to apply; by default the one that the text names.

    Raises:
        SpecError: If the text is invalid; one line.
    """
    return _validate(_unfold(_parse(text, where), where, profile, Path()), where)


def _read_tables(source: str | Path, folder: Path) -> tuple[str, Tables]:
    """Read a shipped suite, or a file relative to a folder; return its name for error messages, and its tables."""
    text = str(source)
    if text in list_suites():
        return text, _parse(files("advseg_bench.suite.shipped").joinpath(f"{text}.toml").read_text(), text)
    path = folder / source
    if not path.is_file():
        raise SpecError(f"{unknown(source, 'suite', text, list_suites())} Or give the path of a TOML file.")
    try:
        return str(path), _parse(path.read_text(), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"{path}: cannot be read as text: {error}") from None


def _parse(text: str, where: str) -> Tables:
    """Read TOML."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SpecError(f"{where}: is not valid TOML: {error}.") from None


def _read_chain(tables: Tables, where: str, folder: Path) -> list[Tables]:
    """Return the tables of a file, then those of the suite it extends, and so on."""
    chain, seen = [tables], set[str]()
    while True:
        profiles, extends = tables.get("profiles", {}), tables.get("extends")
        if not isinstance(profiles, dict) or not all(isinstance(table, dict) for table in profiles.values()):
            raise SpecError(expected(where, "profiles to be tables [profiles.NAME]", profiles))
        if not isinstance(tables.get("profile", ""), str):
            raise SpecError(expected(where, "profile to be one of the names of its profiles", tables["profile"]))
        if extends is None:
            return chain
        if not isinstance(extends, str) or extends in seen:
            what = "extends to name another suite, or a TOML file beside this one"
            raise SpecError(expected(where, what, extends))
        seen.add(extends)
        where, tables = _read_tables(extends, folder)
        folder = (folder / extends).parent
        chain.append(tables)


def _unfold(tables: Tables, where: str, profile: str | None, folder: Path) -> Tables:
    """Merge a file over the suite that it extends, applying the chosen profile at each step."""
    chain = _read_chain(tables, where, folder)
    known = {name for each in chain for name in each.get("profiles", {})}
    named = [each["profile"] for each in chain if each.get("profile")] if profile is None else [profile]
    if named and named[0] and named[0] not in known:
        raise SpecError(unknown(where, "profile", str(named[0]), known) if known else f"{where}: has no profiles.")
    return _lay_over(chain, profile)


def _lay_over(chain: Sequence[Tables], profile: str | None) -> Tables:
    """Merge the first of several files over the rest; if the rest lack the profile, they keep their default one."""
    tables, rest = chain[0], chain[1:]
    chosen = tables.get("profile", "") if profile is None else profile
    passed_on = chosen if any(chosen in each.get("profiles", {}) for each in rest) else None
    base = _lay_over(rest, passed_on) if rest else {}
    own = {key: value for key, value in tables.items() if key not in FILE_KEYS}
    named = {"profile": chosen or base.get("profile", "")}
    return _overlay(_overlay(base, own | named), tables.get("profiles", {}).get(chosen, {}))


def _overlay(base: Tables, over: Tables) -> Tables:
    """Override the values of one table with those of another; tables are merged, lists are replaced.

    If the data set changes, only the keys common to all data sets are kept: task, size, channels and fit. If its
    path changes, `phantom` is dropped, since it stands in for the old path.
    """
    merged = dict(base)
    for key, value in over.items():
        old = base.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            if key == "data" and value.get("name", old.get("name")) != old.get("name"):
                old = {name: old[name] for name in old if name in ImageData.model_fields}
            if key == "data" and "path" in value:
                old = {name: old[name] for name in old if name != "phantom"}
            value = _overlay(old, value)
        merged[key] = value
    return merged


def _validate(tables: Tables, where: str) -> Suite:
    """Validate the merged tables. Raises: SpecError: one line, prefixed by `where`."""
    try:
        return Suite.model_validate(tables)
    except ValidationError as error:
        first, others = error.errors()[0], error.error_count() - 1
        more = f" ({others} more problem{'s' if others > 1 else ''} in this file)" if others else ""
        raise SpecError(f"{where}: {_explain(first)}{more}") from None


def _explain(error: Any) -> str:
    """Format one pydantic error: path of the key, expected value, value found, nearest known key."""
    place, models = _walk(error["loc"])
    if error["type"] == "extra_forbidden":
        return unknown(".".join(place[:-1]) or "top level", "key", place[-1], {n for m in models for n in _keys(m)})
    where = ".".join(place) or "suite"
    if error["type"] == "union_tag_not_found":
        return f"{where}.name: missing. Known: {', '.join(catalogue.DATASETS)}."
    if error["type"] == "missing":
        return f"{where}: missing. Add this key."
    message = error["msg"].removeprefix("Value error, ")
    found = error["input"]
    shown = f", got {found!r}" if isinstance(found, (str, int, float)) and "got" not in message else ""
    return f"{where}: {message}{shown}." if not message.endswith(".") else f"{where}: {message}"


def _keys(model: type[BaseModel]) -> list[str]:
    """The keys that a TOML table of this model accepts."""
    return [field.alias or name for name, field in model.model_fields.items()] + (FILE_KEYS if model is Suite else [])


def _walk(loc: tuple[str | int, ...]) -> tuple[list[str], list[type[BaseModel]]]:
    """Resolve an error's location: its readable path, and the models whose table contains the last key."""
    place: list[str] = []
    models: list[type[BaseModel]] = [Suite]
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
