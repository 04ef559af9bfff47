"""The implementations to time on one batch: the bare limit, the reference attack, and each toolkit's class of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from advseg_bench.attacks.base import image_generators
from advseg_bench.batches import Batch, move_batch
from advseg_bench.models.prepare import Prepared, prepare
from advseg_bench.registry.loading import load_attack
from advseg_bench.registry.preparation import read_steps
from advseg_bench.throughput.fastest import prepare_fastest
from advseg_bench.types import Bounds, Budget, Task

LIMIT = "bare limit"
"""One forward and one gradient at the images of the unprepared model: the least that a gradient step computes."""

RAW = "raw"
"""The preparation that leaves the model unchanged."""

AUTO = "auto"
"""Chooses the fastest preparation that agrees with the model."""

PRECISIONS: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One attack, and the implementations of it to compare.

    Attributes:
        reference: Name of the reference attack.
        settings: Settings of the reference attack.
        others: Name of another implementation -> its settings.
        loss: Name of the attack loss.
        budget: Norm and radius; run time hardly depends on it.
    """

    reference: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    others: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    loss: str = "bce"
    budget: Budget = field(default_factory=lambda: Budget("linf", 4 / 255))


@dataclass(frozen=True, slots=True)
class Contender:
    """An implementation to time on one batch.

    Attributes:
        implementation: `LIMIT`, name of the reference, or class of a toolkit.
        preparation: `RAW`, or the steps of `models.prepare`, joined by "+"; in brackets if `AUTO` chose them.
        model: The model that it attacks, to count passes.
        gradients: Number of successive gradients of the reference; implementations with fewer have no ratio.
        call: Attacks the batch once.
    """

    implementation: str
    preparation: str
    model: nn.Module
    gradients: int
    call: Callable[[], Tensor]


def draw_batch(channels: int, size: int | Sequence[int], task: Task, n: int, device: torch.device) -> Batch:
    """Return random images with random masks (about 20 % of the pixels per class, or uniform over classes)."""
    edges = (size, size) if isinstance(size, int) else tuple(size)
    generator = torch.Generator().manual_seed(0)
    x = torch.rand((n, channels, *edges), generator=generator)
    if task.kind == "multiclass":
        y = torch.randint(len(task.classes), (n, *edges), generator=generator)
    else:
        y = torch.rand((n, len(task.classes), *edges), generator=generator) < 0.2
    names = tuple(f"random-{i}" for i in range(n))
    valid = torch.ones((n, *edges), dtype=torch.bool)
    spacing = ((float("nan"),) * len(edges),) * n
    return move_batch(Batch(x, y, valid, task, Bounds(), names, names, names, spacing), str(device))


def list_contenders(
    work: Work, model: nn.Module, batch: Batch, preparations: Sequence[str], precision: str
) -> list[Contender]:
    """Return the implementations to compare on one model and batch.

    Args:
        work: The attack and its implementations.
        model: Unprepared model, frozen, in eval mode, on the batch's device.
        batch: Images and labels.
        preparations: Preparations of the reference's model: `RAW`, `AUTO`, or steps of `models.prepare` joined by "+".
            Toolkits attack the unprepared model, as in normal use.
        precision: Name in `PRECISIONS`; all but float32 run under autocast.

    Returns:
        The limit first, then the reference under each preparation, then the others.

    Raises:
        UserError: If a model cannot be prepared, or an attack cannot be built.
    """
    raw = model if precision == "float32" else Prepared(model, (precision,)).eval()
    contenders = [Contender(LIMIT, RAW, raw, 1, partial(_differentiate, raw, batch.x))]
    for text in preparations:
        used, named = _prepare(model, raw, batch.x, text, precision)
        contenders.append(_contend(work, work.reference, work.settings, used, batch, named))
    for name, settings in work.others.items():
        contenders.append(_contend(work, name, settings, raw, batch, RAW))
    return contenders


def _prepare(model: nn.Module, raw: nn.Module, x: Tensor, text: str, precision: str) -> tuple[nn.Module, str]:
    """Prepare a model at a precision; return it with the name of its preparation."""
    half = () if precision == "float32" else (precision,)
    if text == AUTO:
        choice, _ = prepare_fastest(model, x)
        used = choice.model if not half else prepare(model, x, (*choice.steps, *half))
        return used, f"{AUTO} ({'+'.join(choice.steps) or RAW})"
    steps = read_steps(text)
    return (prepare(model, x, (*steps, *half)), "+".join(steps)) if steps else (raw, RAW)


def _contend(
    work: Work, name: str, settings: Mapping[str, Any], model: nn.Module, batch: Batch, preparation: str
) -> Contender:
    """Create the contender of one implementation."""
    budget = work.budget
    attack = load_attack(name, settings, work.loss, batch.task)

    def call() -> Tensor:
        return attack(model, batch, budget=budget, generators=image_generators(0, name, batch.images))

    reference = load_attack(work.reference, work.settings, work.loss, batch.task)
    return Contender(name, preparation, model, int(getattr(reference, "steps", 1)), call)


def _differentiate(model: nn.Module, x: Tensor) -> Tensor:
    """Compute logits and their gradient with respect to the images, as every gradient attack must."""
    leaf = x.detach().requires_grad_()
    with torch.enable_grad():
        logits = model(leaf)
    (gradient,) = torch.autograd.grad(logits, leaf, torch.ones_like(logits))
    return gradient
