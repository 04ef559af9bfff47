"""What a worker can be asked to do, by name. Data and the last model stay loaded between jobs.

Workers compute and return; only the process that owns the run directory writes in it.
"""

from __future__ import annotations

import hashlib
import platform
import time
from collections.abc import Callable
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import torch
from torch import nn

from advseg_bench import runner
from advseg_bench.cells import Cell
from advseg_bench.data import load_dataset
from advseg_bench.data.dataset import Dataset
from advseg_bench.errors import SpecError, expected
from advseg_bench.runner import Row, Setting
from advseg_bench.suite import Suite
from advseg_bench.training import obtain_model
from advseg_bench.work import Context, Failure, Unit

Emit = Callable[[str, int, int], None]
"""(what, done, in all): progress of one model's training."""

RECORDED = ("advseg-bench", "torch", "segmentation-models-pytorch", "monai", "numpy", "scipy", "polars", "timm")


def describe(emit: Emit, context: Context) -> dict[str, Any]:
    """Load the data set and describe it and this machine, for the record.

    Returns: "data", "environment", "binding" (what must be equal for rows to be comparable), and "images", the
    test images in order.
    """
    dataset, suite = _dataset(context), _suite(context)
    splits = {name: len(dataset.split(name)) for name in ("train", "validation", "test")}
    test = [dataset.cases[i] for i in dataset.split("test")]
    binding = {
        "advseg-bench": version("advseg-bench"),
        "torch": torch.__version__,
        "device": _device_name(context.device),
        "instructions": torch.backends.cpu.get_cpu_capability(),
    }
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
        "binding": binding,
        "environment": _versions() | {"python": platform.python_version(), "platform": platform.platform()}
        | {"cpu": _cpu_name()} | binding | compute,
        "images": [case.image for case in test],
    }  # fmt: skip


def train(emit: Emit, context: Context, name: str) -> dict[str, Any]:
    """Get a model ready in this worker, training it if need be. Returns: its entry in the record."""
    _, info = _model(context, name, lambda done, total: emit(name, done, total))
    return info


def attack(emit: Emit, context: Context, unit: Unit) -> tuple[list[Row], list[Failure], float]:
    """Run one unit. Returns: rows, failures, seconds."""
    model, _ = _model(context, unit.model)
    started = time.perf_counter()
    test = _dataset(context).split("test")
    unit = Unit(unit.model, tuple(test[i] for i in unit.indices), unit.cells)
    rows, failures = runner.run_unit(unit, model, _dataset(context), _setting(context))
    return rows, failures, time.perf_counter() - started


def show(emit: Emit, context: Context, cell: Cell, image: str) -> dict[str, np.ndarray]:
    """Return the arrays behind one row, see `runner.attack_one`."""
    dataset = _dataset(context)
    index = next(i for i, case in enumerate(dataset.cases) if case.image == image)
    model, _ = _model(context, cell.model)
    return runner.attack_one(cell, index, model, dataset, _setting(context))


@lru_cache(maxsize=1)
def _suite(context: Context) -> Suite:
    return Suite.model_validate_json(context.suite)


@lru_cache(maxsize=1)
def _dataset(context: Context) -> Dataset:
    return load_dataset(_suite(context).data)


_loaded: dict[tuple[Context, str], tuple[nn.Module, dict[str, Any]]] = {}


def _model(
    context: Context, name: str, progress: Callable[[int, int], None] = lambda done, total: None
) -> tuple[nn.Module, dict[str, Any]]:
    """The model and its entry in the record; the last one used stays in memory."""
    key = (context, name)
    if key not in _loaded:
        suite = _suite(context)
        spec = next(model for model in suite.models if model.name == name)
        trained = obtain_model(spec, suite.training, _dataset(context), suite.seed, progress)
        info = trained.info | {"weights_sha256": _digest(trained.model)}
        _loaded.clear()
        _loaded[key] = (trained.model, info)
    return _loaded[key]


def _setting(context: Context) -> Setting:
    suite = _suite(context)
    return Setting(seed=suite.seed, batch=suite.compute.batch, device=context.device)


def _digest(model: nn.Module) -> str:
    """SHA-256 over all weights and buffers, on the CPU."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _versions() -> dict[str, str]:
    """Versions of the libraries that a result may depend on."""
    found = {}
    for name in RECORDED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def _device_name(device: str) -> str:
    """The accelerator's own name, or "cpu". Raises: SpecError: if there is no such device here."""
    try:
        kind = torch.empty(0, device=device).device.type
        return torch.cuda.get_device_name(device) if kind == "cuda" else kind
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].split(". ")[0]
        remedy = f"It says: {reason}. Use --device cpu."
        raise SpecError(expected("device", "a device of this machine", device, remedy)) from None


def _cpu_name() -> str:
    """The processor's name where the system tells it."""
    try:
        with open("/proc/cpuinfo") as file:  # noqa: PTH123
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor()
