"""Weights on disk: read without running anything that a file may hide, written whole or not at all."""

from __future__ import annotations

import hashlib
from pathlib import Path

import safetensors.torch
import torch
from torch import nn

from advseg_bench.cache import write_bytes
from advseg_bench.errors import DataError
from advseg_bench.models.checkpoints.fitting import Fitted, fit
from advseg_bench.models.checkpoints.places import find_file
from advseg_bench.models.checkpoints.reading import read_content
from advseg_bench.models.module import SegmentationModule


def count_parameters(model: nn.Module) -> int:
    """Return the number of parameters, trainable or not; buffers do not count.

    As in the literature, so do parameters that no logit depends on: with an `encoder_depth` below 5, SMP's own
    encoders keep the stages they no longer run (its "tu-" encoders drop them).
    """
    return sum(parameter.numel() for parameter in model.parameters())


def save_weights(path: Path, model: SegmentationModule) -> None:
    """Write the state dict of the bare network as safetensors; equal weights give equal bytes.

    Args:
        path: The file; it appears complete or not at all.
        model: Its `net` is saved; normalisation and stride are in the spec.

    Raises:
        RecordError: On a full disk or an unwritable place.
    """
    # Copies, because safetensors refuses tensors that share memory, such as tied weights.
    state = {
        key: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for key, tensor in model.net.state_dict().items()
    }
    write_bytes(path, safetensors.torch.save(state, metadata={"format": "pt"}))


def load_weights(path: Path, model: SegmentationModule, key: str | None = None) -> Fitted:
    """Load a checkpoint into the bare network; on any error the network is as it was.

    The format is recognised by the bytes of the file, not by its name. A pickle can run any program when it is opened,
    so files of `torch.save` are read by PyTorch's weights-only loader; the few harmless objects that trainers write
    beside weights are replaced by stand-ins, and every other object makes the file refused. Checkpoints of Lightning,
    nnU-Net, MONAI, timm and averaged models hold the network under some key and prefix, which is found by the names of
    its tensors.

    Args:
        path: A file, a folder with one, or `hf:owner/name` of the Hugging Face Hub.
        model: Its `net` receives the weights, on the device where it is.
        key: Dotted path of the state dict that is meant, where more than one fits.

    Returns:
        What was loaded, from where, and what was left out.

    Raises:
        SpecError: If there is no such file, it could run code, or it holds the weights of another network.
        DataError: If the file is empty, cut short or damaged, or a weight is not finite.
    """
    file = find_file(path)
    fitted = fit(file, read_content(file), model.net, key)
    for name, tensor in fitted.tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise DataError(f"{file}: expected finite weights, got NaN or infinity in {name!r}. Train it again.")
    model.net.load_state_dict(dict(fitted.tensors), strict=True)
    return fitted


def digest_weights(model: nn.Module) -> str:
    """Return the SHA-256 over all weights and buffers, on the CPU."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
