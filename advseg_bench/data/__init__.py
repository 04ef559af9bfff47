"""Which images are attacked? Data sets; each module has one function `load(spec) -> Dataset`."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from advseg_bench.errors import DataError
from advseg_bench.registry import catalogue
from advseg_bench.suite.specs import DataSpec, PhantomData, PluginData, UwMadisonData
from advseg_bench.suite.specs.data import divide_subjects

if TYPE_CHECKING:
    from advseg_bench.data.dataset import Dataset

UW_SLICES, UW_LABELLED = 38_496, 16_590
"""Slices of the whole UW-Madison data set, and those among them with a mask."""


def load_dataset(spec: DataSpec) -> Dataset:
    """Load the data set that a specification describes.

    Files are checked when the data set is loaded, and images are read when they are used.

    Args:
        spec: A data specification of `advseg_bench.suite.specs`, such as `Mni152Data`; its `task`, `size` and
            `channels` decide the form of labels and images.

    Returns:
        The data set. Its images are float32 (C, *S) in [0, 1], S being (H, W), or (D, H, W) for volumes. Its labels are
        bool (K, *S) for binary and multilabel tasks, int64 (*S) for multiclass.

    Cost:
        One pass over all files, with one slice in memory; for UW-Madison, the file names and train.csv only.

    Raises:
        DataError: One line with the file, what was expected, what was found and the remedy.
        PluginError: If the data set of a plug-in cannot be imported, or is not a function that returns a `Dataset`.
        SpecError: If a setting of a plug-in's data set is unknown or missing.
        RecordError: If phantom data cannot be written to the cache.

    Example:
        >>> from advseg_bench.data import load_dataset
        >>> from advseg_bench.suite.specs import Mni152Data
        >>> data = load_dataset(Mni152Data(name="mni152", size=64))
        >>> data.task.classes
        ('grey_matter', 'white_matter', 'csf')
        >>> batch = data.batch(data.split("test")[:2])
        >>> tuple(batch.x.shape), tuple(batch.y.shape)
        ((2, 1, 64, 64), (2, 3, 64, 64))
    """
    module = "plugin" if isinstance(spec, PluginData) else spec.name
    try:
        dataset: Dataset = import_module(f"advseg_bench.data.{module}").load(spec)
    except DataError as error:
        if not (place := _locate(spec)):
            raise
        raise DataError(f"{error}{place}") from None
    return dataset


def _locate(spec: DataSpec) -> str:
    """Return a sentence with the absolute path of a relative path to nothing, else ""."""
    path = getattr(spec, "path", None)
    if path is None or path.is_absolute() or path.exists() or getattr(spec, "phantom", None):
        return ""
    return f" A relative `path` starts at the folder where the command runs: here it is {path.resolve()}."


def count_images(spec: DataSpec) -> tuple[int, int, str] | None:
    """Return the numbers of training and test images of a data set, and how they were found.

    Data on disk are loaded, which imports torch. If UW-Madison is not on disk, the numbers of the whole published data
    set are used, or those expected of the phantom data that will be generated.

    Args:
        spec: A data specification of `advseg_bench.suite.specs`, such as `Mni152Data`.

    Returns:
        Number of training images, number of test images, and the origin of the numbers ("" for shipped data); None for
        a plug-in's data set, which is not loaded.

    Cost:
        As `load_dataset` for data on disk, otherwise none.

    Raises:
        DataError: If the data are on disk but damaged or incomplete.

    Example:
        >>> from advseg_bench.data import count_images
        >>> from advseg_bench.suite.specs import Mni152Data
        >>> count_images(Mni152Data(name="mni152"))
        (91, 36, '')
    """
    if (fixed := catalogue.IMAGES.get(spec.name)) is not None:
        return *fixed, ""
    if isinstance(spec, PluginData):
        return None
    if isinstance(spec, UwMadisonData) and (assumed := _assume_images(spec)):
        return assumed
    if isinstance(spec, PhantomData):
        train, _, test = divide_subjects(spec.subjects)
        return train * spec.days * spec.slices, test * spec.days * spec.slices, "drawn"
    dataset = load_dataset(spec)
    where = f"counted in {getattr(spec, 'path', spec.name)}"
    if isinstance(spec, UwMadisonData) and spec.phantom:
        where = "counted in the phantom data"
    return len(dataset.split("train")), len(dataset.split("test")), where


def _assume_images(spec: UwMadisonData) -> tuple[int, int, str] | None:
    """What `count_images` returns if there are no files to count yet."""
    from advseg_bench.data.uw_madison.phantom import expect_images, locate_phantom

    if spec.phantom:
        if locate_phantom(spec.phantom).is_dir():
            return None
        return *expect_images(spec, spec.phantom), "expected of phantom data, which are not drawn yet"
    if spec.path.exists():
        return None
    train = UW_SLICES * (1 - 1 / spec.folds) * (1 - spec.validation) / spec.every
    test = (UW_LABELLED if spec.labelled_only else UW_SLICES) / spec.folds / spec.every
    return round(train), round(test), f"{spec.path} does not exist: numbers of the whole data set assumed"
