"""What shape has a model, and what shape has an attack? Any callable of these shapes is one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from advseg_bench.types import Budget

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from advseg_bench.batches import Batch

Model = Callable[["Tensor"], "Tensor"]
"""Images (N, C, *S) inside the bounds -> logits (N, K, *S). Normalisation and padding are inside."""


class Attack(Protocol):
    """Any callable of this shape is an attack; a frozen dataclass with keyword-only settings is the usual form.

    It may say what it can do and costs in an attribute `traits`. An attack that stops at success may have a method
    `reached(logits, clean, batch) -> bool (N,) or None`, which tells from the logits of the scored and of the clean
    images where it succeeded; the harness flags the others.
    """

    def __call__(self, model: Model, batch: Batch, *, budget: Budget, generators: Sequence[torch.Generator]) -> Tensor:
        """Return adversarial images: shape, dtype and device of `batch.x`, inside bounds and budget.

        Args:
            model: Images -> logits.
            batch: Images and labels; must not be changed.
            budget: Norm and radius.
            generators: One source of randomness per image, so that no image's result depends on its neighbours.
        """
        ...
