"""Harmless objects beside the weights of a checkpoint, such as hyper-parameters, that a reader does not need.

PyTorch's weights-only loader knows tensors and plain containers. Trainers also write a few objects that hold no code:
NumPy scalars, paths, dates, configurations. Each is listed here by its full name and replaced by an inert stand-in
while a file is read: the real class is neither imported nor called. Every other name makes a file refused.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any


class Inert:
    """Stands for an object whose content does not matter: it takes any arguments and any state, and keeps none."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Inert:
        """Ignore all arguments."""
        return object.__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Ignore all arguments."""

    def __setstate__(self, state: Any) -> None:
        """Ignore the state."""


class InertDict(Inert):
    """Makes a plain ordered dictionary, which is all that the loader fills."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Return an empty dictionary."""
        return OrderedDict()


class InertList(Inert):
    """Makes a plain list."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Return an empty list."""
        return []


_NUMPY = [f"numpy.{core}.multiarray.{name}" for core, name in product(("core", "_core"), ("scalar", "_reconstruct"))]
_NUMPY += [f"numpy.{name}" for name in ("dtype", "ndarray", "bool_", "float32", "float64", "int32", "int64")]
_PATHS = [
    f"{module}.{name}"
    for module, name in product(
        ("pathlib", "pathlib._local"),
        ("Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath"),
    )
]
_OMEGACONF = [
    f"omegaconf.{name}"
    for name in (
        *("dictconfig.DictConfig", "listconfig.ListConfig", "base.ContainerMetadata", "base.Metadata"),
        *(f"nodes.{name}Node" for name in ("Any", "String", "Integer", "Float", "Boolean", "Enum", "Path", "Bytes")),
    )
]
_TYPES = ["typing.Any", *(f"builtins.{name}" for name in ("int", "float", "str", "bool", "dict", "list", "tuple"))]
_OTHERS = [
    "argparse.Namespace",
    "types.SimpleNamespace",
    *(f"datetime.{name}" for name in ("datetime", "date", "timedelta", "timezone")),
    "torch.torch_version.TorchVersion",
    "ml_collections.config_dict.config_dict.ConfigDict",
    "mmengine.logging.history_buffer.HistoryBuffer",
]
_DICTIONARIES = [
    "collections.defaultdict",
    *(f"{package}.utilities.data.AttributeDict" for package in ("lightning_fabric", "lightning.fabric")),
    *(f"{package}.utilities.parsing.AttributeDict" for package in ("pytorch_lightning", "lightning.pytorch")),
    "easydict.EasyDict",
    *(f"{module}.CfgNode" for module in ("yacs.config", "fvcore.common.config", "detectron2.config.config")),
    "mmengine.config.config.ConfigDict",
    "addict.addict.Dict",
    "munch.Munch",
]


def list_standins() -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """Return pairs (stand-in, full name of what it stands for) for `torch.serialization.safe_globals`."""
    return list(_pair())


def _pair() -> Iterator[tuple[Callable[..., Any], str]]:
    """The pairs."""
    for name in (*_NUMPY, *_PATHS, *_OMEGACONF, *_TYPES, *_OTHERS):
        yield Inert, name
    for name in _DICTIONARIES:
        yield InertDict, name
    yield InertList, "collections.deque"
