"""From a suite to cells: every combination that is to be run, with a stable identity. Torch-free."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from advseg_bench.cache import content_hash
from advseg_bench.errors import SpecError
from advseg_bench.registry import catalogue, toolkits
from advseg_bench.suite.specs import AttackSpec, ModelSpec
from advseg_bench.suite.suite import Suite
from advseg_bench.types import Norm


@dataclass(frozen=True, slots=True)
class Arm:
    """An attack as it is compared with others: everything about it but the radius of the budget and the draw.

    Attributes:
        attack: The attack's name; "none" is the clean prediction.
        loss: The loss's name, "" if the attack follows none.
        settings: The attack's settings as canonical JSON.
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
    """One arm with one radius and draw on one model.

    Attributes:
        id: Hash of everything the result depends on beside the images and the compute settings.
        model: The model's name.
        arm: The attack with its loss, settings and norm.
        eps: Radius in image units.
        draw: Which repetition of a random attack.
        label: For people.
        skip: Why the cell is not run, or None.
        max_forwards: After how many forwards of an image the attack is stopped, or None.
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
        """Return the cell as JSON values, flat, as `run.json` and the rows name its parts."""
        values = {name: getattr(self, name) for name in self.__slots__}
        arm = values.pop("arm")
        model, identity = values.pop("model"), values.pop("id")
        return {"id": identity, "model": model} | {name: getattr(arm, name) for name in arm.__slots__} | values


@dataclass(frozen=True, slots=True)
class Cost:
    """Model evaluations per test image: `shared` as this harness runs them, `separate` cell by cell."""

    shared_forwards: int
    shared_backwards: int
    separate_forwards: int
    separate_backwards: int


def plan(suite: Suite) -> tuple[Cell, ...]:
    """List the cells of a suite: the clean one of each model, then its attacks in the order of the suite.

    Returns: Cells with unique ids. A cell whose parts do not fit together has the reason in `skip`.
    Raises: SpecError: if two attack tables of the suite overlap.
    """
    cells: dict[str, Cell] = {}
    for model in suite.models:
        for cell in _cells_of(suite, model):
            if cell.id in cells:
                raise SpecError(f"suite {suite.name}: the attack {cell.label!r} is listed twice. Remove one.")
            cells[cell.id] = cell
    return tuple(cells.values())


def model_identity(suite: Suite, model: ModelSpec) -> dict[str, object]:
    """Return what a model's predictions depend on, as JSON; the floor only decides whether there are any."""
    spec = model.model_dump(mode="json")
    recipe = None if model.weights else suite.training.model_dump(mode="json", exclude={"recipe", "floor"})
    return {"model": spec, "data": suite.data.model_dump(mode="json"), "recipe": recipe, "seed": suite.seed}


def is_of(cell: Cell, attack: AttackSpec) -> bool:
    """Return whether a cell comes from an attack table of its suite."""
    arm = cell.arm
    return (
        (arm.attack, arm.norm) == (attack.name, attack.norm)
        and cell.eps in attack.eps
        and arm.loss in (attack.losses or ("",))
        and arm.options in attack.list_settings()
    )


def estimate(cells: tuple[Cell, ...]) -> Cost | None:
    """Count the evaluations per test image that the cells to be run cost together.

    Returns: None if a plug-in's cost is unknown.
    """
    cost = [0, 0, 0, 0]
    gradients = set()
    for cell in cells:
        if cell.skip:
            continue
        if cell.arm == CLEAN:
            cost[0] += 1
            cost[2] += 1
            continue
        alone = catalogue.attack_cost(cell.arm.attack, cell.arm.options)
        if alone is None:
            return None
        shared = catalogue.ATTACKS[cell.arm.attack].shared
        key = _gradient_of(cell) if shared else cell.id
        cost[0] += 1 if shared else alone[0] + 1
        cost[1] += alone[1] if not shared or key not in gradients else 0
        cost[2] += alone[0] + 1
        cost[3] += alone[1]
        gradients.add(key)
    return Cost(*cost)


def _gradient_of(cell: Cell) -> str:
    """What cells of shared attacks with the same gradient have in common."""
    steps = catalogue.ATTACKS[cell.arm.attack].step_settings
    settings = {name: value for name, value in cell.arm.options.items() if name not in steps}
    return json.dumps([cell.model, cell.arm.loss, settings], sort_keys=True)


def _cells_of(suite: Suite, model: ModelSpec) -> Iterator[Cell]:
    """The cells of one model."""
    identity = model_identity(suite, model)
    yield _cell(identity, model.name, CLEAN, 0.0, 0, None)
    for attack in suite.attacks:
        for each, loss in product(attack.list_settings(), attack.losses or ("",)):
            arm = Arm(attack.name, loss, json.dumps(each, sort_keys=True), attack.norm)
            skip = _why_skip(suite, attack, loss) or _why_skip_settings(suite, attack, loss, each)
            for eps, draw in product(attack.eps, range(attack.draws)):
                cell = _cell(identity, model.name, arm, eps, draw, skip)
                yield replace(cell, max_forwards=attack.max_forwards)


def _cell(identity: dict[str, object], model: str, arm: Arm, eps: float, draw: int, skip: str | None) -> Cell:
    """Build a cell."""
    key = content_hash([identity, arm.attack, arm.loss, arm.settings, arm.norm, eps, draw])
    return Cell(key, model, arm, eps, draw, _label(model, arm, eps, draw), skip)


def _label(model: str, arm: Arm, eps: float, draw: int) -> str:
    """A cell for people."""
    radius = show_eps(eps) if arm.norm == "linf" else f"{eps:.4g}"
    settings = "" if arm.settings == "{}" else arm.settings
    budget = "" if arm == CLEAN else f"{arm.norm} {radius}"
    parts = (model, arm.attack, arm.loss, settings, budget)
    return " ".join(part for part in parts if part) + (f" draw {draw}" if draw else "")


def show_eps(eps: float) -> str:
    """Write a radius as n/255 where it is one, as a decimal otherwise."""
    grey = eps * 255
    return f"{grey:.0f}/255" if abs(grey - round(grey)) < 1e-9 else f"{eps:.4g}"


def show_radii(values: Sequence[float]) -> str:
    """Write several radii in short: whole grey levels together, runs of them by their ends."""
    greys = sorted(round(value * 255) for value in values if show_eps(value).endswith("/255"))
    runs: list[list[int]] = []
    for grey in greys:
        if runs and grey == runs[-1][-1] + 1:
            runs[-1].append(grey)
        else:
            runs.append([grey])
    shown = " ".join(f"{run[0]}-{run[-1]}" if len(run) > 2 else " ".join(map(str, run)) for run in runs)
    others = [show_eps(value) for value in sorted(values) if not show_eps(value).endswith("/255")]
    return ", ".join(([f"{shown} /255"] if runs else []) + others)


def _why_skip(suite: Suite, attack: AttackSpec, loss: str) -> str | None:
    """The reason why a loss has no meaning for the suite's task, or an attack does not run on it; else None."""
    row = toolkits.find_row(attack.name)
    if row is not None and row.kinds and suite.data.task not in row.kinds:
        return f"attack {attack.name!r} runs on {' and '.join(row.kinds)} tasks, not on {suite.data.task}"
    if row is not None and row.dims and len(suite.data.edges) not in row.dims:
        known = " and ".join(f"{axes}-D" for axes in row.dims)
        return f"attack {attack.name!r} runs on {known} images, not on {len(suite.data.edges)}-D ones"
    entry = catalogue.LOSSES.get(loss)
    if entry is not None and suite.data.task not in entry.kinds:
        return f"loss {loss!r} is defined for {' and '.join(entry.kinds)} tasks, not for {suite.data.task}"
    return None


def _why_skip_settings(suite: Suite, attack: AttackSpec, loss: str, settings: dict[str, Any]) -> str | None:
    """The reason why settings of FGSM have no meaning together, or say nothing new, for the suite's data; else None."""
    if attack.name != "fgsm":
        return None
    if settings.get("order") == "released":
        if suite.data.task == "multiclass":
            return "order 'released' swaps masks with logits of their shape, which a multiclass task lacks"
        entry = catalogue.LOSSES.get(loss)
        if entry is None or not entry.swappable:
            return f"loss {loss!r} has no meaning with its arguments swapped (order 'released')"
    if settings.get("form", "additive") != "additive" and attack.norm != "linf":
        return f"form {settings['form']!r} is defined for L_inf budgets"
    if settings.get("channels") == "tied" and suite.data.channels == 1:
        return "images of one channel have nothing to tie: channels 'tied' equals 'independent'"
    if settings.get("channels") == "tied" and getattr(suite.data, "neighbours", False):
        return "the channels are three slices and no copies of one: channels 'tied' has no meaning"
    return None
