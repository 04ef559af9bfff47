"""The images of single cases, at one eps and over eps: image, perturbation, predictions and errors."""

from __future__ import annotations

from functools import partial

from advseg_bench.report.document import Gallery, Panel, Sheet, Strip, show_budget, show_number
from advseg_bench.report.painting import (
    ERROR_COLOURS,
    as_pictures,
    list_class_colours,
    make_grey,
    paint_change,
    paint_classes,
    paint_errors,
)
from advseg_bench.report.pictures import Pictures, load_pictures
from advseg_bench.report.sheets import draw_sheet
from advseg_bench.results.run import Run
from advseg_bench.results.scores import find_scored_classes
from advseg_bench.suite.cells import Arm
from advseg_bench.types import Task

TITLES = ("Image", "Perturbation", "Ground truth", "Clean prediction", "Attacked prediction", "Errors")
SWEEP_TITLES = ("Image", "Perturbation", "Prediction", "Errors")


def make_galleries(run: Run) -> tuple[Gallery, ...]:
    """Make the galleries of a run: each model's best and worst case, and the worst case over eps.

    Returns:
        The galleries that have images: one with a sheet for print of all cases, one with a sheet per model over eps.

    Raises:
        RecordError: If a file cannot be read; the message names it.
    """
    kept = load_pictures(run)
    keys = (("Classes:", list_class_colours(run.task)), ("Errors:", tuple(ERROR_COLOURS.items())))
    alone = tuple(_make_panel(each, run) for each in kept)
    swept = {each.case.model: _make_sweep_panel(each, run) for each in kept if len(each.case.sweep) > 1}
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


def _caption_cases(run: Run) -> str:
    """Describe the columns and the colours."""
    return (
        "Worst: the image with the largest drop of mean Dice under the worst case over the attacks, shown under the "
        "attack that causes it (under the strongest attack with several eps, if the worst case is known at one only); "
        "best: the image with the smallest drop. Only images with clean Dice >= "
        f"{run.scoring.dice_threshold:g}. Perturbation: attacked minus clean image, white is 0, red up to +eps, blue "
        "down to -eps (amplified to the full colour scale; first channel). Errors: of the class whose Dice falls most, "
        "which is named with each case." + _caption_slices(run)
    )


def _caption_sweeps(run: Run) -> str:
    """Describe the columns and the colours of the images over eps."""
    return (
        "Each model's worst case, the clean image first. Perturbation: attacked minus clean image, white is 0, red "
        "positive, blue negative, with the same amplification at all eps of a case, so that its growth is visible "
        "(first channel). Dice: mean over classes of that image. Errors: of the class whose Dice falls most at the eps "
        "at which the case was chosen." + _caption_slices(run)
    )


def _caption_slices(run: Run) -> str:
    """Describe which slice of a volume is shown."""
    if not run.about.suite.of_volumes:
        return ""
    return (
        " Of a volume, the slice with the largest labelled area is shown (counted from 1 after resizing); Dice and the "
        "class of the errors are those of the whole volume."
    )


def _make_panel(kept: Pictures, run: Run) -> Panel:
    """Make the panel of a case at the budget at which it was chosen."""
    task, width = run.task, run.about.data.width
    case, place, k = kept.case, kept.place, find_scored_classes(task)[kept.worst]
    grey, scale = make_grey(kept.x), kept.find_scale([place])
    tiles = (
        grey,
        paint_change(kept.find_change(place), scale),
        *(paint_classes(grey, masks, task) for masks in (kept.truth, kept.clean, kept.attacked[place])),
        paint_errors(grey, kept.truth[k], kept.attacked[place][k]),
    )
    caption = (
        f"image {kept.where}, {_name_attack(case.arm)} at eps {show_budget(case.eps, case.arm.norm, width)}: Dice "
        f"{show_number(case.dice_clean)} clean, {show_number(case.dice_attacked)} attacked; perturbation "
        f"\u00b1{show_budget(scale, width=width)}; errors of {kept.worst}"
    )
    return Panel(f"{case.model}: {case.kind} case", caption, TITLES, (Strip("", as_pictures(tiles)),))


def _make_sweep_panel(kept: Pictures, run: Run) -> Panel:
    """Make the panel of a case at all budgets, one row each, the clean image first."""
    task, width = run.task, run.about.data.width
    case, scale = kept.case, kept.find_scale(range(len(kept.case.sweep)))
    strips = [_make_strip(kept, None, f"clean: Dice {show_number(case.dice_clean)}", scale, task)]
    for place, step in enumerate(case.sweep):
        label = f"eps {show_budget(step.eps, case.arm.norm, width)}: Dice {show_number(step.dice)}"
        strips.append(_make_strip(kept, place, label, scale, task))
    caption = (
        f"image {kept.where}, {_name_attack(case.arm)}; perturbation amplified {1 / (2 * scale):.3g} times, full "
        f"colour is a change of {show_budget(scale, width=width)}; errors of {kept.worst}"
    )
    return Panel(f"{case.model}: {case.kind} case over eps", caption, SWEEP_TITLES, tuple(strips))


def _make_strip(kept: Pictures, place: int | None, label: str, scale: float, task: Task) -> Strip:
    """Make the row of images at one budget of the sweep; None is the clean image."""
    k = find_scored_classes(task)[kept.worst]
    grey = make_grey(kept.x if place is None else kept.x_adv[place])
    found = kept.clean if place is None else kept.attacked[place]
    change = paint_change(kept.find_change(place), scale)
    tiles = (grey, change, paint_classes(grey, found, task), paint_errors(grey, kept.truth[k], found[k]))
    return Strip(label, as_pictures(tiles))


def _name_attack(arm: Arm) -> str:
    """Return attack, loss and settings as text."""
    parts = (arm.attack, arm.loss, *(f"{name}={value}" for name, value in arm.options.items()))
    return " ".join(part for part in parts if part)
