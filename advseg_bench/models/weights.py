"""Weights on disk: read without executing code of the file, and written atomically."""

from __future__ import annotations

import hashlib
import io
import pickle
import pickletools
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from advseg_bench.cache import write_bytes
from advseg_bench.errors import DataError, SpecError, UserError, expected, one_line
from advseg_bench.models.module import SegmentationModule

_CONTAINERS = ("state_dict", "model_state_dict", "model")
_PREFIXES = ("module.", "net.", "model.")
_CONVERT = (
    "Load it where the network is defined, save net.state_dict() with safetensors or torch.save, and use that file."
)


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


def load_weights(path: Path, model: SegmentationModule) -> None:
    """Load a checkpoint into the bare network; after an error the network is unchanged.

    A pickle can execute code when it is opened, so `.pt` and `.pth` files are read by PyTorch's weights-only loader,
    which accepts only tensors and plain containers. The file contains a bare state dict, or one under "state_dict",
    "model_state_dict" or "model". The prefixes "module.", "net." and "model." are removed if all keys have them and
    the keys then match the network.

    Args:
        path: A `.safetensors`, `.pt` or `.pth` file.
        model: Its `net` receives the weights, on its device.

    Raises:
        SpecError: If the file does not exist, could execute code, or contains the weights of another network.
        DataError: If the file is empty, truncated or damaged, or a weight is not finite.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> import torch
        >>> from advseg_bench.models import load_weights
        >>> from advseg_bench.models.module import SegmentationModule
        >>> model = SegmentationModule(torch.nn.Conv2d(1, 2, kernel_size=1))
        >>> with TemporaryDirectory() as folder:
        ...     torch.save({"weight": torch.ones(2, 1, 1, 1), "bias": torch.zeros(2)}, Path(folder, "net.pt"))
        ...     load_weights(Path(folder, "net.pt"), model)
        >>> model(torch.full((1, 1, 1, 1), 0.5)).flatten().tolist()
        [0.5, 0.5]
    """
    state = _fit(path, _read(path), model.net)
    for key, tensor in state.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            remedy = "Use another checkpoint, or train the model again."
            raise DataError(f"{path}: expected finite weights, got NaN or infinity in {key!r}. {remedy}")
    model.net.load_state_dict(state, strict=True)


def _read(path: Path) -> dict[str, Tensor]:
    """Read the state dict in a file of any of the formats."""
    if path.suffix not in (".safetensors", ".pt", ".pth"):
        raise SpecError(expected(path, "a .safetensors, .pt or .pth file", path.suffix, _CONVERT))
    try:
        data = path.read_bytes()
    except OSError as error:
        remedy = "Correct the key `weights` of the model."
        raise SpecError(expected(path, "a readable file of weights", error.strerror, remedy)) from None
    if not data:
        raise _damaged(path, "it is empty")
    if path.suffix == ".safetensors":
        try:
            return safetensors.torch.load(data)
        except SafetensorError as error:
            raise _damaged(path, str(error)) from None
    return _find_state_dict(path, _unpickle(path, data))


def _unpickle(path: Path, data: bytes) -> object:
    """Read a file of `torch.save` without executing it; distinguish files that could execute code from damaged ones."""
    archive = zipfile.is_zipfile(io.BytesIO(data))
    try:
        if archive:
            _check_archive(path, data)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the pickle protocol of the file is irrelevant to the user
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except UserError:
        raise
    except pickle.UnpicklingError:
        if archive or _is_pickle(data):
            raise _refused(path, "a pickle with other objects than tensors") from None
        raise _damaged(path, "it is not a file of torch.save") from None
    except Exception as error:  # the loader raises many types for damaged files
        raise _damaged(path, one_line(error)) from None


def _check_archive(path: Path, data: bytes) -> None:
    """Compare the checksums, which PyTorch writes but does not check: a flipped bit would be loaded as a weight."""
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        if (member := file.testzip()) is not None:
            raise _damaged(path, f"{member} fails its checksum")
        if any(name.endswith("/constants.pkl") for name in file.namelist()):
            raise _refused(path, "a TorchScript program")


def _is_pickle(data: bytes) -> bool:
    """Whether the bytes start with a complete pickle; it is not executed."""
    try:
        return sum(1 for _ in pickletools.genops(data)) > 0
    except ValueError:
        return False


def _find_state_dict(path: Path, content: object) -> dict[str, Tensor]:
    """Find the state dict in the content of a checkpoint."""
    if isinstance(content, Mapping):
        for candidate in (content, *(content.get(key) for key in _CONTAINERS)):
            if isinstance(candidate, Mapping) and candidate:
                state = {str(key): value for key, value in candidate.items() if isinstance(value, Tensor)}
                if len(state) == len(candidate):
                    return state
    held = f"keys {[str(key) for key in content][:5]}" if isinstance(content, Mapping) else type(content).__name__
    raise SpecError(
        f"{path}: expected a state dict, bare or under one of {', '.join(_CONTAINERS)}, got {held}. {_CONVERT}"
    )


def _fit(path: Path, state: dict[str, Tensor], net: nn.Module) -> dict[str, Tensor]:
    """Remove prefixes of the keys until they match the network; refuse the weights of another network."""
    wanted: dict[str, Tensor] = dict(net.state_dict())
    best = max(_strip_prefixes(state), key=lambda candidate: len(candidate.keys() & wanted.keys()))
    missing = [key for key in wanted if key not in best]
    unexpected = sorted(best.keys() - wanted.keys())
    reshaped = [key for key in wanted if key in best and best[key].shape != wanted[key].shape]
    if not missing and not unexpected and not reshaped:
        return best
    parts = [f"{len(missing)} missing{_first(missing)}", f"{len(unexpected)} unexpected{_first(unexpected)}"]
    if reshaped:
        key = reshaped[0]
        parts.append(
            f"{len(reshaped)} of another shape (first {key!r}: "
            f"{tuple(best[key].shape)} in the file, {tuple(wanted[key].shape)} in the network)"
        )
    shapes = {key: (best[key].shape, wanted[key].shape) for key in reshaped}
    raise SpecError(
        f"{path}: expected the {len(wanted)} tensors of this {type(net).__name__}, got those of another network: "
        f"{', '.join(parts)}. {_advise(missing + unexpected, shapes)}"
    )


def _advise(alien: list[str], shapes: Mapping[str, tuple[torch.Size, torch.Size]]) -> str:
    """Describe what to change: the classes or channels if nothing else differs, otherwise the whole specification.

    Args:
        alien: Keys that only the file or only the network has.
        shapes: Shapes in the file and in the network where they differ.
    """
    if alien and all(key.startswith("decoder.") for key in (*alien, *shapes)):
        return "Only the decoder differs: use the `architecture` and `settings` that it was trained with."
    changes = {_find_change(*pair) for pair in shapes.values()}
    found = {change[0]: change[1:] for change in changes if change is not None}
    if alien or len(found) < len(changes):  # several lengths of one axis, or other differences of shape
        return "Use the architecture, encoder, channels and classes that it was trained with."
    advice = {
        1: "Channels of an image: {0} in the file, {1} here. Set `channels` in [data] to {0}.",
        0: "Classes: {0} in the file, {1} here. Use data with the classes that it was trained for.",
    }
    return " ".join(advice[axis].format(*found[axis]) for axis in advice if axis in found)


def _find_change(old: torch.Size, new: torch.Size) -> tuple[int, int, int] | None:
    """Return axis, old and new length of two shapes that differ in the first or the second axis alone, else None."""
    differing = [i for i, pair in enumerate(zip(old, new, strict=False)) if len(set(pair)) > 1]
    if len(old) != len(new) or differing not in ([0], [1]):
        return None
    axis = differing[0]
    return axis, old[axis], new[axis]


def _strip_prefixes(state: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Yield a state dict, and then its copies without each prefix that all keys have."""
    yield state
    while state and (prefix := next((p for p in _PREFIXES if all(key.startswith(p) for key in state)), None)):
        state = {key.removeprefix(prefix): tensor for key, tensor in state.items()}
        yield state


def _first(keys: list[str]) -> str:
    """Format the first of some keys, or ""."""
    return f" (first {keys[0]!r})" if keys else ""


def _damaged(path: Path, cause: str) -> DataError:
    """Make the error for a damaged file."""
    cause = " ".join(cause.split())
    return DataError(f"{path}: expected an intact checkpoint, got a damaged file: {cause:.200}. Copy or save it again.")


def _refused(path: Path, what: str) -> SpecError:
    """Make the error for a file that cannot be read without executing code."""
    return SpecError(f"{path}: expected only weights, got {what}: refused because it could execute code. {_CONVERT}")


def digest_weights(model: nn.Module) -> str:
    """Return the SHA-256 over all weights and buffers, on the CPU."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
