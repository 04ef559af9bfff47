"""What a result depends on beside the suite: libraries, processor, device, and the code of plug-ins."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from importlib.util import find_spec
from pathlib import Path

import torch

from advseg_bench.errors import SpecError, expected

COMPUTING = ("advseg-bench", "torch", "segmentation-models-pytorch", "timm", "monai", "numpy", "scipy")
"""Distributions whose version may change a bit of a result."""


def describe_libraries() -> dict[str, str]:
    """Return the versions of `COMPUTING` and the processor's instruction set."""
    versions = {name: _version(name) for name in COMPUTING}
    return versions | {"instructions": torch.backends.cpu.get_cpu_capability()}


def describe_machine() -> dict[str, str]:
    """Return what is worth knowing of this machine but changes no bit."""
    return {
        "python": platform.python_version(),
        "polars": _version("polars"),
        "platform": platform.platform(),
        "cpu": _cpu_name(),
    }


def describe_code(names: Iterable[str]) -> dict[str, str]:
    """Return, for each `package.module:object` among the names, the hash of the module's source file.

    Changed code under an unchanged name would otherwise mix its results with those of the old code. Code that the
    module imports is not covered.
    """
    return {name: _hash_source(name.partition(":")[0]) for name in sorted(set(names)) if ":" in name}


def describe_packages(names: Iterable[str]) -> dict[str, str]:
    """Return the versions of the distributions that hold these import packages, such as art."""
    holders = packages_distributions()
    return {dist: _version(dist) for name in names for dist in sorted(set(holders.get(name, [])))}


def describe_device(device: str) -> str:
    """Return an accelerator's own name, or "cpu". Raises: SpecError: if there is no such device here."""
    try:
        kind = torch.empty(0, device=device).device.type
        if kind == "meta":
            raise RuntimeError("it holds no numbers")
        return torch.cuda.get_device_name(device) if kind == "cuda" else kind
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].split(". ")[0]
        remedy = f"It says: {reason}. Use --device cpu."
        raise SpecError(expected("device", "a device of this machine", device, remedy)) from None


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _hash_source(module: str) -> str:
    """The hash of a module's file; a module that cannot be found gives its error when it is loaded, not here."""
    try:
        found = find_spec(module)
    except (ImportError, ValueError):
        found = None
    if found is None or found.origin is None or not Path(found.origin).is_file():
        return "not found"
    return hashlib.sha256(Path(found.origin).read_bytes()).hexdigest()[:16]


def _cpu_name() -> str:
    """The processor's name where the system tells it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
