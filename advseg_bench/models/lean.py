"""Forward passes that keep in memory only what the input gradient needs; docs/dev/lean.md gives the reasons."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from advseg_bench.models.lean_layers import LEAN

SMALL = 1 << 18
"""Calls on fewer values are left to PyTorch: in float32 they would save at most a megabyte."""


_ACTIVE: list[Lean] = []
"""Contexts that are entered, the innermost last."""


class Lean(TorchFunctionMode):
    """Context in which frozen layers save less for the backward pass; outputs and gradients are bit-identical.

    PyTorch's convolution saves its input, which only the gradient of the weight needs, although the weight is frozen;
    ReLU saves its output, although the sign is sufficient. Function calls are replaced, not modules, so it does not
    matter how a network makes them. Calls on few values are left unchanged, and so are calls that need more for their
    gradient: with weights that are not frozen, activations such as SiLU, normalisation by batch statistics, and
    checkpointed parts. In-place operations stay in place, and no other becomes one. A second derivative through a lean
    call raises IncompatibleError. Where an input is NaN, clipping activations pass a gradient that PyTorch may stop.

    Args:
        small: Calls on fewer values are left unchanged; `SMALL` if None.
    """

    def __init__(self, small: int | None = None) -> None:
        super().__init__()
        self.small = SMALL if small is None else small

    @staticmethod
    def innermost() -> Lean | None:
        """Return the context that is active, or None."""
        return _ACTIVE[-1] if _ACTIVE else None

    def __enter__(self) -> Any:
        """Enter the context."""
        _ACTIVE.append(self)
        return super().__enter__()  # type: ignore[no-untyped-call]

    def __exit__(self, *error: Any) -> None:
        """Leave the context."""
        _ACTIVE.remove(self)
        super().__exit__(*error)  # type: ignore[no-untyped-call]

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run a function, or its lean replacement."""
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
    """Whether images (N, C, *S) have more than 2^15 pixels together; for fewer, little memory can be saved."""
    return 8 * x.numel() > SMALL * x.shape[1:2].numel()


def _is_saved_by_hooks() -> bool:
    """Whether hooks handle saved tensors, as those of checkpoints do, which identify tensors by their order."""
    return torch._C._autograd._top_saved_tensors_default_hooks(False) is not None
