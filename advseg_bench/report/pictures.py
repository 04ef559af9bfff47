"""What a run has kept of single cases, read for pictures.

Of a volume one slice is shown, the one with most label; what is said of the case is said of the whole volume.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from advseg_bench.errors import RecordError
from advseg_bench.report.document import Array
from advseg_bench.results.run import Run
from advseg_bench.results.scores import find_scored_classes
from advseg_bench.results.selection import Extreme
from advseg_bench.types import Task


@dataclass(frozen=True, slots=True)
class Pictures:
    """The arrays of one case; of a volume one slice.

    Attributes:
        case: What was chosen.
        x: The clean image, (C, H, W).
        x_adv: The attacked image at each budget, ascending, (N, C, H, W).
        truth: Masks, (K, H, W).
        clean: What was predicted of the clean image, (K, H, W).
        attacked: What was predicted at each budget, (N, K, H, W).
        worst: The class whose Dice falls most at the budget at which the case was chosen.
        where: Image, and slice of a volume, for captions.
    """

    case: Extreme
    x: Array
    x_adv: Array
    truth: Array
    clean: Array
    attacked: Array
    worst: str
    where: str

    @property
    def place(self) -> int:
        """Where in the sweep the case was chosen."""
        return _find_place(self.case)

    def find_scale(self, places: Iterable[int]) -> float:
        """Return the change that gets the full colour at some budgets: the largest eps, or under L2 the largest."""
        if self.case.arm.norm == "linf":
            largest = max(float(self.case.sweep[place].eps) for place in places)
        else:
            largest = max(float(abs(self.find_change(place)).max()) for place in places)
        return max(largest, 1e-12)

    def find_change(self, place: int | None) -> Array:
        """Return the change of the first channel at a budget, (H, W); None is the clean image."""
        attacked = self.x if place is None else self.x_adv[place]
        change: Array = (attacked[0] - self.x[0]).astype(np.float64)
        return change


def load_pictures(run: Run) -> tuple[Pictures, ...]:
    """Read what a run has kept, in the order of the models, the worst case first; nothing of a run in memory.

    Raises:
        RecordError: Naming a file that cannot be read.
    """
    order = {name: i for i, name in enumerate(run.model_names)}
    paths = sorted((run.path / "panels").glob("*.npz")) if run.path else []
    found = [(path.name, _load(path, run.task)) for path in paths]
    found.sort(key=lambda pair: (order.get(pair[1].case.model, len(order)), pair[1].case.kind != "worst", pair[0]))
    return tuple(pictures for _, pictures in found)


def _load(path: Path, task: Task) -> Pictures:
    """Read one case. Raises: RecordError: if it cannot be read."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            case = Extreme.from_record(json.loads(str(arrays["meta"])))
            return _read(case, {name: arrays[name] for name in arrays.files}, task)
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise RecordError(
            f"{path}: is damaged ({type(error).__name__}). Delete this file and run the same command again: only "
            "its picture is made again."
        ) from None


def _read(case: Extreme, arrays: Mapping[str, Array], task: Task) -> Pictures:
    """The pictures of a case. Raises: ValueError, KeyError: if arrays are missing or do not fit its sweep."""
    x, x_adv, truth, clean, attacked = (arrays[name] for name in ("x", "x_adv", "truth", "clean", "attacked"))
    if not _find_place(case) < len(case.sweep) == len(x_adv) == len(attacked):
        raise ValueError("arrays of another number of budgets")
    worst = _find_worst_class(truth, clean, attacked[_find_place(case)], task)
    pictures = Pictures(case, x, x_adv, truth, clean, attacked, worst, case.image)
    return _cut(pictures, task) if truth.ndim == 4 else pictures


def _find_place(case: Extreme) -> int:
    """Where in its sweep a case was chosen. Raises: ValueError: if it is not there."""
    return [step.cell for step in case.sweep].index(case.cell)


def _cut(whole: Pictures, task: Task) -> Pictures:
    """Keep the slice of a volume that has most label, the first of several; the middle one if none has any."""
    label = whole.truth[list(find_scored_classes(task).values())].sum(axis=(0, 2, 3))
    z = int(label.argmax()) if label.any() else len(label) // 2
    names = ("x", "x_adv", "truth", "clean", "attacked")
    arrays = {name: getattr(whole, name)[..., z, :, :].copy() for name in names}  # a view would keep the rest
    return replace(whole, where=f"{whole.where}, slice {z + 1} of {len(label)}", **arrays)


def _find_worst_class(truth: Array, clean: Array, attacked: Array, task: Task) -> str:
    """The class whose Dice an attack lowers most."""
    falls = {
        name: _dice(truth[k], clean[k]) - _dice(truth[k], attacked[k]) for name, k in find_scored_classes(task).items()
    }
    return max(falls, key=lambda name: falls[name])


def _dice(truth: Array, found: Array) -> float:
    """Dice of one class; 1 where neither shows it."""
    total = int(truth.sum()) + int(found.sum())
    return 2 * int((truth & found).sum()) / total if total else 1.0
