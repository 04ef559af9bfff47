"""Counts what an attack asks of a model, image by image, and stops one that asks too often."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from advseg_bench.instruments.tally import OWNERS, Tally
from advseg_bench.types import Model


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
    def count(self, n: int, max_forwards: int | None = None) -> Iterator[Tally]:
        """Count on behalf of `n` images, until the block ends.

        An attack is taken to put all its images to the model at once, one row each; `rows_of` says otherwise, and rows
        of any other number belong to nobody, so that the counts of single images are unknown.

        Args:
            n: Images that the attack is given.
            max_forwards: Per image; the one after them raises `QueryLimitError` before it is run.
        """
        assert self._tally is None, "one attack at a time"
        self._tally = tally = Tally([0] * n, [0] * n, max_forwards)
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
            logits.register_hook(lambda gradient: tally.add_backward(owners, len(gradient)))
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
