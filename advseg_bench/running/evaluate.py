"""`ab.evaluate`: the harness on a model object and images in memory, with the rows, checks and tables of a suite."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime
from itertools import product
from typing import Any

import polars as pl
import torch
from torch import nn

from advseg_bench import environment
from advseg_bench.arguments import make_budget
from advseg_bench.attacks.base import BaseAttack, why_unfit
from advseg_bench.attacks.objective import name_loss
from advseg_bench.batches import Batch, select_images
from advseg_bench.checks.logits import probe
from advseg_bench.checks.results import name_of, traits_of
from advseg_bench.data.dataset import Dataset
from advseg_bench.data.memory import make_dataset, read_images
from advseg_bench.errors import SpecError, expected
from advseg_bench.instruments.guard import lent
from advseg_bench.models.prepare import prepare_checked
from advseg_bench.models.weights import count_parameters, digest_weights
from advseg_bench.registry import catalogue
from advseg_bench.registry.preparation import read_steps
from advseg_bench.results import records
from advseg_bench.results.run import Run
from advseg_bench.running.runner import Conditions, run_unit
from advseg_bench.running.work import Failure, Unit
from advseg_bench.suite.cells import CLEAN, Arm, Cell, make_cell
from advseg_bench.suite.specs import Compute, Scoring
from advseg_bench.types import Attack, Bounds, Norm, Task, TaskKind

PREPARED_ON = 2
"""Images on which a prepared model has to agree with the model."""


def evaluate(
    model: nn.Module | Mapping[str, nn.Module],
    data: Iterable[Any],
    attacks: Sequence[Attack] | Mapping[str, Attack],
    *,
    task: Task | TaskKind | None = None,
    classes: int | Sequence[str] | None = None,
    eps: float | Sequence[float] = 4 / 255,
    norm: Norm = "linf",
    draws: int = 1,
    ignore: int | None = None,
    bounds: Bounds | Sequence[float] = (0.0, 1.0),
    keys: Sequence[str] = ("image", "label"),
    subject_key: str | None = None,
    seed: int = 0,
    batch: int = 8,
    device: str | None = None,
    scoring: Scoring | None = None,
) -> Run:
    """Attack and score models on images in memory, as a run of a suite does.

    Args:
        model: Any `torch.nn.Module` from images (N, C, *S) to logits (N, K, *S), or several by name. Each is lent to
            the attacks in eval mode, frozen, and put back as it was.
        data: A data loader, whose items are batches; a data set of torch or MONAI, whose items are single images; or
            any iterable of batches. An item is an `ab.Batch`, a tuple (images, labels), or a dictionary.
        attacks: Attack objects, or names of one's own -> attack objects.
        task: As for `Batch.of`; left out where items are `ab.Batch`.
        classes: As for `Batch.of`.
        eps: One radius or several, in input units: 4/255 and not 4.
        norm: "linf" or "l2".
        draws: Repetitions of the attacks that are random.
        ignore: Label value of pixels that do not count, such as 255.
        bounds: Smallest and largest intensity of an image.
        keys: Of images and labels in dictionaries.
        subject_key: Of the person that each image shows; by default each image counts as a subject of its own, so that
            intervals speak of images.
        seed: Of every random draw.
        batch: Images a forward pass; a short batch is padded, so that an image's result has the same bits in any.
        device: Where to run; by default where the model's parameters are.
        scoring: Conventions of scores; the suites' usual ones by default.
    Returns: A `Run` whose rows lie in memory: `rows`, `table`, `failures`; `advseg_bench.report.write_report(run, out)`
        writes its report.
    Raises: UserError: one line about data, models, attacks or radii that do not fit. An attack that fails later is in
        `failures` and costs the others nothing.
    """
    models = dict(model) if isinstance(model, Mapping) else {_name_model(model): model}
    images = read_images(
        data, task=task, classes=classes, ignore=ignore, bounds=bounds, keys=keys, subject_key=subject_key
    )
    radii = [float(eps)] if isinstance(eps, (int, float)) else [float(value) for value in eps]
    if not radii:
        raise SpecError(expected("evaluate", "at least one radius as `eps`", eps))
    for radius in radii:
        make_budget("evaluate", norm, radius, images.bounds)
    dataset = make_dataset(images)
    arms = _name_arms(attacks, norm)
    cells: list[Cell] = []
    rows: list[dict[str, Any]] = []
    failures: list[Failure] = []
    entries: dict[str, dict[str, Any]] = {}
    for name, network in models.items():
        place = device or str(next((p.device for p in network.parameters()), torch.device("cpu")))
        with lent(network), torch.inference_mode(False), torch.enable_grad():
            sample = select_images(images, range(min(PREPARED_ON, len(images.x)))).x.to(place)
            network.to(place)
            probe(f"model {name}", network, sample[:1], images.task)
            entries[name] = _describe_model(name, network)
            mine = _make_cells(name, entries[name], dataset, arms, radii, draws, images)
            choice = prepare_checked(network, sample, read_steps(Compute().prepare))
            built = {cell.id: arms[cell.arm] for cell in mine if cell.arm != CLEAN and cell.skip is None}
            live = tuple(cell for cell in mine if cell.skip is None)
            unit = Unit(name, tuple(range(len(images.x))), live)
            conditions = Conditions(seed=seed, batch=batch, device=place)
            new, failed = run_unit(unit, network, dataset, conditions, choice.model, built)
        entries[name]["prepared"] = choice.as_record()
        cells, rows, failures = [*cells, *mine], [*rows, *new], [*failures, *failed]
    info = _describe_run(dataset, images, models, cells, scoring or Scoring(), seed, batch)
    frame = pl.DataFrame(rows, schema=records.ROW_SCHEMA)
    told = [{name: getattr(failure, name) for name in failure.__slots__} for failure in failures]
    return Run.from_rows(info, frame, entries, told)


def _name_model(model: nn.Module) -> str:
    """What a model without a name is called."""
    return type(model).__name__


def _name_arms(attacks: Sequence[Attack] | Mapping[str, Attack], norm: Norm) -> dict[Arm, Attack]:
    """Attack objects by what tells them apart in tables."""
    named = attacks.items() if isinstance(attacks, Mapping) else (("", attack) for attack in attacks)
    arms: dict[Arm, Attack] = {}
    for name, attack in named:
        if not callable(attack) or isinstance(attack, type):
            raise SpecError(expected("evaluate", "attack objects, such as ab.attacks.FGSM(loss='dice')", attack))
        loss = getattr(attack, "loss", None)
        arm = Arm(name or _find_name(attack), "" if loss is None else name_loss(loss), _write_settings(attack), norm)
        if arm in arms:
            remedy = "Give a mapping of names to attacks."
            raise SpecError(expected("evaluate", "attacks that differ in name, loss or settings", arm.attack, remedy))
        if arm.attack == CLEAN.attack:
            raise SpecError(expected("evaluate", f"another name than {CLEAN.attack!r}, the clean prediction's", name))
        arms[arm] = attack
    if not arms:
        raise SpecError(expected("evaluate", "at least one attack", "none"))
    return arms


def _find_name(attack: Attack) -> str:
    """The catalogue's name of an attack, or its own."""
    target = f"{type(attack).__module__}:{type(attack).__qualname__}"
    entries = catalogue.ATTACKS.items()
    return next((n for n, e in entries if target in (e.target, *e.variants.values())), name_of(attack))


def _write_settings(attack: Attack) -> str:
    """What was set on an attack beside its loss, where it is not the default, as canonical JSON."""
    told: dict[str, Any] = {}
    if isinstance(getattr(attack, "settings", None), Mapping):
        told = dict(attack.settings)  # type: ignore[attr-defined]
    elif is_dataclass(attack) and not isinstance(attack, type):
        given = {field.name: (getattr(attack, field.name), field.default) for field in fields(attack)}
        told = {name: value for name, (value, default) in given.items() if name != "loss" and value != default}
    return json.dumps(told, sort_keys=True, default=repr)


def _make_cells(
    name: str,
    entry: Mapping[str, Any],
    dataset: Dataset,
    arms: Mapping[Arm, Attack],
    radii: Sequence[float],
    draws: int,
    images: Batch,
) -> list[Cell]:
    """The clean cell of a model, and every arm at every radius."""
    identity = {"model": name, "weights": entry["weights_sha256"], "data": dataset.fingerprint}
    cells = [make_cell(identity, name, CLEAN, 0.0, 0, None)]
    for (arm, attack), eps in product(arms.items(), radii):
        budget = make_budget("evaluate", arm.norm, eps, images.bounds)
        skip = why_unfit(arm.attack, traits_of(attack), images, budget)
        if isinstance(attack, BaseAttack):
            skip = skip or attack.why_not(images, budget)
        repeats = range(draws if traits_of(attack).random is not False else 1)
        cells += [make_cell(identity, name, arm, eps, draw, skip) for draw in repeats]
    return cells


def _describe_model(name: str, model: nn.Module) -> dict[str, Any]:
    """A model's entry in the record."""
    return {
        "name": name,
        "architecture": f"{type(model).__module__}.{type(model).__qualname__}",
        "parameters": count_parameters(model),
        "weights_sha256": digest_weights(model),
        "validation_dice": None,
        "train_seconds": None,
    }


def _describe_run(
    dataset: Dataset,
    images: Batch,
    models: Mapping[str, nn.Module],
    cells: Sequence[Cell],
    scoring: Scoring,
    seed: int,
    batch: int,
) -> dict[str, Any]:
    """What `run.json` holds of a run of a suite, of this one."""
    libraries = environment.describe_libraries()
    compute = {"batch": batch, "threads": torch.get_num_threads(), "prepare": Compute().prepare}
    edges = list(images.x.shape[2:])
    size: int | list[int] = edges[-1] if len(edges) == 2 else edges
    return {
        "schema": records.RUN_SCHEMA,
        "suite": {
            "schema": 1,
            "name": "evaluate",
            "title": f"{', '.join(models)} on {len(images.x)} images in memory",
            "seed": seed,
            "data": {"name": dataset.name, "task": dataset.task.kind, "size": size, "channels": images.x.shape[1]},
            "models": [{"name": name} for name in models],
            "compute": compute,
            "scoring": scoring.model_dump(mode="json"),
        },
        "data": {
            "name": dataset.name,
            "note": dataset.note,
            "fingerprint": dataset.fingerprint,
            "kind": dataset.task.kind,
            "classes": list(dataset.task.classes),
            "splits": {"train": 0, "validation": 0, "test": len(dataset.cases)},
            "subjects": {"test": len({case.subject for case in dataset.cases})},
        },
        "binding": libraries,
        "environment": libraries | environment.describe_machine() | compute,
        "command": "advseg_bench.evaluate(...)",
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "images": [case.image for case in dataset.cases],
        "cells": [cell.as_record() for cell in cells],
    }
