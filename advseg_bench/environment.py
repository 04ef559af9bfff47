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
from advseg_bench.registry import plugins, toolkits
from advseg_bench.registry.plugins import Kind

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


def describe_code(names: Iterable[tuple[Kind, str]]) -> dict[str, str]:
    """Return, for each name that this package does not ship, what its results depend on: versions and source code.

    Changed code under an unchanged name would otherwise mix its results with those of the old code. The hash covers
    the Python files of the top-level package that holds the object; what that imports is known by its version at most.

    Args:
        names: (kind, name), where the name is a plug-in's, a toolkit's attack, or `package.module:object`.

    Returns:
        "kind name" -> the hash; then the versions of the distribution that offers it, and of the toolkit.

    Raises:
        PluginError: If a name has more than one provider.
    """
    described = {f"{kind} {name}": _describe_name(kind, name) for kind, name in sorted(set(names))}
    return {name: text for name, text in described.items() if text}


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


def _describe_name(kind: Kind, name: str) -> str:
    """Hash and versions behind one name; "" if it is shipped."""
    toolkit = toolkits.find_toolkit(name) if kind == "attack" else None
    plugin = toolkit or plugins.find_plugin(kind, name)
    if plugin is None:
        return _hash_source(name.partition(":")[0]) if ":" in name else ""
    versions = {plugin.distribution: _version(plugin.distribution)}
    versions |= describe_packages([toolkit.name]) if toolkit else {}
    shown = (f"{distribution} {number}" for distribution, number in versions.items())
    return ", ".join([_hash_source(plugin.target.partition(":")[0]), *shown])


def _hash_source(module: str) -> str:
    """The hash of a top-level package's files; one that cannot be found gives its error when it is loaded, not here."""
    try:
        found = find_spec(module.partition(".")[0])
    except (ImportError, ValueError):
        found = None
    folders = [Path(folder) for folder in (found.submodule_search_locations or ())] if found else []
    files = [(path.relative_to(folder), path) for folder in folders for path in folder.rglob("*.py")]
    if found and not folders and found.origin and Path(found.origin).is_file():
        files = [(Path(found.name), Path(found.origin))]
    digest = hashlib.sha256()
    for name, path in sorted(files):
        digest.update(f"{name.as_posix()}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16] if files else "not found"


def _cpu_name() -> str:
    """The processor's name where the system tells it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
