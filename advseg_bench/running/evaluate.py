"""`ab.evaluate`: the benchmark on model objects and images in memory, with the rows, checks and tables of a suite."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import product
from types import NoneType
from typing import Any, cast

import polars as pl
import torch
from torch import nn

from advseg_bench.arguments import make_budget
from advseg_bench.attacks.base import FunctionModel, check_fit
from advseg_bench.batches import Batch, select_images
from advseg_bench.checks.logits import probe
from advseg_bench.checks.model import describe_behaviour, watch
from advseg_bench.checks.outputs import Segmenter, read_model
from advseg_bench.checks.results import traits_of
from advseg_bench.checks.sample import choose_sample
from advseg_bench.data.dataset import Dataset
from advseg_bench.data.memory import make_dataset, read_images
from advseg_bench.errors import SpecError, expected, unknown
from advseg_bench.instruments.guard import lent
from advseg_bench.instruments.process_state import watched
from advseg_bench.models.inference import Windows
from advseg_bench.models.prepare import Choice, prepare_checked
from advseg_bench.models.weights import count_parameters, digest_weights
from advseg_bench.protocols import Attack, NeedsModel
from advseg_bench.registry import environment
from advseg_bench.registry.preparation import read_steps
from advseg_bench.results import records
from advseg_bench.results.run import Run
from advseg_bench.running.naming import name_arms
from advseg_bench.running.runner import Conditions, run_unit
from advseg_bench.running.supply import find_device, lend_sources
from advseg_bench.running.work import CHECKED_ON, Failure, Unit
from advseg_bench.suite.cells import CLEAN, Arm, Cell, make_cell
from advseg_bench.suite.specs import Compute, ModelSpec, Scoring
from advseg_bench.types import Bounds, Budget, Norm, Task, TaskKind


def evaluate(
    model: nn.Module | Mapping[str, nn.Module],
    data: Iterable[Any],
    attacks: Attack | Sequence[Attack] | Mapping[str, Attack],
    *,
    task: Task | TaskKind | None = None,
    classes: int | Sequence[str] | None = None,
    eps: float | Sequence[float] = 4 / 255,
    norm: Norm = "linf",
    draws: int = 1,
    ignore: int | None = None,
    bounds: Bounds | Sequence[float] | None = None,
    keys: Sequence[str] = ("image", "label"),
    subject_key: str | None = None,
    seed: int = 0,
    batch: int | None = None,
    device: str | None = None,
    scoring: Scoring | None = None,
    stochastic: bool | Collection[str] = False,
) -> Run:
    """Attack and score models on images in memory, with the same checks and rows as a run of a suite.

    Args:
        model: Any module or function from images (N, C, *S) to logits (N, K, *S), or a dictionary of several by name.
            Each is frozen and in eval mode during the attacks, and restored afterwards.
        data: A data loader, whose items are batches; a data set of torch or MONAI, whose items are single images; or
            any iterable of batches. An item is an `ab.Batch`, a tuple (images, labels), or a dictionary.
        attacks: One attack object, several, or a dictionary of attack objects by name.
        task: As for `Batch.of`; omit it if the items are `ab.Batch`.
        classes: As for `Batch.of`.
        eps: One radius or several, in input units: 4/255, not 4.
        norm: Norm of the budget, "linf" or "l2".
        draws: Number of repeats of random attacks.
        ignore: Label value of pixels that are excluded from losses and scores, such as 255.
        bounds: Smallest and largest intensity of an image; by default (0, 1).
        keys: Keys of images and labels in dictionaries.
        subject_key: Key of the subject (patient) of each image in dictionaries, such as "patient". Without it each
            image counts as a subject: intervals are over images, and no claim is judged. Slices of one patient are
            correlated, so give their patient.
        seed: Random seed of all attacks.
        batch: Images per forward pass, by default 8, and 1 for volumes; a short batch is padded, so that an image gives
            the same bits in any batch.
        device: Device to compute on; by default that of the model's parameters.
        scoring: Scoring conventions; by default those of `Scoring()`.
        stochastic: Whether the models are random in eval mode, or the names of those that are. Every cell of such a
            model, the clean one too, has `draws` repeats, 5 if that is 1. Other models must be functions of the image.

    Returns:
        A `Run` with its rows in memory: `rows`, `table`, `failures`. `advseg_bench.report.write_report(run, out)`
        writes its report.

    Raises:
        UserError: If data, models, attacks or radii are invalid or incompatible; one line. An attack that raises later
            is listed in `failures`, and the other attacks are not affected.

    Cost:
        Per batch and model 1 forward, 1 backward per loss of one-gradient attacks, the cost of every other attack,
        and 1 forward per attack, radius and repeat.

    Example:
        >>> import torch
        >>> import advseg_bench as ab
        >>> images = torch.linspace(0, 1, 256).reshape(1, 1, 16, 16)
        >>> def model(x):
        ...     return 20 * (x - 0.5)
        >>> run = ab.evaluate(model, [(images, images > 0.5)], ab.attacks.FGSM(loss="bce"), task="binary", eps=8 / 255)
        >>> for name, dice in run.table("dice", by="attack").select("attack", "mean").iter_rows():
        ...     print(f"{name}: {dice:.3f}")
        none: 1.000
        fgsm: 0.938
    """
    models = _read_models(model)
    images = read_images(
        data, task=task, classes=classes, ignore=ignore, bounds=bounds, keys=keys, subject_key=subject_key
    )
    if batch is None:
        batch = 1 if images.x.dim() == 5 else Compute().batch
    budgets = _read_budgets(eps, norm, images.bounds)
    for what, number in (("draws", draws), ("batch", batch)):
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise SpecError(expected("evaluate", f"a whole number of at least 1 as `{what}`", number))
    if not isinstance(scoring, (Scoring, NoneType)):
        raise SpecError(expected("evaluate", "an advseg_bench.suite.specs.Scoring as `scoring`", scoring))
    arms = name_arms(attacks, norm)
    for arm, attack in arms.items():
        check_fit(attack, images, budgets[0], arm.attack)
        if isinstance(attack, NeedsModel) and isinstance(attack.source, str) and attack.source not in models:
            raise SpecError(unknown(f"evaluate: attack {arm.attack}, source", "model", attack.source, models))
    random = tuple(models) if stochastic is True else tuple(stochastic or ())
    if isinstance(stochastic, str) or not set(random) <= set(models):
        raise SpecError(expected("evaluate", f"True or names among {', '.join(models)} as `stochastic`", stochastic))
    work = _Work(images, make_dataset(images), models, arms, budgets, draws, seed, batch, random)
    devices = {name: device or str(find_device(network)) for name, network in models.items()}
    described = [environment.describe_device(place) for place in devices.values()]
    done = [_run_model(name, network, devices[name], work) for name, network in models.items()]
    cells = [cell for each in done for cell in each.cells]
    info = _describe_run(work, cells, scoring or Scoring(), list(models), described)
    frame = pl.DataFrame([row for each in done for row in each.rows], schema=records.ROW_SCHEMA)
    failures = [asdict(failure) for each in done for failure in each.failures]
    return Run.from_rows(info, frame, {each.entry["name"]: each.entry for each in done}, failures)


@dataclass(frozen=True, slots=True)
class _Work:
    """Images, attacks and settings that are applied to each model."""

    images: Batch
    dataset: Dataset
    models: Mapping[str, nn.Module]
    arms: Mapping[Arm, Attack]
    budgets: Sequence[Budget]
    draws: int
    seed: int
    batch: int
    random: tuple[str, ...]

    def count_repeats(self, name: str) -> int:
        """The smallest number of repeats of each cell of a model."""
        if name not in self.random:
            return 1
        return self.draws if self.draws > 1 else int(ModelSpec.model_fields["repeats"].default)


@dataclass(frozen=True, slots=True)
class _Done:
    """The results of one model."""

    entry: dict[str, Any]
    cells: list[Cell]
    rows: list[dict[str, Any]]
    failures: list[Failure]


def _run_model(name: str, network: nn.Module, device: str, work: _Work) -> _Done:
    """Attack one model; its state and device are restored afterwards."""
    home = find_device(network)
    with lent(network), torch.inference_mode(False), torch.enable_grad():
        try:
            network.to(device)
            with watched(wait=False):  # the model may be code of others
                sample = select_images(work.images, range(min(CHECKED_ON, len(work.images.x)))).x.to(device)
                sample = choose_sample(network, sample)
                stochastic = name in work.random
                reader = read_model(f"model {name}", network)
                with watch(network) as notes:
                    probe(f"model {name}", reader, sample, work.images.task, function=not stochastic)
                reader.announce()
                entry = _describe_model(name, network) | reader.describe_outputs()
                entry |= describe_behaviour(notes, work.count_repeats(name))
                cells = _make_cells(name, entry, work)
                attacked = cast(nn.Module, reader.simplest())
                choice = _prepare(attacked, sample[: work.batch], stochastic)
            unit = Unit(name, tuple(range(len(work.images.x))), tuple(cells))
            conditions = Conditions(work.seed, work.batch, device, stochastic)
            with lend_sources(work.arms, work.models, network, sample, work.images.task) as arms:
                built = {cell.id: arms[cell.arm] for cell in cells if cell.arm != CLEAN}
                rows, failures = run_unit(unit, attacked, work.dataset, conditions, choice.model, built)
        finally:
            network.to(home)
    distinct = list(dict.fromkeys(failures))
    return _Done(entry | {"prepared": choice.as_record()}, cells, rows, distinct)


def _prepare(network: nn.Module, sample: torch.Tensor, stochastic: bool) -> Choice:
    """A cheaper copy of the model if it agrees with it; functions and stochastic models are attacked themselves."""
    if stochastic or isinstance(network.model if isinstance(network, Segmenter) else network, FunctionModel):
        return Choice(network, (), math.nan, math.nan)
    return prepare_checked(network, sample, read_steps(Compute().prepare))


def _read_models(model: object) -> dict[str, nn.Module]:
    """Models by name."""
    named = dict(model) if isinstance(model, Mapping) else {getattr(model, "__name__", type(model).__name__): model}
    models: dict[str, nn.Module] = {}
    for name, network in named.items():
        if not callable(network) or isinstance(network, type):
            what = "a network from images to logits, or several by name"
            raise SpecError(expected("evaluate", what, network))
        models[str(name)] = network if isinstance(network, nn.Module) else FunctionModel(network)
    if not models:
        raise SpecError(expected("evaluate", "at least one model", model))
    return models


def _read_budgets(eps: object, norm: Norm, bounds: Bounds) -> list[Budget]:
    """The budgets, without duplicates."""
    given = list(eps) if isinstance(eps, Iterable) and not isinstance(eps, (str, torch.Tensor)) else [eps]
    budgets = [make_budget("evaluate", norm, value, bounds) for value in given]
    if not budgets:
        raise SpecError(expected("evaluate", "at least one radius as `eps`", eps))
    if len(set(budgets)) < len(budgets):
        raise SpecError(expected("evaluate", "each radius once as `eps`", eps))
    return budgets


def _make_cells(name: str, entry: Mapping[str, Any], work: _Work) -> list[Cell]:
    """The clean cell of a model, and every arm at every radius."""
    identity = {"model": name, "weights": entry["weights_sha256"], "data": work.dataset.fingerprint}
    identity |= {"inference": entry["inference"]} if "inference" in entry else {}
    least, width = work.count_repeats(name), work.dataset.bounds.upper - work.dataset.bounds.lower
    cells = [make_cell(identity, name, CLEAN, 0.0, draw, None, width) for draw in range(least)]
    for (arm, attack), budget in product(work.arms.items(), work.budgets):
        repeats = range(max(least, work.draws if traits_of(attack).random is not False else 1))
        source = attack.source if isinstance(attack, NeedsModel) else None
        known = identity | ({"source": digest_weights(work.models[source])} if isinstance(source, str) else {})
        cells += [make_cell(known, name, arm, budget.eps, draw, None, width) for draw in repeats]
    return cells


def _describe_model(name: str, model: nn.Module) -> dict[str, Any]:
    """A model's entry in the record."""
    windows = getattr(model, "windows", None)
    inference = {"inference": windows.as_record()} if isinstance(windows, Windows) else {}
    return inference | {
        "name": name,
        "architecture": f"{type(model).__module__}.{type(model).__qualname__}",
        "parameters": count_parameters(model),
        "weights_sha256": digest_weights(model),
        "validation_dice": None,
        "train_seconds": None,
    }


def _describe_run(
    work: _Work, cells: Sequence[Cell], scoring: Scoring, names: Sequence[str], devices: Sequence[str]
) -> dict[str, Any]:
    """The content of `run.json`, as for a run of a suite."""
    dataset, images = work.dataset, work.images
    libraries = environment.describe_libraries() | {"device": ", ".join(dict.fromkeys(devices))}
    threads = torch.get_num_threads()
    edges = list(images.x.shape[2:])
    size: int | list[int] = edges[-1] if len(edges) == 2 else edges
    return {
        "schema": records.RUN_SCHEMA,
        "suite": {
            "schema": 1,
            "name": "evaluate",
            "title": f"{', '.join(names)} on {len(images.x)} images in memory",
            "seed": work.seed,
            "data": {"name": dataset.name, "task": dataset.task.kind, "size": size, "channels": images.x.shape[1]},
            "models": [{"name": name} for name in names],
            "compute": {"batch": work.batch, "threads": threads, "prepare": Compute().prepare},
            "scoring": scoring.model_dump(mode="json"),
        },
        "data": dataset.describe(),
        "binding": libraries,
        "environment": libraries | environment.describe_machine() | {"threads": threads, "compute_batch": work.batch},
        "command": "advseg_bench.evaluate(...)",
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "images": [case.image for case in dataset.cases],
        "cells": [cell.as_record() for cell in cells],
    }
