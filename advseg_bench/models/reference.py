"""The gradient that prepared copies of a model are compared with: in float64, or the model's own."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advseg_bench.errors import IncompatibleError, expected, one_line
from advseg_bench.instruments.modes import in_mode

SAME_FUNCTION = 0.5
"""Largest gradient error of a model against its float64 copy that rounding explains, also in half precision."""


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


def find_reference(model: nn.Module, x: Tensor, own: Tensor) -> tuple[Tensor, str]:
    """Return the input gradient that the copies of a model are compared with.

    Args:
        model: Images -> logits, frozen and in eval mode.
        x: Images (N, C, *S).
        own: The model's own gradient, see `differentiate`.

    Returns:
        The float64 gradient and ""; or `own` and the reason why there is none in float64. A float64 gradient far from
        the model's own is not that of the model: its copy may read what a hook writes to the original.
    """
    try:
        found = reference_gradient(model, x)
    except IncompatibleError as error:
        return own, str(error)
    apart = distance(own, found)
    if apart <= SAME_FUNCTION:
        return found, ""
    return own, expected("prepare", f"a gradient error of at most {SAME_FUNCTION:g} against a float64 copy", apart)


def distance(gradient: Tensor, reference: Tensor) -> float:
    """Return the relative distance of a gradient from a reference, ||g - r||_2 / ||r||_2, the mean over images."""
    difference = (gradient.to(reference) - reference).flatten(1).norm(dim=1)
    size = reference.flatten(1).norm(dim=1)
    return float(torch.where(difference == 0, 0.0, difference / size).mean())


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
    return distance(softplus_gradient(model, x), reference)


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
    return differentiate(model, x)[1]


def differentiate(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logits of images, detached, and the gradient of `softplus_gradient`.

    Args:
        model: Images -> logits.
        x: Images (N, C, *S).

    Returns:
        Logits (N, K, *S), and the gradient (N, C, *S).

    Cost:
        One forward, one backward.
    """
    leaf = x.detach().clone().requires_grad_()
    with torch.enable_grad():
        logits = model(leaf)
        value = F.softplus(logits).sum()
    return logits.detach(), torch.autograd.grad(value, leaf)[0]
