"""Check that a network returns logits for a task, and find the layer that computes them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils.hooks import RemovableHandle

from advseg_bench.errors import IncompatibleError, UserError, expected, one_line
from advseg_bench.types import Task

_SHIFT = 10.0


def probe(where: str, model: nn.Module, x: Tensor, task: Task, net: nn.Module | None = None) -> str | None:
    """Check that a network returns logits for a task, and find the layer that computes them.

    Values alone do not distinguish logits from probabilities: the logits of an untrained network may lie between 0 and
    1. So the network runs a second time with 10 added to the first output channel of its last layer, 20 to the second,
    and so on. Logits change by exactly these values if only a resize follows that layer, which is then the head. The
    output of a sigmoid or softmax stays between 0 and 1. The check fails only if the outputs of both runs do, so there
    are no false alarms. A network without convolutions and linear layers always passes.

    The network runs in eval mode without gradients. Buffers, training flags and random state are unchanged.

    Args:
        where: Prefix of every message.
        model: Images -> logits, on the device of `x`.
        x: Images, float32 (N, C, *S).
        task: The task; each class needs one logit channel.
        net: The bare network inside `model`, if `model` adds preprocessing; by default `model` itself.

    Returns:
        Dotted name of the head inside `net`, or None if it was not found.

    Raises:
        IncompatibleError: The network fails, or its output is not one finite float32 tensor of the right shape, or
            consists of probabilities.

    Cost:
        2 forwards.
    """
    net = model if net is None else net
    layers: list[str] = []
    with _undisturbed(model, x.device):
        handles: list[RemovableHandle] = [net.register_forward_hook(_check_output(where, task))]
        try:
            for name, layer in net.named_modules():
                if isinstance(layer, (_ConvNd, nn.Linear)):
                    handles.append(layer.register_forward_hook(_append_name(layers, name)))
            logits = _run(where, model, x)
        finally:
            for handle in handles:
                handle.remove()
        if not layers:
            return None
        wide = [name for name in layers if _count_outputs(net.get_submodule(name)) == len(task.classes)]
        last = (wide or layers)[-1]
        with net.get_submodule(last).register_forward_hook(_shift):
            shifted = model(x)
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


@contextmanager
def _undisturbed(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Run in eval mode without gradients; restore each training flag and the random state afterwards."""
    flags = [(module, module.training) for module in model.modules()]
    try:
        devices = () if device.type == "cpu" else (device,)
        with torch.random.fork_rng(devices, device_type=device.type if devices else "cuda"), torch.no_grad():
            model.eval()
            yield
    finally:
        for module, flag in flags:
            module.training = flag


def _run(where: str, model: nn.Module, x: Tensor) -> Tensor:
    """Run a network; turn any exception into a one-line error."""
    try:
        logits: Tensor = model(x)
    except UserError:
        raise
    except Exception as error:
        raise IncompatibleError(
            f"{where}: the network fails on images of shape {tuple(x.shape[1:])}: {one_line(error)}. "
            "Check the channels, dtype and size it supports; in a suite, check `settings` and `stride`."
        ) from error
    return logits


def _check_output(where: str, task: Task) -> Any:
    """Return a forward hook for the bare network that accepts only logits of the image's size."""
    channels = f"{len(task.classes)} logit channels ({', '.join(task.classes)})"

    def check(net: nn.Module, args: tuple[Tensor, ...], output: object) -> None:
        """Compare the output of the bare network with its padded input."""
        if not isinstance(output, Tensor):
            remedy = "Return only the segmentation, without auxiliary outputs."
            raise IncompatibleError(expected(where, f"one tensor of {channels}", type(output).__name__, remedy))
        if output.dtype != torch.float32:
            remedy = "Return raw logits in float32."
            raise IncompatibleError(expected(where, f"float32 tensor of {channels}", str(output.dtype), remedy))
        size = tuple(args[0].shape[2:])
        wanted = (len(args[0]), len(task.classes), *size)
        if output.dim() == len(wanted) and output.shape[1] != wanted[1]:
            remedy = "Build the network with that number of classes."
            raise IncompatibleError(expected(where, channels, output.shape[1], remedy))
        if tuple(output.shape) != wanted:
            remedy = "Logits must have the size of the image."
            raise IncompatibleError(expected(where, f"logits of shape {wanted}", tuple(output.shape), remedy))
        if not bool(torch.isfinite(output).all()):
            remedy = "Check the initial weights and `std`."
            raise IncompatibleError(f"{where}: expected finite logits, got NaN or infinity. {remedy}")

    return check


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


def _is_unit(values: Tensor) -> bool:
    """Return whether every value lies in [0, 1]."""
    return bool((values >= 0).all() and (values <= 1).all())
