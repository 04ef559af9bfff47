"""What a result depends on in addition to the suite: libraries, processor, device, and the code of plug-ins."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path

import torch

from advseg_bench.errors import SpecError, expected
from advseg_bench.registry import plugins, sources, toolkits
from advseg_bench.registry.plugins import Kind
from advseg_bench.registry.sources import Session

COMPUTING = ("advseg-bench", "torch", "segmentation-models-pytorch", "timm", "monai", "numpy", "scipy")
"""Distributions whose version can change the bits of a result."""


def describe_libraries() -> dict[str, str]:
    """Return the versions of `COMPUTING` and the processor's instruction set."""
    versions = {name: _version(name) for name in COMPUTING}
    return versions | {"instructions": torch.backends.cpu.get_cpu_capability()}


def describe_machine() -> dict[str, str]:
    """Return facts about this machine that do not change the bits of a result."""
    return {
        "python": platform.python_version(),
        "polars": _version("polars"),
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "build": _describe_build(),
    }


def _describe_build() -> str:
    """The build of torch: its commit, and the version of CUDA or HIP that it was built with."""
    backends = {"CUDA": torch.version.cuda, "HIP": torch.version.hip}
    shown = [f"{name} {number}" for name, number in backends.items() if number]
    return ", ".join([f"torch {torch.__version__} of {str(torch.version.git_version)[:12]}", *shown])


def describe_code(names: Iterable[tuple[Kind, str]], session: Session | None = None) -> dict[str, str]:
    """Return versions and source hashes of all objects that are not part of this package.

    They detect code that changed under the same name, so that results of old and new code are not mixed. The hash
    covers, as they were imported, the Python files of the top-level package that defines the object and the modules
    that these import from folders that are not installed; other packages are covered by their version at most.

    Args:
        names: Pairs of a type, such as "attack", and a name: of a plug-in, of a toolkit's attack, or
            `package.module:object`.
        session: What was described before with it is described as it was then. Code in no file, such as a cell of a
            notebook, is described by the session's token. By default a new one.

    Returns:
        "type name" -> source hash, then the versions of the distribution that provides it and of the toolkit.

    Raises:
        PluginError: If a name has more than one provider, or a file changed before its import was noticed.
    """
    session = session or Session()
    described = {f"{kind} {name}": _describe_name(kind, name, session) for kind, name in sorted(set(names))}
    return {name: text for name, text in described.items() if text}


def begin_code(names: Iterable[tuple[Kind, str]]) -> Session:
    """Start a run: refuse code in memory that differs from its files.

    Args:
        names: As for `describe_code`.

    Returns:
        A session, in which the code was described.

    Raises:
        PluginError: If a file has changed on disk since it was imported.
    """
    return sources.begin(filter(None, (_find_module(kind, name) for kind, name in sorted(set(names)))))


def in_no_file(code: Mapping[str, str]) -> bool:
    """Return whether code, as described by `describe_code`, is in no file: nothing may be cached under it."""
    return any(text.startswith(sources.NO_FILE) for text in code.values())


def describe_packages(names: Iterable[str]) -> dict[str, str]:
    """Return the versions of the distributions that provide these import packages, such as art."""
    holders = packages_distributions()
    return {dist: _version(dist) for name in names for dist in sorted(set(holders.get(name, [])))}


def describe_device(device: str) -> str:
    """Return the name of an accelerator, or "cpu".

    Raises:
        SpecError: The machine has no such device.
    """
    try:
        kind = torch.empty(0, device=device).device.type
        if kind == "meta":
            raise RuntimeError("it stores no data")
        return torch.cuda.get_device_name(device) if kind == "cuda" else kind
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].split(". ")[0]
        remedy = f"PyTorch reports: {reason}. Use --device cpu."
        raise SpecError(expected("device", "a device of this machine", device, remedy)) from None


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _find_plugin(kind: Kind, name: str) -> plugins.Plugin | None:
    """The entry point of a name, of a toolkit or a plug-in."""
    return (toolkits.find_toolkit(name) if kind == "attack" else None) or plugins.find_plugin(kind, name)


def _find_module(kind: Kind, name: str) -> str:
    """The module that defines a name; "" if it is part of this package."""
    plugin = _find_plugin(kind, name)
    target = plugin.target if plugin else name if ":" in name else ""
    return target.partition(":")[0]


def _describe_name(kind: Kind, name: str, session: Session) -> str:
    """Source hash and versions of one name; "" if it is part of this package."""
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
    """The name of the processor where the system provides it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
