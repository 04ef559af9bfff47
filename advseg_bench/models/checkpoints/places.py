"""Where the weights of a model are: a file, a folder, or a repository of the Hugging Face Hub."""

from __future__ import annotations

import logging
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

from advseg_bench.errors import SpecError, expected, one_line

HUB = re.compile(r"hf:/*(?P<repo>[\w.-]+/[\w.-]+?)(@(?P<revision>[\w.-]+))?(/(?P<file>[^@]+))?")
"""`hf:owner/name`, with `@revision` and `/path/of/file` if need be."""

BUNDLE_CONFIGS = tuple(f"configs/{stem}.{end}" for stem in ("inference", "train") for end in ("json", "yaml", "yml"))
CONFIGS = ("config.json", *BUNDLE_CONFIGS)
"""Files of a folder that define a network: of segmentation-models-pytorch and of a MONAI bundle."""

WEIGHTS = ("models/model.pt", "models/model.safetensors", "model.safetensors", "pytorch_model.bin")
"""Where such folders keep their weights."""

_SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin", ".tar")


def is_hub(place: Path | str) -> bool:
    """Whether a place is a repository of the Hugging Face Hub."""
    return str(place).startswith("hf:")


def find_local(place: Path) -> Path:
    """Return a file or folder as it is; a repository of the Hub is fetched first, into the cache of `huggingface_hub`.

    Args:
        place: A path, or `hf:owner/name`, `hf:owner/name@revision`, `hf:owner/name/file.pth`.

    Raises:
        SpecError: If the name has no such form, or there is no network, no such repository or file.
    """
    return fetch(str(place)) if is_hub(place) else place


@cache
def fetch(name: str) -> Path:
    """Fetch the files of a repository that weights and their network need; see `find_local`."""
    match = HUB.fullmatch(name)
    if match is None:
        remedy = "Write hf:owner/name, or hf:owner/name@revision/file.safetensors."
        raise SpecError(expected(name, "a repository of the Hugging Face Hub", name, remedy))
    from huggingface_hub import snapshot_download

    file = match["file"]
    patterns = [file] if file else [*CONFIGS, *WEIGHTS]
    try:
        with hub_access():
            folder = snapshot_download(match["repo"], revision=match["revision"], allow_patterns=patterns)
    except Exception as error:  # of the network, the server or the name: the package has a class for each
        raise SpecError(
            f"{name}: expected files from the Hugging Face Hub, got {describe_failure(error)}. Connect to it once, "
            "check the name, or use a local file or folder."
        ) from None
    found = Path(folder, file) if file else Path(folder)
    if not found.exists():
        raise SpecError(expected(name, f"a file {file} in the repository", "none", "Check its path."))
    return found


def describe_failure(error: Exception) -> str:
    """Describe why files could not be fetched."""
    match type(error).__name__:
        case "LocalEntryNotFoundError" | "OfflineModeIsEnabled" | "URLError" | "ConnectionError" | "ConnectError":
            return "no connection, and nothing in the cache"
        case "RepositoryNotFoundError":
            return "no such repository, or a private one"
        case "RevisionNotFoundError":
            return "no such revision"
    return one_line(error, 160)


@contextmanager
def hub_access() -> Iterator[None]:
    """Use the Hub inside: where its address is unknown, only its cache, at once and without a line for each retry."""
    from huggingface_hub import constants

    logger = logging.getLogger("huggingface_hub")
    before = constants.HF_HUB_OFFLINE, logger.level
    constants.HF_HUB_OFFLINE = before[0] or not _is_known(urlsplit(constants.ENDPOINT).hostname)
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before[0]
        logger.setLevel(before[1])


def _is_known(host: str | None) -> bool:
    """Whether a host has an address here; a proxy would find it by itself."""
    if getproxies():
        return True
    try:
        socket.getaddrinfo(host, None)
    except OSError:
        return False
    return True


def find_file(place: Path) -> Path:
    """Return the file that holds the weights.

    Args:
        place: A file; or a folder such as a MONAI bundle, one of `save_pretrained`, or one with a single checkpoint; or
            a repository of the Hub.

    Raises:
        SpecError: If a folder holds no checkpoint or several.
    """
    local = find_local(place)
    if not local.is_dir():
        return local
    for name in WEIGHTS:
        if (local / name).is_file():
            return local / name
    found = sorted(path for path in local.iterdir() if path.suffix.lower() in _SUFFIXES and path.is_file())
    if len(found) == 1:
        return found[0]
    names = [path.name for path in found] or "none"
    remedy = "Name the file as `weights`."
    raise SpecError(expected(place, f"a folder with one checkpoint, such as {WEIGHTS[2]}", names, remedy))
