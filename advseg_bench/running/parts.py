"""Divides a run into parts for machines that do not communicate: each computes the same division by itself.

A part is some images of some models, with all cells of each: attacks share gradients, and the cells of a battery depend
on each other. Costs are counted in forward passes, where a backward pass counts as two. Every part that holds some of a
model needs its weights, so that a model is only divided if it is larger than an equal share, or if the largest part
would otherwise be a tenth larger.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from advseg_bench.errors import RecordError, SpecError, expected
from advseg_bench.results.descriptions import read_description
from advseg_bench.running.missing import find_missing
from advseg_bench.running.work import Description, Unit, list_sources
from advseg_bench.suite.cells import Cell
from advseg_bench.suite.cost import estimate
from advseg_bench.suite.suite import Suite

MOST_PARTS = 10_000
"""Largest number of parts of a run."""

UNKNOWN_PASSES = 60
"""Cost of a cell whose attack does not state one, per image: 20 forwards and 20 backwards."""

Part = tuple[int, int]
"""(i, n): the i-th of n parts, from 1."""

Holding = dict[str, tuple[int, int]]
"""Model -> first image and the one after the last, as places in the order of the test images."""


@dataclass(frozen=True, slots=True)
class Load:
    """The cost of a model.

    Attributes:
        model: Name of the model.
        image: Passes for one test image, with all cells.
        trainings: Name of each model that is needed, this one and the sources of its transfer attacks -> passes of its
            training; 0 for given weights.
    """

    model: str
    image: int
    trainings: Mapping[str, int]


@dataclass(slots=True)
class _Bin:
    """A part that is being filled: its cost, the models that it trains, and the batches of each model."""

    cost: int = 0
    trained: set[str] = field(default_factory=set)
    batches: dict[str, int] = field(default_factory=dict)

    def cost_of_training(self, load: Load) -> int:
        """Passes of the trainings that a model needs and this part lacks."""
        return sum(passes for name, passes in load.trainings.items() if name not in self.trained)

    def add(self, load: Load, batches: int, batch: int) -> None:
        """Add batches of a model."""
        self.cost += self.cost_of_training(load) + batches * batch * load.image
        self.trained |= set(load.trainings)
        self.batches[load.model] = self.batches.get(load.model, 0) + batches


def parse_part(text: str) -> Part:
    """Read a part from text such as "3/16".

    Raises:
        SpecError: If the text has another form, or there is no such part.
    """
    found = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text.strip())
    if not found:
        raise SpecError(expected("part", "I/N, such as 3/16", text[:40], "Give the number of the part and of all."))
    return check_part((int(found[1]), int(found[2])))


def check_part(part: Part) -> Part:
    """Return a part, or raise `SpecError` if there is none of that number."""
    i, n = part
    if not 1 <= n <= MOST_PARTS:
        raise SpecError(expected("part", f"1 to {MOST_PARTS:,} parts", f"{i}/{n}", "Give fewer parts, at least one."))
    if not 1 <= i <= n:
        raise SpecError(expected("part", f"a part from 1 to {n}", f"{i}/{n}", "Parts are counted from 1."))
    return i, n


def find_array_part(environ: Mapping[str, str]) -> Part | None:
    """Return the part that a task of a Slurm array computes, None outside an array.

    Raises:
        SpecError: If the array has holes: the number of its tasks is then not that of the parts.
    """
    names = ("TASK_ID", "TASK_MIN", "TASK_MAX", "TASK_COUNT", "TASK_STEP")
    try:
        given = {name: int(environ[f"SLURM_ARRAY_{name}"]) for name in names if f"SLURM_ARRAY_{name}" in environ}
    except ValueError:
        raise SpecError("SLURM_ARRAY_TASK_ID: expected a number, got text. Give --part I/N, or --part all.") from None
    if "TASK_ID" not in given or "TASK_COUNT" not in given:
        return None
    first, step, count = given.get("TASK_MIN", 0), max(given.get("TASK_STEP", 1), 1), given["TASK_COUNT"]
    last = given.get("TASK_MAX", first + step * (count - 1))
    if (last - first) // step + 1 != count or (given["TASK_ID"] - first) % step:
        raise SpecError(
            f"SLURM_ARRAY_TASK_ID: expected an array without holes, got {count} tasks from {first} to {last}. "
            "Give --part I/N."
        )
    return check_part(((given["TASK_ID"] - first) // step + 1, count))


def name_part(part: Part) -> str:
    """Return the name of a part's folder, such as "part-03-of-16"."""
    i, n = part
    return f"part-{i:0{len(str(n))}}-of-{n}"


def weigh(suite: Suite, cells: Iterable[Cell], train_images: int) -> list[Load]:
    """Estimate the cost of each model of a suite.

    Args:
        suite: The suite.
        cells: Its cells.
        train_images: Number of images that models are trained on.

    Returns:
        The costs, in the order of the suite; models without a cell to run are left out.
    """
    by_model: dict[str, list[Cell]] = {}
    for cell in cells:
        if cell.skip is None:
            by_model.setdefault(cell.model, []).append(cell)
    training = {model.name: 0 if model.weights else 3 * suite.training.epochs * train_images for model in suite.models}
    return [
        Load(name, _count_passes(mine), {other: training[other] for other in (name, *list_sources(mine))})
        for name, mine in by_model.items()
    ]


def _count_passes(cells: Sequence[Cell]) -> int:
    """Passes for one image of the cells of one model."""
    known = [cell for cell in cells if estimate((cell,)) is not None]
    cost = estimate(tuple(known))
    assert cost is not None, "the cost of each cell is known"
    unknown = UNKNOWN_PASSES * (len(cells) - len(known))
    return cost.shared_forwards + 2 * cost.shared_backwards + unknown


def divide(loads: Sequence[Load], images: int, batch: int, n: int) -> list[Holding]:
    """Divide the images of models among parts.

    Models that cost more than an equal share may be divided, and then as many others, by cost, as are needed so that
    the largest part costs at most a tenth more than if all models may be. No part therefore costs more than 1.1 times
    the sum of: an equal share of all costs, twice the most expensive training with its sources, and one batch.

    Args:
        loads: The costs of the models.
        images: Number of test images.
        batch: Images per forward pass; models are divided between batches, so that no batch changes.
        n: Number of parts.

    Returns:
        What each part holds. Together they hold each image of each model once; a part may be empty.
    """
    batches = -(-images // batch)
    ranked = sorted(range(len(loads)), key=lambda i: (-_total(loads[i], images), i))
    order = [loads[i] for i in ranked]
    share = sum(_total(load, images) for load in order) / n
    free = _arrange(order, [], batches, batch, n)
    first = sum(_total(load, images) > share for load in order)
    tried = (_arrange(order[:k], order[k:], batches, batch, n) for k in range(first, len(order)))
    chosen = next((bins for bins in tried if 10 * _largest(bins) <= 11 * _largest(free)), free)
    held: list[Holding] = [{} for _ in chosen]
    for load in loads:
        start = 0
        for mine, filled in zip(held, chosen, strict=True):
            if taken := filled.batches.get(load.model, 0):
                mine[load.model] = start * batch, min((start + taken) * batch, images)
                start += taken
    return held


def _largest(bins: Sequence[_Bin]) -> int:
    """The cost of the most expensive part."""
    return max(each.cost for each in bins)


def _total(load: Load, images: int) -> int:
    """The cost of a whole model with its trainings."""
    return load.image * images + sum(load.trainings.values())


def _arrange(divided: Sequence[Load], whole: Sequence[Load], batches: int, batch: int, n: int) -> list[_Bin]:
    """Put whole models where they end first, the largest one first, then fill up with models that may be divided."""
    bins = [_Bin() for _ in range(n)]
    for load in whole:
        least = min(bins, key=lambda each: each.cost + each.cost_of_training(load))
        least.add(load, batches, batch)
    if not divided:
        return bins
    low, high = 0, _largest(bins) + sum(_total(load, batches * batch) for load in divided)
    while low < high:
        level = (low + high) // 2
        low, high = (low, level) if _fill(bins, divided, batches, batch, level) else (level + 1, high)
    found = _fill(bins, divided, batches, batch, high)
    assert found is not None, "one part alone could hold everything"
    return found


def _fill(bins: Sequence[_Bin], loads: Sequence[Load], batches: int, batch: int, level: int) -> list[_Bin] | None:
    """Fill parts with models up to a level of cost, the emptiest part first; None if not all of them fit."""
    filled = [_Bin(each.cost, set(each.trained), dict(each.batches)) for each in bins]
    free = sorted(filled, key=lambda each: each.cost)
    place = 0
    for load in loads:
        left, each = batches, load.image * batch
        while left:
            if place == len(free):
                return None
            room = (level - free[place].cost - free[place].cost_of_training(load)) // each
            if (taken := min(left, room)) > 0:
                free[place].add(load, taken, batch)
                left -= taken
            if left:
                place += 1
    return filled


def describe_part(
    suite: Suite, cells: Sequence[Cell], here: Description, part: Part | None
) -> dict[str, dict[str, Any]]:
    """Return the entry of `run.json` with what a part holds; none if `part` is None.

    Args:
        suite: The suite.
        cells: Its cells.
        here: The description of the data set.
        part: The part.

    Returns:
        {"part": its number "part", that of all parts "of", and what it "holds": model -> first image and the one after
        the last, as places in the list of images}.

    Raises:
        SpecError: If there is no such part.
    """
    if part is None:
        return {}
    i, n = check_part(part)
    loads = weigh(suite, cells, here.data["splits"]["train"])
    held = divide(loads, len(here.images), suite.compute.batch, n)[i - 1]
    return {"part": {"part": i, "of": n, "holds": {model: list(places) for model, places in held.items()}}}


def check_recorded(out: Path, info: Mapping[str, Any]) -> None:
    """Raise `RecordError` if a run directory holds another part than the one that is to be run."""
    recorded, wanted = (each.get("part") for each in (read_description(out), info))
    if recorded != wanted:
        raise RecordError(
            f"{out}: holds {_show(recorded)}, got {_show(wanted)} to run. Give each part an --out of its own."
        )


def _show(entry: Mapping[str, Any] | None) -> str:
    """Name a part by its entry in `run.json`."""
    return f"part {entry['part']} of {entry['of']}" if entry else "the whole suite"


def find_missing_in(
    info: Mapping[str, Any],
    cells: Sequence[Cell],
    images: Mapping[str, int],
    have: Collection[tuple[str, str]],
    shard: int,
) -> dict[str, list[Unit]]:
    """Find the missing rows of a run, or of the part that `info` names; see `missing.find_missing`."""
    if "part" not in info:
        return find_missing(cells, images, have, shard)
    names = list(images)
    found: dict[str, list[Unit]] = {}
    for model, (start, stop) in info["part"]["holds"].items():
        mine = {name: images[name] for name in names[start:stop]}
        found |= find_missing([cell for cell in cells if cell.model == model], mine, have, shard)
    return found


def select_cells(info: Mapping[str, Any], cells: Iterable[Cell]) -> list[Cell]:
    """Return the cells of the models of a run, or of the part that `info` names."""
    return [cell for cell in cells if "part" not in info or cell.model in info["part"]["holds"]]
