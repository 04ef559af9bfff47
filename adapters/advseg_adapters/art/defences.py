"""ART's preprocessing defences as a differentiable function of the images."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from advseg_adapters.art.toolkit import PreprocessorPyTorch
from advseg_bench.errors import IncompatibleError


def defend(images: Tensor, operations: Iterable[Any], *, fit: bool) -> Tensor:
    """Apply preprocessors in order; the result is differentiable with respect to the images.

    A PyTorch preprocessor is differentiated by autograd, through `estimate_forward` if it overrides that. A NumPy
    preprocessor contributes its `estimate_gradient` at its input, at any place in the chain.

    Args:
        images: float32 (N, C, *S).
        operations: ART's preprocessors; those that do not apply to training (or to prediction) are skipped.
        fit: Whether this is training.

    Returns:
        float32, the shape of `images`.

    Raises:
        IncompatibleError: A preprocessor changes the shape, or requires class labels.
    """
    for operation in operations:
        if not (operation.apply_fit if fit else operation.apply_predict):
            continue
        name = type(operation).__name__
        try:
            done = _run(images, operation)
        except (TypeError, ValueError, AttributeError, IndexError) as error:
            raise IncompatibleError(
                f"defence {name}: cannot be applied to images of shape {tuple(images.shape)}: {error}. Use another."
            ) from error
        if done.shape != images.shape:
            raise IncompatibleError(
                f"defence {name}: expected a result of shape {tuple(images.shape)}, got {tuple(done.shape)}. "
                "Use one that keeps the shape, since masks must match."
            )
        images = done.to(images.dtype)
    return images


def _run(images: Tensor, operation: Any) -> Tensor:
    if not isinstance(operation, PreprocessorPyTorch):
        return cast(Tensor, _OfNumpy.apply(images, operation))
    done, _ = operation.forward(images)
    if type(operation).estimate_forward is PreprocessorPyTorch.estimate_forward:
        return cast(Tensor, done)
    return cast(Tensor, _StraightThrough.apply(operation.estimate_forward(images), done))


class _OfNumpy(torch.autograd.Function):
    """A NumPy preprocessor: its values in the forward pass, its estimate of the gradient in the backward pass."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, operation: Any) -> Tensor:
        ctx.save_for_backward(images)
        ctx.operation = operation
        done, _ = operation(images.detach().cpu().numpy())
        return torch.from_numpy(np.ascontiguousarray(done)).to(images)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (images,) = ctx.saved_tensors
        gradient = ctx.operation.estimate_gradient(images.cpu().numpy(), gradients[0].cpu().numpy())
        return torch.from_numpy(np.ascontiguousarray(gradient)).to(images), None


class _StraightThrough(torch.autograd.Function):
    """The values of one tensor with the gradient of another."""

    @staticmethod
    def forward(ctx: Any, estimate: Tensor, value: Tensor) -> Tensor:
        return value.detach().clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None
