"""Forward passes that keep in memory only what the input gradient needs; docs/dev/lean.md says why."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from advseg_bench.models.lean_layers import LEAN

SMALL = 1 << 18
"""Calls on fewer values are left to PyTorch: in float32 they save a megabyte at most."""


class Lean(TorchFunctionMode):
    """While it is active, frozen layers save less for the backward pass; outputs and gradients keep every bit.

    PyTorch's convolution saves its input, which only the gradient of the weight needs, although the weight is frozen;
    ReLU saves its output, of which the sign would do. Function calls are replaced, not modules, so it does not matter
    how a network makes them. Calls on few values are left as they are, and so is whatever needs more for its gradient:
    weights that are not frozen, activations such as SiLU, normalisation by the statistics of the batch, checkpointed
    parts. Operations in place stay in place, and no others become so. A second derivative through a lean call raises
    IncompatibleError. Where an input is NaN, clipping activations pass a gradient that PyTorch's own may stop.

    Args:
        small: Calls on fewer values are left as they are; `SMALL` if None.
    """

    def __init__(self, small: int | None = None) -> None:
        super().__init__()
        self.small = SMALL if small is None else small

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run a function, or the lean one that stands for it."""
        kwargs = kwargs or {}
        lean = LEAN.get(func)
        if lean is not None and torch.is_grad_enabled() and not _is_saved_by_hooks():
            x = args[0] if args else kwargs.get("input")
            if type(x) is Tensor and x.requires_grad and x.numel() >= self.small:
                result = lean(*args, **kwargs)
                if result is not None:
                    return result
        return func(*args, **kwargs)


def is_worth_it(x: Tensor) -> bool:
    """Whether images (N, C, *S) have over 2^15 pixels in all; on fewer, calls have little to save."""
    return 8 * x.numel() > SMALL * x.shape[1:2].numel()


def _is_saved_by_hooks() -> bool:
    """Whether hooks take care of saved tensors, as those of checkpoints do, which identify them by their order."""
    return torch._C._autograd._top_saved_tensors_default_hooks(False) is not None
