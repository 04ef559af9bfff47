"""Data sets. Each module has one function `load(spec) -> Dataset`."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from advseg_bench.specs import DataSpec, PluginData

if TYPE_CHECKING:
    from advseg_bench.data.dataset import Dataset


def load_dataset(spec: DataSpec) -> Dataset:
    """Load the data set that a specification asks for.

    Raises:
        DataError: one line that names the file, what was expected and what was found.
        PluginError: if a plug-in's data set cannot be imported or is none.
    """
    module = "plugin" if isinstance(spec, PluginData) else spec.name
    dataset: Dataset = import_module(f"advseg_bench.data.{module}").load(spec)
    return dataset
