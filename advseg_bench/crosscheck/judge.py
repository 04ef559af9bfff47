"""Judge step by step whether a result equals that of the reference up to rounding.

Each step is judged from the iterate of the other implementation. A float32 gradient is one of several that rounding
permits. To find the range, the reference is recomputed at the same point: image by image and in a full batch, with one
thread and with two, with the input moved by one ulp up and down, and in float64; for an attack that compares values of
its objective also with ties decided either way. A value of the image *disagrees* if it
differs from the result of the reference's step. The disagreement is *explained by rounding* if it lies within the
spread of the recomputations, or if the float64 gradient is smaller than the rounding noise of the image. Otherwise it
is *real*.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from advseg_bench.attacks.gradient import input_gradients
from advseg_bench.batches import Batch, select_images
from advseg_bench.crosscheck.replay import Seen, State, Stepwise, turn
from advseg_bench.geometry import align
from advseg_bench.types import Budget

ROUNDING_ULP = 4
"""Equivalent expressions for x + step with clipping differ by no more than this many ulp."""
NOISE_QUANTILE = 0.99
"""Quantile of the spread within an image that is its rounding noise; larger spreads are judged value by value."""
VALUE_ULP = 4.0
"""Values of an objective that differ by no more than this many ulp of 1 + |value| are equal up to rounding."""
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
        last: Number of the last step judged, from 0.
    """

    values: int
    disagree: int
    explained: int
    real: Tensor
    opposite: float
    size: float
    turned: float = 0.0
    weight: float = float("nan")
    last: int = 0

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
        path: The points of the gradients of the other implementation, then its result, see `list_path`: up to
            `reference.steps` + 1 tensors (N, C, *S).
        alone: Whether the other evaluated images one by one; the replay then does the same.
        known: Cache of gradients by step, filled here; it serves references with the same objective on the same path.

    Returns:
        The comparison, which ends at the first real disagreement, since all later steps depend on it.

    Cost:
        1 forward and backward per step; 6 more per step from the first value that disagrees, one of them in float64.
    """
    state: State | None = None
    known = {} if known is None else known
    envelope = _Envelope(reference, model, batch, budget, known)
    values = disagree = explained = 0
    real = torch.zeros_like(batch.x, dtype=torch.bool)
    moved = wanted = batch.x
    for t, (point, after) in enumerate(pairwise(path)):
        if t not in known:
            known[t] = look_at(reference, model, batch, point, t, size=1 if alone else len(point))
        state = reference.observe(state, point, known[t], batch, budget)
        expected = reference.move(state, batch, budget, last=t + 1 == reference.steps)
        moved, wanted = after - state.x, expected - state.x
        off = _is_off(after, expected, batch)
        excused = envelope.explain(path[: t + 1], after, off) if off.any() else off
        values, disagree, explained = values + off.numel(), disagree + int(off.sum()), explained + int(excused.sum())
        real = off & ~excused
        if real.any():
            break
    assert state is not None, "a path has a step"
    size = state.memory.abs()
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
        weight=float(size[real].median() / size.median()) if real.any() else float("nan"),
        last=t,
    )


def _is_off(after: Tensor, expected: Tensor, batch: Batch) -> Tensor:
    """Return where a value differs from the expected one by more than equivalent expressions of a step do."""
    far = (_order(after) - _order(expected)).abs() > ROUNDING_ULP
    far &= (after - expected).abs() > _rounding(batch)
    return far | after.isnan() | expected.isnan()


def list_path(reference: Stepwise, points: Sequence[Tensor], result: Tensor) -> list[Tensor] | None:
    """Return the points that the steps of a reference lead to, or None if their number differs.

    A reference that returns one of its iterates has a gradient at each of them, or at all but the last one. The result
    is then no step, see `endings.find_kept`.
    """
    if reference.keeps:
        return list(points) if len(points) in (reference.steps, reference.steps + 1) and len(points) > 1 else None
    return [*points, result] if len(points) == reference.steps else None


def look_at(reference: Stepwise, model: nn.Module, batch: Batch, x: Tensor, step: int, *, size: int) -> Seen:
    """Return gradient and value of the reference's objectives at a point, with `size` images per forward pass."""
    gradients, values = [], []
    for start in range(0, len(x), size):
        part = select_images(batch, range(start, min(start + size, len(x))))

        def climb(logits: Tensor, part: Batch = part) -> Tensor:
            return reference.climb(logits, part, step)

        logits, (gradient,) = input_gradients(model, x[start : start + size], [climb])
        gradients.append(gradient)
        values.append(reference.judge(logits, part).detach())
    return Seen(torch.cat(gradients), torch.cat(values))


class _Envelope:
    """The effect of rounding on the steps of the reference, found by recomputing them in several ways."""

    def __init__(
        self, reference: Stepwise, model: nn.Module, batch: Batch, budget: Budget, known: dict[object, Any]
    ) -> None:
        self.reference, self.model, self.batch, self.budget, self.known = reference, model, batch, budget, known
        self.double: nn.Module | None = None
        self.states: list[State | None] = []
        self.done = 0

    def explain(self, points: Sequence[Tensor], after: Tensor, off: Tensor) -> Tensor:
        """Return where rounding explains that `after` differs from the reference's step from the last point."""
        batch, budget, reference = self.batch, self.budget, self.reference
        for t in range(self.done if reference.remembers else len(points) - 1, len(points)):
            if ("all ways", t) not in self.known:
                self.known["all ways", t] = self._recompute(points[t], t)
            ways: list[Seen] = self.known["all ways", t]
            self.states = self.states if self.states and reference.remembers else [None] * len(ways)
            self.states = [
                reference.observe(state, points[t].to(seen.gradient), seen, batch, budget)
                for state, seen in zip(self.states, ways, strict=True)
            ]
        self.done = len(points)
        states = [state for state in self.states if state is not None]
        last = len(points) == reference.steps
        center, *moved = [reference.move(state, batch, budget, last=last).double() for state in states]
        exact, *others = [state.memory for state in states]
        spread = torch.stack([(x - center).abs() for x in moved]).amax(0)
        ulp = _rounding(batch)
        near = (after.double() - center).abs() <= 2 * spread + ulp
        noise = torch.stack([(m.double() - exact).abs() for m in others]).amax(0)
        floor = align(usual_noise(noise), noise)
        dead = (exact == 0) & (noise == 0)  # a gradient of exactly 0 has no rounding noise
        small = (exact.abs() <= torch.maximum(noise, floor)) & ~dead
        if budget.norm == "l2":  # rounding of one value changes the norm, and so all others
            reach = usual_noise(spread).view(floor.shape)
            return off & ((after.double() - center).abs() <= 4 * reach + ulp)
        return off & (near | (small & self._is_possible(after, states[1], last=last)))

    def _is_possible(self, after: Tensor, state: State, *, last: bool) -> Tensor:
        """Return where a value is the result of a step with a gradient of +1, -1 or 0."""
        batch, budget = self.batch, self.budget
        ends = [self.reference.move(turn(state, sign), batch, budget, last=last) for sign in (-1.0, 0.0, 1.0)]
        ulp = _rounding(batch)
        return torch.stack([(after - end).abs() <= ulp for end in ends]).any(0)

    def _recompute(self, x: Tensor, step: int) -> list[Seen]:
        """Return gradient and value in float64, and in float32 in ways that are mathematically equivalent."""
        if self.double is None:
            self.double = copy.deepcopy(self.model).double()
        reference, model, batch = self.reference, self.model, self.batch
        exact = look_at(reference, self.double, batch, x.double(), step, size=len(x))
        n = len(x)
        rows = [i % n for i in range(FULL_BATCH)] if n < FULL_BATCH else list(range(n))
        padded = select_images(batch, rows)
        found = [look_at(reference, model, batch, x, step, size=1)]
        threads = torch.get_num_threads()
        try:
            for count in (1, 2):
                torch.set_num_threads(count)
                full = look_at(reference, model, padded, x[rows], step, size=len(rows))
                found.append(Seen(full.gradient[:n], full.value[:n]))
        finally:
            torch.set_num_threads(threads)
        for towards in (-torch.inf, torch.inf):
            moved = torch.nextafter(x, torch.full_like(x, towards))
            found.append(look_at(reference, model, batch, moved, step, size=n))
        ties = [replace(found[0], slack=slack) for slack in (-VALUE_ULP, VALUE_ULP)] if reference.keeps else []
        return [exact, *found, *ties]


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
