"""The content of a checkpoint file: its format is recognised by its bytes, and nothing in it is executed."""

from __future__ import annotations

import io
import pickle
import pickletools
import re
import struct
import warnings
import zipfile
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError

from advseg_bench.errors import DataError, SpecError, UserError, expected, one_line
from advseg_bench.models.checkpoints.standins import list_standins

CONVERT = (
    "Load it where the network is defined, save net.state_dict() with safetensors or torch.save, and use that file."
)
"""Remedy for a file that cannot be read as weights."""

_LARGEST_HEADER = 100_000_000
"""Bytes of the header of a safetensors file, at most."""

_OTHERS: tuple[tuple[bytes, str, str], ...] = (
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file, such as Keras writes", CONVERT),
    (b"\x1f\x8b", "a gzip archive", "Unpack it and use the file inside."),
    (b"BZh", "a bzip2 archive", "Unpack it and use the file inside."),
    (b"\xfd7zXZ\x00", "an xz archive", "Unpack it and use the file inside."),
    (b"7z\xbc\xaf", "a 7z archive", "Unpack it and use the file inside."),
    (b"Rar!", "a RAR archive", "Unpack it and use the file inside."),
    (b"GGUF", "a GGUF file", CONVERT),
    (b"\x93NUMPY", "a NumPy array", CONVERT),
)
"""First bytes of other formats, what they are, and what to do."""


def read_content(path: Path) -> object:
    """Return what a file of safetensors or of `torch.save` holds.

    The ending of its name does not matter: `.ckpt`, `.pth.tar`, `.bin`, `.PTH` or none.

    Args:
        path: The file.

    Returns:
        A dictionary of tensors for safetensors; for `torch.save` whatever was saved, with stand-ins for harmless
        objects (see `standins`).

    Raises:
        SpecError: If there is no such file, it is of another format, or reading it would execute code.
        DataError: If it is empty, cut short or damaged.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        remedy = "Correct the key `weights` of the model."
        raise SpecError(expected(path, "a readable file of weights", error.strerror, remedy)) from None
    if not data:
        raise damaged(path, "it is empty")
    for start, what, remedy in _OTHERS:
        if data.startswith(start):
            raise SpecError(expected(path, "a checkpoint of PyTorch or safetensors", what, remedy))
    if data[257:262] == b"ustar":
        what, remedy = "a tar archive", "Unpack it and use the file inside."
        raise SpecError(expected(path, "a checkpoint of PyTorch or safetensors", what, remedy))
    if data.startswith(b"version https://git-lfs"):
        raise damaged(path, "it is a pointer of Git LFS, not the file itself")
    if data[:200].lstrip().lower().startswith((b"<!doctype html", b"<html")):
        raise damaged(path, "it is a web page, not the file itself")
    if _is_safetensors(path, data):
        try:
            return safetensors.torch.load(data)
        except SafetensorError as error:
            raise damaged(path, str(error)) from None
    return _unpickle(path, data)


def _is_safetensors(path: Path, data: bytes) -> bool:
    """Whether a file is of safetensors, damaged or not."""
    if len(data) > 8:
        (header,) = struct.unpack("<Q", data[:8])
        return 2 <= header <= _LARGEST_HEADER and data[8:9] == b"{"
    return path.suffix == ".safetensors"


def _unpickle(path: Path, data: bytes) -> object:
    """Read a file of `torch.save` without executing it; distinguish files that could execute code from damaged ones."""
    archive = zipfile.is_zipfile(io.BytesIO(data))
    try:
        if archive:
            _check_archive(path, data)
        with warnings.catch_warnings(), torch.serialization.safe_globals(list_standins()):
            warnings.simplefilter("ignore")  # the pickle protocol of the file is irrelevant to the user
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except UserError:
        raise
    except pickle.UnpicklingError as error:
        if archive or _is_pickle(data):
            raise refused(path, _name_refused(error)) from None
        raise damaged(path, "it is not a file of torch.save or safetensors") from None
    except Exception as error:  # the loader raises many types for damaged files
        raise damaged(path, one_line(error)) from None


def _name_refused(error: pickle.UnpicklingError) -> str:
    """Name the class or function that the loader refused, if its message does."""
    found = re.search(r"GLOBAL ([\w.]+)", str(error))
    return f"a pickle with an object of {found[1]}" if found else "a pickle with other objects than tensors"


def _check_archive(path: Path, data: bytes) -> None:
    """Compare the checksums, which PyTorch writes but does not check: a flipped bit would be loaded as a weight."""
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        members = file.infolist()
        if sum(member.file_size for member in members) > len(data):  # torch.save compresses nothing
            raise damaged(path, "its members are larger than the file")
        if (member := file.testzip()) is not None:
            raise damaged(path, f"{member} fails its checksum")
        names = file.namelist()
    if any(name.endswith("/constants.pkl") for name in names):
        raise refused(path, "a TorchScript program")
    if not any(name.endswith("data.pkl") for name in names):
        what = f"a zip archive of {names[:3]}"
        raise SpecError(expected(path, "a checkpoint of PyTorch or safetensors", what, CONVERT))


def _is_pickle(data: bytes) -> bool:
    """Whether the bytes start with a complete pickle; it is not executed."""
    try:
        return sum(1 for _ in pickletools.genops(data)) > 0
    except ValueError:
        return False


def damaged(path: Path, cause: str) -> DataError:
    """Make the error for a damaged file."""
    cause = " ".join(cause.split())
    return DataError(f"{path}: expected an intact checkpoint, got a damaged file: {cause:.200}. Copy or save it again.")


def refused(path: Path, what: str) -> SpecError:
    """Make the error for a file that cannot be read without executing code."""
    return SpecError(f"{path}: expected only weights, got {what}: refused because it could execute code. {CONVERT}")
