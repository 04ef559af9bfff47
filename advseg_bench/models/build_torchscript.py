"""Networks that are TorchScript files, such as the `model.ts` of a MONAI bundle. Such a file holds a program."""

from __future__ import annotations

import io
import warnings

import torch
from torch import nn

from advseg_bench.errors import DataError, SpecError, expected, one_line
from advseg_bench.suite.specs import ModelSpec


def load_torchscript(where: str, spec: ModelSpec) -> nn.Module:
    """Load a network with its weights from a TorchScript file: scripted, traced or frozen.

    Args:
        where: Start of every message.
        spec: The file as `weights`; `trust` must be set, since the file is a program.

    Returns:
        The network, on the CPU.

    Raises:
        SpecError: If there is no file or it is not trusted, or the specification has an encoder or settings.
        DataError: If the file is not TorchScript, or damaged.
    """
    if spec.weights is None:
        raise SpecError(expected(where, "a TorchScript file as `weights`", None, 'Set weights = "model.ts".'))
    if not spec.trust:
        remedy = "A TorchScript file holds a program: set trust = true if its origin is known."
        raise SpecError(expected(where, f"`trust` to open {spec.weights}", False, remedy))
    for key, value in (("encoder", spec.encoder), ("settings", spec.settings)):
        if value:
            raise SpecError(expected(where, f"no `{key}` for a TorchScript file", value, "Remove it."))
    try:
        data = spec.weights.read_bytes()
    except OSError as error:
        remedy = "Correct the key `weights` of the model."
        raise SpecError(expected(spec.weights, "a readable TorchScript file", error.strerror, remedy)) from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch deprecates the format, which is the user's choice
            net: nn.Module = torch.jit.load(io.BytesIO(data), map_location="cpu")  # type: ignore[no-untyped-call]
    except Exception as error:
        remedy = "Save it with torch.jit.save."
        raise DataError(expected(spec.weights, "a TorchScript file", one_line(error, 120), remedy)) from None
    return net
