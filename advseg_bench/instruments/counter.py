"""Counts what an attack asks of a model, image by image, and stops one that asks too often."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from advseg_bench.errors import QueryLimitError, expected
from advseg_bench.protocols import Model

OWNERS: ContextVar[tuple[int, ...] | None] = ContextVar("OWNERS", default=None)
"""Whose rows the model is given: positions in the batch that is counted for; None: its whole batch, one row each."""


@contextmanager
def rows_of(images: Sequence[int]) -> Iterator[None]:
    """Say whose rows the model is given meanwhile, for an attack that does not put its whole batch to it each time.

    Of one image any number of rows may come; of several, one each. Nobody need be counting.

    Args:
        images: Positions in the batch; inside another `rows_of`, positions among its images.
    """
    outer = OWNERS.get()
    token = OWNERS.set(tuple(images) if outer is None else tuple(outer[i] for i in images))
    try:
        yield
    finally:
        OWNERS.reset(token)


@dataclass(slots=True)
class Tally:
    """What one call of an attack on N images asked of the model.

    Attributes:
        forwards: Rows put to the model, of each image.
        backwards: Rows whose gradient was asked for, of each image; once for each time that one flows into the logits.
        max_forwards: What each image may have, or None.
        points: If a list: where gradients were asked for, one tensor per differentiated forward, in that order.
        all_forwards: Rows put to the model, whosever they were.
        all_backwards: Rows whose gradient was asked for, whosever they were.
        attributed: Whether every row had an owner; if not, `forwards` and `backwards` lack some.
    """

    forwards: list[int]
    backwards: list[int]
    max_forwards: int | None = None
    points: list[Tensor] | None = None
    all_forwards: int = 0
    all_backwards: int = 0
    attributed: bool = True

    def per_image(self) -> list[tuple[int, int]] | None:
        """Return each image's forwards and backwards, or None if they are not known exactly."""
        return list(zip(self.forwards, self.backwards, strict=True)) if self.attributed else None

    def admit(self, rows: int) -> tuple[int, ...]:
        """Count a forward before it is run. Returns: the image of each row; nobody if that is unknown.

        Raises:
            QueryLimitError: It would be one too many.
        """
        owners = self._find_owners(rows)
        self._demand_budget(owners, rows)
        self.attributed &= bool(owners) or not rows
        self.all_forwards += rows
        for i in owners:
            self.forwards[i] += 1
        return owners

    def add_backward(self, owners: tuple[int, ...], rows: int, point: Tensor | None) -> None:
        """Count a gradient that flows into the logits of a forward, and keep where that was if it is wanted."""
        if self.points is not None and point is not None:
            self.points.append(point)
        self.all_backwards += rows
        for i in owners:
            self.backwards[i] += 1

    def _find_owners(self, rows: int) -> tuple[int, ...]:
        told = OWNERS.get()
        images = tuple(range(len(self.forwards))) if told is None else told
        if len(images) == 1:
            return images * rows
        return images if len(images) == rows else ()

    def _demand_budget(self, owners: tuple[int, ...], rows: int) -> None:
        """Rows without an owner are too many when no image could have had them."""
        if self.max_forwards is None:
            return
        asked = max((self.forwards[i] + owners.count(i) for i in set(owners)), default=0)
        if asked > self.max_forwards or self.all_forwards + rows > self.max_forwards * len(self.forwards):
            what = f"at most {self.max_forwards} forwards per image"
            found = max(asked, self.max_forwards + 1)
            raise QueryLimitError(expected("attack", what, found, "Give it fewer steps, or raise `max_forwards`."))


@dataclass(slots=True)
class Counter:
    """A model whose forwards and backwards are counted while `count` is open.

    Of a `torch.nn.Module` the method `forward` is covered meanwhile, in the object itself and in copies that are made
    of it, so an attack meets the very module that it always met; neither hooks nor values of it change. Any other
    callable is wrapped. Gradients are seen by a hook on the logits; no value changes. Not counted: a part of the
    model that is called by itself, and a pickled copy. An attack may compile the model, but not export it or demand
    one whole graph. Cost: a function call per forward.

    Attributes:
        model: What to hand to the attack.
    """

    model: Model
    _tally: Tally | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        """Wrap what is no module."""
        if not isinstance(self.model, nn.Module):
            self.model = _Gate(self, self.model)

    @contextmanager
    def count(self, n: int, max_forwards: int | None = None, *, points: bool = False) -> Iterator[Tally]:
        """Count on behalf of `n` images, until the block ends.

        An attack is taken to put all its images to the model at once, one row each; `rows_of` says otherwise, and rows
        of any other number belong to nobody, so that the counts of single images are unknown.

        Args:
            n: Images that the attack is given.
            max_forwards: Per image; the one after them raises `QueryLimitError` before it is run.
            points: Keep where gradients are asked for, at the cost of a copy of each point.
        """
        assert self._tally is None, "one attack at a time"
        self._tally = tally = Tally([0] * n, [0] * n, max_forwards, [] if points else None)
        token = OWNERS.set(None)
        try:
            with _covered(self):
                yield tally
        finally:
            OWNERS.reset(token)
            self._tally = None


class _Gate:
    """Stands where a model's `forward` stood.

    Args:
        counter: Who is told.
        forward: What computes the logits.
    """

    def __init__(self, counter: Counter, forward: Any) -> None:
        self.counter, self.forward = counter, forward

    # What it covers may be compiled; counts that change with every call may not.
    @torch.compiler.disable(recursive=False)  # type: ignore[no-untyped-call,untyped-decorator]
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        tally = self.counter._tally
        if tally is None:
            return self.forward(*args, **kwargs)
        x: Tensor = args[0] if args else next(iter(kwargs.values()))
        owners = tally.admit(len(x))
        logits = self.forward(*args, **kwargs)
        if logits.requires_grad:
            point = None if tally.points is None else x.detach().clone()
            logits.register_hook(lambda gradient: tally.add_backward(owners, len(gradient), point))
        return logits

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self.forward)

    def __deepcopy__(self, memo: dict[int, Any]) -> _Gate:
        """The gate of a copied module leads to the copy, and tells the same counter."""
        return _Gate(self.counter, copy.deepcopy(self.forward, memo))

    def __reduce__(self) -> tuple[Any, ...]:
        """A pickled module is not counted."""
        return _ungated, (self.forward,)


def _ungated(forward: Callable[..., Any]) -> Callable[..., Any]:
    return forward


@contextmanager
def _covered(counter: Counter) -> Iterator[None]:
    """Put a gate before a module's `forward`, and take it away again."""
    module = counter.model
    if not isinstance(module, nn.Module):
        yield
        return
    own = vars(module).get("forward")
    object.__setattr__(module, "forward", _Gate(counter, module.forward))
    try:
        yield
    finally:  # whatever the attack put there
        vars(module).pop("forward", None)
        if own is not None:
            object.__setattr__(module, "forward", own)
