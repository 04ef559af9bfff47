"""Fills batches: advances stepped attacks on single images together, so that every forward pass has all its rows.

An image that is finished leaves its row to the next image or the next cell. The bits of an image do not change, since
they depend on the number of rows alone: a loss is evaluated on the logits of all rows, and each image takes its own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from advseg_bench.attacks.stepping import Answer, Measure, Query
from advseg_bench.batches import Batch, copy_batch, select_images
from advseg_bench.instruments.profiling import span
from advseg_bench.protocols import Model
from advseg_bench.running.interrupts import contained


@dataclass(frozen=True, slots=True)
class Ask:
    """A query about one image of a batch.

    Attributes:
        model: The model that is asked.
        query: The query, with one image.
    """

    model: Model
    query: Query


Job = Generator[Ask, Answer, object]
"""The work on one image: yields questions, takes their answers."""


@dataclass(slots=True)
class Fill:
    """How full the batches were.

    Attributes:
        rows: Rows of all forward passes.
        used: Rows that belonged to an image.
    """

    rows: int = 0
    used: int = 0

    @property
    def share(self) -> float:
        """The share of rows that belonged to an image; 1 without any."""
        return self.used / self.rows if self.rows else 1.0


@dataclass(slots=True)
class _Slot:
    image: int
    job: Job
    ask: Ask


@dataclass(slots=True)
class Packer:
    """Advances jobs on the images of a batch, as many at a time as the batch has rows.

    Attributes:
        batch: The images, padded to the compute batch.
        fill: How full the batches were.
    """

    batch: Batch
    fill: Fill = field(default_factory=Fill)

    def run(self, jobs: Iterable[tuple[int, Callable[[], Job]]]) -> None:
        """Run jobs to their ends.

        An error of a model or of a measure is raised inside the jobs that asked for it.

        Args:
            jobs: The image of each job, as a position in the batch, and what starts it; in the order in which they are
                started.
        """
        waiting, active = deque(jobs), list[_Slot]()
        size = len(self.batch.x)
        while True:
            while waiting and len(active) < size:
                image, start = waiting.popleft()
                job = start()
                if (ask := next(job, None)) is not None:
                    active.append(_Slot(image, job, ask))
            if not active:
                return
            asked = _choose(active)
            for slot, answer in zip(asked, self._answer(asked), strict=True):
                try:
                    slot.ask = slot.job.send(answer) if isinstance(answer, Answer) else slot.job.throw(answer)
                except StopIteration:
                    active.remove(slot)

    def _answer(self, slots: Sequence[_Slot]) -> list[Answer | BaseException]:
        """Answer one query of each slot with one forward, and one backward if a gradient is wanted."""
        size, taken = len(self.batch.x), len(slots)
        rows = [slots[i % taken] for i in range(size)]
        self.fill.rows += size
        self.fill.used += taken
        batch = select_images(self.batch, [slot.image for slot in rows])
        asked = _Asked(batch, [slot.ask.query for slot in slots])
        try:
            with contained():
                asked.pass_through(slots[0].ask.model, torch.cat([slot.ask.query.x for slot in rows]))
        except (Exception, SystemExit) as error:
            if taken == 1:
                return [error]
            return [answer for slot in slots for answer in self._answer([slot])]  # only who causes it fails
        return [asked.answer(i) for i in range(taken)]


class _Asked:
    """Queries on the first rows of a batch, which one forward answers.

    Each measure gets logits and labels of its own, so that one that writes into them affects no other.

    Args:
        batch: The image of each row.
        queries: The query of each of the first rows.
    """

    def __init__(self, batch: Batch, queries: Sequence[Query]) -> None:
        self.batch = batch
        self.climbs = _group([query.climb for query in queries])
        self.judges = _group([query.judge for query in queries])
        self.errors: dict[int, BaseException] = {}
        self.logits = self.gradient = torch.empty(0)
        self.heights: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}

    def pass_through(self, model: Model, x: Tensor) -> None:
        """Run the model on all rows, forwards, and backwards if a gradient is wanted."""
        if self.climbs:
            leaf = x.detach().clone().requires_grad_()
            with torch.enable_grad():
                with span("attack: forwards"):
                    logits = model(leaf)
                inner = self._differentiate(logits.detach())
                if inner is not None:
                    with span("attack: backwards"):
                        (self.gradient,) = torch.autograd.grad(logits, leaf, inner, materialize_grads=True)
            self.logits = logits.detach()
        else:
            with torch.no_grad(), span("attack: forwards"):
                self.logits = model(x).detach()
        with torch.no_grad():
            for judge, members in self.judges:
                self._note(members, self.values, partial(judge, self.logits.clone(), copy_batch(self.batch)))

    def answer(self, i: int) -> Answer | BaseException:
        """Return the answer to the query of a row, or the error of its loss or judge."""
        if i in self.errors:
            return self.errors[i]
        nothing = torch.empty(0)
        gradient = self.gradient[i : i + 1] if i in self.heights else nothing
        return Answer(self.logits[i : i + 1], gradient, self.values.get(i, nothing), self.heights.get(i, nothing))

    def _differentiate(self, logits: Tensor) -> Tensor | None:
        """Return the gradient of each row's own objective with respect to its logits; None if every objective fails.

        Each objective is evaluated on all rows, so that its bits are those of a batch with one objective. Rows without
        an objective keep the gradient of another, which is not used.
        """
        mixed: Tensor | None = None
        for climb, members in self.climbs:
            values: dict[int, Tensor] = {}
            found: list[Tensor] = []

            def differentiate(climb: Measure = climb, found: list[Tensor] = found) -> Tensor:
                leaf = logits.clone().requires_grad_()
                value = climb(leaf, copy_batch(self.batch))
                found.extend(torch.autograd.grad(value.sum(), leaf, materialize_grads=True))
                return value.detach()

            self._note(members, values, differentiate)
            if not found:
                continue
            self.heights |= values
            if mixed is None:
                mixed = found[0] if len(self.climbs) == 1 else found[0].clone()
            else:
                mixed[members] = found[0][members]
        return mixed

    def _note(self, members: Sequence[int], values: dict[int, Tensor], measure: Callable[[], Tensor]) -> None:
        """Evaluate a measure, and store the value or the error of each of its rows."""
        try:
            with contained():
                found = measure()
            values |= {i: found[i : i + 1] for i in members}
        except (Exception, SystemExit) as error:
            self.errors |= dict.fromkeys(members, error)


def _choose(active: Sequence[_Slot]) -> list[_Slot]:
    """Return the slots that ask the same model as most others do; the first model in a tie."""
    by_model: dict[int, list[_Slot]] = {}
    for slot in active:
        by_model.setdefault(id(slot.ask.model), []).append(slot)
    return max(by_model.values(), key=len)


def _group(measures: Sequence[Measure | None]) -> list[tuple[Measure, list[int]]]:
    """Return the distinct measures, each with the rows that want it."""
    found: list[tuple[Measure, list[int]]] = []
    for i, measure in enumerate(measures):
        if measure is None:
            continue
        members = next((rows for known, rows in found if _is_same(known, measure)), None)
        if members is None:
            found.append((measure, [i]))
        else:
            members.append(i)
    return found


def _is_same(one: Measure, other: Measure) -> bool:
    """Return whether two measures are equal; those that cannot be compared, such as losses with tensors, are not."""
    try:
        return bool(one == other)
    except Exception:
        return False
