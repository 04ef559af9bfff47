"""Times every implementation for each model, batch size and precision, in interleaved order."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from advseg_bench.batches import Batch
from advseg_bench.errors import one_line
from advseg_bench.instruments import meter
from advseg_bench.instruments.counter import Counter
from advseg_bench.instruments.meter import Clock, Samples
from advseg_bench.instruments.process_state import watched
from advseg_bench.losses import Loss
from advseg_bench.models.build import build_model
from advseg_bench.models.properties import count_flops
from advseg_bench.models.weights import count_parameters
from advseg_bench.registry.plugins import load_object
from advseg_bench.suite.specs import ModelSpec
from advseg_bench.throughput.contenders import LIMIT, RAW, Contender, Work, draw_batch, list_contenders
from advseg_bench.types import Task

Row = dict[str, Any]

Progress = Callable[[str, int, int], None]
"""(description, number done, total)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The grid to time.

    Attributes:
        work: The attack and its implementations.
        models: Models to build with random weights, on which run time does not depend.
        channels: Number of image channels.
        size: Edge length of the images, or all edges, in pixels.
        task: Task type and classes.
        batches: Batch sizes.
        precisions: Names in `contenders.PRECISIONS`.
        preparations: Preparations of the reference's model, see `list_contenders`.
        device: Device to compute on.
        rounds: Number of timed calls of each implementation.
    """

    work: Work
    models: tuple[ModelSpec, ...]
    channels: int
    size: int | Sequence[int]
    task: Task
    batches: tuple[int, ...] = (4,)
    precisions: tuple[str, ...] = ("float32",)
    preparations: tuple[str, ...] = ("lean",)
    device: torch.device
    rounds: int = 10


def measure_grid(
    plan: Plan, progress: Progress = lambda what, done, total: None, *, now: Clock = time.perf_counter
) -> list[Row]:
    """Time every implementation at every point of the grid.

    Args:
        plan: The grid.
        progress: Called before each point.
        now: Clock, in seconds.

    Returns:
        A row of `report.SCHEMA` for each implementation at each point. A failed implementation has an `error` and no
        numbers; memory is freed before the next one runs.

    Raises:
        UserError: If a model cannot be built.
    """
    points = [(precision, n) for precision in plan.precisions for n in plan.batches]
    rows: list[Row] = []
    for i, spec in enumerate(plan.models):
        model = build_model(spec, channels=plan.channels, task=plan.task, size=plan.size)
        model.to(plan.device).eval().requires_grad_(False)
        one = draw_batch(plan.channels, plan.size, plan.task, 1, plan.device)
        known = {"model": spec.name, "parameters": count_parameters(model), "flops": count_flops(model, one.x)}
        known |= {"attack": plan.work.reference, "loss": plan.work.loss}
        for j, (precision, n) in enumerate(points):
            progress(f"{spec.name}, {precision}, batch {n}", i * len(points) + j, len(plan.models) * len(points))
            place = known | {"precision": precision, "batch": n}
            try:
                batch = draw_batch(plan.channels, plan.size, plan.task, n, plan.device)
                rows += [place | row for row in _measure_point(plan, model, batch, precision, now)]
            except (RuntimeError, MemoryError) as error:
                if not meter.is_full(error):
                    raise
                rows.append(place | {"implementation": LIMIT, "preparation": RAW, "error": "out of memory"})
                meter.free_memory()
    return rows


def _measure_point(plan: Plan, model: nn.Module, batch: Batch, precision: str, now: Clock) -> list[Row]:
    """Time the implementations of one point together; those that fail in their first call are excluded."""
    contenders = list_contenders(plan.work, model, batch, plan.preparations, precision)
    rows: list[Row] = []
    alive: dict[int, Contender] = {}
    for i, contender in enumerate(contenders):
        error = _try(contender)
        rows.append({"implementation": contender.implementation, "preparation": contender.preparation, "error": error})
        if error is None:
            alive[i] = contender
    if 0 not in alive:
        return [row | {"error": row["error"] or "the bare limit failed, so there is no ratio"} for row in rows]
    works = {str(i): each.call for i, each in alive.items()}
    samples = meter.measure(works, device=plan.device, rounds=plan.rounds, now=now)
    for i, contender in alive.items():
        rows[i] |= _time(contender, samples[str(i)], samples["0"], batch, plan.device)
        rows[i] |= _count(contender, model, batch, plan.work)
        if rows[i]["backwards"] < contender.gradients:
            rows[i] |= dict.fromkeys(("ratio", "ratio_low", "ratio_high"))
    first = next((row["rise"] for row in rows if row["implementation"] == plan.work.reference and "rise" in row), 0)
    for row in rows:
        row["rise"] = row["rise"] / first if first and row.get("rise") is not None else None
    return rows


def _try(contender: Contender) -> str | None:
    """Call once. Returns: the error in one line, or None.

    One that changes the process, such as its threads, is excluded: it would change the times of the others.
    """
    try:
        with watched() as changes:
            contender.call()
        if changes.names:
            return f"it changes the process: {', '.join(changes.names)}"
    except Exception as error:
        message = one_line(error)
        full = meter.is_full(error)
        error.__traceback__ = None  # it references the tensors that filled the memory
        del error
        meter.free_memory()
        return "out of memory" if full else message
    return None


def _time(contender: Contender, samples: Samples, limit: Samples, batch: Batch, device: torch.device) -> Row:
    """Time and memory of one implementation, relative to the limit with the same number of gradients."""
    n, gradients = len(batch.x), contender.gradients
    low, high = samples.interval()
    ratio, ratio_low, ratio_high = meter.ratio(limit, samples)
    return {
        "images_per_s": n / samples.median,
        "images_per_s_low": n / high,
        "images_per_s_high": n / low if low else math.inf,
        "ratio": gradients * ratio,
        "ratio_low": gradients * ratio_low,
        "ratio_high": gradients * ratio_high,
        "gradients": gradients,
        "peak_bytes": meter.peak_bytes(contender.call, device),
        "seconds": list(samples.seconds),
        "warmups": samples.warmups,
    }


def _count(contender: Contender, model: nn.Module, batch: Batch, work: Work) -> Row:
    """Count the passes of one call, and measure the increase of the raw model's loss, which shows that it works."""
    n = len(batch.x)
    with Counter(contender.model).count(n) as tally:
        found = contender.call()
    passes = {"forwards": tally.all_forwards / n, "backwards": tally.all_backwards / n}
    if contender.implementation == LIMIT:
        return passes
    loss = cast(Loss, load_object("loss", work.loss))
    with torch.no_grad():
        after, before = (loss(model(x), batch.y, batch.valid, batch.task) for x in (found, batch.x))
    return passes | {"rise": float((after - before).mean())}
