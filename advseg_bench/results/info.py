"""The description of a run in `run.json`, read once and checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from advseg_bench.errors import RecordError, one_line
from advseg_bench.registry import catalogue
from advseg_bench.results.arms import read_arm
from advseg_bench.results.machines import describe_mixture
from advseg_bench.suite.cells import OF_BATTERY, Cell
from advseg_bench.suite.specs import Scoring
from advseg_bench.types import Task


@dataclass(frozen=True, slots=True)
class SuiteInfo:
    """The suite of a run.

    Attributes:
        name: Name of the suite.
        title: Its purpose in one line; the name if it has no title.
        note: A caution to show before any number, or "".
        seed: Seed of the whole run; None if unknown.
        training: The training recipe of the models; empty if there is none.
        of_volumes: Whether each image is a whole volume.
        source: The complete suite, as JSON values.
    """

    name: str
    title: str
    note: str
    seed: int | None
    training: Mapping[str, Any]
    of_volumes: bool
    source: Mapping[str, Any]

    @property
    def training_loss(self) -> str:
        """The loss that the models were trained with; "" if unknown."""
        return str(self.training.get("loss", ""))


@dataclass(frozen=True, slots=True)
class DataInfo:
    """The data set of a run.

    Attributes:
        name: Name of the data set.
        note: A remark about it for the report, or "".
        fingerprint: Hash of its content.
        splits: Name of each split -> its number of images.
        images: Number of images of the test split.
        subjects: Number of subjects of the test split; None if unknown.
        by_image: Whether no subjects were given, so that each image counts by itself.
        given_title: What the data call themselves; "" if they do not.
        bounds: Smallest and largest intensity of an image.
        has_bounds: Whether the data declare `bounds`, which are otherwise 0 and 1.
        facts: How intensities, channels and axes of the files became those of the images, for the report: what ->
            value.
    """

    name: str
    note: str
    fingerprint: str
    splits: Mapping[str, int]
    images: int
    subjects: int | None
    bounds: tuple[float, float] = (0.0, 1.0)
    has_bounds: bool = False
    facts: Mapping[str, str] = field(default_factory=dict)
    by_image: bool = False
    given_title: str = ""

    @property
    def title(self) -> str:
        """What a sentence calls it."""
        return self.given_title or catalogue.DATASET_TITLES.get(self.name, self.name)

    @property
    def width(self) -> float:
        """Width of the range of intensities."""
        return self.bounds[1] - self.bounds[0]


@dataclass(frozen=True, slots=True)
class RunInfo:
    """The content of `run.json`.

    Attributes:
        suite: The suite.
        data: The data set.
        task: The segmentation task.
        scoring: The scoring conventions of the suite.
        cells: All cells of the suite, including skipped ones.
        environment: Versions and machine: name -> value.
        command: The command that started the run, or "".
        started: Start time in ISO 8601, or "".
    """

    suite: SuiteInfo
    data: DataInfo
    task: Task
    scoring: Scoring
    cells: tuple[Cell, ...]
    environment: Mapping[str, Any]
    command: str
    started: str

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the models in the order of the suite."""
        return tuple(dict.fromkeys(cell.model for cell in self.cells))

    @property
    def places(self) -> dict[str, int]:
        """Id of each cell -> its place in the plan."""
        return {cell.id: i for i, cell in enumerate(self.cells)}


def read_info(info: Mapping[str, Any], where: str | Path) -> RunInfo:
    """Read the description of a run.

    Args:
        info: The content of a `run.json`.
        where: Its path, for error messages.

    Returns:
        The description.

    Raises:
        RecordError: If a required entry is missing or of the wrong type.
    """
    try:
        suite, data = info["suite"], info["data"]
        return RunInfo(
            suite=_read_suite(suite, describe_mixture(info)),
            data=_read_data(data),
            task=Task(data["kind"], tuple(data["classes"])),
            scoring=Scoring.model_validate(suite.get("scoring", {})),
            cells=tuple(map(_read_cell, info["cells"])),
            environment=dict(info.get("environment", {})),
            command=info.get("command", ""),
            started=info.get("started", ""),
        )
    except (KeyError, TypeError, ValueError, AttributeError, ValidationError) as error:
        raise RecordError(
            f"{where}: is damaged ({one_line(error)}). Restore it, or run the suite again in a new --out."
        ) from None


def _read_suite(suite: Mapping[str, Any], mixture: str) -> SuiteInfo:
    """Read the suite, whose note is followed by the caution about mixed machines."""
    return SuiteInfo(
        name=suite["name"],
        title=suite.get("title") or suite["name"],
        note=" ".join(filter(None, (suite.get("note", ""), mixture))),
        seed=suite.get("seed"),
        training=dict(suite.get("training", {})),
        of_volumes=isinstance(suite["data"].get("size"), (list, tuple)),
        source=suite,
    )


def _read_data(data: Mapping[str, Any]) -> DataInfo:
    """Read the data set."""
    splits = {str(name): int(count) for name, count in data["splits"].items()}
    return DataInfo(
        name=str(data["name"]),
        note=data.get("note", ""),
        fingerprint=str(data.get("fingerprint", "")),
        splits=splits,
        images=splits["test"],
        subjects=data.get("subjects", {}).get("test"),
        by_image=bool(data.get("by_image", False)),
        given_title=str(data.get("title", "")),
        bounds=(float(data.get("bounds", (0, 1))[0]), float(data.get("bounds", (0, 1))[1])),
        has_bounds="bounds" in data,
        facts=_list_facts(data),
    )


def _list_facts(data: Mapping[str, Any]) -> dict[str, str]:
    """Describe intensities, channels and axes."""
    facts = {}
    if "attack_space" in data:
        lower, upper = data["bounds"]
        scaling = f": {data['scaling']}" if "scaling" in data else ""
        facts["Attack space"] = f"{data['attack_space']}{scaling}"
        facts["Intensities"] = f"{lower:.4g} to {upper:.4g}; 1/255 of the range is {(upper - lower) / 255:.4g}"
    for name, statistics in data.get("statistics", {}).items():
        if name in ("mean", "std"):
            facts[f"Normalised by {name}"] = ", ".join(f"{value:.4g}" for value in statistics)
    if data.get("channels"):
        facts["Channels"] = ", ".join(data["channels"])
    if "axes" in data:
        facts["Axes of volumes"] = f"{data['orientation']}, read as {data['axes']} (depth, rows, columns)"
    return facts


def _read_cell(cell: Mapping[str, Any]) -> Cell:
    """Read one cell from the output of `Cell.as_record`."""
    return Cell(
        id=cell["id"],
        model=cell["model"],
        arm=read_arm(cell),
        eps=cell["eps"],
        draw=cell["draw"],
        label=cell["label"],
        skip=cell["skip"],
        max_forwards=cell.get("max_forwards"),
        **{name: cell[name] for name in OF_BATTERY if name in cell},
    )
