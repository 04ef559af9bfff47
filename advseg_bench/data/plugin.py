"""Data sets of plug-ins: loaded by name, and held to the form that every data set takes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from advseg_bench import environment
from advseg_bench.cache import content_hash
from advseg_bench.data.dataset import Dataset, Sample
from advseg_bench.errors import DataError, PluginError, SpecError, UserError, expected, one_line, unknown
from advseg_bench.registry import plugins
from advseg_bench.suite.specs import PluginData
from advseg_bench.types import Task


def load(spec: PluginData) -> Dataset:
    """Call a plug-in's function `f(spec, **settings) -> Dataset` and check what it returns.

    `spec` tells task, edges and channels; `data.prepare.prepare` turns an image and its masks into a sample by it. Each
    sample is checked when it is read. The fingerprint is made of the plug-in's own, the specification and the
    plug-in's code, so that a change in any of them is another data set.

    Raises:
        PluginError: if the name cannot be imported, or is not such a function.
        SpecError: if a setting is unknown or missing.
        DataError: if the function fails, or a sample is not as promised.
    """
    where = f"data set {spec.name}"
    make = plugins.load_object("data set", spec.name)
    if not callable(make):
        what = "a function f(spec, **settings) that returns a Dataset"
        raise PluginError(expected(where, what, type(make).__name__))
    _check_settings(where, make, spec.settings)
    try:
        dataset = make(spec, **spec.settings)
    except UserError:
        raise
    except Exception as error:
        raise DataError(f"{where}: could not be loaded: {one_line(error)}. Check `settings`.") from error
    _check_dataset(where, dataset, spec)
    code = environment.describe_code([("data set", spec.name)])
    return Dataset(
        name=dataset.name,
        task=dataset.task,
        cases=dataset.cases,
        read=lambda index: _read_sample(where, index, dataset, spec),
        fingerprint=content_hash([spec.model_dump(mode="json"), code, dataset.fingerprint], length=64),
        note=dataset.note,
    )


def _check_settings(where: str, make: Callable[..., Any], settings: Mapping[str, Any]) -> None:
    """Refuse settings that the function does not take, and ask for those that it demands."""
    try:
        parameters = list(inspect.signature(make).parameters.values())
    except ValueError:  # some built-in callables have no signature
        return
    if not parameters or parameters[0].kind is inspect.Parameter.KEYWORD_ONLY:
        raise PluginError(expected(where, "a function f(spec, **settings)", f"f{inspect.signature(make)}"))
    named = {p.name: p for p in parameters[1:] if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    for key in settings:
        if key not in named and not any(p.kind is p.VAR_KEYWORD for p in parameters):
            raise SpecError(unknown(where, "setting", key, named))
    for key, parameter in named.items():
        if parameter.default is parameter.empty and key not in settings:
            raise SpecError(f"{where}: demands a setting {key!r}. Add it to `settings`.")


def _check_dataset(where: str, dataset: object, spec: PluginData) -> None:
    """Refuse what is no data set, or not one for the task of the suite."""
    if not isinstance(dataset, Dataset):
        what = "its function to return an advseg_bench.data.dataset.Dataset"
        raise PluginError(expected(where, what, type(dataset).__name__))
    if dataset.task.kind != spec.task:
        raise DataError(
            expected(where, f"labels for a {spec.task} task", dataset.task.kind, "Set `task` in the suite.")
        )
    if not dataset.split("test"):
        raise DataError(f"{where}: expected images in each split, got none in test.")
    images = [case.image for case in dataset.cases]
    if len(set(images)) < len(images):
        twice = next(image for image in images if images.count(image) > 1)
        raise DataError(f"{where}: two cases are named {twice!r}. Give each image a name of its own.")


def _read_sample(where: str, index: int, dataset: Dataset, spec: PluginData) -> Sample:
    """Read a sample and refuse one whose arrays are not what `Sample` promises."""
    where, space = f"{where}: {dataset.cases[index].image}", spec.edges
    try:
        sample = Sample(*dataset.read(index))
    except UserError:
        raise
    except Exception as error:
        raise DataError(f"{where}: cannot be read: {one_line(error)}.") from error
    image, label, valid = sample
    _check_array(f"{where}: image", image, "float32", (spec.channels, *space))
    if not (np.isfinite(image).all() and image.min() >= 0 and image.max() <= 1):
        found = f"values from {image.min():g} to {image.max():g}"
        raise DataError(f"{where}: image: expected finite values in [0, 1], got {found}. Scale the image.")
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
        remedy = "A value to ignore belongs in `valid`."
        raise DataError(expected(where, f"classes 0 to {len(task.classes) - 1}", odd, remedy))


def _check_array(where: str, array: object, dtype: str, shape: tuple[int, ...]) -> None:
    found = (
        f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else f"{type(array).__name__}, no NumPy array"
    )
    if found != f"{dtype} {shape}":
        raise DataError(f"{where}: expected {dtype} {shape}, got {found}. See advseg_bench.data.prepare.")
