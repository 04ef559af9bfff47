"""A suite: what is trained, attacked and scored. Read from TOML, validated with one-line errors, torch-free."""

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
    ModelSpec,
    PluginData,
    Recipe,
    Scoring,
    Spec,
    UwMadisonData,
    use_all,
)

Tables = dict[str, Any]
FILE_KEYS = ["extends", "profiles"]
"""Keys of a file that are resolved before there is a suite: whose tables it starts from, and what else it can be."""


class Suite(Spec):
    """Everything a run depends on.

    Attributes:
        schema_version: The version of this format, `schema` in TOML.
        name: Short name, used in paths and tables.
        title: One line for the report.
        profile: Which of the file's profiles this is, "" if none.
        note: What a reader of the report must know, such as that a run is scaled down.
        seed: Seeds model initialisation, training and every random draw of every attack.
        data: The data set.
        models: The grid.
        training: How models without `weights` are trained.
        attacks: The attacks with their losses and budgets.
        compute: What the bits of a result depend on.
        scoring: How counts become scores.
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
    def _use_all_subjects(cls, tables: Any) -> Any:
        """Where no model is trained, no subject is set aside, unless the suite has a split."""
        given = tables.get("models") if isinstance(tables, dict) else None
        if not isinstance(given, (list, tuple)) or not given or "data" not in tables:
            return tables
        weights = [m.get("weights") if isinstance(m, dict) else getattr(m, "weights", None) for m in given]
        return tables | {"data": use_all(tables["data"])} if all(weights) else tables

    @model_validator(mode="after")
    def _splits_fit(self) -> Suite:
        """Somebody is left for training, if a model is trained."""
        if getattr(self.data, "test", None) == 1 and (trained := [m.name for m in self.models if not m.weights]):
            raise ValueError(
                f"data.test: 1 leaves nobody to train model {trained[0]!r} with. Give it `weights`, or lower the share"
            )
        return self

    @model_validator(mode="after")
    def _volumes_fit(self) -> Suite:
        """Models and training can have 3-D images, if that is what the data are."""
        *depth, rows, columns = self.data.edges
        for model in self.models if depth else ():
            if model.architecture.startswith("smp."):
                raise ValueError(
                    f"model {model.name!r}: {model.architecture} is for 2-D images, and size = "
                    f"{list(self.data.edges)} makes 3-D ones. Take a network of MONAI, such as monai.UNet"
                )
        if rows != columns and "rot90" in self.training.augment:
            raise ValueError(
                f'training.augment: "rot90" swaps rows and columns, and size = {list(self.data.edges)} has {rows} and '
                f"{columns}. Leave it out"
            )
        return self

    @classmethod
    def load(cls, source: str | Path, *, profile: str | None = None, data: str | Path | None = None) -> Suite:
        """Read a shipped suite by name, or a TOML file.

        Args:
            source: A name that `list_suites` knows, or a path.
            profile: One of the file's profiles, in place of the one that it names.
            data: Where the data set is, in place of the path that the file names.

        Returns:
            The suite. Its `data.phantom`, if it has one, is left out where there is something at `data.path`.

        Raises:
            SpecError: One line that names the file, the key, what was expected and the nearest known name.
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
        """Return the suite as JSON values, complete with defaults; `model_validate` of it gives the suite back."""
        values = self.model_dump(mode="json", by_alias=True)
        if isinstance(self.data, UwMadisonData) and self.data.phantom:
            values["data"]["phantom"] = self.data.phantom.model_dump(mode="json")
        return values


def list_suites() -> list[str]:
    """Return the names of the suites in the package."""
    return sorted(
        f.name.removesuffix(".toml") for f in files("advseg_bench.suite.shipped").iterdir() if f.name.endswith(".toml")
    )


def parse_suite(text: str, where: str, profile: str | None = None) -> Suite:
    """Validate TOML text. Raises: SpecError: one line, prefixed by `where`."""
    return _validate(_unfold(_parse(text, where), where, profile, Path()), where)


def _read_tables(source: str | Path, folder: Path) -> tuple[str, Tables]:
    """Read the file of a shipped suite, or one at a path from a folder; return what errors call it, and its tables."""
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
        raise SpecError(f"{where}: is not TOML: {error}.") from None


def _read_chain(tables: Tables, where: str, folder: Path) -> list[Tables]:
    """Return the tables of a file, of the suite that it extends, of the one that this extends, and so on."""
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
    """Lay a file over the suite that it extends, and the chosen profile of each over the whole so far."""
    chain = _read_chain(tables, where, folder)
    known = {name for each in chain for name in each.get("profiles", {})}
    named = [each["profile"] for each in chain if each.get("profile")] if profile is None else [profile]
    if named and named[0] and named[0] not in known:
        raise SpecError(unknown(where, "profile", str(named[0]), known) if known else f"{where}: has no profiles.")
    return _lay_over(chain, profile)


def _lay_over(chain: Sequence[Tables], profile: str | None) -> Tables:
    """Lay the first of several files over the others; a profile that the others lack leaves them at their own."""
    tables, rest = chain[0], chain[1:]
    chosen = tables.get("profile", "") if profile is None else profile
    passed_on = chosen if any(chosen in each.get("profiles", {}) for each in rest) else None
    base = _lay_over(rest, passed_on) if rest else {}
    own = {key: value for key, value in tables.items() if key not in FILE_KEYS}
    told = {"profile": chosen or base.get("profile", "")}
    return _overlay(_overlay(base, own | told), tables.get("profiles", {}).get(chosen, {}))


def _overlay(base: Tables, over: Tables) -> Tables:
    """Replace values by those of another table; tables in both are merged, lists are not.

    Of another data set only what every data set has is kept: how the labels are put to the model, size, channels.
    What is drawn where a path leads nowhere belongs to that path, and goes with it.
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
    """Check the values. Raises: SpecError: one line, prefixed by `where`."""
    try:
        return Suite.model_validate(tables)
    except ValidationError as error:
        first, others = error.errors()[0], error.error_count() - 1
        more = f" ({others} more problem{'s' if others > 1 else ''} in this file)" if others else ""
        raise SpecError(f"{where}: {_explain(first)}{more}") from None


def _explain(error: Any) -> str:
    """Word one pydantic error: the key's path, what was expected, what was found, the nearest known key."""
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
    """The keys that a TOML table of this model may have."""
    return [field.alias or name for name, field in model.model_fields.items()] + (FILE_KEYS if model is Suite else [])


def _walk(loc: tuple[str | int, ...]) -> tuple[list[str], list[type[BaseModel]]]:
    """Follow an error's location: its readable path, and the models whose table the last key stands in."""
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
    """What a location calls a model of a union: the names it is for."""
    names = get_args(getattr(model.model_fields.get("name"), "annotation", None))
    return (PLUGIN_TAG,) if model is PluginData else names


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    """All models that occur in a type annotation."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models_in(part)]
