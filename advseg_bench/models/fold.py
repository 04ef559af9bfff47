"""Batch normalisation with fixed statistics, folded into the preceding convolution."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from advseg_bench.errors import IncompatibleError, expected

CLOSE = 1e-3
"""Folding may change no logit by more than this share of the largest one; rounding errors are far smaller."""

_CONVOLUTIONS = {F.conv1d, F.conv2d, F.conv3d}
_TRANSPOSED = {F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d}
_FACTS = (bool, int, str, torch.Size, torch.dtype, torch.device, torch.layout)


def fold_batch_norms(model: nn.Module, x: Tensor) -> int:
    """Fold every batch normalisation of a model into the preceding convolution, if it is the only use of its output.

    Pairs are found by observing the calls of one forward, not by the structure of the modules, so it does not matter
    how a network makes them. Not folded are: a convolution or normalisation that is called twice or whose output is
    used twice, one with computed weights, one with a hook, and normalisation modules other than PyTorch's and those
    that have an activation `act` after a `drop`, as in timm.

    Args:
        model: In eval mode; it is modified, so pass a copy.
        x: Example images, shape (N, C, *S).

    Returns:
        The number of folded normalisations.

    Cost:
        Six forwards.

    Raises:
        IncompatibleError: If the logits of `x`, `1 - x` or noise change by more than rounding, for instance because the
            calls depend on values.
    """
    watch = _Watch()
    with torch.no_grad(), watch:
        logits = model(x)
    watch.count(tree_leaves(logits))
    noise = torch.rand(x.shape, generator=torch.Generator().manual_seed(0))
    probes = (x, 1 - x, noise.to(x))
    with torch.no_grad():
        before = [logits, *(model(probe) for probe in probes[1:])]
    owners = _list_owners(model)
    pairs = [(norm, pair) for norm in watch.norms if (pair := _match(norm, watch, owners)) is not None]
    for norm, (layer, module) in pairs:
        _fold(layer, norm, watch.convolutions[id(norm.x)].transposed)
        _replace(model, module)
    if pairs:
        with torch.no_grad():
            moved = max(_distance(model(probe), was) for probe, was in zip(probes, before, strict=True))
        if not moved <= CLOSE:
            what = f"logits that change by at most {CLOSE:g} of the largest"
            raise IncompatibleError(expected('prepare "fold"', what, moved, 'Leave "fold" out.'))
    return len(pairs)


def _distance(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).abs().max() / wanted.abs().max().clamp_min(1e-30))


@dataclass(frozen=True, slots=True)
class _Convolution:
    """One call of a convolution."""

    weight: Tensor
    bias: Tensor | None
    out: Tensor
    transposed: bool


@dataclass(frozen=True, slots=True)
class _Norm:
    """One call of batch normalisation."""

    x: Tensor
    mean: Tensor | None
    var: Tensor | None
    weight: Tensor | None
    bias: Tensor | None
    training: bool
    eps: float


@dataclass
class _Watch(TorchFunctionMode):
    """Records every call: the convolutions and normalisations, and how often their tensors are used."""

    convolutions: dict[int, _Convolution] = field(default_factory=dict)
    norms: list[_Norm] = field(default_factory=list)
    uses: Counter[int] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run a function and record it; reading a shape or the like does not count as a use of a tensor."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if not isinstance(result, _FACTS):
            self.count(tree_leaves((args, kwargs)))
        if func in _CONVOLUTIONS or func in _TRANSPOSED:
            self._note_convolution(result, func in _TRANSPOSED, *args, **kwargs)
        elif func is F.batch_norm:
            self._note_norm(*args, **kwargs)
        return result

    def count(self, values: Sequence[Any]) -> None:
        """Count one use of each tensor."""
        self.uses.update(id(value) for value in values if isinstance(value, Tensor))

    def _note_convolution(
        self,
        out: Tensor,
        transposed: bool,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        *_: Any,
        **__: Any,
    ) -> None:
        # The output is kept alive, so that no later tensor gets its id; an earlier one may have had it.
        self.uses[id(out)] = 0
        self.convolutions[id(out)] = _Convolution(weight, bias, out, transposed)

    def _note_norm(
        self,
        input: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> None:
        self.norms.append(_Norm(input, running_mean, running_var, weight, bias, training, eps))


_Owners = dict[int, list[tuple[nn.Module, str]]]


def _list_owners(model: nn.Module) -> _Owners:
    """For each parameter and buffer, the modules that have it, with its name there."""
    owners: _Owners = {}
    for module in model.modules():
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None:
                owners.setdefault(id(tensor), []).append((module, name))
    return owners


def _match(norm: _Norm, watch: _Watch, owners: _Owners) -> tuple[nn.Module, nn.Module] | None:
    """The modules of the convolution and the normalisation, or None if they cannot be folded."""
    call = watch.convolutions.get(id(norm.x))
    if call is None or norm.training or norm.mean is None or watch.uses[id(call.out)] != 1:
        return None
    if watch.uses[id(call.weight)] != 1 or watch.uses[id(norm.mean)] != 1:
        return None  # called twice
    layers, norms = owners.get(id(call.weight), []), owners.get(id(norm.mean), [])
    if [name for _, name in layers] != ["weight"] or [name for _, name in norms] != ["running_mean"]:
        return None  # computed, or shared
    (layer, _), (module, _) = layers[0], norms[0]
    usual = getattr(layer, "bias", call) is call.bias and (call.bias is None or watch.uses[id(call.bias)] == 1)
    grouped = call.transposed and getattr(layer, "groups", 1) != 1
    watched = module._forward_hooks or module._forward_pre_hooks or layer._forward_hooks
    return None if not usual or grouped or watched or _find_rest(module) is None else (layer, module)


def _fold(layer: nn.Module, norm: _Norm, transposed: bool) -> None:
    """Set the weights of a convolution so that they include the normalisation, computed in float64."""
    weight, bias = layer.weight, layer.bias
    assert isinstance(weight, Tensor)
    assert bias is None or isinstance(bias, Tensor)
    assert norm.mean is not None
    assert norm.var is not None
    given = (weight.detach().double(), None if bias is None else bias.detach().double())
    scale, shift = (None if t is None else t.detach().double() for t in (norm.weight, norm.bias))
    fused = fuse_conv_bn_weights(*given, norm.mean.double(), norm.var.double(), norm.eps, scale, shift, transposed)
    layer.weight, layer.bias = (nn.Parameter(t.detach().to(weight.dtype), requires_grad=False) for t in fused)


def _find_rest(module: nn.Module) -> nn.Module | None:
    """The operations of a normalisation module besides normalisation; None if they are unknown."""
    if type(module) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm):
        return nn.Identity()
    drop, act = getattr(module, "drop", None), getattr(module, "act", None)
    if (
        isinstance(module, nn.modules.batchnorm._BatchNorm)
        and isinstance(drop, nn.Module)
        and isinstance(act, nn.Module)
    ):
        return nn.Sequential(drop, act)
    return None


def _replace(model: nn.Module, module: nn.Module) -> None:
    """Replace a normalisation module, wherever it occurs, by its other operations."""
    rest = _find_rest(module)
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if child is module:
                setattr(parent, name, rest)
