"""Runs the stepped attacks of a batch together, image by image, so that no row of a forward pass is wasted.

The cells of a battery form a chain on each image: by radius, then by their order in the battery. An image whose score
an earlier cell left at 0 is not attacked again at that radius, and a larger radius keeps the best result of the smaller
ones where its own is not better. So a result depends on its image alone, and never on what ran beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby

import torch
from torch import Tensor, nn

from advseg_bench import metrics
from advseg_bench.attacks.ascent import ProjectedAscent
from advseg_bench.attacks.base import image_generators
from advseg_bench.attacks.stepping import Answer, Query, SteppedAttack, Steps
from advseg_bench.batches import Batch, copy_batch, select_images
from advseg_bench.checks.doubts import TRACED, ZERO_SHARE, Trace, flag_images, measure_zero
from advseg_bench.checks.results import check_form, find_tolerance, inspect, traits_of
from advseg_bench.errors import PluginError, QueryLimitError, expected
from advseg_bench.geometry import distance
from advseg_bench.losses import hard_dice
from advseg_bench.running.interrupts import contained
from advseg_bench.running.packing import Ask, Fill, Job, Packer
from advseg_bench.suite.battery import KEPT_SMALLER, SKIPPED
from advseg_bench.suite.cells import Cell
from advseg_bench.types import Budget

Given = tuple[Tensor, Tensor, Tensor]
"""What a cell left of a batch: the images that were scored, their predictions, and whether their logits are finite."""


@dataclass(slots=True)
class Course:
    """What a cell made of the images of a batch.

    Attributes:
        x_adv: What the attack returned for each image.
        predictions: What the scoring model makes of the image that is scored, shaped like `Batch.y` of one image.
        passes: Forwards and backwards of each image.
        flags: Flags of each image that only the course of the attack shows.
        error: The first error of an image; it fails the cell.
    """

    x_adv: dict[int, Tensor] = field(default_factory=dict)
    predictions: dict[int, Tensor] = field(default_factory=dict)
    passes: dict[int, tuple[int, int]] = field(default_factory=dict)
    flags: dict[int, set[str]] = field(default_factory=dict)
    error: BaseException | None = None

    def mark(self, flag: str) -> None:
        """Flag all images."""
        for flags in self.flags.values():
            flags.add(flag)

    def take(self, i: int, result: Result, flag: str) -> None:
        """Take the result of another cell on an image, and flag it."""
        self.x_adv[i], self.predictions[i] = result.x_adv, result.prediction
        self.passes.setdefault(i, (0, 0))
        self.flags.setdefault(i, set()).add(flag)


@dataclass(frozen=True, slots=True)
class Result:
    """A scored result on one image.

    Attributes:
        x_adv: The image.
        prediction: The prediction, shaped like `Batch.y` of one image.
        dice: Dice, the mean over the classes that are present.
        final: Whether no attack can lower a score: no class is found where it is, and each absent one is found. So the
            score is 0 under each rule for absent classes; the background of a multiclass task does not count.
        measured: Whether means contain the result; one of which they do not leaves the image to the other attacks.
    """

    x_adv: Tensor
    prediction: Tensor
    dice: float
    final: bool
    measured: bool


@dataclass(frozen=True, slots=True)
class Courses:
    """The stepped attacks on the images of one batch.

    Attributes:
        model: The model that computes scores.
        attacked: The model that is attacked, such as a prepared copy.
        batch: The images, padded to the compute batch.
        n: Number of images without padding.
        seed: Seed of the suite.
        announce: Called before the attack of each cell on each image.
    """

    model: nn.Module
    attacked: nn.Module
    batch: Batch
    n: int
    seed: int
    announce: Callable[[], None] = lambda: None

    def run(
        self,
        cells: Sequence[Cell],
        attacks: Mapping[str, SteppedAttack],
        given: Mapping[str, Given],
        fill: Fill,
    ) -> dict[str, Course]:
        """Run cells to their ends.

        Args:
            cells: The cells; those of a battery with cells that were run before, which are in `given`.
            attacks: Id of each cell to run -> its attack.
            given: Id of each battery cell that was run before -> what it left.
            fill: Counts the rows of forward passes.

        Returns:
            Id of each cell of `attacks` -> what became of it.
        """
        found = {cell.id: Course() for cell in cells if cell.id in attacks}
        linked = any(cell.skip_finished or cell.warm_start for cell in cells)
        chain = sorted((c for c in cells if linked and c.member is not None), key=lambda c: (c.draw, c.eps, c.member))
        jobs: list[tuple[float, int, Callable[[], Job]]] = []
        if any(cell.id in attacks for cell in chain):
            length = sum(_length(attacks[cell.id]) for cell in chain if cell.id in attacks)
            begin = partial(self._chain, chain, attacks, given, found)
            jobs += [(length, i, partial(begin, i)) for i in range(self.n)]
        for cell in cells:
            if cell.id in attacks and (cell.member is None or not linked):
                run = partial(self._attack, cell, attacks[cell.id], found[cell.id])
                jobs += [(_length(attacks[cell.id]), i, partial(run, i)) for i in range(self.n)]
        jobs.sort(key=lambda job: -job[0])  # stable: the longest first, so that few rows are left over in the end
        Packer(self.batch, fill).run((i, start) for _, i, start in jobs)
        return found

    def _chain(
        self,
        chain: Sequence[Cell],
        attacks: Mapping[str, SteppedAttack],
        given: Mapping[str, Given],
        found: Mapping[str, Course],
        i: int,
    ) -> Generator[Ask, Answer, None]:
        """Run the cells of a battery on one image, one after the other."""
        for _, repeat in groupby(chain, lambda cell: cell.draw):
            smaller: Result | None = None
            for _, members in groupby(repeat, lambda cell: cell.eps):
                best, done = smaller, None
                for cell in members:
                    course = found.get(cell.id)
                    if cell.id in given:
                        x_adv, prediction, finite = given[cell.id]
                        result = self._score(x_adv[i : i + 1], prediction[i : i + 1], bool(finite[i]), i)
                    elif course is None:
                        continue
                    elif done is not None and cell.skip_finished:
                        course.take(i, done, SKIPPED)
                        continue
                    else:
                        scored = yield from self._attack(cell, attacks[cell.id], course, i)
                        if scored is None:
                            continue
                        result = scored
                        if cell.warm_start and smaller is not None and smaller.dice < result.dice:
                            result = smaller
                            course.take(i, smaller, KEPT_SMALLER)
                    if not result.measured:
                        continue
                    best = result if best is None or result.dice < best.dice else best
                    if done is None and result.final:
                        done = result
                smaller = best

    def _attack(
        self, cell: Cell, attack: SteppedAttack, course: Course, i: int
    ) -> Generator[Ask, Answer, Result | None]:
        """Run one cell on one image; an error fails the cell.

        The other images of a battery are still attacked, so that later members skip the same images in any batch.

        Returns:
            The result; None after an error.
        """
        if course.error is not None and cell.member is None:
            return None
        self.announce()
        batch = select_images(self.batch, [i])
        budget = Budget(cell.arm.norm, cell.eps)
        log = _Log(attack, batch, budget, cell.max_forwards)
        try:
            lent = copy_batch(batch)
            generators = image_generators(self.seed, cell.seed_id, batch.images)
            with contained():
                steps = attack.begin(lent, budget=budget, generators=generators)
            x_adv = check_form((yield from log.follow(steps, self.attacked)), batch, cell.arm.attack)
            scored = inspect(x_adv, batch, budget, traits_of(attack)).x_adv
            logits = (yield Ask(self.model, Query(scored))).logits
        except (Exception, SystemExit) as error:
            course.error = course.error or error
            return None
        finite, prediction = bool(logits.isfinite().all()), metrics.predict(logits, batch.task)
        course.x_adv[i], course.predictions[i] = x_adv, prediction
        course.passes[i] = log.forwards, log.backwards
        course.flags[i] = log.find_flags(logits)
        if not finite:
            course.flags[i].add("non_finite_logits")
        if not all(torch.equal(a, b) for a, b in ((lent.x, batch.x), (lent.y, batch.y), (lent.valid, batch.valid))):
            course.flags[i].add("input_changed")
        return self._score(scored, prediction, finite, i)

    def _score(self, x_adv: Tensor, prediction: Tensor, finite: bool, i: int) -> Result:
        """Score a result on an image."""
        batch = select_images(self.batch, [i])
        counts = metrics.count(prediction, prediction, batch)
        first = 1 if batch.task.kind == "multiclass" else 0
        tp, fp, fn = (part[0, first:].double() for part in (counts.tp, counts.fp, counts.fn))
        present = tp + fn > 0
        of_classes = torch.where(present, 2 * tp / (2 * tp + fp + fn).clamp(min=1), 0)
        found = of_classes.sum() / present.sum() if present.any() else (fp == 0).double().mean()
        final = bool(((tp == 0) & ((fn > 0) | (fp > 0))).all())
        return Result(x_adv, prediction, float(found), final, finite and not torch.equal(x_adv, batch.x))


class _Log:
    """Notes what an attack asks about one image, and the answers to it.

    Args:
        attack: The attack.
        batch: The image.
        budget: Norm and radius.
        max_forwards: Limit of forwards, or None.
    """

    def __init__(self, attack: SteppedAttack, batch: Batch, budget: Budget, max_forwards: int | None) -> None:
        self.attack, self.batch, self.budget, self.max_forwards = attack, batch, budget, max_forwards
        self.forwards = self.backwards = 0
        self.broken = False
        self.known = self.fixed = False
        self.trace = Trace(keep=getattr(attack, "keep", "last"))
        if isinstance(attack, ProjectedAscent):
            self.known = len(attack.stages) == attack.restarts == 1
            self.fixed, self.trace.path = attack.judged_by is attack.loss, attack.path

    def follow(self, steps: Steps, model: nn.Module) -> Generator[Ask, Answer, Tensor]:
        """Pass the queries of an attack on, and return its result."""
        try:
            with contained():
                query = next(steps)
            while True:
                if self.max_forwards is not None and self.forwards >= self.max_forwards:
                    what = f"at most {self.max_forwards} forwards per image"
                    remedy = "Reduce its steps, or increase `max_forwards`."
                    raise QueryLimitError(expected("attack", what, self.forwards + 1, remedy))
                self._check(query)
                answer = yield Ask(query.model or model, query)
                self._note(query, answer)
                with contained():
                    query = steps.send(answer)
        except StopIteration as end:
            x_adv: Tensor = end.value
            return x_adv

    def find_flags(self, logits: Tensor) -> set[str]:
        """Return the flags that the course shows; `logits` are those of the result."""
        flags = {"non_finite_gradient"} if self.broken else set()
        if self.backwards == 0:
            return flags
        if self.trace.keep == "last" and self.trace.success:
            self.trace.success.append(self._score(logits))
        doubts = flag_images(self.trace)
        return flags | {name for name in TRACED if doubts[name]}

    def _check(self, query: object) -> None:
        """Refuse a query that cannot share a forward pass with those of other attacks."""
        x = self.batch.x
        remedy = "Yield attacks.Query(x) with images like those of the batch."
        if not isinstance(query, Query) or not isinstance(query.x, Tensor):
            raise PluginError(expected("attack", "queries with images", type(query).__name__, remedy))
        form = query.x.dtype, query.x.device, tuple(query.x.shape)
        if form != (x.dtype, x.device, tuple(x.shape)):
            what = f"queries with images {x.dtype} {tuple(x.shape)} on {x.device}"
            raise PluginError(f"attack: expected {what}, got {form[0]} {form[2]} on {form[1]}. {remedy}")

    def _note(self, query: Query, answer: Answer) -> None:
        self.forwards += 1
        if query.climb is None:
            return
        self.backwards += 1
        self.broken |= not bool(answer.gradient.isfinite().all())
        zero, last = measure_zero(answer.gradient, self.batch), self.trace.keep == "last"
        self.trace.zero.append(zero)
        if self.known and (self.fixed or len(answer.value)):
            self.trace.values.append(answer.value.reshape(1, -1)[:, 0] if len(answer.value) else answer.height)
        possible = query.model is None and not self._is_outside(query.x)  # a wider ball of a schedule, or another model
        scored = possible if last else bool((zero > ZERO_SHARE).any())
        self.trace.success.append(self._score(answer.logits) if scored else torch.full_like(zero, torch.nan))

    def _is_outside(self, x: Tensor) -> bool:
        """Return whether an image lies outside of bounds or budget."""
        bounds, moved = self.batch.bounds, distance(x, self.batch.x, self.budget.norm)
        beyond = bool((moved > self.budget.eps + find_tolerance(bounds)).any())
        return beyond or bool(((x < bounds.lower) | (x > bounds.upper)).any())

    def _score(self, logits: Tensor) -> Tensor:
        return 1 - hard_dice(logits, self.batch.y, self.batch.valid, self.batch.task)


def _length(attack: SteppedAttack) -> float:
    """The number of forwards that an attack states."""
    return traits_of(attack).forwards or 0
