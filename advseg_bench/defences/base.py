"""A defence: a network with something around it. Attacks and scores see the whole, never the network alone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn
from torch.autograd import Function

from advseg_bench.instruments.modes import set_mode
from advseg_bench.types import Bounds, DefenceTraits, Task


class Defence(Protocol):
    """The protocol of defences: a callable that puts something around a network, with the attribute `traits`.

    Example:
        >>> import torch
        >>> from advseg_bench.defences import BitDepth
        >>> from advseg_bench.types import Bounds, Task
        >>> defended = BitDepth(bits=1)(torch.nn.Identity(), Task("binary", ("organ",)), Bounds())
        >>> defended(torch.tensor([[[0.2, 0.8]]])).tolist()
        [[[0.0, 1.0]]]
    """

    @property
    def traits(self) -> DefenceTraits:
        """What the defence supports and costs."""
        ...

    def __call__(self, model: nn.Module, task: Task, bounds: Bounds) -> nn.Module:
        """Return the defended network.

        Args:
            model: Maps images (N, C, *S) within the bounds to logits (N, K, *S).
            task: The task of the logits.
            bounds: The intensity range of the images.

        Returns:
            A module of the same form, with `model` as a submodule.

        Raises:
            IncompatibleError: If the defence does not fit the task or the bounds.
        """
        ...


class Defended(nn.Module):
    """A network whose images are transformed first.

    Args:
        model: Maps images (N, C, *S) to logits (N, K, *S).
        transform: Maps images to images of the same shape.

    Attributes:
        model: As given.
        transform: As given.

    Example:
        >>> import torch
        >>> from advseg_bench.defences import Defended
        >>> Defended(torch.nn.Identity(), lambda x: 1 - x)(torch.tensor([0.25]))
        tensor([0.7500])
    """

    def __init__(self, model: nn.Module, transform: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.model, self.transform = model, transform
        self.training = model.training

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of transformed images.

        Args:
            x: Images, shape (N, C, *S).

        Returns:
            Logits, shape (N, K, *S).

        Cost:
            One forward of the network.
        """
        logits: Tensor = self.model(self.transform(x))
        return logits

    def train(self, mode: bool = True) -> Defended:
        """Set the mode of the network, if it has one."""
        self.training = mode
        set_mode(self.model, mode)
        return self


class InputTransformation(ABC):
    """Base class of defences that transform the image and leave the network alone.

    A subclass is a frozen dataclass. Where its transformation has no useful gradient, as rounding, it sets
    `differentiable=False` in `traits` and calls `pass_through`, so that attacks see the identity in the backward pass
    (backward pass differentiable approximation, BPDA, arXiv 1802.00420).

    Example:
        >>> import torch
        >>> from advseg_bench.defences import InputTransformation
        >>> from advseg_bench.types import Bounds, Task
        >>> class Invert(InputTransformation):
        ...     def transform(self, x, bounds):
        ...         return bounds.lower + bounds.upper - x
        >>> Invert()(torch.nn.Identity(), Task("binary", ("organ",)), Bounds())(torch.tensor([0.25]))
        tensor([0.7500])
    """

    traits: ClassVar[DefenceTraits] = DefenceTraits()

    @abstractmethod
    def transform(self, x: Tensor, bounds: Bounds) -> Tensor:
        """Return transformed images.

        Args:
            x: Images, shape (N, C, *S), within the bounds.
            bounds: The intensity range.

        Returns:
            Images of the same shape, within the bounds.
        """

    def __call__(self, model: nn.Module, task: Task, bounds: Bounds) -> Defended:
        """Return the network with the transformation in front of it.

        Args:
            model: Maps images (N, C, *S) to logits (N, K, *S).
            task: The task of the logits.
            bounds: The intensity range of the images.

        Returns:
            The defended network.

        Raises:
            IncompatibleError: If the transformation is not defined for the task or the bounds.
        """
        return Defended(model, lambda x: self.transform(x, bounds))


def pass_through(x: Tensor, transformed: Tensor) -> Tensor:
    """Return transformed images whose gradient is that of the identity.

    Args:
        x: Images before the transformation.
        transformed: Images after it, of the same shape, computed without a graph.

    Returns:
        `transformed`; its gradient goes to `x` unchanged.

    Source:
        arXiv 1802.00420, backward pass differentiable approximation (BPDA).

    Example:
        >>> import torch
        >>> from advseg_bench.defences import pass_through
        >>> x = torch.tensor([0.2, 0.8], requires_grad=True)
        >>> pass_through(x, x.detach().round()).sum().backward()
        >>> x.grad
        tensor([1., 1.])
    """
    found: Tensor = _PassThrough.apply(x, transformed)
    return found


class _PassThrough(Function):
    """Transformed images in the forward pass, the identity in the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, transformed: Tensor) -> Tensor:
        return transformed.clone() if transformed is x else transformed

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


def scale_to_unit(x: Tensor, bounds: Bounds) -> Tensor:
    """Return images of the bounds as images in [0, 1]."""
    return x if bounds == Bounds() else (x - bounds.lower) / (bounds.upper - bounds.lower)


def scale_from_unit(x: Tensor, bounds: Bounds) -> Tensor:
    """Return images in [0, 1] as images of the bounds."""
    return x if bounds == Bounds() else x * (bounds.upper - bounds.lower) + bounds.lower


def no_graph(transform: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return transformed images computed without a graph, with the gradient of the identity."""
    with torch.no_grad():
        transformed = transform(x.detach())
    return pass_through(x, transformed)
