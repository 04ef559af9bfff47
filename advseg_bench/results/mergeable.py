"""Opens the parts of a run that are to be merged, and checks that they belong together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from advseg_bench.errors import RecordError
from advseg_bench.results import parts
from advseg_bench.results.descriptions import (
    PRESENTATION,
    first_difference,
    read_description,
    read_failures,
    read_model,
)
from advseg_bench.results.info import read_info
from advseg_bench.results.inspection import inspect_parts
from advseg_bench.results.rules import Rules

FIXED = ("advseg-bench", "code")
"""Keys of the binding that are equal in all parts, even of mixed machines: the package and the code of users."""

Entry = dict[str, Any]
"""A JSON object."""


@dataclass(frozen=True, slots=True)
class Source:
    """The directory of a part, or of what was merged before.

    Attributes:
        folder: The directory.
        info: Its `run.json`.
        entries: For each part that it holds: its number "part", that of all parts "of", and what it "holds".
        models: Name -> entry of each model.
        failures: Its failures.
        files: Its files of rows.
    """

    folder: Path
    info: Entry
    entries: Sequence[Entry]
    models: Mapping[str, Entry]
    failures: Sequence[Entry]
    files: Sequence[parts.Part]

    @property
    def numbers(self) -> tuple[int, ...]:
        """Numbers of its parts, ascending."""
        return tuple(sorted(entry["part"] for entry in self.entries))

    @property
    def of(self) -> int:
        """Number of all parts of its run."""
        return int(self.entries[0]["of"])


def open_source(folder: Path) -> Source:
    """Open the directory of a part, or of a merged run.

    Raises:
        RecordError: If it holds no run, or a run that is no part, or a file is damaged.
    """
    if not folder.is_dir():
        raise RecordError(f"{folder}: expected the folder of a part, got no folder. Pass the --out of each part.")
    info = read_description(folder)
    entries = list_entries(info)
    if not entries:
        raise RecordError(
            f"{folder}: expected a part of a run, got a run of the whole suite. Only runs made with --part are merged."
        )
    if not info.get("run"):
        raise RecordError(f"{folder}: expected a part with the id of its run, got one without. Run the part again.")
    rules = Rules(read_info(info, folder / "run.json"), info["images"])
    inspection = inspect_parts(folder, rules, info["run"])
    parts.refuse(inspection.damaged)
    models = {path.stem: read_model(path) for path in sorted((folder / "models").glob("*.json"))}
    return Source(folder, info, entries, models, read_failures(folder), inspection.parts)


def list_entries(info: Mapping[str, Any]) -> list[Entry]:
    """Return the entry of each part in a description, see `Source`; empty for a run of the whole suite."""
    single = [info["part"]] if "part" in info else []
    return single + [entry for machine in info.get("machines", ()) for entry in machine["parts"]]


def check_same(sources: Sequence[Source], mixed: bool) -> None:
    """Check that sources are parts of one run.

    Args:
        sources: At least one source.
        mixed: Whether libraries and machines may differ.

    Raises:
        RecordError: Naming the first difference, and the folder where it is.
    """
    first = sources[0]
    seen: dict[str, Source] = {}
    for other in sources:
        if other.of != first.of:
            raise RecordError(
                f"{other.folder}: expected a part of {first.of}, as {first.folder} is, got one of {other.of}. "
                "Merge the parts of one division."
            )
        _check_descriptions(first, other, mixed)
        for model in other.models:
            _check_weights(seen.setdefault(model, other), other, model)


def _check_descriptions(first: Source, other: Source, mixed: bool) -> None:
    """Compare suite, data and binding of two sources."""
    for key, name in (("suite", "suite"), ("data", "data set"), ("images", "data set"), ("binding", "environment")):
        old, new = (_select(each.info, key, mixed) for each in (first, other))
        if old != new:
            allowed = key == "binding" and all(old.get(each) == new.get(each) for each in FIXED)
            raise RecordError(
                f"{other.folder}: is of another {name} than {first.folder}: {first_difference(old, new)}. "
                f"{'Add --allow-mixed to merge them and compare the machines.' if allowed else 'Nothing was merged.'}"
            )


def _select(info: Mapping[str, Any], key: str, mixed: bool) -> Any:
    """Select what must be equal of an entry of a description."""
    value = info[key]
    if key == "suite":
        return {name: each for name, each in value.items() if name not in PRESENTATION}
    return {name: value.get(name) for name in FIXED} if key == "binding" and mixed else value


def _check_weights(first: Source, other: Source, model: str) -> None:
    """Raise `RecordError` if two sources have rows of different weights of a model."""
    old, new = (each.models[model]["weights_sha256"] for each in (first, other))
    if old != new:
        raise RecordError(
            f"{other.folder}: expected the weights of model {model} that {first.folder} has ({old[:12]}), got others "
            f"({new[:12]}). Share the folder ADVSEG_BENCH_CACHE between machines, or give the model a file of weights."
        )
