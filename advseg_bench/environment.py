"""What a result depends on beside the suite: libraries, processor, device, and the code of plug-ins."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path

import torch

from advseg_bench.errors import SpecError, expected
from advseg_bench.registry import plugins, sources, toolkits
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


def describe_code(names: Iterable[tuple[Kind, str]], session: str = "") -> dict[str, str]:
    """Return, for each name that this package does not ship, what its results depend on: versions and source code.

    Changed code under an unchanged name would otherwise mix its results with those of the old code. The hash covers
    the Python files of the top-level package that holds the object, and the modules of the same folder that they
    import, as they were imported. Other packages are known by their version at most.

    Args:
        names: (kind, name), where the name is a plug-in's, a toolkit's attack, or `package.module:object`.
        session: What distinguishes code that no file contains, such as a notebook's cell; by default it differs in
            each call.

    Returns:
        "kind name" -> the hash; then the versions of the distribution that offers it, and of the toolkit.

    Raises:
        PluginError: If a name has more than one provider, or a file changed before its import was noticed.
    """
    described = {f"{kind} {name}": _describe_name(kind, name, session) for kind, name in sorted(set(names))}
    return {name: text for name, text in described.items() if text}


def begin_code(names: Iterable[tuple[Kind, str]]) -> None:
    """Start a run: refuse code in memory that is not what its files contain.

    Args:
        names: As for `describe_code`.

    Raises:
        PluginError: If a file has changed on disk since it was imported.
    """
    sources.begin(filter(None, (_find_module(kind, name) for kind, name in sorted(set(names)))))


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


def _find_plugin(kind: Kind, name: str) -> plugins.Plugin | None:
    """The entry point behind a name: a toolkit's or a plug-in's."""
    return (toolkits.find_toolkit(name) if kind == "attack" else None) or plugins.find_plugin(kind, name)


def _find_module(kind: Kind, name: str) -> str:
    """The module behind a name; "" if it is shipped."""
    plugin = _find_plugin(kind, name)
    target = plugin.target if plugin else name if ":" in name else ""
    return target.partition(":")[0]


def _describe_name(kind: Kind, name: str, session: str) -> str:
    """Hash and versions behind one name; "" if it is shipped."""
    module = _find_module(kind, name)
    if not module:
        return ""
    plugin = _find_plugin(kind, name)
    versions = {plugin.distribution: _version(plugin.distribution)} if plugin else {}
    if plugin and kind == "attack" and toolkits.find_toolkit(name):
        versions |= describe_packages([plugin.name])
    shown = (f"{distribution} {number}" for distribution, number in versions.items())
    return ", ".join([sources.hash_source(module, session), *shown])


def _cpu_name() -> str:
    """The processor's name where the system tells it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
