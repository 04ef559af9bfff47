"""An attack that moves the image within its budget, and misbehaves in the way that its settings name."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import test_process_state as states
import torch
from torch import Tensor

hoard: list[Tensor] = []
"""What is never freed."""


def hold_memory(model: Any, x: Tensor) -> None:
    hoard.append(torch.ones(1_000_000))


def spoil(model: Any, x: Tensor) -> None:
    x.fill_(float("nan"))


def leave_budget(model: Any, x: Tensor) -> None:
    x.add_(0.3)


def spoil_model(model: Any, x: Tensor) -> None:
    """Change the weights past their write counters."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.data.mul_(1.5)


def write_to_model(model: Any, x: Tensor) -> None:
    """Change the weights so that their write counters tell of it."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)


def train_model(model: Any, x: Tensor) -> None:
    model.train()
    model.zero_grad()


def ignore(act: Callable[[], object]) -> Callable[[Any, Tensor], object]:
    """Make a change of the process an act of an attack."""
    return lambda model, x: act()


def changes(names: str) -> set[str]:
    """The flags of rows that changed these states of the process."""
    return {"process_changed", *(f"process_changed:{name}" for name in names.split(", "))}


FLAGGED: dict[str, tuple[Callable[[Any, Tensor], object], set[str]]] = {
    **{name: (ignore(act), changes(names)) for name, (act, names) in states.STATES.items()},
    "closed stdout": (
        ignore(states.STATES["closed stdout"][0]),
        changes("standard streams"),
    ),  # a worker keeps descriptor 1
    "reseeded": (ignore(states.reseed), set()),
    "hoard": (hold_memory, set()),
    "NaN": (spoil, {"non_finite", "unchanged"}),
    "out of budget": (leave_budget, {"over_budget", "out_of_bounds"}),
    "model": (spoil_model, {"model_changed"}),
    "train mode": (train_model, {"model_changed"}),
    "write to the model": (write_to_model, {"model_changed"}),
    "thread on the model": (states.change_model_later, {"model_changed"} | changes(states.THREADS)),
    "thread on the result": (states.change_result_later, changes(states.THREADS)),
}
"""What an attack may do -> its act, and the flags of its rows. Random states are restored without a flag."""


class Change:
    """Args: change: A key of `FLAGGED`."""

    def __init__(self, change: str) -> None:
        self.act = FLAGGED[change][0]

    def __call__(self, model, batch, *, budget, generators) -> Tensor:
        if not states.PIPE:
            states.PIPE[:] = os.pipe()
        x = (batch.x + budget.eps / 2).clamp(0, 1)
        self.act(model, x)
        return x
