"""Training flags of a model: read, set and restored, also where a module has none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


def read_modes(model: nn.Module) -> list[tuple[nn.Module, bool]]:
    """Return the training flag of each module; a frozen TorchScript module has none and is left out."""
    return [(module, module.training) for module in model.modules() if hasattr(module, "training")]


def set_mode(model: nn.Module, training: bool) -> None:
    """Call `train` on a model, unless it has no training flag."""
    if hasattr(model, "training"):
        model.train(training)


@contextmanager
def in_mode(model: nn.Module, training: bool) -> Iterator[None]:
    """Context in which a model is in training or eval mode; afterwards each module has its own flag again."""
    modes = read_modes(model)
    set_mode(model, training)
    try:
        yield
    finally:
        for module, flag in modes:
            module.training = flag
