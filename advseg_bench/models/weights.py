"""Weights on disk: read without executing code of the file, and written atomically."""

from __future__ import annotations

import hashlib
from pathlib import Path

import safetensors.torch
import torch
from torch import nn

from advseg_bench.cache import write_bytes
from advseg_bench.errors import SpecError
from advseg_bench.models.checkpoints.casting import check_casts
from advseg_bench.models.checkpoints.fitting import Fitted, fit
from advseg_bench.models.checkpoints.places import find_file
from advseg_bench.models.checkpoints.reading import read_content
from advseg_bench.models.checkpoints.translated import load_renamed
from advseg_bench.models.module import SegmentationModule


def count_parameters(model: nn.Module) -> int:
    """Return the number of parameters, trainable or not; buffers do not count.

    As in the literature, parameters that no logit depends on are counted: with an `encoder_depth` below 5, SMP's
    encoders keep the stages that they do not run (its "tu-" encoders remove them).
    """
    return sum(parameter.numel() for parameter in model.parameters())


def save_weights(path: Path, model: SegmentationModule) -> None:
    """Write the state dict of the bare network as safetensors; equal weights give equal bytes.

    Args:
        path: The file; it is written atomically.
        model: Its `net` is saved; normalisation and stride are in the spec.

    Raises:
        RecordError: If the disk is full or the folder cannot be written.
    """
    # Copies, because safetensors refuses tensors that share memory, such as tied weights.
    state = {
        key: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for key, tensor in model.net.state_dict().items()
    }
    write_bytes(path, safetensors.torch.save(state, metadata={"format": "pt"}))


def load_weights(path: Path, model: SegmentationModule, key: str | None = None) -> Fitted:
    """Load a checkpoint into the bare network; after an error the network is unchanged.

    The format is recognised by the bytes of the file, not by its name. A pickle can execute code when it is opened, so
    files of `torch.save` are read by PyTorch's weights-only loader; the few harmless objects that trainers write
    beside weights are replaced by placeholders, and any other object is refused. Checkpoints of Lightning, nnU-Net,
    MONAI, timm and averaged models hold the network under some key and prefix, which is found from the names of its
    tensors.

    Args:
        path: A file, a folder with one checkpoint, or `hf:owner/name` of the Hugging Face Hub.
        model: Its `net` receives the weights, on its device.
        key: Dotted path of the state dict to load; required if several fit.

    Returns:
        The loaded tensors, their place in the file, and the names of those that were left out.

    Raises:
        SpecError: If the file does not exist, could execute code, or contains the weights of another network.
        DataError: If the file is empty, truncated or damaged, or a weight is not finite, in the file or in the network.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> import torch
        >>> from advseg_bench.models import load_weights
        >>> from advseg_bench.models.module import SegmentationModule
        >>> model = SegmentationModule(torch.nn.Conv2d(1, 2, kernel_size=1))
        >>> state = {"model.weight": torch.ones(2, 1, 1, 1), "model.bias": torch.zeros(2)}
        >>> with TemporaryDirectory() as folder:
        ...     torch.save({"epoch": 3, "state_dict": state}, Path(folder, "net.ckpt"))
        ...     loaded = load_weights(Path(folder, "net.ckpt"), model)
        >>> loaded.key
        'state_dict.model'
        >>> model(torch.full((1, 1, 1, 1), 0.5)).flatten().tolist()
        [0.5, 0.5]
    """
    file = find_file(path)
    content = read_content(file)
    try:
        fitted = fit(file, content, model.net, key)
    except SpecError:
        if (renamed := load_renamed(content, model.net)) is None:
            raise
        fitted = fit(file, renamed, model.net, key)
    check_casts(file, fitted.tensors, model.net.state_dict())
    model.net.load_state_dict(dict(fitted.tensors), strict=True)
    return fitted


def digest_weights(model: nn.Module) -> str:
    """Return the SHA-256 over all weights and buffers, on the CPU."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        flat = tensor.cpu().contiguous().as_strided((tensor.numel(),), (1,))  # one value may have any stride
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
