"""Data sets of plug-ins: loaded by name and checked for the form that all data sets have."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from advseg_bench.cache import content_hash
from advseg_bench.data.dataset import Dataset, Sample
from advseg_bench.errors import DataError, PluginError, SpecError, UserError, expected, one_line, unknown
from advseg_bench.registry import environment, plugins
from advseg_bench.suite.specs import PluginData
from advseg_bench.types import Task


def load(spec: PluginData) -> Dataset:
    """Call a plug-in's function `f(spec, **settings) -> Dataset` and check what it returns.

    `spec` contains task, edges and channels; `data.prepare.prepare` turns an image and its masks into such a sample.
    Each sample is checked when it is read. The fingerprint covers the plug-in's fingerprint, the specification and the
    plug-in's code, so that a change in any of them makes another data set.

    Args:
        spec: Name and settings of the plug-in, and how images and labels are prepared.

    Returns:
        The data set, whose samples are checked when they are read.

    Raises:
        PluginError: If the name cannot be imported, or is not such a function.
        SpecError: If a setting is unknown or missing.
        DataError: If the function fails, or a sample has the wrong form.
    """
    where = f"data set {spec.name}"
    make = plugins.load_object("data set", spec.name)
    if not callable(make):
        what = "a function f(spec, **settings) that returns a Dataset"
        raise PluginError(expected(where, what, type(make).__name__, "Correct `name`."))
    _check_settings(where, make, spec.settings)
    try:
        dataset = make(spec, **spec.settings)
    except (UserError, KeyboardInterrupt):
        raise
    except BaseException as error:  # user code may stop with SystemExit and its like
        raise DataError(f"{where}: expected a data set, got {one_line(error)}. Check `settings`.") from error
    _check_dataset(where, dataset, spec)
    code = environment.describe_code([("data set", spec.name)])
    return Dataset(
        name=dataset.name,
        task=dataset.task,
        cases=dataset.cases,
        read=lambda index: _read_sample(where, index, dataset, spec),
        fingerprint=content_hash([spec.model_dump(mode="json"), code, dataset.fingerprint], length=64),
        note=dataset.note,
        channels=dataset.channels,
    )


def _check_settings(where: str, make: Callable[..., Any], settings: Mapping[str, Any]) -> None:
    """Refuse settings that the function does not take, and missing settings that it requires."""
    try:
        parameters = list(inspect.signature(make).parameters.values())
    except ValueError:  # some built-in callables have no signature
        return
    except Exception as error:  # an object whose attributes raise
        found = one_line(error)
        raise PluginError(f"{where}: expected a function f(spec, **settings), got {found}. Make it one.") from error
    if not parameters or parameters[0].kind is inspect.Parameter.KEYWORD_ONLY:
        found = f"f{inspect.signature(make)}"
        remedy = "Make `spec` its first argument."
        raise PluginError(expected(where, "a function f(spec, **settings)", found, remedy))
    named = {p.name: p for p in parameters[1:] if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    for key in settings:
        if key not in named and not any(p.kind is p.VAR_KEYWORD for p in parameters):
            raise SpecError(unknown(where, "setting", key, named))
    for key, parameter in named.items():
        if parameter.default is parameter.empty and key not in settings:
            raise SpecError(f"{where}: expected a setting {key!r}, got none. Add it to `settings`.")


def _check_dataset(where: str, dataset: object, spec: PluginData) -> None:
    """Refuse an object that is not a data set, or not one for the task of the suite."""
    if not isinstance(dataset, Dataset):
        what = "its function to return an advseg_bench.data.dataset.Dataset"
        raise PluginError(expected(where, what, type(dataset).__name__, "Correct the function."))
    if dataset.task.kind != spec.task:
        raise DataError(
            expected(where, f"labels for a {spec.task} task", dataset.task.kind, "Set `task` in the suite.")
        )
    if not dataset.split("test"):
        raise DataError(f"{where}: expected images in the test split, got none. Set `Case.split`.")
    images = [case.image for case in dataset.cases]
    if len(set(images)) < len(images):
        twice = next(image for image in images if images.count(image) > 1)
        raise DataError(f"{where}: expected a unique name for each case, got {twice!r} twice. Rename one of them.")


def _read_sample(where: str, index: int, dataset: Dataset, spec: PluginData) -> Sample:
    """Read a sample and refuse one whose arrays are not as `Sample` describes."""
    where, space = f"{where}: {dataset.cases[index].image}", spec.edges
    try:
        sample = Sample(*dataset.read(index))
    except (UserError, KeyboardInterrupt):
        raise
    except BaseException as error:  # user code may stop with SystemExit and its like
        raise DataError(f"{where}: expected a sample, got {one_line(error)}. Check the data set's `read`.") from error
    image, label, valid = sample
    _check_array(f"{where}: image", image, "float32", (spec.channels, *space))
    if not (np.isfinite(image).all() and image.min() >= 0 and image.max() <= 1):
        found = f"values from {image.min():g} to {image.max():g}"
        raise DataError(f"{where}: image: expected finite values in [0, 1], got {found}. Scale the image to [0, 1].")
    _check_array(f"{where}: valid", valid, "bool", space)
    _check_label(f"{where}: label", label, valid, dataset.task)
    return sample


def _check_label(where: str, label: np.ndarray, valid: np.ndarray, task: Task) -> None:
    """Refuse labels of another type, another number of classes, or unknown classes."""
    if task.kind != "multiclass":
        _check_array(where, label, "bool", (len(task.classes), *valid.shape))
        return
    _check_array(where, label, "int64", valid.shape)
    values = label[valid]
    if values.size and (values.min() < 0 or values.max() >= len(task.classes)):
        odd = int(values.min() if values.min() < 0 else values.max())
        remedy = "Mark pixels to ignore in `valid`, not in the label."
        raise DataError(expected(where, f"classes 0 to {len(task.classes) - 1}", odd, remedy))


def _check_array(where: str, array: object, dtype: str, shape: tuple[int, ...]) -> None:
    found = (
        f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else f"{type(array).__name__}, no NumPy array"
    )
    if found != f"{dtype} {shape}":
        raise DataError(f"{where}: expected {dtype} {shape}, got {found}. Use advseg_bench.data.prepare.prepare.")
