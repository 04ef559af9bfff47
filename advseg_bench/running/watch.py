"""Who changed the process while a batch was attacked, a model by its forward or an attack? What is attacked now?"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from advseg_bench.batches import Batch
from advseg_bench.instruments.process_state import make_flags, watched
from advseg_bench.registry.origin import is_foreign
from advseg_bench.running.work import Row
from advseg_bench.suite.cells import Cell

Announce = Callable[[Sequence[Cell], Batch], None]
"""(cells, batch): announces what is attacked from now on."""


def keep_silent(cells: Sequence[Cell], batch: Batch) -> None:
    """Announce nothing."""


class Watch:
    """What a model's own forward changes in the process.

    Args:
        model: The model that computes scores.
        attacked: The model that is attacked.

    Attributes:
        foreign_model: Whether one of them is code of others.
        own: Names of the states that the scoring model changed when nothing else ran.
    """

    def __init__(self, model: nn.Module, attacked: nn.Module) -> None:
        self.foreign_model = is_foreign(model) or is_foreign(attacked)
        self.own: set[str] = set()

    @contextmanager
    def of_model(self, thorough: bool) -> Iterator[None]:
        """Context for a forward of the scoring model alone; with `thorough` what it changes is noted and restored."""
        if not (thorough and self.foreign_model):
            yield
            return
        with watched(random_too=False) as changes:  # a stochastic model goes on with its random numbers
            yield
        self.own |= set(changes.names)

    def of_attack(self, names: Collection[str]) -> list[str]:
        """Return the names of changed states without those that the model itself changes."""
        return [name for name in names if name not in self.own]

    def flag(self, rows: list[Row]) -> list[Row]:
        """Add to all rows of the model what its own forward changes."""
        own = make_flags(self.own)
        for row in rows if own else ():
            row["flags"] = sorted({*row["flags"], *own})
        return rows


def copy_result(x_adv: object) -> object:
    """Return a private copy of a tensor, detached and of no subclass, which nobody else can change; else the object."""
    if not isinstance(x_adv, Tensor):
        return x_adv
    with torch._C.DisableTorchFunctionSubclass(), torch.inference_mode(False):
        return x_adv.detach().as_subclass(Tensor).clone()
