"""Counts the forwards and backwards of an attack per image, and stops an attack that exceeds its limit."""

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
from torch.utils.hooks import RemovableHandle

from advseg_bench.errors import QueryLimitError, expected
from advseg_bench.protocols import Model

OWNERS: ContextVar[tuple[int, ...] | None] = ContextVar("OWNERS", default=None)
"""Positions in the counted batch of the images that the model receives; None for the whole batch, one row each."""


@contextmanager
def rows_of(images: Sequence[int]) -> Iterator[None]:
    """Declare which images the rows given to the model belong to, for attacks that do not pass the whole batch.

    One image may have any number of rows; several images have one row each. It has no effect unless passes are counted.

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
    """Model passes of one call of an attack on N images.

    Attributes:
        forwards: Number of forwards of each image.
        backwards: Number of backwards of each image; one for each time that a gradient flows into its logits.
        max_forwards: Limit of forwards per image, or None.
        points: If a list, the inputs at which gradients were computed, one tensor per differentiated forward, in order.
        all_forwards: Total number of rows given to the model, attributed to an image or not.
        all_backwards: Total number of rows whose gradient was computed, attributed or not.
        attributed: Whether every row was attributed to an image; if not, `forwards` and `backwards` are incomplete.
    """

    forwards: list[int]
    backwards: list[int]
    max_forwards: int | None = None
    points: list[Tensor] | None = None
    all_forwards: int = 0
    all_backwards: int = 0
    attributed: bool = True
    _gradients: list[tuple[tuple[int, ...], Tensor]] = field(default_factory=list)
    _handles: list[RemovableHandle] = field(default_factory=list)

    def per_image(self) -> list[tuple[int, int]] | None:
        """Return the forwards and backwards of each image, or None if they are not known exactly."""
        return list(zip(self.forwards, self.backwards, strict=True)) if self.attributed else None

    def admit(self, rows: int) -> tuple[int, ...]:
        """Count a forward before it is run.

        Args:
            rows: Number of rows of the input.

        Returns:
            The image of each row; empty if unknown.

        Raises:
            QueryLimitError: If the forward exceeds the limit.
        """
        owners = self._find_owners(rows)
        self._check_limit(owners, rows)
        self.attributed &= bool(owners) or not rows
        self.all_forwards += rows
        for i in owners:
            self.forwards[i] += 1
        return owners

    def add_backward(self, owners: tuple[int, ...], rows: int, point: Tensor | None) -> None:
        """Count a gradient that flows into the logits of a forward, and keep its input if `points` is a list."""
        if self.points is not None and point is not None:
            self.points.append(point)
        self.all_backwards += rows
        for i in owners:
            self.backwards[i] += 1

    def watch_input(self, owners: tuple[int, ...], x: Tensor) -> None:
        """Record which images have a gradient with NaN or infinity, whenever one flows into the input of a forward."""

        def note(gradient: Tensor) -> None:
            self._gradients.append((owners, ~gradient.detach().flatten(1).isfinite().all(1)))

        self._handles.append(x.register_hook(note))  # type: ignore[no-untyped-call]

    def forget_inputs(self) -> None:
        """Remove the hooks of `watch_input`."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def find_non_finite(self) -> set[int]:
        """Return the images whose gradient had NaN or infinity; all of them if it cannot be attributed."""
        found: set[int] = set()
        for owners, broken in self._gradients:
            rows = [i for i, each in enumerate(broken.tolist()) if each]
            if rows and not owners:
                return set(range(len(self.forwards)))
            found |= {owners[i] for i in rows}
        return found

    def _find_owners(self, rows: int) -> tuple[int, ...]:
        declared = OWNERS.get()
        images = tuple(range(len(self.forwards))) if declared is None else declared
        if len(images) == 1:
            return images * rows
        return images if len(images) == rows else ()

    def _check_limit(self, owners: tuple[int, ...], rows: int) -> None:
        """Refuse a forward beyond the limit; rows of unknown images count against the limit of all images."""
        if self.max_forwards is None:
            return
        asked = max((self.forwards[i] + owners.count(i) for i in set(owners)), default=0)
        if asked > self.max_forwards or self.all_forwards + rows > self.max_forwards * len(self.forwards):
            what = f"at most {self.max_forwards} forwards per image"
            found = max(asked, self.max_forwards + 1)
            raise QueryLimitError(expected("attack", what, found, "Reduce its steps, or increase `max_forwards`."))


@dataclass(slots=True)
class Counter:
    """A model whose forwards and backwards are counted while `count` is open.

    The method `forward` of a `torch.nn.Module` is replaced while counting, in the object itself and in copies, so that
    the attack gets the same module as usual; its hooks and values do not change. Any other callable is wrapped.
    Gradients are counted by a hook on the logits, which changes no value. Not counted: a submodule that is called
    directly, and a pickled copy. An attack may compile the model, but not export it or require a single full graph.
    Cost: one function call per forward.

    Attributes:
        model: The model to pass to the attack.
    """

    model: Model
    _tally: Tally | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        """Wrap a model that is not a module."""
        if not isinstance(self.model, nn.Module):
            self.model = _Gate(self, self.model)

    @contextmanager
    def count(self, n: int, max_forwards: int | None = None, *, points: bool = False) -> Iterator[Tally]:
        """Count the passes of `n` images inside a `with` statement.

        By default an attack is assumed to pass all its images to the model at once, one row each; `rows_of` declares
        otherwise. A forward with another number of rows is attributed to no image, so that the counts per image are
        unknown.

        Args:
            n: Number of images that the attack receives.
            max_forwards: Limit of forwards per image; the next one raises `QueryLimitError` before it is run.
            points: Whether to keep a copy of each input at which a gradient is computed.

        Yields:
            The counts, updated with every pass.
        """
        assert self._tally is None, "one attack at a time"
        self._tally = tally = Tally([0] * n, [0] * n, max_forwards, [] if points else None)
        token = OWNERS.set(None)
        try:
            with _covered(self):
                yield tally
        finally:
            tally.forget_inputs()
            OWNERS.reset(token)
            self._tally = None


class _Gate:
    """Replaces a model's `forward`, and counts its calls.

    Args:
        counter: The counter.
        forward: Computes the logits.
    """

    def __init__(self, counter: Counter, forward: Any) -> None:
        self.counter, self.forward = counter, forward

    # The wrapped function may be compiled; counts that change with every call may not.
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
            if x.requires_grad:
                tally.watch_input(owners, x)
        return logits

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self.forward)

    def __deepcopy__(self, memo: dict[int, Any]) -> _Gate:
        """The gate of a copied module calls the copy, and updates the same counter."""
        return _Gate(self.counter, copy.deepcopy(self.forward, memo))

    def __reduce__(self) -> tuple[Any, ...]:
        """A pickled module is not counted."""
        return _ungated, (self.forward,)


def _ungated(forward: Callable[..., Any]) -> Callable[..., Any]:
    return forward


@contextmanager
def _covered(counter: Counter) -> Iterator[None]:
    """Replace a module's `forward` by a gate inside, and restore it."""
    module = counter.model
    if not isinstance(module, nn.Module):
        yield
        return
    own = vars(module).get("forward")
    object.__setattr__(module, "forward", _Gate(counter, module.forward))
    try:
        yield
    finally:  # even if the attack has replaced it
        vars(module).pop("forward", None)
        if own is not None:
            object.__setattr__(module, "forward", own)
