"""Attacks that ask the model one question at a time, so that a scheduler can fill its batches from several of them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import TypeGuard

import torch
from torch import Tensor

from advseg_bench.attacks.base import BaseAttack
from advseg_bench.attacks.gradient import input_gradients
from advseg_bench.batches import Batch
from advseg_bench.instruments.profiling import span
from advseg_bench.protocols import Attack, Model
from advseg_bench.types import Budget

Measure = Callable[[Tensor, Batch], Tensor]
"""Logits (N, K, *S) and their batch -> values per image, (N,) or (N, M)."""


@dataclass(frozen=True, slots=True)
class Query:
    """What an attack asks of the model in one step: one forward pass, and a backward pass if `climb` is given.

    Attributes:
        x: Images (N, C, *S).
        climb: The objective whose gradient is wanted, one value per image; None for no gradient.
        judge: Values that are wanted without a gradient; None for none.
        model: The model that is asked; None for the one that is attacked.

    Example:
        >>> import torch
        >>> import advseg_bench as ab
        >>> query = ab.attacks.Query(torch.zeros(2, 1, 8, 8))
        >>> query.climb is None, query.judge is None  # logits are wanted, and nothing else
        (True, True)
    """

    x: Tensor
    climb: Measure | None = None
    judge: Measure | None = None
    model: Model | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to a query.

    Attributes:
        logits: Detached logits of the images, (N, K, *S).
        gradient: Gradient of the summed objective, like the images; empty if it was not wanted.
        value: The result of `judge`, (N,) or (N, M); empty if it was not wanted.
        height: The objective whose gradient was wanted, (N,); empty if none was.
    """

    logits: Tensor
    gradient: Tensor = field(default_factory=lambda: torch.empty(0))
    value: Tensor = field(default_factory=lambda: torch.empty(0))
    height: Tensor = field(default_factory=lambda: torch.empty(0))


Steps = Generator[Query, Answer, Tensor]
"""A started attack: yields queries, takes answers, returns adversarial images (N, C, *S)."""


class SteppedAttack(BaseAttack):
    """Base class of attacks that are a sequence of queries; a subclass implements `begin`.

    The state of an image may not depend on the other images of its batch. The harness then advances the images of
    several cells together, and a batch stays full when some of them have finished.

    Example:
        >>> import torch
        >>> import advseg_bench as ab
        >>> class TwoSteps(ab.attacks.SteppedAttack):
        ...     def begin(self, batch, *, budget, generators):
        ...         x = batch.x
        ...         for _ in range(2):
        ...             answer = yield ab.attacks.Query(x, climb=lambda u, b: ab.losses.bce(u, b.y, b.valid, b.task))
        ...             x = (x + budget.eps / 2 * answer.gradient.sign()).clamp(0, 1)
        ...         return x
        >>> x = torch.full((1, 1, 4, 4), 0.75)
        >>> TwoSteps()(lambda x: 4 * x - 2, ab.Batch.of(x, x > 0.5, task="binary"), eps=0.25).unique()
        tensor([0.5000])
    """

    __slots__ = ()

    @abstractmethod
    def begin(self, batch: Batch, *, budget: Budget, generators: Sequence[torch.Generator]) -> Steps:
        """Start the attack on a batch.

        Args:
            batch: Images and labels; must not be modified.
            budget: Norm and radius.
            generators: One random generator per image.

        Yields:
            Queries, each with all N images.

        Returns:
            Images (N, C, *S) with the dtype and device of `batch.x`, inside bounds and budget.
        """

    def perturb(self, model: Model, batch: Batch, *, budget: Budget, generators: Sequence[torch.Generator]) -> Tensor:
        """Return adversarial images: the loop that answers every query of `begin`.

        Args:
            model: Images (N, C, *S) -> logits (N, K, *S).
            batch: Images and labels.
            budget: Norm and radius.
            generators: One random generator per image.

        Returns:
            Images (N, C, *S) with the dtype of `batch.x`.

        Cost:
            1 forward per query, 1 backward per query with a gradient.
        """
        attack = self.begin(batch, budget=budget, generators=generators)
        try:
            query = next(attack)
            while True:
                query = attack.send(answer_query(model, query, batch))
        except StopIteration as end:
            x_adv: Tensor = end.value
            return x_adv


def is_stepped(attack: Attack) -> TypeGuard[SteppedAttack]:
    """Return whether an attack is no more than its queries."""
    if not isinstance(attack, SteppedAttack):
        return False
    kind = type(attack)
    return kind.perturb is SteppedAttack.perturb and kind.__call__ is BaseAttack.__call__


def answer_query(model: Model, query: Query, batch: Batch) -> Answer:
    """Answer the query of one attack on one batch.

    Args:
        model: Images (N, C, *S) -> logits (N, K, *S); it is not asked if the query names another one.
        query: The query.
        batch: The batch that is attacked.

    Returns:
        The answer.

    Cost:
        1 forward; 1 backward with `climb`.
    """
    gradient = value = torch.empty(0)
    heights: list[Tensor] = []
    model = model if query.model is None else query.model
    if query.climb is not None:

        def climb(logits: Tensor, measure: Measure = query.climb) -> Tensor:
            heights.append(measure(logits, batch))
            return heights[0]

        logits, (gradient,) = input_gradients(model, query.x, [climb])
    else:
        with torch.no_grad(), span("attack: forwards"):
            logits = model(query.x).detach()
    if query.judge is not None:
        with torch.no_grad():
            value = query.judge(logits, batch)
    return Answer(logits, gradient, value, heights[0].detach() if heights else torch.empty(0))
