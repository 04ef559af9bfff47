"""Which images are attacked? Data sets; each module has one function `load(spec) -> Dataset`."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from advseg_bench.registry import catalogue
from advseg_bench.suite.specs import DataSpec, PhantomData, PluginData, UwMadisonData

if TYPE_CHECKING:
    from advseg_bench.data.dataset import Dataset

UW_SLICES, UW_LABELLED = 38_496, 16_590
"""Slices of the whole UW-Madison data set, and those among them with a mask."""


def load_dataset(spec: DataSpec) -> Dataset:
    """Load the data set that a specification asks for.

    Raises:
        DataError: one line that names the file, what was expected and what was found.
        PluginError: if a plug-in's data set cannot be imported or is none.
    """
    module = "plugin" if isinstance(spec, PluginData) else spec.name
    dataset: Dataset = import_module(f"advseg_bench.data.{module}").load(spec)
    return dataset


def count_images(spec: DataSpec) -> tuple[int, int, str] | None:
    """Return how many training and test images there are, and how that is known; None if it is not.

    Data on disk are loaded, which loads torch. For UW-Madison that is not there the published numbers stand in, or what
    is expected of the phantom data that are to be drawn.

    Raises:
        DataError: If the data are there and wrong.
    """
    if (fixed := catalogue.IMAGES.get(spec.name)) is not None:
        return *fixed, ""
    if isinstance(spec, PluginData):
        return None
    if isinstance(spec, UwMadisonData) and (assumed := _assume_images(spec)):
        return assumed
    dataset = load_dataset(spec)
    where = "drawn" if isinstance(spec, PhantomData) else f"counted in {getattr(spec, 'path', spec.name)}"
    if isinstance(spec, UwMadisonData) and spec.phantom:
        where = "counted in the phantom data"
    return len(dataset.split("train")), len(dataset.split("test")), where


def _assume_images(spec: UwMadisonData) -> tuple[int, int, str] | None:
    """What `count_images` returns where there is nothing to count yet."""
    from advseg_bench.data.uw_madison.phantom import expect_images, locate_phantom

    if spec.phantom:
        expected = *expect_images(spec, spec.phantom), "expected of phantom data, which are not drawn yet"
        return None if locate_phantom(spec.phantom).is_dir() else expected
    if spec.path.exists():
        return None
    train = UW_SLICES * (1 - 1 / spec.folds) * (1 - spec.validation) / spec.every
    test = (UW_LABELLED if spec.labelled_only else UW_SLICES) / spec.folds / spec.every
    return round(train), round(test), f"{spec.path} is not there: numbers of the whole data set assumed"
