"""What running a class of ART takes beside calling it: starts, files, devices, and images it is not made for."""

from __future__ import annotations

import contextlib
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from torch import nn

from advseg_adapters.art.classifier import ViewClassifier
from advseg_adapters.art.estimator import SegmentationEstimator
from advseg_bench.errors import IncompatibleError, expected
from advseg_bench.instruments.modes import in_mode
from advseg_bench.protocols import Model
from advseg_bench.types import Norm

TRIES = 100
"""Random images looked at for one that is segmented badly."""

SQUARE_TILES = 5
"""SquareAttack lays so many tiles side by side and above each other for L2."""


def check_shape(class_name: str, shape: Sequence[int], norm: Norm) -> None:
    """Refuse images that a class fails on with words nobody understands.

    Args:
        class_name: Of ART.
        shape: Of one image, (C, *S).
        norm: Of the budget.

    Raises:
        IncompatibleError: Channels or edges the class was not written for.
    """
    channels, *space = shape
    where = f"attack art.{class_name}"
    if class_name == "ShadowAttack" and channels not in (1, 3):
        raise IncompatibleError(expected(where, "images with 1 or 3 channels", channels, "Use another attack."))
    if class_name == "GeoDA" and space[0] != space[1]:
        raise IncompatibleError(expected(where, "square images", tuple(space), "Use another attack."))
    if class_name == "SquareAttack":
        least = 2 * SQUARE_TILES if norm == "l2" else 4
        if min(space) < least or (norm == "l2" and space[1] < space[0]):
            what = f"images of {least} pixels or more an edge" + (", no taller than wide" if norm == "l2" else "")
            raise IncompatibleError(expected(where, what, tuple(space), "Use another attack."))


def fit_share(space: Sequence[int]) -> float:
    """Return the share of an image that SquareAttack's first tile may take: 0.8, or what fits into the shorter edge."""
    return min(0.8, (min(space) - 2) ** 2 / float(np.prod(space)))


def to_lower(estimator: SegmentationEstimator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return what SquareAttack shall lower, (N,): minus the loss, and infinity for candidates of NaN that it makes."""
    finite = np.isfinite(x).reshape(len(x), -1).all(1)
    value = np.full(len(x), np.inf)
    if finite.any():
        value[finite] = -np.asarray(estimator.compute_loss(x[finite], y[finite]))
    return value


def find_start(classifier: ViewClassifier, x: np.ndarray, kind: Literal["uniform", "extreme"]) -> np.ndarray | None:
    """Draw noise from NumPy's global generator until an image of it is segmented badly.

    For BoundaryAttack and HopSkipJump, which draw it themselves from a generator that nobody can seed; and for GeoDA,
    whose search never ends if noise does not break the segmentation.

    Args:
        classifier: Over a margin view of one image.
        x: The image, (1, C, *S).
        kind: Anything between the bounds, or each value at one of them.

    Returns:
        An image like `x`, or None after `TRIES`.

    Cost:
        Up to `TRIES` forwards.
    """
    lower, upper = classifier.clip_values
    for _ in range(TRIES):
        share = np.random.uniform(size=x.shape)  # noqa: NPY002
        share = share if kind == "uniform" else share.round()
        noise: np.ndarray = (lower + (upper - lower) * share).astype(np.float32)
        if classifier.predict(noise).argmax(1).all():
            return noise
    return None


def write_cosines(frequencies: int, edge: int) -> None:
    """Write the basis that GeoDA looks for where it runs: its own function for it fails with NumPy 2.

    Column i_u * frequencies + i_v holds the product of cosine i_u along the rows and i_v along the columns of an image,
    each of length 1.
    """
    pixels, waves = np.arange(edge), np.arange(frequencies)[:, None]
    cosines = np.cos((2 * pixels + 1) * waves * np.pi / (2 * max(edge, frequencies)))
    cosines *= np.where(waves == 0, 1, np.sqrt(2)) / np.sqrt(max(edge, frequencies))
    basis = np.einsum("ux,vy->yxuv", cosines, cosines).reshape(edge * edge, frequencies**2)
    np.save(f"2d_dct_basis_{frequencies}_{edge}.npy", basis.astype(np.float32))


def choose(classifier: ViewClassifier, found: np.ndarray, best: np.ndarray) -> np.ndarray:
    """Return, image by image, the result or the best iterate, whichever is segmented worse. Cost: two forwards."""
    if best.shape != found.shape:
        return found
    better = classifier.predict(best)[:, 1] > classifier.predict(found)[:, 1]
    return np.where(better.reshape(-1, *[1] * (found.ndim - 1)), best, found)


@contextlib.contextmanager
def contained(target: Model, device: torch.device, *, writes: bool) -> Iterator[None]:
    """Run ART on a device: its warnings unheard, its files thrown away, the model's training flags put back."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", module=r"art\.")
        if isinstance(target, nn.Module):
            stack.enter_context(in_mode(target, target.training))
        if device.type == "cuda":
            stack.enter_context(torch.cuda.device(device))
        if writes:
            stack.enter_context(contextlib.chdir(_folder().name))
        yield


@lru_cache(maxsize=1)
def _folder() -> tempfile.TemporaryDirectory[str]:
    """A folder that lives as long as the process."""
    return tempfile.TemporaryDirectory()
