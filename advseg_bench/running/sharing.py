"""Shares a loaded data set between the workers of one machine, so that its files are read once."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import _lru_cache_wrapper, lru_cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

from advseg_bench.suite.specs import DataSpec, PluginData

if TYPE_CHECKING:
    from advseg_bench.data.dataset import Dataset

MOST_BYTES = 2**31
"""Largest packed data set that is shared; each worker loads a larger one itself."""
_FIELDS = ("name", "task", "cases", "fingerprint", "note", "bounds", "channels", "record", "title", "by_image")


def pack(dataset: Dataset, spec: DataSpec) -> bytes | None:
    """Return a loaded data set as bytes: descriptions, arrays in memory, and how images are read from files.

    Args:
        dataset: The data set.
        spec: The specification that it was loaded from.

    Returns:
        Bytes for `unpack` on the same machine; None if it is that of a plug-in, whose state is unknown, or if it cannot
        be packed.
    """
    if isinstance(spec, PluginData):
        return None
    fields = {name: getattr(dataset, name) for name in _FIELDS}
    read = dataset.read.__wrapped__  # without the cache of read images
    packed = io.BytesIO()
    try:
        _make_pickler(packed).dump((fields, read))
    except Exception:  # a reader that holds something open
        return None
    return packed.getvalue() if packed.tell() <= MOST_BYTES else None


def unpack(packed: bytes) -> Dataset:
    """Return the data set of `pack`."""
    from advseg_bench.data.dataset import Dataset

    fields, read = import_module("ray.cloudpickle").loads(packed)
    return Dataset(**fields, read=read)


def _make_pickler(file: io.BytesIO) -> Any:
    """A pickler of closures and of functions inside functions that keep their results."""

    class Pickler(import_module("ray.cloudpickle").CloudPickler):  # type: ignore[misc]
        def reducer_override(self, value: Any) -> Any:
            if isinstance(value, _lru_cache_wrapper) and "<l" in value.__qualname__:  # <locals> or <lambda>
                return _keep_results, (value.__wrapped__, value.cache_parameters()["maxsize"])
            return super().reducer_override(value)

    return Pickler(file)


def _keep_results(function: Callable[..., Any], most: int) -> Callable[..., Any]:
    return lru_cache(maxsize=most)(function)
