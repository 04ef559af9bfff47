"""Protocols: any callable with these signatures is a model or an attack."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from advseg_bench.types import Budget

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from advseg_bench.batches import Batch

Model = Callable[["Tensor"], "Tensor"]
"""Images (N, C, *S) inside the bounds -> logits (N, K, *S). The model includes normalisation and padding."""


class Attack(Protocol):
    """The protocol of attacks: any callable with this signature is an attack.

    The usual form is a frozen dataclass with keyword-only settings. Two members are optional. The attribute `traits`
    declares what the attack supports and costs. The method `reached(logits, clean, batch) -> bool (N,) or None` is for
    attacks that stop at success: from the logits of the scored and of the clean images it returns where the attack
    succeeded, and the harness flags the other images.

    Example:
        >>> import torch
        >>> import advseg_bench as ab
        >>> def brighten(model, batch, *, budget, generators):
        ...     return (batch.x + budget.eps).clamp(batch.bounds.lower, batch.bounds.upper)
        >>> batch = ab.Batch.of(torch.zeros(1, 1, 4, 4), torch.zeros(1, 4, 4), task="binary")
        >>> brighten(None, batch, budget=ab.Budget("linf", 0.25), generators=[]).unique()
        tensor([0.2500])
    """

    def __call__(self, model: Model, batch: Batch, *, budget: Budget, generators: Sequence[torch.Generator]) -> Tensor:
        """Return adversarial images.

        Args:
            model: Images (N, C, *S) -> logits (N, K, *S).
            batch: Images and labels; must not be modified.
            budget: Norm and radius.
            generators: One random generator per image, so that no image's result depends on its neighbours.

        Returns:
            Images (N, C, *S) with the dtype and device of `batch.x`, inside bounds and budget.
        """
        ...


@runtime_checkable
class NeedsModel(Protocol):
    """An attack that asks another model than the attacked one."""

    @property
    def source(self) -> Model | str:
        """The other model, or its name until the harness calls `bind`."""
        ...

    def bind(self, source: Model) -> Attack:
        """Return the attack with a model in place of its name.

        Args:
            source: Images (N, C, *S) -> logits (N, K, *S), frozen and in eval mode.

        Returns:
            The attack.
        """
        ...
