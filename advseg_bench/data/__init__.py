"""Data sets. Each module has one function `load(spec) -> Dataset`."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from advseg_bench.specs import FolderData, Mni152Data, PhantomData

if TYPE_CHECKING:
    from advseg_bench.data.dataset import Dataset


def load_dataset(spec: Mni152Data | PhantomData | FolderData) -> Dataset:
    """Load the data set that a specification asks for.

    Raises: DataError: one line that names the file, what was expected and what was found.
    """
    dataset: Dataset = import_module(f"advseg_bench.data.{spec.name}").load(spec)
    return dataset
