"""Whether tensors keep their values when a network takes them in its own type."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from advseg_bench.errors import DataError, SpecError
from advseg_bench.models.checkpoints.states import OPTIONAL, is_plain


def check_casts(path: Path, tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Refuse tensors that the network's types cannot hold.

    Args:
        path: The file, for messages.
        tensors: What the network is given.
        wanted: State dict of the network.

    Raises:
        SpecError: If a tensor is sparse, without values, or of integers for a weight in floating point.
        DataError: If a weight is not finite, in the file or in the type of the network.
    """
    for name, tensor in tensors.items():
        to = wanted[name].dtype
        lossy = _kind(tensor.dtype) != _kind(to) and not name.endswith(OPTIONAL)  # averaging makes the counter a float
        if not is_plain(tensor) or lossy:
            got = _describe(tensor)
            remedy = (
                "Save a state dict in floating point, on the CPU." if _kind(to) == 2 else "Save the state dict again."
            )
            raise SpecError(f"{path}: expected dense values of {_show(to)} for {name!r}, got {got}. {remedy}")
        remedy = "Use another checkpoint, or train the model again."
        if not _is_finite(tensor):
            raise DataError(f"{path}: expected finite weights, got NaN or infinity in {name!r}. {remedy}")
        if not _is_finite(tensor.to(to)):
            raise DataError(
                f"{path}: expected finite weights, got values of {_show(tensor.dtype)} beyond the range of {_show(to)} "
                f"in {name!r}. {remedy}"
            )


def _kind(dtype: torch.dtype) -> int:
    """Return 1 for integers and truth values, 2 for floating point, 3 for complex numbers."""
    return 3 if dtype.is_complex else 2 if dtype.is_floating_point else 1


def _is_finite(tensor: Tensor) -> bool:
    if tensor.dtype.is_floating_point and tensor.dtype.itemsize == 1:  # torch has no `isfinite` of 8 bits
        tensor = tensor.float()
    return _kind(tensor.dtype) == 1 or bool(torch.isfinite(tensor).all())


def _show(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _describe(tensor: Tensor) -> str:
    if tensor.is_meta:
        return "a tensor without values (device meta)"
    return f"a {str(tensor.layout).removeprefix('torch.')} tensor of {_show(tensor.dtype)}".replace("strided", "dense")
