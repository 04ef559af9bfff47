"""The gradient that prepared copies of a model are compared with: in float64, or the model's own."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advseg_bench.errors import IncompatibleError, expected, one_line
from advseg_bench.instruments.modes import in_mode


def copy_model(model: nn.Module, x: Tensor) -> nn.Module:
    """Copy a model; one that keeps tensors of its last graph is run without a graph before.

    Args:
        model: Images -> logits, in any mode.
        x: Example images (N, C, *S).

    Returns:
        The copy.

    Cost:
        Nothing; a forward if the model keeps such tensors.

    Raises:
        IncompatibleError: If it cannot be copied.
    """
    try:
        return copy.deepcopy(model)
    except Exception:  # a kept attention map, or the weight that a hook of weight normalisation computed
        with in_mode(model, training=False), torch.no_grad():
            model(x)
    try:
        return copy.deepcopy(model)
    except Exception as error:
        reason = one_line(error)
        raise IncompatibleError(
            expected("prepare", "a model that can be copied", reason, 'Set prepare = "raw".')
        ) from None


def find_reference(model: nn.Module, x: Tensor) -> tuple[Tensor, str]:
    """Return the input gradient that the copies of a model are compared with.

    Args:
        model: Images -> logits, frozen and in eval mode.
        x: Images (N, C, *S).

    Returns:
        The float64 gradient and ""; if there is none, the model's own and the reason.
    """
    try:
        return reference_gradient(model, x), ""
    except IncompatibleError as error:
        return softplus_gradient(model, x), str(error)


def gradient_error(model: nn.Module, x: Tensor, reference: Tensor) -> float:
    """Return the relative distance of a model's input gradient from a reference: ||g - r||_2 / ||r||_2.

    The gradient is that of the sum of softplus(logits), the cross-entropy to an empty mask.

    Args:
        model: Images -> logits.
        x: Images (N, C, *S).
        reference: Gradient (N, C, *S) to compare with, see `reference_gradient`.

    Returns:
        The mean over images.

    Cost:
        One forward, one backward.
    """
    difference = (softplus_gradient(model, x).to(reference) - reference).flatten(1).norm(dim=1)
    size = reference.flatten(1).norm(dim=1)
    return float(torch.where(difference == 0, 0.0, difference / size).mean())


def reference_gradient(model: nn.Module, x: Tensor) -> Tensor:
    """Return the input gradient for `gradient_error` in float64.

    Args:
        model: Images -> logits; it is copied.
        x: Images (N, C, *S).

    Returns:
        float64 (N, C, *S).

    Cost:
        One forward and one backward of a float64 copy.

    Raises:
        IncompatibleError: If the model cannot be copied, or does not run in float64.
    """
    device = "cpu" if x.device.type == "mps" else x.device
    net = copy_model(model, x)
    try:
        net = net.to(device, torch.float64).eval().requires_grad_(False)
        return softplus_gradient(net, x.to(device, torch.float64))
    except Exception as error:
        remedy = "Leave it: it is attacked all the same."
        raise IncompatibleError(expected("prepare", "a model that runs in float64", one_line(error), remedy)) from error


def softplus_gradient(model: nn.Module, x: Tensor) -> Tensor:
    """Return the gradient of the sum of softplus(logits), the cross-entropy to an empty mask, with respect to images.

    Args:
        model: Images -> logits.
        x: Images (N, C, *S).

    Returns:
        (N, C, *S).

    Cost:
        One forward, one backward.
    """
    leaf = x.detach().clone().requires_grad_()
    with torch.enable_grad():
        value = F.softplus(model(leaf)).sum()
    return torch.autograd.grad(value, leaf)[0]
