"""The command `plan`: the cells of a suite, which are skipped, and the cost of the rest."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING, Annotated

import typer

from advseg_bench.cli.common import DataPath, Profile, SuiteName, Workers, console, default_workers, print_line
from advseg_bench.cli.data import print_phantom

if TYPE_CHECKING:
    from advseg_bench.suite.cells import Arm, Cell
    from advseg_bench.suite.specs import AttackSpec, BatterySpec
    from advseg_bench.suite.suite import Suite

Cells = tuple["Cell", ...]
Images = tuple[int, int, str]
"""Training images, test images, and the source of these counts, as `count_images` returns them."""


def plan_command(
    suite: SuiteName,
    profile: Profile = None,
    data: DataPath = None,
    workers: Workers = None,
    cells: Annotated[bool, typer.Option("--cells", help="All cells, one per line.")] = False,
) -> None:
    """Show the cells of a suite, which of them are skipped and why, and the expected cost."""
    from advseg_bench.data import count_images
    from advseg_bench.suite.cells import plan, width_of
    from advseg_bench.suite.suite import Suite

    loaded = Suite.load(suite, profile=profile, data=data)
    planned = plan(loaded)
    _print_header(loaded)
    _print_grid(loaded, planned)
    if loaded.battery:
        _print_battery(loaded.battery, planned, width_of(loaded.data))
    if cells:
        for cell in planned:
            print_line(f"{cell.id}  {cell.label}" + (f"  SKIPPED: {cell.skip}" if cell.skip else ""))
    for reason in sorted({cell.skip for cell in planned if cell.skip}):
        print_line(f"skipped: {reason} ({sum(cell.skip == reason for cell in planned)} cells)")
    images = count_images(loaded.data)
    _print_cost(planned, images)
    _print_minutes(loaded, planned, images, workers or default_workers(loaded))


def _print_header(suite: Suite) -> None:
    """Name and title of the suite, its data and its models."""
    from advseg_bench.suite.specs import FileData

    profile = f" ({suite.profile})" if suite.profile else ""
    console.print(f"{suite.name}{profile}: {suite.title}", markup=False, highlight=False)
    if suite.note:
        console.print(f"note: {suite.note}", markup=False, highlight=False)
    console.print(f"data: {suite.data.name}, {suite.data.task}, {_show_size(suite)}", highlight=False)
    print_phantom(suite.data)
    if isinstance(suite.data, FileData) and (suite.data.bounds or suite.data.normalisation != "none"):
        _print_intensities(suite)
    if suite.inference is not None:
        print_line(f"sliding windows: {suite.inference.describe(suite.data.edges)}")
    print_line(f"time limit: {suite.compute.max_seconds:g} s per image and call of an attack (compute.max_seconds)")
    for model in suite.models:
        parts = (model.architecture, model.encoder or "", f"weights {model.weights}" if model.weights else "")
        console.print(f"model: {model.name} ({', '.join(p for p in parts if p)})", markup=False, highlight=False)


def _print_intensities(suite: Suite) -> None:
    """Print the units of the images, and the radii in 1/255 of their range; for z-scores only the data have it."""
    from advseg_bench.data import load_dataset
    from advseg_bench.suite.cells import find_grey

    loaded = load_dataset(suite.data)
    lower, upper = loaded.bounds.lower, loaded.bounds.upper
    print_line(f"intensities: {lower:.4g} to {upper:.4g}, {loaded.record['scaling']}; {loaded.record['attack_space']}")
    budgets = [(attack.norm, attack.eps) for attack in suite.attacks]
    budgets += [(suite.battery.norm, suite.battery.eps)] if suite.battery else []
    radii = sorted({eps for norm, of_norm in budgets if norm == "linf" for eps in of_norm})
    shown = ", ".join(f"{eps:.4g} = {find_grey(eps, upper - lower):.3g}/255" for eps in radii)
    print_line(f"eps: {shown} of the range")


def _print_grid(suite: Suite, cells: Cells) -> None:
    """One line per attack table: its cells over all models."""
    from rich.table import Column, Table

    from advseg_bench.suite.cells import show_radii, width_of

    if not suite.attacks:
        return
    names = ("attack", "losses", "eps", "settings", "repeats", "cells", "skipped")
    table = Table(*(Column(name, overflow="fold") for name in names), box=None, pad_edge=False)
    for attack, mine in zip(suite.attacks, _group_by_table(cells, suite.attacks), strict=True):
        skipped = sum(cell.skip is not None for cell in mine)
        eps = f"{attack.norm} {show_radii(attack.eps, attack.norm, width_of(suite.data))}"
        numbers = (str(attack.draws), str(len(mine)), str(skipped))
        table.add_row(attack.name, " ".join(attack.losses) or "-", eps, _show_settings(attack), *numbers)
    console.print(table)


def _group_by_table(cells: Cells, attacks: Sequence[AttackSpec]) -> list[list[Cell]]:
    """Return the cells of each attack table."""
    from advseg_bench.suite.cells import make_arm

    found: dict[tuple[Arm, float], list[Cell]] = {}
    for cell in cells:
        found.setdefault((cell.arm, cell.eps), []).append(cell)
    return [
        [
            cell
            for settings, loss, eps in product(attack.list_settings(), attack.losses or ("",), attack.eps)
            for cell in found.get((make_arm(attack, loss, settings), eps), ())
        ]
        for attack in attacks
    ]


def _print_battery(battery: BatterySpec, cells: Cells, width: float) -> None:
    """One line per member of the battery, with the passes of one of its cells, and the cost of all.

    Passes are those of the attack and of scoring its result.
    """
    from rich.table import Column, Table

    from advseg_bench.suite.cells import show_radii
    from advseg_bench.suite.cost import estimate

    print_line(f"battery: {battery.name}, profile {battery.profile}, {_show_rules(battery)}")
    names = ("member", "loss", "settings", "eps", "forwards", "backwards", "cells", "skipped")
    table = Table(*(Column(name, overflow="fold") for name in names), box=None, pad_edge=False)
    members: dict[int, list[Cell]] = {}
    for cell in cells:
        if cell.member is not None:
            members.setdefault(cell.member, []).append(cell)
    for _, of_member in sorted(members.items()):
        arm, skipped = of_member[0].arm, sum(cell.skip is not None for cell in of_member)
        cost = estimate((replace(of_member[0], skip=None),))
        passes = (str(cost.separate_forwards), str(cost.separate_backwards)) if cost else ("?", "?")
        shown = "; ".join(f"{name}: {value}" for name, value in _common_settings(of_member).items())
        radii = f"{arm.norm} {show_radii(battery.eps, arm.norm, width)}"
        table.add_row(arm.attack, arm.loss or "-", shown, radii, *passes, str(len(of_member)), str(skipped))
    console.print(table)
    mine = [cell for of_member in members.values() for cell in of_member]
    if (whole := estimate(tuple(mine))) is not None:
        total = f"{whole.shared_forwards} forwards + {whole.shared_backwards} backwards"
        models = len({cell.model for cell in mine})
        print_line(f"Cost of the battery per test image, on {_count(models, 'model')}: {_at_most(mine)}{total}.")


def _show_rules(battery: BatterySpec) -> str:
    """Whether finished images are skipped, and where attacks start."""
    skip = "finished images are skipped" if battery.skip else "no image is skipped"
    kept = "the best result at smaller radii is kept" if battery.warm_start else "each radius has its own results"
    return f"{skip}, {kept}"


def _common_settings(cells: Sequence[Cell]) -> dict[str, object]:
    """The settings of the cells of a member; one that differs between them is "each other"."""
    settings = [cell.arm.options for cell in cells]
    return {
        name: value if all(each[name] == value for each in settings) else "each other model"
        for name, value in settings[0].items()
    }


def _at_most(cells: Iterable[Cell]) -> str:
    """The words before a cost that skipped images lower."""
    return "at most " if any(cell.skip_finished and cell.skip is None for cell in cells) else ""


def _count(number: int, noun: str) -> str:
    """A number with its noun."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _show_settings(attack: AttackSpec) -> str:
    """All settings with their values."""
    settings = {key: [value] for key, value in attack.settings.items()} | attack.vary
    settings |= {"max_forwards": [attack.max_forwards]} if attack.max_forwards else {}
    return "; ".join(f"{key}: {' '.join(map(str, values))}" for key, values in settings.items())


def _show_size(suite: Suite) -> str:
    """The edge of a slice, or the edges of a volume."""
    edges = suite.data.edges
    return f"{edges[-1]} px" if len(edges) == 2 else f"volumes of {' x '.join(map(str, edges))} px"


def _print_cost(cells: Cells, images: Images | None) -> None:
    """Model passes as the harness shares them, and as a loop over the cells would need them."""
    from advseg_bench.suite.cost import estimate

    active = [cell for cell in cells if cell.skip is None]
    cost = estimate(cells)
    console.print(f"Cells: {len(active)} to run, {len(cells) - len(active)} skipped.")
    if images and images[2]:
        counts = f"Images: {images[0]:,} for training, {images[1]:,} for test ({images[2]})."
        console.print(counts, highlight=False, soft_wrap=True)
    if cost is None:
        console.print("Cost: unknown, since a plug-in or toolkit does not state its cost.")
        return
    unit = f"for {images[1]} test images" if images else "per test image"
    n = images[1] if images else 1
    console.print(
        f"Cost {unit}: {_at_most(cells)}{n * cost.shared_forwards} forwards + {n * cost.shared_backwards} backwards "
        f"(without sharing: {n * cost.separate_forwards} + {n * cost.separate_backwards})."
    )


def _print_minutes(suite: Suite, cells: Cells, images: Images | None, workers: int) -> None:
    """Expected minutes of a run, or why they are unknown."""
    from advseg_bench.suite.cost import estimate
    from advseg_bench.suite.timing import expect

    expected = expect(suite, cells, images[:2], workers) if images else None
    if expected:
        days = f" ({expected.minutes / 1440:.1f} days)" if expected.minutes > 1440 else ""
        minutes = f"{_at_most(cells)}{expected.minutes:.1f} min{days}"
        console.print(f"Expected: {minutes} with {workers} workers ({expected.source}), training included.")
        return
    why = "until the suite has run once on this machine"
    if not images:
        why = "since the number of images is unknown until the data set is loaded"
    elif estimate(cells) is None:
        why = "since a plug-in or toolkit does not state its cost"
    console.print(f"Expected minutes: unknown {why}.")
