"""Reads the stored arrays of single cases.

Of a volume, the slice with the largest labelled area is shown; the scores of the case are those of the whole volume.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from advseg_bench.report.document import Array
from advseg_bench.results.panels import Panel, list_panels, read_panel
from advseg_bench.results.parts import refuse
from advseg_bench.results.run import Run
from advseg_bench.results.scores import find_scored_classes
from advseg_bench.results.selection import Extreme
from advseg_bench.types import Task


@dataclass(frozen=True, slots=True)
class Pictures:
    """The arrays of one case; of a volume, those of one slice.

    Attributes:
        case: The case.
        x: The clean image, (C, H, W).
        x_adv: The attacked image at each budget, ascending, (N, C, H, W).
        truth: Ground-truth masks, (K, H, W).
        clean: Predicted masks of the clean image, (K, H, W).
        attacked: Predicted masks at each budget, (N, K, H, W).
        worst: The class whose Dice falls most at the budget at which the case was chosen.
        where: Name of the image, and slice of a volume, for captions.
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
        """The index in the sweep of the budget at which the case was chosen."""
        return _find_place(self.case)

    def find_scale(self, places: Iterable[int]) -> float:
        """Return the change that gets the full colour at some budgets: the largest eps; for L2, the largest change."""
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
    """Read the stored cases of a run, in the order of the models, the worst case first; none for a run in memory.

    Raises:
        RecordError: If a file is damaged, and the run is read strictly; the message names it.
    """
    order = {name: i for i, name in enumerate(run.model_names)}
    found = []
    for path in list_panels(run.path) if run.path else ():
        panel = read_panel(path, run.about, frozenset(run.info["images"]), run.info.get("run", ""))
        if isinstance(panel, Panel):
            found.append((path.name, _read(panel, run.task)))
        elif run.strict:
            refuse([panel])
    found.sort(key=lambda pair: (order.get(pair[1].case.model, len(order)), pair[1].case.kind != "worst", pair[0]))
    return tuple(pictures for _, pictures in found)


def _read(panel: Panel, task: Task) -> Pictures:
    """Make the pictures of a case."""
    case, place = panel.case, _find_place(panel.case)
    x, x_adv, truth, clean, attacked = (panel.arrays[name] for name in ("x", "x_adv", "truth", "clean", "attacked"))
    worst = _find_worst_class(truth, clean, attacked[place], task)
    pictures = Pictures(case, x, x_adv, truth, clean, attacked, worst, case.image)
    return _cut(pictures, task) if truth.ndim == 4 else pictures


def _find_place(case: Extreme) -> int:
    """Return the index in the sweep of the budget at which a case was chosen."""
    return [step.cell for step in case.sweep].index(case.cell)


def _cut(whole: Pictures, task: Task) -> Pictures:
    """Keep the slice with the largest labelled area, the first of equal ones; the middle one if none is labelled."""
    label = whole.truth[list(find_scored_classes(task).values())].sum(axis=(0, 2, 3))
    z = int(label.argmax()) if label.any() else len(label) // 2
    names = ("x", "x_adv", "truth", "clean", "attacked")
    arrays = {name: getattr(whole, name)[..., z, :, :].copy() for name in names}  # a view would keep the volume
    return replace(whole, where=f"{whole.where}, slice {z + 1} of {len(label)}", **arrays)


def _find_worst_class(truth: Array, clean: Array, attacked: Array, task: Task) -> str:
    """Return the class whose Dice an attack lowers most."""
    falls = {
        name: _dice(truth[k], clean[k]) - _dice(truth[k], attacked[k]) for name, k in find_scored_classes(task).items()
    }
    return max(falls, key=lambda name: falls[name])


def _dice(truth: Array, found: Array) -> float:
    """Return Dice of one class; 1 if it is in neither mask."""
    total = int(truth.sum()) + int(found.sum())
    return 2 * int((truth & found).sum()) / total if total else 1.0
