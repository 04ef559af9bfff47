"""Expands a suite into cells: every combination to run, each with a stable id. Does not import torch."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from advseg_bench.cache import content_hash
from advseg_bench.errors import SpecError
from advseg_bench.registry import catalogue, toolkits
from advseg_bench.registry.fitting import Images, why_loss_not, why_not
from advseg_bench.suite.specs import AttackSpec, DataSpec, ModelSpec, describe_inference
from advseg_bench.suite.suite import Suite
from advseg_bench.types import Norm


@dataclass(frozen=True, slots=True)
class Arm:
    """An attack as it is compared with others: its name, loss, settings and norm, without the radius and the repeat.

    Attributes:
        attack: Name of the attack; "none" is the clean prediction.
        loss: Name of the attack loss, "" if the attack uses none.
        settings: Settings of the attack as canonical JSON.
        norm: Norm of the budget.
    """

    attack: str
    loss: str
    settings: str
    norm: Norm

    @property
    def options(self) -> dict[str, Any]:
        """The settings as a dict."""
        return dict(json.loads(self.settings))


CLEAN = Arm("none", "", "{}", "linf")
"""The clean prediction."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One arm at one radius and repeat, on one model.

    Attributes:
        id: Hash of everything the result depends on, except the images and the compute settings.
        model: Name of the model.
        arm: The attack with its loss, settings and norm.
        eps: Radius of the budget in image units, such as 4/255.
        draw: Index of the repeat of a random attack, from 0.
        label: Readable description.
        skip: Reason why the cell is not run, or None.
        max_forwards: Largest number of forward passes per image before the attack is stopped, or None.

    Example:
        >>> import advseg_bench as ab
        >>> cell = ab.plan(ab.Suite.load("smoke"))[1]
        >>> cell.label
        'basicunet-xs fgsm bce linf 2/255'
        >>> cell.arm.attack, cell.arm.loss, cell.arm.norm, cell.skip
        ('fgsm', 'bce', 'linf', None)
    """

    id: str
    model: str
    arm: Arm
    eps: float
    draw: int
    label: str
    skip: str | None
    max_forwards: int | None = None

    def as_record(self) -> dict[str, Any]:
        """Return the cell as a flat dictionary of JSON values, as `run.json` stores it.

        Returns:
            The attributes of the cell by name, with those of `arm` ("attack", "loss", "settings", "norm") in its place.
        """
        values = {name: getattr(self, name) for name in self.__slots__}
        arm = values.pop("arm")
        model, identity = values.pop("model"), values.pop("id")
        return {"id": identity, "model": model} | {name: getattr(arm, name) for name in arm.__slots__} | values


@dataclass(frozen=True, slots=True)
class Cost:
    """Model passes per test image: `shared` as the harness runs them, `separate` if each cell ran alone."""

    shared_forwards: int
    shared_backwards: int
    separate_forwards: int
    separate_backwards: int


def plan(suite: Suite) -> tuple[Cell, ...]:
    """List the cells of a suite: for each model the clean cell, then its attacks in the order of the suite.

    Args:
        suite: The suite.

    Returns:
        Cells with unique ids. A cell whose attack, loss and data are incompatible has the reason in `skip`.

    Raises:
        SpecError: If two attack tables of the suite contain the same cell.

    Example:
        >>> import advseg_bench as ab
        >>> cells = ab.plan(ab.Suite.load("quick"))
        >>> len(cells), sum(cell.skip is not None for cell in cells)
        (185, 0)
        >>> [cell.label for cell in cells[:2]]
        ['unetplusplus-resnet10t none', 'unetplusplus-resnet10t fgsm bce linf 1/255']
    """
    cells: dict[str, Cell] = {}
    for cell in (cell for model in suite.models for cell in _cells_of(suite, model)):
        if cell.id in cells:
            raise SpecError(f"suite {suite.name}: the attack {cell.label!r} is listed twice. Remove one.")
        cells[cell.id] = cell
    return tuple(cells.values())


def model_identity(suite: Suite, model: ModelSpec) -> dict[str, object]:
    """Return everything that a model's predictions depend on, as JSON; `floor` only decides whether it is used."""
    spec = model.model_dump(mode="json", exclude={"repeats"})
    recipe = None if model.weights else suite.training.model_dump(mode="json", exclude={"recipe", "floor"})
    known = {"model": spec, "data": suite.data.model_dump(mode="json"), "recipe": recipe, "seed": suite.seed}
    return known | describe_inference(suite.inference)


def is_of(cell: Cell, attack: AttackSpec) -> bool:
    """Return whether a cell belongs to an attack table of its suite."""
    arm = cell.arm
    return (
        (arm.attack, arm.norm) == (attack.name, attack.norm)
        and cell.eps in attack.eps
        and arm.loss in (attack.losses or ("",))
        and arm.options in attack.list_settings()
    )


def estimate(cells: tuple[Cell, ...]) -> Cost | None:
    """Count the model passes per test image of all cells that are not skipped.

    Returns:
        The passes, or None if the cost of a plug-in is unknown.
    """
    cost = [0, 0, 0, 0]
    gradients = set()
    stochastic = {cell.model for cell in cells if cell.arm == CLEAN and cell.draw}
    for cell in cells:
        if cell.skip:
            continue
        if cell.arm == CLEAN:
            cost[0] += 1
            cost[2] += 1
            continue
        entry = catalogue.ATTACKS.get(cell.arm.attack)
        if entry is None:
            return None
        traits = entry.traits_of(cell.arm.options)
        forwards, backwards = int(traits.forwards or 0), int(traits.backwards or 0)
        key = (_gradient_of(cell) if entry.shared else cell.id, cell.draw if cell.model in stochastic else 0)
        cost[0] += 1 if entry.shared else forwards + 1
        cost[1] += backwards if not entry.shared or key not in gradients else 0
        cost[2] += forwards + 1
        cost[3] += backwards
        gradients.add(key)
    return Cost(*cost)


def _gradient_of(cell: Cell) -> str:
    """A key that is equal for cells of one-gradient attacks that use the same gradient."""
    steps = catalogue.ATTACKS[cell.arm.attack].step_settings
    settings = {name: value for name, value in cell.arm.options.items() if name not in steps}
    return json.dumps([cell.model, cell.arm.loss, settings], sort_keys=True)


def _cells_of(suite: Suite, model: ModelSpec) -> Iterator[Cell]:
    """The cells of one model."""
    identity, width = model_identity(suite, model), width_of(suite.data)
    least = model.repeats if model.stochastic else 1
    for draw in range(least):
        yield make_cell(identity, model.name, CLEAN, 0.0, draw, None)
    for attack in suite.attacks:
        for each, loss in product(attack.list_settings(), attack.losses or ("",)):
            arm = Arm(attack.name, loss, json.dumps(each, sort_keys=True), attack.norm)
            skip = _why_skip(suite.data, attack, loss, each)
            for eps, draw in product(attack.eps, range(max(attack.draws, least))):
                cell = make_cell(identity, model.name, arm, eps, draw, skip, width)
                yield replace(cell, max_forwards=attack.max_forwards)


def make_cell(
    identity: dict[str, object], model: str, arm: Arm, eps: float, draw: int, skip: str | None, width: float = 1.0
) -> Cell:
    """Return a cell whose id is a hash of `identity`, `arm`, `eps` and `draw`.

    Args:
        identity: Everything that the model's predictions depend on, as JSON.
        model: Name of the model.
        arm: The attack with its loss, settings and norm.
        eps: Radius in image units.
        draw: Index of the repeat, from 0.
        skip: Reason why the cell is not run, or None.
        width: Width of the range of intensities, for the label.
    """
    key = content_hash([identity, arm.attack, arm.loss, arm.settings, arm.norm, eps, draw])
    return Cell(key, model, arm, eps, draw, _label(model, arm, eps, draw, width), skip)


def _label(model: str, arm: Arm, eps: float, draw: int, width: float) -> str:
    """A readable description of a cell."""
    radius = show_eps(eps, width) if arm.norm == "linf" else f"{eps:.4g}"
    settings = "" if arm.settings == "{}" else arm.settings
    budget = "" if arm == CLEAN else f"{arm.norm} {radius}"
    parts = (model, arm.attack, arm.loss, settings, budget)
    return " ".join(part for part in parts if part) + (f" draw {draw}" if draw else "")


def width_of(data: DataSpec) -> float:
    """Return the width of the range of intensities that a suite declares; infinite if only the data have it."""
    lower, upper = data.declared_bounds or (0.0, math.inf)
    return upper - lower


def find_grey(value: float, width: float) -> float:
    """Return a difference of intensities in units of 1/255 of their range, which has this width."""
    return 255 * value / width


def show_eps(eps: float, width: float = 1.0) -> str:
    """Format a radius as n/255 if it is a whole number of grey levels of images in [0, 1], otherwise as a decimal.

    Args:
        eps: Radius in image units.
        width: Width of the range of intensities; unless it is 1, the radius is a decimal.
    """
    grey = eps * 255
    return f"{grey:.0f}/255" if eps < 1 and width == 1 and abs(grey - round(grey)) < 1e-9 else f"{eps:.4g}"


def show_radii(values: Sequence[float], norm: str = "linf", width: float = 1.0) -> str:
    """Format several radii briefly: whole grey levels first, consecutive ones as a range, then decimals.

    Radii of another norm than L_inf are plain numbers.
    """
    if norm != "linf":
        return ", ".join(f"{value:.4g}" for value in sorted(values))
    greys = sorted(round(value * 255) for value in values if show_eps(value, width).endswith("/255"))
    runs: list[list[int]] = []
    for grey in greys:
        if runs and grey == runs[-1][-1] + 1:
            runs[-1].append(grey)
        else:
            runs.append([grey])
    shown = " ".join(f"{run[0]}-{run[-1]}" if len(run) > 2 else " ".join(map(str, run)) for run in runs)
    others = [show_eps(value, width) for value in sorted(values) if not show_eps(value, width).endswith("/255")]
    return ", ".join(([f"{shown} /255"] if runs else []) + others)


def _why_skip(data: DataSpec, attack: AttackSpec, loss: str, settings: dict[str, Any]) -> str | None:
    """The reason why a combination of attack, loss and settings is undefined or redundant on a data set, or None."""
    images = Images(data.task, len(data.edges), data.channels, slices=getattr(data, "neighbours", False))
    if (row := toolkits.find_row(attack.name)) and (reason := why_not(attack.name, row.traits, images)):
        return reason
    if (entry := catalogue.LOSSES.get(loss)) and (reason := why_loss_not(loss, entry.kinds, data.task)):
        return reason
    shipped = catalogue.ATTACKS.get(attack.name)
    return shipped.why_not(settings, loss, attack.norm, images) if shipped and shipped.why_not else None
