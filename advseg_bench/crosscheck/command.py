"""The command `advseg-bench crosscheck`: options -> plan and networks -> findings -> files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

import torch
from pydantic import ValidationError
from rich.console import Console
from rich.progress import Progress

from advseg_bench.crosscheck.certificate import is_sound
from advseg_bench.crosscheck.grid import crosscheck
from advseg_bench.crosscheck.plan import OWN_LOSSES, REFERENCES, Plan, list_rows
from advseg_bench.crosscheck.report import print_findings, write_findings
from advseg_bench.crosscheck.subjects import load_subjects
from advseg_bench.errors import SpecError, unknown
from advseg_bench.registry.equivalents import find_equivalents
from advseg_bench.suite.specs import AttackSpec
from advseg_bench.suite.specs.radii import find_excess
from advseg_bench.suite.suite import Suite
from advseg_bench.types import Norm, TaskKind

DEFAULT_EPS: dict[Norm, tuple[str, ...]] = {"linf": ("1/255", "4/255"), "l2": ("0.5",)}
DEFAULT_LOSSES = ("bce", "ce", "dice", "focal", "dice_focal")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The options of the command line; see `advseg-bench crosscheck --help`."""

    reference: str
    against: tuple[str, ...]
    suite: Suite
    models: tuple[str, ...]
    untrained: tuple[str, ...]
    kinds: tuple[str, ...]
    losses: tuple[str, ...]
    norm: str
    eps: tuple[str, ...]
    steps: int | None
    images: int


def run(options: Options, out: Path, console: Console) -> bool:
    """Run the comparison, print the findings and write the files.

    Args:
        options: Of the command line.
        out: The folder to write to.
        console: The terminal to print to.

    Returns:
        Whether every verdict is sound.

    Raises:
        UserError: An option is invalid, or a model or an implementation cannot be built.
    """
    torch.set_num_threads(options.suite.compute.threads)  # cached weights depend on the number of threads
    plan, missing = _make_plan(options)
    for toolkit in missing:
        console.print(f"{toolkit} has no {options.norm} {options.reference}: skipped", markup=False)
    networks = len(options.models or options.suite.models) + len(options.untrained)
    cases = len(list_rows(plan)) * len(plan.eps)
    console.print(
        f"{options.suite.name}: {networks} network{'s' * (networks != 1)} (trained unless cached), each with up to "
        f"{cases} combinations of task, loss and eps",
        markup=False,
        highlight=False,
    )
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("models")
        subjects = load_subjects(
            options.suite,
            models=options.models,
            untrained=options.untrained,
            images=options.images,
            progress=lambda name, done, total: bar.update(task, description=name, completed=done, total=total),
        )
        pairs = crosscheck(
            plan, subjects, lambda done, total: bar.update(task, description="grid", completed=done, total=total)
        )
    print_findings(pairs, console)
    for path in write_findings(plan, subjects, pairs, out):
        console.print(str(path), soft_wrap=True, highlight=False)
    return is_sound(pairs)


def _make_plan(options: Options) -> tuple[Plan, list[str]]:
    """Return the plan, and the toolkits without an equivalent attack."""
    norm = cast(Norm, _check("norm", options.norm, get_args(Norm)))
    kinds = tuple(cast(TaskKind, _check("task", kind, get_args(TaskKind))) for kind in options.kinds)
    _check("reference attack", options.reference, REFERENCES)
    settings: dict[str, Any] = {} if options.steps is None else {"steps": options.steps}
    if options.reference == "fgsm" and settings:
        raise SpecError(f"crosscheck: steps: expected none for fgsm, got {options.steps}. Remove --steps.")
    losses = () if options.reference in OWN_LOSSES else DEFAULT_LOSSES
    others, missing = find_equivalents(options.against, options.reference, norm, settings)
    try:
        eps = AttackSpec.model_validate(
            {"name": options.reference, "losses": losses, "eps": options.eps or DEFAULT_EPS[norm], "norm": norm}
        ).eps
    except ValidationError as error:
        message = error.errors()[0]["msg"].removeprefix("Value error, ").removeprefix("eps: ")
        raise SpecError(f"crosscheck: eps: {message}.") from None
    if problem := find_excess(norm, eps):
        raise SpecError(f"crosscheck: eps: {problem}")
    plan = Plan(
        reference=options.reference,
        settings=settings,
        others=others,
        kinds=kinds,
        losses=options.losses or losses,
        norm=norm,
        eps=eps,
        seed=options.suite.seed,
    )
    return plan, missing


def _check(what: str, value: str, known: tuple[str, ...]) -> str:
    if value not in known:
        raise SpecError(unknown("crosscheck", what, value, known))
    return value
