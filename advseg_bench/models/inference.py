"""Sliding windows: logits of large images from overlapping windows, and their input gradient window by window.

The scheme is that of MONAI's `sliding_window_inference`: images smaller than a window are padded with 0 on both sides,
windows are an equal distance apart and the last one ends at the border, and each pixel's logits are the mean over its
windows, weighted by `mode`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function

from advseg_bench.checks.outputs import Outputs
from advseg_bench.errors import IncompatibleError, SpecError, expected
from advseg_bench.models.lean import Lean
from advseg_bench.models.random_state import RandomState
from advseg_bench.suite.specs import list_starts

Mode = Literal["constant", "gaussian"]

_SIGMA = 0.125
"""Standard deviation of Gaussian weights, as a share of a window's edge."""

_LEAST = 1e-3
"""Smallest weight of a pixel in a window."""

_Place = tuple[slice, ...]
_Run = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Windows:
    """The windows into which images are divided.

    Attributes:
        roi: Edges of a window in pixels, one for each space axis, or one number for all.
        overlap: Share of an edge that neighbouring windows have in common, from 0 to below 1.
        mode: Weight of a window's logits: "constant", or "gaussian", which favours its centre.

    Raises:
        SpecError: If a value is invalid.
    """

    roi: tuple[int, ...]
    overlap: float = 0.25
    mode: Mode = "constant"

    def __post_init__(self) -> None:
        """Validate the values."""
        if not self.roi or any(isinstance(edge, bool) or not isinstance(edge, int) or edge < 1 for edge in self.roi):
            raise SpecError(expected("inference: roi", "one or more edges of at least 1 pixel", list(self.roi)))
        if not 0 <= self.overlap < 1:
            raise SpecError(expected("inference: overlap", "a share from 0 to below 1, such as 0.25", self.overlap))
        if self.mode not in get_args(Mode):
            raise SpecError(expected("inference: mode", " or ".join(map(repr, get_args(Mode))), self.mode))

    def find_edges(self, axes: int) -> tuple[int, ...]:
        """Return the edges of a window with a number of space axes. Raises: IncompatibleError."""
        if len(self.roi) not in (1, axes):
            remedy = "Give one edge for each space axis."
            raise IncompatibleError(expected("inference: roi", f"1 or {axes} edges", list(self.roi), remedy))
        return self.roi * axes if len(self.roi) == 1 else self.roi

    def list_places(self, size: Sequence[int]) -> list[_Place]:
        """Return where the windows lie in an image whose edges are at least those of a window."""
        starts = [
            list_starts(edge, window, self.overlap)
            for edge, window in zip(size, self.find_edges(len(size)), strict=True)
        ]
        edges = self.find_edges(len(size))
        return [
            tuple(slice(at, at + edge) for at, edge in zip(corner, edges, strict=True)) for corner in product(*starts)
        ]

    def weigh(self, like: Tensor) -> Tensor:
        """Return the weights of a window's pixels, with the dtype and on the device of `like`."""
        edges = self.find_edges(like.dim() - 2)
        weights = torch.ones(edges, device=like.device)
        if self.mode == "gaussian":
            for axis, edge in enumerate(edges):
                away = torch.arange(edge, dtype=torch.float32, device=like.device) - (edge - 1) / 2
                bell = torch.exp(-(away**2) / (2 * (_SIGMA * edge) ** 2))
                weights = weights * bell.view(-1, *[1] * (len(edges) - 1 - axis))
        return weights.clamp(min=max(float(weights.min()), _LEAST)).to(like.dtype)

    def as_record(self) -> dict[str, Any]:
        """Return what a run stores."""
        return {"roi": list(self.roi), "overlap": self.overlap, "mode": self.mode}


class SlidingWindow(nn.Module):
    """A model that is scored and attacked through sliding windows, for `ab.evaluate`, attacks and toolkits.

    The input gradient flows through all windows. It is computed window by window, so that memory is that of a
    single window of all images.

    Args:
        model: Network, or function, from images (N, C, *roi) to logits (N, K, *roi), or to outputs that contain them.
        roi: Edges of a window in pixels, one for each space axis, or one number for all.
        overlap: Share of an edge that neighbouring windows have in common.
        mode: Weight of a window's logits: "constant", or "gaussian", which favours its centre.

    Attributes:
        windows: The windows.

    Raises:
        SpecError: If a value is invalid.

    Cost:
        Each forward is one forward per window; each backward is one forward and one backward per window.

    Example:
        >>> import torch
        >>> import advseg_bench as ab
        >>> model = ab.SlidingWindow(lambda x: 4 * x - 2, roi=16, overlap=0.5, mode="gaussian")
        >>> tuple(model(torch.zeros(1, 1, 40, 24)).shape)
        (1, 1, 40, 24)
    """

    def __init__(
        self,
        model: Callable[[Tensor], Any],
        roi: int | Sequence[int],
        overlap: float = 0.25,
        mode: Mode = "constant",
    ) -> None:
        super().__init__()
        self.model = model
        self.windows = Windows((roi,) if isinstance(roi, int) else tuple(roi), overlap, mode)
        self.outputs = Outputs()
        self.training = bool(getattr(model, "training", False))

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of images.

        Args:
            x: Images, shape (N, C, *S).

        Returns:
            Logits, shape (N, K, *S).

        Cost:
            One forward per window.
        """
        return slide(lambda z: self.outputs.read(self.model(z), z), self, x, self.windows)


def slide(run: _Run, model: nn.Module, x: Tensor, windows: Windows) -> Tensor:
    """Return the logits of images from those of their windows.

    In training mode autograd keeps the activations of all windows. Otherwise each window is run again in the backward
    pass, also for gradients of the parameters, and nothing but the images is kept.

    Args:
        run: Window (N, C, *roi) -> logits (N, K, *roi).
        model: The module whose parameters `run` uses.
        x: Images (N, C, *S).
        windows: The windows.

    Returns:
        Logits (N, K, *S).

    Cost:
        One forward per window.
    """
    edges = windows.find_edges(x.dim() - 2)
    missing = [max(edge - size, 0) for edge, size in zip(edges, x.shape[2:], strict=True)]
    sides = [(some // 2, some - some // 2) for some in missing]
    padded = F.pad(x, [n for side in reversed(sides) for n in side]) if any(missing) else x
    if model.training:
        logits = _merge(run, padded, windows)
    else:
        parameters = [p for p in model.parameters() if p.requires_grad]
        logits = _Sliding.apply(padded, run, windows, *parameters)
    for axis, (size, (before, after)) in enumerate(zip(x.shape[2:], sides, strict=True), start=2):
        if before or after:
            logits = logits.narrow(axis, before, size)
    return logits


class _Sliding(Function):
    """Merged logits; each window is run again when its gradient is needed."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, run: _Run, windows: Windows, *parameters: Tensor) -> Tensor:
        """Run all windows without a graph; keep the images, and how the windows were run."""
        ctx.run, ctx.windows, ctx.conditions = run, windows, _read_conditions(x.device.type)
        ctx.states = []
        ctx.save_for_backward(x, *parameters)
        return _merge(run, x, windows, ctx.states)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of images and parameters, which cannot be differentiated again."""
        with torch.no_grad():
            found = _Sliding._differentiate(ctx, gradient.detach())
        if gradient.requires_grad:
            found = [_Once.apply(each, gradient) for each in found]
        return found[0], None, None, *found[1:]

    @staticmethod
    def _differentiate(ctx: Any, gradient: Tensor) -> list[Any]:
        """Run each window again with the random numbers of its forward, and add its gradients to the sums."""
        x, *parameters = ctx.saved_tensors
        windows: Windows = ctx.windows
        weights = windows.weigh(x)
        share = gradient / _total(windows, weights, x.shape[2:])
        sums = [torch.zeros_like(each) for each in (x, *parameters)]
        for place, state in zip(windows.list_places(x.shape[2:]), ctx.states, strict=True):
            leaf = _cut(x, place).clone().requires_grad_()
            with torch.enable_grad(), ExitStack() as stack:
                stack.enter_context(state.restored())
                for condition in ctx.conditions:
                    stack.enter_context(condition())
                logits = ctx.run(leaf)
            if logits.requires_grad:
                wanted = _cut(share, place) * weights
                found = torch.autograd.grad(
                    logits, (leaf, *parameters), wanted.to(logits.dtype), materialize_grads=True
                )
                _cut(sums[0], place).add_(found[0])
                for total, one in zip(sums[1:], found[1:], strict=True):
                    total.add_(one)
            del logits
        return sums


class _Once(Function):
    """The identity on a gradient; its backward raises an error with a remedy."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, source: Tensor) -> Tensor:
        """Return the gradient; `source`, from which it was computed, connects it to the images in the graph."""
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        """Raise the error about a second derivative."""
        remedy = "Attack the network without sliding windows."
        raise IncompatibleError(expected("inference", "to be differentiated once", "a second derivative", remedy))


def _merge(run: _Run, x: Tensor, windows: Windows, states: list[RandomState] | None = None) -> Tensor:
    """The weighted mean of the logits of all windows; `states` gets the random state before each window."""
    weights = windows.weigh(x)
    merged: Tensor | None = None
    for place in windows.list_places(x.shape[2:]):
        if states is not None:
            states.append(RandomState.read(x.device, states[-1] if states else None))
        logits = run(_cut(x, place).clone())
        if logits.shape[2:] != weights.shape:
            what = f"logits of a window's size, {tuple(weights.shape)}"
            raise IncompatibleError(expected("inference", what, tuple(logits.shape[2:]), "Change `roi`."))
        if merged is None:
            merged = x.new_zeros((len(x), logits.shape[1], *x.shape[2:]))
        _cut(merged, place).add_(logits * weights)
    assert merged is not None
    return merged / _total(windows, weights, x.shape[2:])


def _total(windows: Windows, weights: Tensor, size: Sequence[int]) -> Tensor:
    """The sum of the weights of each pixel over its windows, (*S)."""
    total = weights.new_zeros(tuple(size))
    for place in windows.list_places(size):
        total[place].add_(weights)
    return total


def _cut(x: Tensor, place: _Place) -> Tensor:
    """A window of images, as a view."""
    return x[(slice(None), slice(None), *place)]


def _read_conditions(device: str) -> list[Callable[[], AbstractContextManager[Any]]]:
    """Contexts in which the caller runs the model: they apply to the second run of a window, too."""
    lean, autocast = Lean.innermost(), torch.is_autocast_enabled(device)
    dtype = torch.get_autocast_dtype(device) if autocast else None
    found: list[Callable[[], AbstractContextManager[Any]]] = []
    if autocast:
        found.append(lambda: torch.autocast(device, dtype))
    if lean is not None:
        found.append(lambda: Lean(lean.small))
    return found
