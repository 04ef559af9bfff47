"""Expands a suite into cells: every combination to run, each with a stable id. Does not import torch."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from advseg_bench.cache import content_hash
from advseg_bench.errors import SpecError, expected, unknown
from advseg_bench.registry import catalogue, toolkits
from advseg_bench.registry.fitting import Images, why_loss_not, why_not
from advseg_bench.suite.battery import list_members
from advseg_bench.suite.specs import AttackSpec, BatterySpec, DataSpec, ModelSpec, describe_inference
from advseg_bench.suite.specs.limits import MOST_CELLS
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


OF_BATTERY = ("battery", "member", "skip_finished", "warm_start", "alone")
"""Attributes of a cell that only a suite with a battery records."""

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
        battery: Full name of the battery that the cell is part of, "" if none.
        member: Position in the battery, or None. The cells of a battery are run by radius, then by position.
        skip_finished: Whether images whose score an earlier cell of the battery left at 0 are left out.
        warm_start: Whether it keeps the best result of the battery at the smaller radii where its own is not better.
        alone: Id of the same cell outside a battery, "" if it is the cell's own.

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
    battery: str = ""
    member: int | None = None
    skip_finished: bool = False
    warm_start: bool = False
    alone: str = ""

    @property
    def seed_id(self) -> str:
        """The id that seeds random numbers: that outside a battery, so that an image gets the same noise."""
        return self.alone or self.id

    def as_record(self) -> dict[str, Any]:
        """Return the cell as a flat dictionary of JSON values, as `run.json` stores it.

        Returns:
            The attributes of the cell by name, with those of `arm` ("attack", "loss", "settings", "norm") in its place;
            those about the battery only for cells of one.
        """
        names = (name for name in self.__slots__ if self.battery or name not in OF_BATTERY)
        values = {name: getattr(self, name) for name in names}
        arm = values.pop("arm")
        model, identity = values.pop("model"), values.pop("id")
        return {"id": identity, "model": model} | {name: getattr(arm, name) for name in arm.__slots__} | values


def plan(suite: Suite) -> tuple[Cell, ...]:
    """List the cells of a suite: for each model the clean cell, its attacks in the order of the suite, its battery.

    A cell that both the suite and its battery contain is the suite's; it has a position in the battery.

    Args:
        suite: The suite.

    Returns:
        Cells with unique ids. A cell whose attack, loss and data are incompatible has the reason in `skip`.

    Raises:
        SpecError: If there are too many, two attack tables of the suite contain the same cell, or a setting names an
            unknown model.

    Example:
        >>> import advseg_bench as ab
        >>> cells = ab.plan(ab.Suite.load("quick"))
        >>> len(cells), sum(cell.skip is not None for cell in cells)
        (215, 0)
        >>> [cell.label for cell in cells[:2]]
        ['unetplusplus-resnet10t none', 'unetplusplus-resnet10t fgsm bce linf 1/255']
    """
    if (count := suite.count_cells()) > MOST_CELLS:
        remedy = "Split it into several suites, or use fewer models, radii, losses, repeats or values in `vary`."
        raise SpecError(expected(f"suite {suite.name}", f"at most {MOST_CELLS:,} cells", f"{count:,}", remedy))
    cells: list[Cell] = []
    for model in suite.models:
        own = {}
        for cell in _cells_of(suite, model):
            if cell.id in own:
                raise SpecError(f"suite {suite.name}: the attack {cell.label!r} is listed twice. Remove one.")
            own[cell.id] = cell
        cells += _add_battery(suite, suite.battery, model, own.values()) if suite.battery else own.values()
    return tuple(cells)


def model_identity(suite: Suite, model: ModelSpec) -> dict[str, object]:
    """Return everything that a model's predictions depend on, as JSON; `floor` only decides whether it is used."""
    spec = model.model_dump(mode="json", exclude={"repeats"})
    recipe = None if model.weights else suite.training.model_dump(mode="json", exclude={"recipe", "floor"})
    known = {"model": spec, "data": suite.data.model_dump(mode="json"), "recipe": recipe, "seed": suite.seed}
    return known | describe_inference(suite.inference)


def make_arm(attack: AttackSpec, loss: str, settings: dict[str, Any]) -> Arm:
    """Return one arm of an attack table."""
    return Arm(attack.name, loss, json.dumps(settings, sort_keys=True), attack.norm)


def _cells_of(suite: Suite, model: ModelSpec) -> Iterator[Cell]:
    """The cells of one model."""
    identity, width = model_identity(suite, model), width_of(suite.data)
    least = model.repeats if model.random else 1
    for draw in range(least):
        yield make_cell(identity, model.name, CLEAN, 0.0, draw, None)
    for attack in suite.attacks:
        for each, loss in product(attack.list_settings(), attack.losses or ("",)):
            arm = make_arm(attack, loss, each)
            skip = _why_skip(suite, arm)
            for eps, draw in product(attack.eps, range(max(attack.draws, least))):
                cell = make_cell(identity | _describe_source(suite, arm), model.name, arm, eps, draw, skip, width)
                yield replace(cell, max_forwards=attack.max_forwards)


def _add_battery(suite: Suite, battery: BatterySpec, model: ModelSpec, own: Iterable[Cell]) -> list[Cell]:
    """The cells of one model with those of the battery, whose ids depend on the cells whose results they take."""
    identity = model_identity(suite, model)
    others = [each.name for each in suite.models if each.name != model.name]
    members = list(list_members(battery.name, battery.profile, suite.data.task, others))
    cells = {(cell.arm, cell.eps, cell.draw): cell for cell in own}
    repeats = range(model.repeats if model.random else 1)
    earlier: list[Cell] = []
    for eps, (position, member), draw in product(sorted(battery.eps), members, repeats):
        settings = catalogue.drop_defaults(member.attack, member.settings)
        arm = Arm(member.attack, member.loss, json.dumps(settings, sort_keys=True), battery.norm)
        cell = cells.get((arm, eps, draw))
        if cell is None:
            known = identity | _describe_source(suite, arm)
            cell = make_cell(known, model.name, arm, eps, draw, _why_skip(suite, arm), width_of(suite.data))
            skips = battery.skip and member.gated and not model.random
            warm = battery.warm_start and member.warm and eps > min(battery.eps) and not model.random
            before = [
                each.id
                for each in earlier
                if each.draw == draw and ((skips and each.eps == eps) or (warm and each.eps < eps))
            ]
            if skips or warm:
                inside = {"skip": skips, "warm_start": warm, "after": before}
                own_id = content_hash([cell.id, inside])
                cell = replace(cell, id=own_id, alone=cell.id, skip_finished=skips, warm_start=warm)
            cell = replace(cell, label=f"{cell.label} {battery.name}")
        cell = cells[arm, eps, draw] = replace(cell, battery=battery.name, member=position)
        earlier += [] if cell.skip else [cell]
    return list(cells.values())


def _describe_source(suite: Suite, arm: Arm) -> dict[str, object]:
    """What a result depends on beside its model: the model that a transfer attack takes the images from."""
    if arm.attack != "transfer":
        return {}
    return {"source": model_identity(suite, _find_source_model(suite, arm.options.get("source")))}


def _find_source_model(suite: Suite, name: object) -> ModelSpec:
    """The model that a transfer attack takes the images from."""
    source = next((model for model in suite.models if model.name == name), None)
    if source is None:
        known, where = [model.name for model in suite.models], f"suite {suite.name}: attack transfer, source"
        if name is None:
            raise SpecError(f"{where}: missing. Name a model of the suite in settings: {', '.join(known)}.")
        raise SpecError(unknown(where, "model", str(name), known))
    return source


def find_source(arm: Arm) -> str | None:
    """Return the name of the model that an arm's adversarial images are made for, None if it is the attacked one."""
    return arm.options.get("source") if arm.attack == "transfer" else None


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


def _why_skip(suite: Suite, arm: Arm) -> str | None:
    """The reason why a combination of attack, loss and settings is undefined or redundant in a suite, or None."""
    data, source = suite.data, find_source(arm)
    if source is not None and _find_source_model(suite, source).random:
        return f"images made for {source!r} would be others in each run, since it is random in eval mode"
    images = Images(data.task, len(data.edges), data.channels, slices=getattr(data, "neighbours", False))
    shipped = catalogue.ATTACKS.get(arm.attack)
    if (found := shipped or toolkits.find_row(arm.attack)) and (reason := why_not(arm.attack, found.traits, images)):
        return reason
    if found and arm.norm not in found.traits.norms:
        return f"attack {arm.attack!r} supports {' and '.join(found.traits.norms)} budgets, not {arm.norm}"
    if (entry := catalogue.LOSSES.get(arm.loss)) and (reason := why_loss_not(arm.loss, entry.kinds, data.task)):
        return reason
    return shipped.why_not(arm.options, arm.loss, arm.norm, images) if shipped and shipped.why_not else None
