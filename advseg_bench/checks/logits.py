"""Check that a network returns logits for a task, and find the layer that computes them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils.hooks import RemovableHandle

from advseg_bench.checks.model import check_function
from advseg_bench.checks.windows import explain_failure
from advseg_bench.errors import IncompatibleError, UserError, expected
from advseg_bench.instruments.modes import in_mode
from advseg_bench.types import Task

_SHIFT = 10.0
_CANDIDATES = 4
_EXTREMES = (1e3, -1e3)


def probe(
    where: str, model: nn.Module, x: Tensor, task: Task, net: nn.Module | None = None, *, function: bool = True
) -> str | None:
    """Check that a network returns logits for a task, and find the layer that computes them.

    Values alone do not distinguish logits from probabilities: the logits of an untrained network may lie between 0 and
    1. So the network runs a second time with 10 added to the first output channel of its last layer, 20 to the second,
    and so on. Logits change by exactly these values if only a resize follows that layer, which is then the head. The
    output of a sigmoid or softmax stays between 0 and 1. The check fails only if the outputs of both runs do, so there
    are no false alarms. A network without convolutions and linear layers (a function, TorchScript) whose logits lie
    between 0 and 1 runs on images of extreme values instead.

    The network runs in eval mode without gradients. Buffers, training flags and random state are unchanged.

    Args:
        where: Prefix of every message.
        model: Images -> logits, on the device of `x`.
        x: Images, float32 (N, C, *S).
        task: The task; each class needs one logit channel.
        net: The bare network inside `model`, if `model` adds preprocessing; by default `model` itself.
        function: Whether to check also that logits depend on the image alone; False for a model that is declared
            stochastic, or was checked before.

    Returns:
        Dotted name of the head inside `net`, or None if it was not found.

    Raises:
        IncompatibleError: The network fails, or its output is not one finite float32 tensor of the right shape, or
            consists of probabilities, or depends on more than the image.

    Cost:
        3 forwards, the second of 2 images at least; 2 forwards without `function`.
    """
    net = model if net is None else net
    layers: list[str] = []
    with _undisturbed(model, x.device):
        handles: list[RemovableHandle] = []
        try:
            for name, layer in net.named_modules():
                if isinstance(layer, (_ConvNd, nn.Linear)):
                    handles.append(layer.register_forward_hook(_append_name(layers, name)))
            logits = _run(where, model, x)
        finally:
            for handle in handles:
                handle.remove()
        _check_logits(where, logits, x, task)
        if function:
            check_function(where, model, x, logits)
        if not layers:
            _check_extremes(where, model, x, logits, task)
            return None
        wide = [name for name in layers if _count_outputs(net.get_submodule(name)) == len(task.classes)]
        for last in list(dict.fromkeys(reversed(wide or layers)))[:_CANDIDATES]:  # the last may be an auxiliary head
            with net.get_submodule(last).register_forward_hook(_shift):
                shifted = model(x)
            if not torch.equal(logits, shifted):
                break
    if _is_unit(logits) and _is_unit(shifted) and not torch.equal(logits, shifted):
        raise IncompatibleError(
            f"{where}: expected raw logits, got values between 0 and 1 for every output of the layer {last!r}. "
            "Remove the final sigmoid or softmax from the network."
        )
    if len(task.classes) > 1 and task.kind == "multilabel" and bool((logits.logsumexp(1).abs() < 1e-4).all()):
        raise IncompatibleError(
            f"{where}: expected raw logits, got log-probabilities, whose sign predicts no class anywhere. "
            "Remove the final log-softmax from the network."
        )
    step = _steps(len(task.classes), logits).view(-1, *[1] * (x.dim() - 2))
    tolerance = 1e-3 + 1e-5 * float(logits.abs().max())
    return last if wide and torch.allclose(shifted, logits + step, rtol=0, atol=tolerance) else None


def check_output(where: str, model: nn.Module, x: Tensor, task: Task) -> None:
    """Check that a network runs on images in eval mode and returns finite logits of their size.

    Args:
        where: Prefix of every message.
        model: Images -> logits, on the device of `x`.
        x: Images, float32 (N, C, *S).
        task: The task; each class needs one logit channel.

    Raises:
        IncompatibleError: The network fails, or its output is not one finite float32 tensor of the right shape.

    Cost:
        1 forward.
    """
    with _undisturbed(model, x.device):
        _check_logits(where, _run(where, model, x), x, task)


@contextmanager
def _undisturbed(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Run in eval mode without gradients; put back each training flag and the state of the random numbers."""
    devices = () if device.type == "cpu" else (device,)
    rng = torch.random.fork_rng(devices, device_type=device.type if devices else "cuda")
    with rng, torch.no_grad(), in_mode(model, training=False):
        yield


def _run(where: str, model: nn.Module, x: Tensor) -> Tensor:
    """Run a network; turn any exception into a one-line error."""
    try:
        logits: Tensor = model(x)
    except UserError:
        raise
    except Exception as error:
        raise explain_failure(where, model, x, error) from error
    return logits


def _check_logits(where: str, logits: object, x: Tensor, task: Task) -> None:
    """Refuse anything but finite logits of the image's size."""
    channels = f"{len(task.classes)} logit channels ({', '.join(task.classes)})"
    if not isinstance(logits, Tensor):
        remedy = "Return the segmentation alone, or name it by ab.as_segmenter(model, output=...)."
        raise IncompatibleError(expected(where, f"one tensor of {channels}", type(logits).__name__, remedy))
    if logits.dtype != torch.float32:
        remedy = "Return raw logits, not labels."
        raise IncompatibleError(expected(where, f"float32 tensor of {channels}", str(logits.dtype), remedy))
    wanted = (len(x), len(task.classes), *x.shape[2:])
    if logits.dim() == len(wanted) and logits.shape[1] != wanted[1]:
        remedy = "Set the number of classes the network is built with."
        raise IncompatibleError(expected(where, channels, logits.shape[1], remedy))
    if tuple(logits.shape) != wanted:
        remedy = "Logits must have the size of the image."
        raise IncompatibleError(expected(where, f"logits of shape {wanted}", tuple(logits.shape), remedy))
    if not bool(torch.isfinite(logits).all()):
        remedy = "Check its initial weights and `std`."
        raise IncompatibleError(f"{where}: expected finite logits, got NaN or infinity. {remedy}")


def _check_extremes(where: str, model: nn.Module, x: Tensor, logits: Tensor, task: Task) -> None:
    """Refuse a network without layers whose output changes but stays between 0 and 1 on images of extreme values."""
    if not _is_unit(logits) or (task.kind == "multiclass" and not _sum_to_one(logits)):
        return
    try:
        others = [model(scale * (x - 0.5)) for scale in _EXTREMES]
    except Exception:  # it refuses such images, so nothing is known
        return
    if all(_is_unit(other) for other in others) and not all(torch.equal(other, logits) for other in others):
        raise IncompatibleError(
            f"{where}: expected raw logits, got values between 0 and 1 even for extreme images. "
            "Remove the final sigmoid or softmax."
        )


def _append_name(names: list[str], name: str) -> Any:
    """Return a forward hook that records the name of a layer."""
    return lambda layer, args, output: names.append(name)


def _shift(layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """Forward hook: add 10 to the first channel of a layer's output, 20 to the second, and so on."""
    space = 0 if isinstance(layer, nn.Linear) else output.dim() - 2
    return output + _steps(_count_outputs(layer), output).view(-1, *[1] * space)


def _steps(channels: int, like: Tensor) -> Tensor:
    """Return 10, 20, ... as a float32 vector on the device of a tensor."""
    return _SHIFT * torch.arange(1, channels + 1, dtype=torch.float32, device=like.device)


def _count_outputs(layer: nn.Module) -> int:
    """Return the output channels of a convolution or linear layer."""
    return int(layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels)  # type: ignore[arg-type]


def _sum_to_one(values: Tensor) -> bool:
    """Whether the classes of each pixel sum to 1; class scores between 0 and 1 that do not can be compared."""
    return bool(((values.sum(1) - 1).abs() < 1e-5).all())


def _is_unit(values: Tensor) -> bool:
    """Return whether every value lies in [0, 1]."""
    return bool((values >= 0).all() and (values <= 1).all())
