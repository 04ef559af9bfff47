"""Judge step by step whether a result equals that of the reference up to rounding.

Each step is judged from the iterate of the other implementation. A float32 gradient is one of several that rounding
permits. To find the range, the reference is recomputed at the same point: image by image and in a full batch, with one
thread and with two, with the input moved by one ulp up and down, and in float64. A value of the image *disagrees* if it
differs from the result of the reference's step. The disagreement is *explained by rounding* if it lies within the
spread of the recomputations, or if the float64 gradient is smaller than the rounding noise of the image. Otherwise it
is *real*.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from advseg_bench.attacks.gradient import input_gradients
from advseg_bench.batches import Batch, select_images
from advseg_bench.crosscheck.replay import Stepwise
from advseg_bench.geometry import align
from advseg_bench.types import Budget

ROUNDING_ULP = 4
"""Equivalent expressions for x + step with clipping differ by no more than this many ulp."""
NOISE_QUANTILE = 0.99
"""Quantile of the spread within an image that is its rounding noise; larger spreads are judged value by value."""
FULL_BATCH = 8
"""Images in the full batch of a recomputation."""


@dataclass(frozen=True, slots=True)
class Difference:
    """Two results of equal shape, compared value by value.

    Attributes:
        identical: Share of pixels (all channels of them) that are equal bit for bit.
        max_ulp: Largest distance in ulp.
        p999_ulp: 99.9th percentile of the distance in ulp.
        max_abs: Largest distance, in input units.
        p999_abs: 99.9th percentile of the distance, in input units.
    """

    identical: float
    max_ulp: int
    p999_ulp: int
    max_abs: float
    p999_abs: float


@dataclass(frozen=True, slots=True)
class StepVerdict:
    """Comparison of the steps with those of the reference, up to the first real disagreement.

    Attributes:
        values: Image values judged (images x values x steps).
        disagree: Values that differ from the reference by more than `ROUNDING_ULP`.
        explained: Values of `disagree` that rounding explains.
        real: (N, C, *S) bool: the remaining values; all belong to the last step judged.
        opposite: Share of the changed values in the last step judged that moved against the reference's direction.
        size: Median ratio of actual to expected change in that step, where the directions agree; NaN if there is none.
        turned: Share of the values of `real` that moved in another direction than the reference's.
        weight: Median gradient (with its momentum) of the values of `real` divided by that of all values; NaN if `real`
            is empty.
    """

    values: int
    disagree: int
    explained: int
    real: Tensor
    opposite: float
    size: float
    turned: float = 0.0
    weight: float = float("nan")

    @property
    def agrees(self) -> bool:
        """Whether rounding explains every disagreement."""
        return self.disagree == self.explained


def compare(a: Tensor, b: Tensor) -> Difference:
    """Return how two float32 results (N, C, *S) differ."""
    steps = (_order(a) - _order(b)).abs().flatten().double()
    distance = (a.double() - b.double()).abs().flatten()
    at = max(0, int(0.999 * len(steps)) - 1)
    return Difference(
        identical=float((a == b).all(1).double().mean()),
        max_ulp=int(steps.max()),
        p999_ulp=int(steps.sort().values[at]),
        max_abs=float(distance.max()),
        p999_abs=float(distance.sort().values[at]),
    )


def judge_steps(
    reference: Stepwise,
    model: nn.Module,
    batch: Batch,
    budget: Budget,
    path: Sequence[Tensor],
    *,
    alone: bool,
    known: dict[object, Any] | None = None,
) -> StepVerdict:
    """Replay the reference's step from each iterate of another implementation.

    Args:
        reference: The attack that each step is compared with.
        model: Images -> logits.
        batch: Images and labels.
        budget: Norm and radius.
        path: The iterates of the other implementation, then its result: `reference.steps` + 1 tensors (N, C, *S).
        alone: Whether the other evaluated images one by one; the replay then does the same.
        known: Cache of gradients by step, filled here; it serves references with the same objective on the same path.

    Returns:
        The comparison, which ends at the first real disagreement, since all later steps depend on it.

    Cost:
        1 forward and backward per step; 6 more per step from the first value that disagrees, one of them in float64.
    """
    memory: Tensor | None = None
    known = {} if known is None else known
    envelope = _Envelope(reference, model, batch, budget, known)
    values = disagree = explained = 0
    real = torch.zeros_like(batch.x, dtype=torch.bool)
    moved = wanted = batch.x
    for t, (point, after) in enumerate(pairwise(path)):
        if t not in known:
            known[t] = gradient_at(reference, model, batch, point, size=1 if alone else len(point))
        gradient = known[t]
        memory = reference.accumulate(memory, gradient)
        expected = reference.move(point, memory, batch, budget)
        moved, wanted = after - point, expected - point
        off = _is_off(after, expected, batch)
        excused = envelope.explain(path[: t + 1], after, off) if off.any() else off
        values, disagree, explained = values + off.numel(), disagree + int(off.sum()), explained + int(excused.sum())
        real = off & ~excused
        if real.any():
            break
    assert memory is not None, "a path has a step"
    moves = (moved != 0) & (wanted != 0)
    same = moves & (moved.sign() == wanted.sign())
    return StepVerdict(
        values,
        disagree,
        explained,
        real,
        opposite=float((moves & ~same).sum() / moves.sum().clamp(min=1)),
        size=float((moved / wanted)[same].median()) if same.any() else float("nan"),
        turned=float(((moved != 0) & (moved.sign() != wanted.sign()))[real].double().mean()) if real.any() else 0.0,
        weight=float(memory.abs()[real].median() / memory.abs().median()) if real.any() else float("nan"),
    )


def _is_off(after: Tensor, expected: Tensor, batch: Batch) -> Tensor:
    """Return where a value differs from the expected one by more than equivalent expressions of a step do."""
    far = (_order(after) - _order(expected)).abs() > ROUNDING_ULP
    far &= (after - expected).abs() > _rounding(batch)
    return far | after.isnan() | expected.isnan()


def gradient_at(reference: Stepwise, model: nn.Module, batch: Batch, x: Tensor, *, size: int) -> Tensor:
    """Return the gradient (N, C, *S) of the reference's objective at `x`, with `size` images per forward pass."""
    parts = []
    for start in range(0, len(x), size):
        part = select_images(batch, range(start, min(start + size, len(x))))
        parts.append(_differentiate(reference, model, part, x[start : start + size]))
    return torch.cat(parts)


def _differentiate(reference: Stepwise, model: nn.Module, batch: Batch, x: Tensor) -> Tensor:
    return input_gradients(model, x, [lambda logits: reference.climb(logits, batch)])[1][0]


class _Envelope:
    """The effect of rounding on the steps of the reference, found by recomputing them in several ways."""

    def __init__(
        self, reference: Stepwise, model: nn.Module, batch: Batch, budget: Budget, known: dict[object, Any]
    ) -> None:
        self.reference, self.model, self.batch, self.budget, self.known = reference, model, batch, budget, known
        self.double: nn.Module | None = None
        self.memories: list[Tensor | None] = []
        self.done = 0

    def explain(self, points: Sequence[Tensor], after: Tensor, off: Tensor) -> Tensor:
        """Return where rounding explains that `after` differs from the reference's step from the last point."""
        for t in range(self.done if self.reference.remembers else len(points) - 1, len(points)):
            if ("all ways", t) not in self.known:
                self.known["all ways", t] = self._recompute(points[t])
            gradients: list[Tensor] = self.known["all ways", t]
            self.memories = self.memories or [None] * len(gradients)
            self.memories = [self.reference.accumulate(m, g) for m, g in zip(self.memories, gradients, strict=True)]
        self.done = len(points)
        exact, *others = [m for m in self.memories if m is not None]
        x = points[-1]
        batch, budget, move = self.batch, self.budget, self.reference.move
        center = move(x.double(), exact, batch, budget)
        spread = torch.stack([(move(x, m.to(x), batch, budget).double() - center).abs() for m in others]).amax(0)
        ulp = _rounding(batch)
        near = (after.double() - center).abs() <= 2 * spread + ulp
        noise = torch.stack([(m.double() - exact).abs() for m in others]).amax(0)
        floor = align(usual_noise(noise), x)
        dead = (exact == 0) & (noise == 0)  # a gradient of exactly 0 has no rounding noise
        small = (exact.abs() <= torch.maximum(noise, floor)) & ~dead
        if budget.norm == "l2":  # rounding of one value changes the norm, and so all others
            reach = usual_noise(spread).view(floor.shape)
            return off & ((after.double() - center).abs() <= 4 * reach + ulp)
        return off & (near | (small & self._is_possible(after, x)))

    def _is_possible(self, after: Tensor, x: Tensor) -> Tensor:
        """Return where a value is the result of a step with a gradient of +1, -1 or 0."""
        batch, budget = self.batch, self.budget
        ends = [self.reference.move(x, torch.full_like(x, sign), batch, budget) for sign in (-1.0, 0.0, 1.0)]
        ulp = _rounding(batch)
        return torch.stack([(after - end).abs() <= ulp for end in ends]).any(0)

    def _recompute(self, x: Tensor) -> list[Tensor]:
        """Return the reference's gradient in float64, and in float32 in ways that are mathematically equivalent."""
        if self.double is None:
            self.double = copy.deepcopy(self.model).double()
        reference, model, batch = self.reference, self.model, self.batch
        exact = gradient_at(reference, self.double, batch, x.double(), size=len(x))
        n = len(x)
        rows = [i % n for i in range(FULL_BATCH)] if n < FULL_BATCH else list(range(n))
        padded = select_images(batch, rows)
        found = [gradient_at(reference, model, batch, x, size=1)]
        threads = torch.get_num_threads()
        try:
            for count in (1, 2):
                torch.set_num_threads(count)
                found.append(gradient_at(reference, model, padded, x[rows], size=len(rows))[:n])
        finally:
            torch.set_num_threads(threads)
        for towards in (-torch.inf, torch.inf):
            moved = torch.nextafter(x, torch.full_like(x, towards))
            found.append(gradient_at(reference, model, batch, moved, size=n))
        return [exact, *found]


def usual_noise(spread: Tensor) -> Tensor:
    """Return the `NOISE_QUANTILE` of each image's values, (N,).

    `torch.quantile` is not used, since some supported versions of it accept at most 2^24 values.
    """
    values = spread.flatten(1)
    return values.kthvalue(math.ceil(NOISE_QUANTILE * (values.shape[1] - 1)) + 1, dim=1).values


def _rounding(batch: Batch) -> float:
    """Return `ROUNDING_ULP` in input units, at the largest intensity."""
    largest = max(abs(batch.bounds.lower), abs(batch.bounds.upper))
    return ROUNDING_ULP * torch.finfo(torch.float32).eps * largest


def _order(x: Tensor) -> Tensor:
    """Map float32 values to integers in the same order: neighbours differ by 1, and both zeros map to 0."""
    bits = x.contiguous().view(torch.int32).long()
    return torch.where(bits < 0, -(bits & 0x7FFFFFFF), bits)
