"""Frozen layers that save less for the backward pass than PyTorch's own: weights, masks and indices, no inputs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from operator import index
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from advseg_bench.errors import IncompatibleError

_Map = Callable[[Tensor], Tensor]
_Layout = tuple[torch.Size, tuple[int, ...]]
"""Shape and strides."""

_BY_INPUT = [True, False, False]
"""Which gradients a kernel computes: of the input, not of weight and bias."""

_aten = torch.ops.aten


class _LeanLayer(Function):
    """A layer that saves only what its backward needs; of the input it saves the layout."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, run: Callable[[Tensor], tuple[Tensor, ...]], back: Callable[..., Tensor], inplace: bool
    ) -> Tensor:
        """Run a layer.

        Args:
            ctx: Context of autograd.
            x: The input.
            run: Input -> output, and the tensors to save.
            back: Gradient of the output, layout of the input, saved tensors -> gradient of the input.
            inplace: Whether `run` writes to the input.
        """
        out, *saved = run(x)
        ctx.save_for_backward(*saved)
        ctx.back, ctx.layout = back, (x.shape, x.stride())
        if inplace:
            ctx.mark_dirty(x)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        """Return the gradient of the input, which cannot be differentiated again."""
        with torch.no_grad():
            found = ctx.back(gradient, ctx.layout, *ctx.saved_tensors)
        if gradient.requires_grad:
            found = _NotTwiceDifferentiable.apply(found, gradient)
        return found, None, None, None


class _NotTwiceDifferentiable(Function):
    """The identity on a gradient; its backward raises an error with a remedy."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, source: Tensor) -> Tensor:
        """Return the gradient; `source`, from which it was computed, connects it to the images in the graph."""
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        """Raise the error about a second derivative."""
        raise IncompatibleError(
            "prepared model: expected to be differentiated once, got a second derivative. "
            'Attack the unprepared model: set prepare = "raw".'
        )


def _apply(
    x: Tensor, run: Callable[[Tensor], tuple[Tensor, ...]], back: Callable[..., Tensor], inplace: bool = False
) -> Tensor:
    """Run a `_LeanLayer`."""
    out: Tensor = _LeanLayer.apply(x, run, back, inplace)
    return out


def _placeholder(gradient: Tensor, layout: _Layout) -> Tensor:
    """A tensor with the layout of an input that was not saved, for kernels that take it but ignore its values."""
    if (gradient.shape, gradient.stride()) == layout:
        return gradient
    return gradient.new_empty_strided(*layout)


def _convolve(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor | None:
    """`torch.nn.functional.conv1d`, `conv2d` and `conv3d`."""
    if isinstance(padding, str):
        symmetric = set(_expand(dilation, 1)) == {1} and all(edge % 2 for edge in weight.shape[2:])
        if padding != "valid" and not (padding == "same" and symmetric):
            return None
        padding = 0 if padding == "valid" else [edge // 2 for edge in weight.shape[2:]]
    return _convolve_any(input, weight, bias, stride, padding, dilation, False, 0, groups)


def _convolve_transposed(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Tensor | None:
    """`torch.nn.functional.conv_transpose1d`, `conv_transpose2d` and `conv_transpose3d`."""
    return _convolve_any(input, weight, bias, stride, padding, dilation, True, output_padding, groups)


def _convolve_any(x: Tensor, weight: Tensor, bias: Tensor | None, *settings: Any) -> Tensor | None:
    """Convolve with frozen weights and the settings of `torch.convolution`, and save only the weight.

    The casts of autocast are done here, outside the autograd function.
    """
    axes = weight.dim() - 2
    if not _are_frozen(weight, bias) or x.dim() != axes + 2 or x.is_complex() or weight.is_complex():
        return None
    stride, padding, dilation, transposed, output_padding, groups = settings
    stride, padding, dilation, output_padding = (_expand(v, axes) for v in (stride, padding, dilation, output_padding))
    settings = (stride, padding, dilation, transposed, output_padding, groups)
    device = x.device.type
    if torch.is_autocast_enabled(device) and torch.float64 not in (x.dtype, weight.dtype):
        dtype = torch.get_autocast_dtype(device)
        x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)

    def run(x: Tensor) -> tuple[Tensor, ...]:
        return torch.convolution(x, weight, bias, *settings), weight

    def back(gradient: Tensor, layout: _Layout, weight: Tensor) -> Any:
        others = (weight, None, *settings, _BY_INPUT)
        return _aten.convolution_backward(gradient, _placeholder(gradient, layout), *others)[0]

    return _apply(x, run, back)


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor | None:
    """`torch.nn.functional.batch_norm` with fixed statistics, which are saved with the weight."""
    if training or running_mean is None or running_var is None or input.dim() < 2 or not input.numel():
        return None
    if not _are_frozen(weight, bias, running_mean, running_var):
        return None

    def run(x: Tensor) -> tuple[Any, ...]:
        out = F.batch_norm(x, running_mean, running_var, weight, bias, False, momentum, eps)
        return out, running_mean, running_var, weight

    def back(gradient: Tensor, layout: _Layout, mean: Tensor, var: Tensor, weight: Tensor | None) -> Any:
        settings = (mean, var, None, None, False, float(eps), _BY_INPUT)
        return _aten.native_batch_norm_backward(gradient, _placeholder(gradient, layout), weight, *settings)[0]

    return _apply(input, run, back)


def _relu(input: Tensor, inplace: bool = False) -> Tensor | None:
    """`torch.nn.functional.relu`."""
    return _activate(input, inplace, torch.relu_ if inplace else torch.relu, None, _aten.threshold_backward, 0)


def _leaky_relu(input: Tensor, negative_slope: float = 0.01, inplace: bool = False) -> Tensor | None:
    """`torch.nn.functional.leaky_relu`."""
    if negative_slope < 0:
        return None
    run = partial(F.leaky_relu_ if inplace else F.leaky_relu, negative_slope=negative_slope)
    return _activate(input, inplace, run, lambda x: x > 0, _aten.leaky_relu_backward, negative_slope, False)


def _hardtanh(input: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Tensor | None:
    """`torch.nn.functional.hardtanh`; not for float16, where PyTorch compares with unrounded bounds."""
    if input.dtype == torch.float16:
        return None
    run = partial(F.hardtanh_ if inplace else F.hardtanh, min_val=min_val, max_val=max_val)

    def is_inside(x: Tensor) -> Tensor:
        return (x <= min_val).logical_or_(x >= max_val).logical_not_()

    return _activate(input, inplace, run, is_inside, _aten.hardtanh_backward, 0, 2)


def _relu6(input: Tensor, inplace: bool = False) -> Tensor | None:
    """`torch.nn.functional.relu6`."""
    return _hardtanh(input, 0.0, 6.0, inplace)


def _activate(
    x: Tensor, inplace: bool, function: _Map, passes: _Map | None, kernel: Any, *settings: Any
) -> Tensor | None:
    """Run an activation, and save a mask of the values where it passes gradients.

    Args:
        x: The input.
        inplace: Whether the activation writes to its input.
        function: Input -> output.
        passes: Input -> the mask; None if the mask is true where the output is not 0.
        kernel: PyTorch's backward of the activation; its input argument is the mask, 1 where gradients pass, else 0.
        *settings: Further arguments of the kernel.

    Returns:
        The output; None for an in-place activation on a view of another tensor.
    """
    if inplace and x._is_view():
        return None

    def run(x: Tensor) -> tuple[Tensor, ...]:
        mask = None if passes is None else passes(x)
        out = function(x)
        return out, (out.to(torch.bool) if mask is None else mask).view(torch.int8)

    def back(gradient: Tensor, layout: _Layout, mask: Tensor) -> Any:
        found = mask.to(gradient.dtype)
        if found.stride() != gradient.stride():
            return kernel(gradient, found, *settings)
        return kernel.grad_input(gradient, found, *settings, grad_input=found)

    return _apply(x, run, back, inplace)


def _prelu(input: Tensor, weight: Tensor) -> Tensor | None:
    """`torch.nn.functional.prelu`; the mask of positive inputs is saved."""
    if not _are_frozen(weight) or input.dtype != weight.dtype or input.dim() < 2:
        return None
    if torch.is_autocast_enabled(input.device.type):
        return None
    slopes = weight.view(-1, *[1] * (input.dim() - 2))

    def back(gradient: Tensor, layout: _Layout, mask: Tensor) -> Tensor:
        return torch.where(mask, gradient, gradient * slopes)

    return _apply(input, lambda x: (torch.prelu(x, weight), x > 0), back)


def _max_pool(
    axes: int,
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor | None:
    """`torch.nn.functional.max_pool2d` or `max_pool3d`; the indices of the maxima are saved."""
    if return_indices or input.dim() != axes + 2 or torch.is_autocast_enabled(input.device.type):
        return None
    windows = (kernel_size, [] if stride is None else stride, padding, dilation)
    settings = (*(_expand(value, axes) for value in windows), ceil_mode)
    pool = _aten.max_pool2d_with_indices if axes == 2 else _aten.max_pool3d_with_indices
    unpool = _aten.max_pool2d_with_indices_backward if axes == 2 else _aten.max_pool3d_with_indices_backward

    def back(gradient: Tensor, layout: _Layout, indices: Tensor) -> Any:
        return unpool(gradient, _placeholder(gradient, layout), *settings, indices)

    return _apply(input, lambda x: pool(x, *settings), back)


def _are_frozen(*tensors: Tensor | None) -> bool:
    """Whether no gradient of these tensors is required."""
    return not any(tensor is not None and tensor.requires_grad for tensor in tensors)


def _expand(value: Any, axes: int) -> list[int]:
    """One number per axis."""
    values = list(value) if isinstance(value, list | tuple) else [index(value)]
    return values * axes if len(values) == 1 else values


LEAN: dict[Callable[..., Any], Callable[..., Tensor | None]] = {
    **dict.fromkeys((F.conv1d, F.conv2d, F.conv3d), _convolve),
    **dict.fromkeys((F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d), _convolve_transposed),
    F.batch_norm: _batch_norm,
    **dict.fromkeys((F.relu, torch.relu, Tensor.relu), _relu),
    **dict.fromkeys((F.relu_, torch.relu_, Tensor.relu_), partial(_relu, inplace=True)),
    F.leaky_relu: _leaky_relu,
    **dict.fromkeys((F.prelu, torch.prelu, Tensor.prelu), _prelu),
    F.hardtanh: _hardtanh,
    F.relu6: _relu6,
    **dict.fromkeys((F.max_pool2d, torch.max_pool2d), partial(_max_pool, 2)),
    **dict.fromkeys((F.max_pool3d, torch.max_pool3d), partial(_max_pool, 3)),
}
"""Function of PyTorch -> its lean replacement, which returns None if the call is left to PyTorch."""
