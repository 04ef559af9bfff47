"""What a worker can be asked to do, by name. Data and the last model stay loaded between jobs.

Workers compute and return; only the process that owns the run directory writes in it.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from torch import nn

from advseg_bench import environment
from advseg_bench.batches import move_batch
from advseg_bench.data import load_dataset
from advseg_bench.data.dataset import Dataset
from advseg_bench.errors import IncompatibleError, UserError, expected
from advseg_bench.instruments.profiling import timed
from advseg_bench.models.prepare import Choice, prepare_checked
from advseg_bench.models.training import build_given, obtain_model
from advseg_bench.models.weights import digest_weights
from advseg_bench.registry.loading import load_attack, load_loss
from advseg_bench.registry.plugins import Kind
from advseg_bench.registry.preparation import read_steps
from advseg_bench.running import runner
from advseg_bench.running.rows import Row
from advseg_bench.running.runner import Conditions
from advseg_bench.running.work import Context, Failure, Unit
from advseg_bench.suite.cells import CLEAN, Cell, plan
from advseg_bench.suite.suite import Suite
from advseg_bench.types import Traits

PREPARED_ON = 2
"""Test images on which a prepared model has to agree with the model."""

Emit = Callable[[str, int, int], None]
"""(what, done, in all): progress of one model's training."""


def describe(emit: Emit, context: Context) -> dict[str, Any]:
    """Load the data set and describe it and this machine, for the record.

    Returns: "data", "environment", "binding" (what must be equal for rows to be comparable), and "images", the
    test images in order.
    """
    dataset, suite = _dataset(context), _suite(context)
    splits = {name: len(dataset.split(name)) for name in ("train", "validation", "test")}
    test = [dataset.cases[i] for i in dataset.split("test")]
    device = {"device": environment.describe_device(context.device)}
    libraries = environment.describe_libraries()
    compute = {"threads": suite.compute.threads, "compute_batch": suite.compute.batch}
    return {
        "data": {
            "name": dataset.name,
            "note": dataset.note,
            "fingerprint": dataset.fingerprint,
            "kind": dataset.task.kind,
            "classes": list(dataset.task.classes),
            "splits": splits,
            "subjects": {"test": len({case.subject for case in test})},
        },
        "binding": libraries | device | {"code": environment.describe_code(_names(suite))},
        "environment": libraries | environment.describe_machine() | device | compute,
        "images": [case.image for case in test],
    }


@timed("models and training")
def check(emit: Emit, context: Context) -> None:
    """Find the user's mistakes before anything is computed: build every model and attack, load given weights.

    Raises: UserError: the first mistake found.
    """
    dataset, suite = _dataset(context), _suite(context)
    for spec in suite.models:
        build_given(spec, dataset, suite.seed)
    load_loss(suite.training.loss, dataset.task)
    for arm in dict.fromkeys(cell.arm for cell in plan(suite) if cell.arm != CLEAN and cell.skip is None):
        try:
            attack = load_attack(arm.attack, arm.options, arm.loss, dataset.task)
        except UserError:
            raise
        except Exception:
            continue  # a fault of the attack itself fails its own cells, later
        _check_axes(arm.attack, attack, len(suite.data.edges))


def _check_axes(name: str, attack: object, axes: int) -> None:
    """Refuse an attack that claims to be for images of other axes."""
    traits = getattr(attack, "traits", None)
    if isinstance(traits, Traits) and axes not in traits.dims:
        what = f"images with {' or '.join(map(str, traits.dims))} space axes, as it claims"
        raise IncompatibleError(expected(f"attack {name}", what, axes, "Leave it out, or change `size`."))


def train(emit: Emit, context: Context, name: str) -> dict[str, Any]:
    """Get a model ready in this worker, training it if need be. Returns: its entry in the record."""
    _, _, info = _model(context, name, lambda done, total: emit(name, done, total))
    return info


def attack(emit: Emit, context: Context, unit: Unit) -> tuple[list[Row], list[Failure], float]:
    """Run one unit. Returns: rows, failures, seconds."""
    model, attacked, _ = _model(context, unit.model)
    started = time.perf_counter()
    test = _dataset(context).split("test")
    unit = Unit(unit.model, tuple(test[i] for i in unit.indices), unit.cells)
    rows, failures = runner.run_unit(unit, model, _dataset(context), _setting(context), attacked)
    return rows, failures, time.perf_counter() - started


def show(
    emit: Emit, context: Context, name: str, cases: tuple[tuple[tuple[Cell, ...], str, str], ...]
) -> tuple[list[bytes], str]:
    """Return what the report shows of a model, as files of NumPy, and the digest of its weights.

    Args:
        emit: Not used.
        context: The run.
        name: The model.
        cases: Cells of one attack, an image, and what is written down with its arrays, see `runner.attack_one`.
    """
    dataset = _dataset(context)
    model, attacked, info = _model(context, name)
    places = {case.image: index for index, case in enumerate(dataset.cases)}
    files = []
    for cells, image, meta in cases:
        arrays = runner.attack_one(cells, places[image], model, dataset, _setting(context), attacked)
        named: dict[str, Any] = arrays | {"meta": np.array(meta)}
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **named)
        files.append(buffer.getvalue())
    return files, info["weights_sha256"]


def forget() -> None:
    """Drop the data and the model that are kept between jobs: files may have changed since an earlier run."""
    _suite.cache_clear()
    _dataset.cache_clear()
    _loaded.clear()


def _names(suite: Suite) -> set[tuple[Kind, str]]:
    """Everything a suite names that may be a plug-in's."""
    losses = {suite.training.loss, *(loss for attack in suite.attacks for loss in attack.losses)}
    names: dict[Kind, set[str]] = {
        "attack": {attack.name for attack in suite.attacks},
        "architecture": {model.architecture for model in suite.models},
        "loss": losses,
        "data set": {suite.data.name},
    }
    return {(kind, name) for kind, found in names.items() for name in found}


@lru_cache(maxsize=1)
def _suite(context: Context) -> Suite:
    return Suite.model_validate_json(context.suite)


@lru_cache(maxsize=1)
@timed("data")
def _dataset(context: Context) -> Dataset:
    return load_dataset(_suite(context).data)


_loaded: dict[tuple[Context, str], tuple[nn.Module, nn.Module, dict[str, Any]]] = {}


@timed("models and training")
def _model(
    context: Context, name: str, progress: Callable[[int, int], None] = lambda done, total: None
) -> tuple[nn.Module, nn.Module, dict[str, Any]]:
    """The model, what attacks are given instead, and the entry in the record; the last one used stays in memory."""
    key = (context, name)
    if key not in _loaded:
        suite = _suite(context)
        spec = next(model for model in suite.models if model.name == name)
        trained = obtain_model(spec, suite.training, _dataset(context), suite.seed, progress, context.device)
        info = trained.info | {"weights_sha256": digest_weights(trained.model)}
        choice = _prepare(context, trained.model)
        info["prepared"] = choice.as_record()
        _loaded.clear()
        _loaded[key] = (trained.model, choice.model, info)
    return _loaded[key]


def _prepare(context: Context, model: nn.Module) -> Choice:
    """Prepare a model as the suite says, if that agrees with it on the first test images."""
    dataset = _dataset(context)
    images = dataset.split("test")[:PREPARED_ON]
    x = move_batch(dataset.batch(images), context.device).x
    model.to(context.device).eval().requires_grad_(False)
    return prepare_checked(model, x, read_steps(_suite(context).compute.prepare))


def _setting(context: Context) -> Conditions:
    suite = _suite(context)
    return Conditions(seed=suite.seed, batch=suite.compute.batch, device=context.device)
