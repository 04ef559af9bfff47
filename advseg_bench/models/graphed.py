"""Forward and backward of a model as CUDA graphs. Experimental: not tested on a GPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function


class Graphed:
    """A forward and backward, recorded once and replayed for images of that shape; other images run without a graph.

    Experimental: not tested on a GPU.

    Args:
        model: Images -> logits, frozen and in eval mode.
        x: Images of the shape to record, on a CUDA device.
    """

    def __init__(self, model: nn.Module, x: Tensor) -> None:
        self.model, self.shape = model, x.shape
        sample = x.detach().clone().requires_grad_()
        self.graphed = torch.cuda.make_graphed_callables(model.forward, (sample,))

    def __call__(self, x: Tensor) -> Any:
        """Images (N, C, *S) -> logits."""
        if x.shape != self.shape or not (torch.is_grad_enabled() and x.requires_grad):
            return self.model(x)
        return _Copied.apply(self.graphed(_Copied.apply(x)))


class _Copied(Function):
    """Copies a value and its gradient, because a graph writes the next ones to the same memory."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Return a copy."""
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """Return a copy."""
        return gradient.clone()
