"""Forward passes that keep only what the gradient by the image needs: frozen weights, masks, indices."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from operator import index
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.overrides import TorchFunctionMode

from advseg_bench.errors import IncompatibleError

_aten = torch.ops.aten

_BY_INPUT = [True, False, False]
"""Which gradients to compute: that by the input alone."""

_Run = Callable[[Tensor], Tensor]

_HAS_VECTORS = torch.backends.cpu.get_cpu_capability().startswith("AVX")

SMALL = 1 << 18
"""Calls on fewer values are left to PyTorch: a megabyte of float32 is worth less than a layer run from Python."""


class Lean(TorchFunctionMode):
    """While it is active, frozen layers keep less for the backward; values and gradients keep every bit.

    PyTorch's convolution saves its input, which only the gradient of the weight needs, although the weight is frozen;
    ReLU saves its output, of which a sign would do. Calls are replaced rather than modules, so it does not matter
    how a network makes them. A call is left as it is on few values, and where its gradient needs more:
    weights that are not frozen, activations such as SiLU, normalisation by the statistics of the batch, checkpointed
    parts. What is in place stays in place, and nothing else becomes so. Gradients can be had once: a second derivative
    through a lean call raises IncompatibleError.
    Where an input is NaN, clipping activations pass a gradient that PyTorch's own may stop.

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
        """Run a function, the lean way where there is one."""
        kwargs = kwargs or {}
        lean = _LEAN.get(func)
        if lean is not None and torch.is_grad_enabled() and not _is_recorded_elsewhere():
            x = args[0] if args else kwargs.get("input")
            if type(x) is Tensor and x.requires_grad and x.numel() >= self.small:
                result = lean(*args, **kwargs)
                if result is not None:
                    return result
        return func(*args, **kwargs)


def is_worth_it(x: Tensor) -> bool:
    """Whether images (N, C, *S) have over 2^15 pixels; on fewer, looking at each call costs more than lean calls save.

    That leaves out 8 images of 64 x 64, but not one of 224 x 224.
    """
    return 8 * x.numel() > SMALL * x.shape[1:2].numel()


def _is_recorded_elsewhere() -> bool:
    """Whether somebody else takes care of what is saved, as checkpoints do, which match it by its order."""
    return torch._C._autograd._top_saved_tensors_default_hooks(False) is not None


class _End(Function):
    """The end of the road: passes a gradient on, and says why it cannot be differentiated."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, anchor: Tensor) -> Tensor:
        """Return the gradient."""
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        """Refuse."""
        raise IncompatibleError(
            "prepared model: expected to be differentiated once, got a second derivative. "
            'Attack the model as it is, with prepare "raw".'
        )


def _first_order(backward: Callable[[Any, Tensor], Tensor]) -> Callable[[Any, Tensor], tuple[Tensor | None, ...]]:
    """Make a backward of one gradient out of a function; what it returns cannot be differentiated again."""

    def run(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        nothing = (None,) * (len(ctx.needs_input_grad) - 1)
        if not torch.is_grad_enabled():
            return (backward(ctx, gradient), *nothing)
        with torch.no_grad():
            result = backward(ctx, gradient)
        if gradient.requires_grad:  # the way on to the images is through the gradient
            result = _End.apply(result, gradient)
        return (result, *nothing)

    return run


def _stand_in(gradient: Tensor, shape: torch.Size, stride: tuple[int, ...]) -> Tensor:
    """A tensor of a shape and layout, for a kernel that asks for an input of which it does not need the values."""
    if gradient.shape == shape and gradient.stride() == stride:
        return gradient
    return gradient.new_empty_strided(shape, stride)


class _Geometry(NamedTuple):
    """The settings of a convolution, as PyTorch's one operator for all of them takes them."""

    stride: list[int]
    padding: list[int]
    dilation: list[int]
    transposed: bool
    output_padding: list[int]
    groups: int


class _Convolve(Function):
    """A convolution of any kind that saves its weight alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: _Geometry) -> Tensor:
        """Return the convolution."""
        ctx.save_for_backward(weight)
        ctx.layout, ctx.geometry = (x.shape, x.stride()), geometry
        return torch.convolution(x, weight, bias, *geometry)

    @staticmethod
    @_first_order
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """Return the gradient by the input, of which only the shape matters."""
        (weight,) = ctx.saved_tensors
        settings = (weight, None, *ctx.geometry, _BY_INPUT)
        found: Tensor = _aten.convolution_backward(gradient, _stand_in(gradient, *ctx.layout), *settings)[0]
        return found


class _Normalise(Function):
    """Batch normalisation by fixed statistics, which saves only them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, mean: Tensor, var: Tensor, weight: Any, bias: Any, eps: float) -> Tensor:
        """Return the normalised input."""
        ctx.save_for_backward(mean, var, weight)
        ctx.layout, ctx.eps = (x.shape, x.stride()), float(eps)
        # the products lie in memory as PyTorch's gradient does unless an axis of size 1 makes that ambiguous
        unambiguous = x.is_contiguous() and min(x.shape[1:]) > 1 and x.stride(0) > x.stride(1)
        ctx.two_products = unambiguous and x.is_cpu and x.dtype in (torch.float32, torch.float64)
        return F.batch_norm(x, mean, var, weight, bias, False, 0.0, eps)

    @staticmethod
    @_first_order
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """Return the gradient by the input; the input's values, which only the weight's needs, may be any."""
        mean, var, weight = ctx.saved_tensors
        if not ctx.two_products or gradient.stride() != ctx.layout[1]:
            settings = (mean, var, None, None, False, ctx.eps, _BY_INPUT)
            stand_in = _stand_in(gradient, *ctx.layout)
            whole: Tensor = _aten.native_batch_norm_backward(gradient, stand_in, weight, *settings)[0]
            return whole
        # on a CPU, that kernel sums over the gradient before it multiplies
        scale, weight = _factors(var, weight, ctx.eps, gradient.dim())
        passed = gradient * scale
        return passed if weight is None else passed.mul_(weight)


def _factors(var: Tensor, weight: Tensor | None, eps: float, dim: int) -> tuple[Tensor, Tensor | None]:
    """1 / sqrt(var + eps), as PyTorch's kernel rounds it, and the weight, both shaped (C, 1, ...) for `dim` axes.

    They are kept with `var`, and made anew where its values or the weight's no longer equal those they were made of.
    """
    settings = (eps, dim, var.dtype)
    kept: tuple[Any, Tensor, Tensor | None, tuple[Tensor, Tensor | None]] | None = getattr(var, "_factors", None)
    if kept is not None and kept[0] == settings and torch.equal(kept[1], var) and _are_equal(kept[2], weight):
        return kept[3]
    values, weights = var.detach().clone(), None if weight is None else weight.detach().clone()
    ones, shape = values.new_ones(1, len(values)), (-1, *[1] * (dim - 2))
    scale = _aten.native_batch_norm_backward(ones, ones, None, values, values, None, None, False, eps, _BY_INPUT)[0]
    factors = scale.view(shape), None if weights is None else weights.view(shape)
    var._factors = (settings, values, weights, factors)  # type: ignore[attr-defined]
    return factors


def _are_equal(kept: Tensor | None, given: Tensor | None) -> bool:
    """Whether both have the same values, or neither is there."""
    return kept is given if kept is None or given is None else torch.equal(kept, given)


class _Gate(Function):
    """An activation whose derivative is 1 where a mask says so, and a constant elsewhere."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, run: _Run, passes: _Run | None, slope: Any, inplace: bool) -> Tensor:
        """Run the activation; `slope`, None for 0, counts where `passes` is false, or the result 0 if that is None.

        Masks are made as bool and used as int8: the kernels of the other kind take several times as long.
        """
        keep = None if passes is None else passes(x)
        out = run(x)
        if keep is None:
            keep = out.to(torch.bool)
        ctx.save_for_backward(keep.view(torch.int8))
        ctx.slope = slope
        if inplace:
            ctx.mark_dirty(x)
        return out

    @staticmethod
    @_first_order
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """Return the gradient by the input."""
        (keep,) = ctx.saved_tensors
        if isinstance(ctx.slope, Tensor):
            return torch.where(keep.view(torch.bool), gradient, gradient * ctx.slope)
        back = _aten.threshold_backward if ctx.slope is None else _aten.leaky_relu_backward
        settings = (0,) if ctx.slope is None else (ctx.slope, False)
        if not gradient.is_cpu or gradient.stride() != keep.stride():
            whole: Tensor = back(gradient, keep, *settings)
            return whole
        # On a CPU, int8 beside float32 is made float32 first: that can be the result, in place.
        passed: Tensor = keep.to(gradient.dtype)
        back.grad_input(gradient, passed, *settings, grad_input=passed)
        return passed


class _Pool(Function):
    """Max pooling that saves where the maxima were."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, axes: int, *settings: Any) -> Tensor:
        """Return the maxima."""
        pool = _aten.max_pool2d_with_indices if axes == 2 else _aten.max_pool3d_with_indices
        if axes == 2 and _is_pooled_by_value(x, *settings[:2]):
            found = pool(x.contiguous(memory_format=torch.channels_last), *settings)
            out, indices = map(_put_channels_first, found)
        else:
            out, indices = pool(x, *settings)
        ctx.save_for_backward(indices)
        ctx.layout, ctx.axes, ctx.settings = (x.shape, x.stride()), axes, settings
        result: Tensor = out
        return result

    @staticmethod
    @_first_order
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """Return the gradient by the input, of which only the layout matters."""
        back = _aten.max_pool2d_with_indices_backward if ctx.axes == 2 else _aten.max_pool3d_with_indices_backward
        found: Tensor = back(gradient, _stand_in(gradient, *ctx.layout), *ctx.settings, *ctx.saved_tensors)
        return found


def _is_pooled_by_value(x: Tensor, window: list[int], stride: list[int]) -> bool:
    """Whether maxima take longer than in a copy with the channels last.

    On a CPU only that layout has a kernel that works on vectors, over the channels. It finds the same maxima, and of
    equal ones the same. In float64, or where windows leave values out, the copy may take longer than it saves.
    """
    if not (x.is_cpu and _HAS_VECTORS and x.dtype == torch.float32 and x.shape[1] >= 4):
        return False
    if any(step > size for step, size in zip(stride, window, strict=False)):
        return False
    return x.is_contiguous() and not x.is_contiguous(memory_format=torch.channels_last)


def _put_channels_first(x: Tensor) -> Tensor:
    """Copy rows by the quarter of a megabyte, which stays in a core's cache while each channel is picked out of it."""
    out = x.new_empty(x.shape)
    _, channels, height, width = x.shape
    rows = max((1 << 18) // (channels * width * x.itemsize), 1)
    for top in range(0, height, rows):
        out[:, :, top : top + rows] = x[:, :, top : top + rows]
    return out


def _convolve(
    input: Tensor,
    weight: Tensor,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor | None:
    """Convolve as `torch.nn.functional.conv1d` and its like do."""
    return _convolve_any(input, weight, bias, (stride, padding, dilation, False, 0, groups))


def _convolve_transposed(
    input: Tensor,
    weight: Tensor,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Tensor | None:
    """Convolve as `torch.nn.functional.conv_transpose1d` and its like do."""
    return _convolve_any(input, weight, bias, (stride, padding, dilation, True, output_padding, groups))


def _convolve_any(x: Tensor, weight: Tensor, bias: Tensor | None, settings: tuple[Any, ...]) -> Tensor | None:
    """Convolve if the weights are frozen; what autocast would do to a convolution is done here, once."""
    axes = weight.dim() - 2
    if not _is_frozen(weight, bias) or x.dim() != axes + 2 or x.is_complex() or weight.is_complex():
        return None
    stride, padding, dilation, *others = settings
    if isinstance(padding, str):
        odd = _expand(dilation, axes) == [1] * axes and all(k % 2 for k in weight.shape[2:])
        if padding != "valid" and not (padding == "same" and odd):
            return None
        padding = 0 if padding == "valid" else tuple(k // 2 for k in weight.shape[2:])
    try:
        geometry = _find_geometry(axes, stride, padding, dilation, *others)
    except TypeError:  # lists cannot be looked up
        geometry = _find_geometry.__wrapped__(axes, stride, padding, dilation, *others)
    if not x.is_cpu or torch._C._is_any_autocast_enabled():
        x, weight, bias = _cast(x, weight, bias)
    found: Tensor = _Convolve.apply(x, weight, bias, geometry)
    return found


@lru_cache(1024)
def _find_geometry(
    axes: int, stride: Any, padding: Any, dilation: Any, transposed: bool, output_padding: Any, groups: int
) -> _Geometry:
    """Settings as callers give them -> as PyTorch's one operator takes them."""
    stride, padding, dilation, output_padding = (_expand(v, axes) for v in (stride, padding, dilation, output_padding))
    return _Geometry(stride, padding, dilation, transposed, output_padding, groups)


def _cast(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Cast the arguments of a convolution, if autocast would."""
    device = x.device.type
    if not torch.is_autocast_enabled(device) or torch.float64 in (x.dtype, weight.dtype):
        return x, weight, bias
    dtype = torch.get_autocast_dtype(device)
    return x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)


def _normalise(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor | None:
    """Normalise as `torch.nn.functional.batch_norm` does by fixed statistics."""
    if training or running_mean is None or running_var is None or input.dim() < 2:
        return None
    if not _is_frozen(weight, bias, running_mean, running_var) or not input.numel():
        return None
    found: Tensor = _Normalise.apply(input, running_mean, running_var, weight, bias, eps)
    return found


def _relu(input: Tensor, inplace: bool = False) -> Tensor | None:
    """Rectify."""
    return _gate(input, torch.relu_ if inplace else torch.relu, None, None, inplace)


def _relu_inplace(input: Tensor) -> Tensor | None:
    """Rectify in place."""
    return _relu(input, True)


def _leaky_relu(input: Tensor, negative_slope: float = 0.01, inplace: bool = False) -> Tensor | None:
    """Rectify, with a slope below 0."""
    if negative_slope < 0:
        return None
    run = F.leaky_relu_ if inplace else F.leaky_relu
    return _gate(input, partial(run, negative_slope=negative_slope), _is_positive, negative_slope, inplace)


def _hardtanh(input: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Tensor | None:
    """Clip; ReLU6 is this, from 0 to 6. In float16 PyTorch compares with bounds that it has not rounded."""
    if input.dtype == torch.float16:
        return None
    run = partial(F.hardtanh_ if inplace else F.hardtanh, min_val=min_val, max_val=max_val)

    def is_inside(x: Tensor) -> Tensor:
        """Whether a value is not outside, which a NaN is not either."""
        return (x <= min_val).logical_or_(x >= max_val).logical_not_()

    return _gate(input, run, is_inside, None, inplace)


def _relu6(input: Tensor, inplace: bool = False) -> Tensor | None:
    """Clip to 0 and 6."""
    return _hardtanh(input, 0.0, 6.0, inplace)


def _prelu(input: Tensor, weight: Tensor) -> Tensor | None:
    """Rectify, with learned slopes below 0."""
    if not _is_frozen(weight) or input.dtype != weight.dtype or input.dim() < 2:
        return None
    if torch.is_autocast_enabled(input.device.type):
        return None
    slope = weight.view(-1, *[1] * (input.dim() - 2))
    return _gate(input, lambda x: torch.prelu(x, weight), _is_positive, slope, False)


def _is_positive(x: Tensor) -> Tensor:
    return x > 0


def _gate(x: Tensor, run: _Run, passes: _Run | None, slope: Any, inplace: bool) -> Tensor | None:
    """Run an activation, unless it would write into a part of another tensor."""
    if inplace and x._is_view():
        return None
    found: Tensor = _Gate.apply(x, run, passes, slope, inplace)
    return found


def _pool(
    axes: int,
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor | None:
    """Pool as `torch.nn.functional.max_pool2d` or `max_pool3d` does."""
    if return_indices or input.dim() != axes + 2 or torch.is_autocast_enabled(input.device.type):
        return None
    stride = kernel_size if stride is None or stride == [] else stride
    settings = [_expand(value, axes) for value in (kernel_size, stride, padding, dilation)]
    found: Tensor = _Pool.apply(input, axes, *settings, ceil_mode)
    return found


def _is_frozen(*tensors: Tensor | None) -> bool:
    """Whether no gradient of these is wanted."""
    for tensor in tensors:  # noqa: SIM110 - a generator takes twice as long, in each lean call
        if tensor is not None and tensor.requires_grad:
            return False
    return True


def _expand(value: Any, axes: int) -> list[int]:
    """One number per axis; a list, which PyTorch's operators read faster than a tuple."""
    values = list(value) if isinstance(value, list | tuple) else [index(value)]
    return values * axes if len(values) == 1 else values


_LEAN: dict[Callable[..., Any], Callable[..., Tensor | None]] = {
    **dict.fromkeys((F.conv1d, F.conv2d, F.conv3d), _convolve),
    **dict.fromkeys((F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d), _convolve_transposed),
    F.batch_norm: _normalise,
    **dict.fromkeys((F.relu, torch.relu, Tensor.relu), _relu),
    **dict.fromkeys((F.relu_, torch.relu_, Tensor.relu_), _relu_inplace),
    F.leaky_relu: _leaky_relu,
    F.hardtanh: _hardtanh,
    F.relu6: _relu6,
    **dict.fromkeys((F.prelu, torch.prelu, Tensor.prelu), _prelu),
    **dict.fromkeys((F.max_pool2d, torch.max_pool2d), partial(_pool, 2)),
    **dict.fromkeys((F.max_pool3d, torch.max_pool3d), partial(_pool, 3)),
}
