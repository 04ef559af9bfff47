"""The images on which a model is checked: volumes are represented by a central crop, which costs little memory."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from advseg_bench.instruments.modes import in_mode

CROP = 32
"""The edges of a crop are those of the volume modulo this number, so that it fits the strides of networks alike."""


def crop_volumes(x: Tensor) -> Tensor:
    """Return the central crop of volumes, with edges of 32 to 63 voxels where the volume has more; others as they are.

    Args:
        x: Images (N, C, *S).

    Returns:
        A contiguous crop of 3-D images; `x` itself if it has another number of space axes or is as small.

    Example:
        >>> import torch
        >>> from advseg_bench.checks.sample import crop_volumes
        >>> tuple(crop_volumes(torch.zeros(1, 1, 128, 100, 40)).shape)
        (1, 1, 32, 36, 40)
    """
    if x.dim() != 5:
        return x
    cropped = x
    for axis in range(2, 5):
        size = x.shape[axis]
        if size >= 2 * CROP:
            edge = CROP + size % CROP
            cropped = cropped.narrow(axis, (size - edge) // 2, edge)
    return x if cropped is x else cropped.contiguous()


def choose_sample(model: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return `crop_volumes(x)` if the model runs on it; otherwise `x`, as for networks that take one size only.

    Args:
        model: Images -> logits.
        x: Images (N, C, *S) on the device of the model.

    Returns:
        Images of the same number and channels.

    Cost:
        One forward of crops for volumes; none for other images.
    """
    cropped = crop_volumes(x)
    if cropped is x:
        return x
    devices = () if x.device.type == "cpu" else (x.device,)
    rng = torch.random.fork_rng(devices, device_type=x.device.type if devices else "cuda")
    mode = in_mode(model, training=False) if isinstance(model, nn.Module) else nullcontext()
    try:
        with rng, torch.no_grad(), mode:
            model(cropped)
    except Exception:  # the network needs the size of its images
        return x
    return cropped
