"""Shares gradients: attacks that need one gradient at the clean image share its forward, and some its backward."""

from __future__ import annotations

from collections.abc import Hashable, Iterable

from torch import Tensor, nn

from advseg_bench.attacks.gradient import OneGradientAttack, input_gradients, is_shared
from advseg_bench.batches import Batch
from advseg_bench.protocols import Attack
from advseg_bench.running.interrupts import contained


class SharedGradients:
    """The gradients at the clean images of one batch: one forward for all of them, one backward for each distinct one.

    Attributes:
        logits: Clean logits of the attacked model, or None if no gradient was computed or that failed.
    """

    def __init__(self, model: nn.Module, batch: Batch, attacks: Iterable[Attack]) -> None:
        self.model, self.batch = model, batch
        self.logits: Tensor | None = None
        self._found: dict[Hashable, Tensor | Exception | SystemExit] = {}
        distinct = {attack.gradient_key(): attack for attack in attacks if is_shared(attack)}
        if not distinct:
            return
        try:
            with contained():
                self.logits, gradients = self._differentiate(list(distinct.values()))
        except (Exception, SystemExit):
            return  # `of` differentiates each attack alone, and raises its error
        self._found.update(zip(distinct, gradients, strict=True))

    def of(self, attack: OneGradientAttack) -> Tensor:
        """Return the gradient of an attack's objective at the images. Raises: what the objective raises."""
        key = attack.gradient_key()
        if key not in self._found:
            try:
                with contained():
                    self._found[key] = self._differentiate([attack])[1][0]
            except (Exception, SystemExit) as error:
                self._found[key] = error
        found = self._found[key]
        if isinstance(found, BaseException):
            raise found
        return found

    def _differentiate(self, attacks: list[OneGradientAttack]) -> tuple[Tensor, list[Tensor]]:
        objectives = [lambda logits, attack=attack: attack.objective(logits, self.batch) for attack in attacks]
        return input_gradients(self.model, self.batch.x, objectives)
