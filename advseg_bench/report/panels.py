"""The images behind single results, alone and over eps: the case, the perturbation, the predictions, their errors.

Of a volume one slice is shown, the one with most label; what is said of the case is said of the whole volume.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import matplotlib
import numpy as np
from matplotlib.colors import to_rgb

from advseg_bench.errors import RecordError
from advseg_bench.report.document import Gallery, Sheet, show_budget, show_number
from advseg_bench.report.sheets import Array, Panel, Strip, draw_sheet
from advseg_bench.results.run import Run
from advseg_bench.results.scores import find_scored_classes
from advseg_bench.types import Task

CLASS_COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#CC79A7", "#F0E442", "#0072B2", "#D55E00")
ERROR_COLOURS = {"true positive": "#0072B2", "false positive": "#F0E442", "false negative": "#D55E00"}
"""Okabe and Ito's palette: three colours that differ in lightness as well as in hue."""

TITLES = ("Image", "Perturbation", "Ground truth", "Clean prediction", "Attacked prediction", "Errors")
SWEEP_TITLES = ("Image", "Perturbation", "Prediction", "Errors")
LARGEST_GALLERY = 1_500_000
"""Bytes of a gallery's pictures in the HTML page; cases beyond that are left to the figure files."""


@dataclass(frozen=True, slots=True)
class _Case:
    """What a run has kept of one image: `selection.find_extremes` and `runner.attack_one` say what is in it.

    Attributes:
        meta: What is said of the case.
        arrays: What is shown of it; of a volume one slice.
        worst: The class whose Dice falls most at the budget at which the case was chosen.
        where: Image, and slice of a volume, for captions.
    """

    meta: dict[str, Any]
    arrays: dict[str, Array]
    worst: str
    where: str

    @property
    def sweep(self) -> list[dict[str, Any]]:
        """The budgets, ascending; runs of earlier versions kept one."""
        alone = {"cell": self.meta["cell"], "eps": self.meta["eps"], "dice": self.meta["dice_attacked"]}
        return list(self.meta.get("sweep", [alone]))

    @property
    def place(self) -> int:
        """Where in the sweep the case was chosen."""
        return [step["cell"] for step in self.sweep].index(self.meta["cell"])


def make_galleries(run: Run) -> tuple[Gallery, ...]:
    """Make the galleries of a run: each model's best and worst case, and the worst over eps.

    Returns: Only galleries that have a picture, with a sheet for print of all cases, and one per model over eps.
    Raises: RecordError: naming a file that cannot be read.
    """
    cases = _load_cases(run)
    keys = (("Classes:", list_class_colours(run)), ("Errors:", tuple(ERROR_COLOURS.items())))
    alone = tuple(_make_panel(run, case) for case in cases)
    swept = {case.meta["model"]: _make_sweep_panel(run, case) for case in cases if len(case.sweep) > 1}
    galleries = []
    if alone:
        title, caption = "Best and worst cases", _caption_cases(run)
        sheet = Sheet("panels", title, caption, partial(draw_sheet, alone, keys))
        galleries.append(Gallery(title, caption, alone, (sheet,)))
    if swept:
        caption = _caption_sweeps(run)
        sheets = tuple(
            Sheet(f"panels_{model}", panel.title, panel.caption, partial(draw_sheet, (panel,), keys))
            for model, panel in swept.items()
        )
        galleries.append(Gallery("Worst cases over eps", caption, tuple(swept.values()), sheets))
    return tuple(galleries)


def _load_cases(run: Run) -> tuple[_Case, ...]:
    """Read what a run has kept, in the order of the models, the worst case first. Raises: as `make_galleries`."""
    order = {name: i for i, name in enumerate(run.model_names)}
    found = []
    for path in sorted((run.path / "panels").glob("*.npz")):
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                meta = json.loads(str(arrays["meta"]))
                key = (order.get(meta["model"], len(order)), meta["kind"] != "worst", path.name)
                found.append((key, _read_case(run, meta, {name: arrays[name] for name in arrays.files})))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise RecordError(
                f"{path}: is damaged ({type(error).__name__}). Delete this file and run the same command again: only "
                "its picture is made again."
            ) from None
    return tuple(case for _, case in sorted(found, key=lambda pair: pair[0]))


def _read_case(run: Run, meta: dict[str, Any], arrays: dict[str, Array]) -> _Case:
    """A case whose attacked images and predictions have a leading axis of budgets. Raises: ValueError, KeyError."""
    arrays = {name: arrays[name] for name in ("x", "x_adv", "truth", "clean", "attacked")}
    if "sweep" not in meta:
        arrays |= {name: arrays[name][None] for name in ("x_adv", "attacked")}
    case = _Case(meta, arrays, "", meta["image"])
    if not case.place < len(case.sweep) == len(arrays["x_adv"]) == len(arrays["attacked"]):
        raise ValueError("arrays of another number of budgets")
    case = replace(case, worst=_find_worst_class(run, case))
    return _cut(run.task, case) if arrays["truth"].ndim == 4 else case


def _cut(task: Task, case: _Case) -> _Case:
    """Keep the slice of a volume that has most label, the first of several; the middle one if none has any."""
    label = case.arrays["truth"][list(find_scored_classes(task).values())].sum(axis=(0, 2, 3))
    z = int(label.argmax()) if label.any() else len(label) // 2
    arrays = {name: array[..., z, :, :].copy() for name, array in case.arrays.items()}  # a view would keep the rest
    return replace(case, arrays=arrays, where=f"{case.where}, slice {z + 1} of {len(label)}")


def _caption_cases(run: Run) -> str:
    """Say what the columns show and what the colours mean."""
    return (
        "Worst: the image whose mean Dice the model's strongest attack (of those with several eps, if there are any) "
        f"lowers most; best: least. Only images at or above Dice {run.scoring.dice_threshold:g} when clean. "
        "Perturbation: attacked minus clean image, white is 0, red up to +eps, blue down to -eps (amplified to the "
        "full colour scale; first channel). Errors: of the one class whose Dice falls most, named with each case."
        + _caption_slices(run)
    )


def _caption_sweeps(run: Run) -> str:
    """The same for the pictures over eps."""
    return (
        "Each model's worst case, the clean image first. Perturbation: attacked minus clean image, white is 0, red "
        "positive, blue negative, amplified alike at all eps of a case, so that it is seen to grow (first channel). "
        "Dice: mean over classes of that image. Errors: of the one class whose Dice falls most at the eps at which "
        "the case was chosen." + _caption_slices(run)
    )


def _caption_slices(run: Run) -> str:
    """Say what of a volume is shown."""
    if not run.of_volumes:
        return ""
    return (
        " Of a volume the slice with most label is shown, counted from 1 after resizing; Dice and the class of the "
        "errors are those of the whole volume."
    )


def list_class_colours(run: Run) -> tuple[tuple[str, str], ...]:
    """Return the colour of each scored class in the predictions."""
    names = list(find_scored_classes(run.task))
    return tuple((name, CLASS_COLOURS[i % len(CLASS_COLOURS)]) for i, name in enumerate(names))


def _make_panel(run: Run, case: _Case) -> Panel:
    """Turn the arrays of the budget at which the case was chosen into pictures."""
    meta, arrays, place = case.meta, case.arrays, case.place
    grey, name, scored = _grey(arrays["x"]), case.worst, find_scored_classes(run.task)
    scale = _scale(case, [place])
    tiles = (
        grey,
        _paint_perturbation(case, place, scale),
        *(_paint_classes(run, grey, masks) for masks in (arrays["truth"], arrays["clean"], arrays["attacked"][place])),
        _paint_errors(grey, arrays["truth"][scored[name]], arrays["attacked"][place][scored[name]]),
    )
    caption = (
        f"image {case.where}, {_name_attack(meta)} at eps {show_budget(meta['eps'])}: Dice "
        f"{show_number(meta['dice_clean'])} clean, {show_number(meta['dice_attacked'])} attacked; perturbation "
        f"\u00b1{show_budget(scale)}; errors of {name}"
    )
    return Panel(f"{meta['model']}: {meta['kind']} case", caption, TITLES, (Strip("", _as_pictures(tiles)),))


def _make_sweep_panel(run: Run, case: _Case) -> Panel:
    """Turn the arrays of all budgets into rows of pictures, the clean image first."""
    meta, arrays = case.meta, case.arrays
    name, scored = case.worst, find_scored_classes(run.task)
    scale = _scale(case, range(len(case.sweep)))
    truth = arrays["truth"][scored[name]]
    strips = []
    for place, step in [(None, {"eps": 0.0, "dice": meta["dice_clean"]}), *enumerate(case.sweep)]:
        grey = _grey(arrays["x"] if place is None else arrays["x_adv"][place])
        found = arrays["clean"] if place is None else arrays["attacked"][place]
        perturbation = _paint_perturbation(case, place, scale)
        tiles = (grey, perturbation, _paint_classes(run, grey, found), _paint_errors(grey, truth, found[scored[name]]))
        label = "clean" if place is None else f"eps {show_budget(step['eps'])}"
        strips.append(Strip(f"{label}: Dice {show_number(step['dice'])}", _as_pictures(tiles)))
    caption = (
        f"image {case.where}, {_name_attack(meta)}; perturbation amplified {1 / (2 * scale):.3g} times, full "
        f"colour is a change of {show_budget(scale)}; errors of {name}"
    )
    return Panel(f"{meta['model']}: {meta['kind']} case over eps", caption, SWEEP_TITLES, tuple(strips))


def _name_attack(meta: dict[str, Any]) -> str:
    """Attack, loss and settings."""
    settings = json.loads(meta.get("settings", "{}"))
    parts = (meta["attack"], meta["loss"], *(f"{name}={value}" for name, value in settings.items()))
    return " ".join(part for part in parts if part)


def _find_worst_class(run: Run, case: _Case) -> str:
    """The class whose Dice falls most at the budget at which the case was chosen."""
    truth, clean, attacked = (case.arrays[name] for name in ("truth", "clean", "attacked"))
    falls = {
        name: _dice(truth[k], clean[k]) - _dice(truth[k], attacked[case.place][k])
        for name, k in find_scored_classes(run.task).items()
    }
    return max(falls, key=lambda name: falls[name])


def _scale(case: _Case, places: Sequence[int]) -> float:
    """The change of intensity that gets the full colour: the largest eps, or under L2 the largest change."""
    if case.meta.get("norm", "linf") == "linf":
        largest = max(float(case.sweep[place]["eps"]) for place in places)
    else:
        largest = max(float(abs(_delta(case, place)).max()) for place in places)
    return max(largest, 1e-12)


def _delta(case: _Case, place: int) -> Array:
    """The change of the first channel."""
    delta: Array = (case.arrays["x_adv"][place][0] - case.arrays["x"][0]).astype(np.float64)
    return delta


def _paint_perturbation(case: _Case, place: int | None, scale: float) -> Array:
    """The change from blue over white to red."""
    delta = np.zeros_like(case.arrays["x"][0], np.float64) if place is None else _delta(case, place)
    painted: Array = matplotlib.colormaps["RdBu_r"](0.5 + delta / (2 * scale))[..., :3]
    return painted


def _paint_classes(run: Run, grey: Array, masks: Array) -> Array:
    """A segmentation in the colours of its classes."""
    colours = dict(list_class_colours(run))
    return _paint(grey, [(masks[k], colours[name]) for name, k in find_scored_classes(run.task).items()])


def _paint_errors(grey: Array, truth: Array, found: Array) -> Array:
    """One class in the colours of right and wrong."""
    masks = (truth & found, ~truth & found, truth & ~found)
    return _paint(grey, list(zip(masks, ERROR_COLOURS.values(), strict=True)), alpha=0.85)


def _as_pictures(tiles: Sequence[Array]) -> tuple[Array, ...]:
    """Bytes of colours."""
    return tuple((np.clip(tile, 0, 1) * 255).round().astype(np.uint8) for tile in tiles)


def _grey(x: Array) -> Array:
    """An image as (H, W, 3) in [0, 1]: colours if it has three channels, else its first channel in grey."""
    channels = x[:3] if len(x) >= 3 else np.repeat(x[:1], 3, axis=0)
    return np.moveaxis(channels.astype(np.float64), 0, -1)


def _paint(grey: Array, layers: list[tuple[Array, str]], alpha: float = 0.6) -> Array:
    """Lay colours over an image; the image's own light and dark stay visible."""
    out = grey.copy()
    for mask, colour in layers:
        out[mask] = (1 - alpha) * out[mask] + alpha * np.array(to_rgb(colour))
    return out


def _dice(truth: Array, found: Array) -> float:
    """Dice of one class; 1 where neither shows it."""
    total = int(truth.sum()) + int(found.sum())
    return 2 * int((truth & found).sum()) / total if total else 1.0
