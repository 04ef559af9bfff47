"""Helpers to run a class of ART: starting points, files, devices, and checks of the image shape."""

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
"""Maximum number of noise images tried as a starting point."""

SQUARE_TILES = 5
"""Number of tiles along each axis in SquareAttack with an L2 budget."""


def check_shape(class_name: str, shape: Sequence[int], norm: Norm) -> None:
    """Reject images of a shape on which a class fails with an obscure error.

    Args:
        class_name: Name of a class of ART.
        shape: Shape of one image, (C, *S).
        norm: Norm of the budget.

    Raises:
        IncompatibleError: The class does not support the channels or the edge lengths.
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
            what = f"edges of at least {least} pixels" + (", no taller than wide" if norm == "l2" else "")
            raise IncompatibleError(expected(where, what, tuple(space), "Use another attack."))


def fit_share(space: Sequence[int]) -> float:
    """Return the largest share of an image for SquareAttack's first tile: 0.8, or less to fit the shorter edge."""
    return min(0.8, (min(space) - 2) ** 2 / float(np.prod(space)))


def to_lower(estimator: SegmentationEstimator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the objective that SquareAttack minimises, (N,): minus the loss, and infinity for NaN candidates."""
    finite = np.isfinite(x).reshape(len(x), -1).all(1)
    value = np.full(len(x), np.inf)
    if finite.any():
        value[finite] = -np.asarray(estimator.compute_loss(x[finite], y[finite]))
    return value


def find_start(classifier: ViewClassifier, x: np.ndarray, kind: Literal["uniform", "extreme"]) -> np.ndarray | None:
    """Sample noise from NumPy's global generator until the class changes.

    BoundaryAttack and HopSkipJump sample it from a generator that cannot be seeded, and the search of GeoDA never ends
    without success.

    Args:
        classifier: Classifier over a margin view of one image.
        x: The image, (1, C, *S).
        kind: "uniform" for values between the bounds, "extreme" for values at either bound.

    Returns:
        Noise (1, C, *S) of class 1, or None after `TRIES` samples.

    Cost:
        At most `TRIES` forwards.
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
    """Write the cosine basis that GeoDA reads from the current folder; its own function fails with NumPy 2.

    Column i_u * frequencies + i_v holds the product of cosine i_u along the rows and cosine i_v along the columns of an
    image, each of L2 norm 1.

    Args:
        frequencies: Number of cosines along each axis.
        edge: Edge length of the image in pixels.
    """
    pixels, waves = np.arange(edge), np.arange(frequencies)[:, None]
    cosines = np.cos((2 * pixels + 1) * waves * np.pi / (2 * max(edge, frequencies)))
    cosines *= np.where(waves == 0, 1, np.sqrt(2)) / np.sqrt(max(edge, frequencies))
    basis = np.einsum("ux,vy->yxuv", cosines, cosines).reshape(edge * edge, frequencies**2)
    np.save(f"2d_dct_basis_{frequencies}_{edge}.npy", basis.astype(np.float32))


def choose(classifier: ViewClassifier, found: np.ndarray, best: np.ndarray) -> np.ndarray:
    """Return for each image the result or the best iterate, whichever has the larger margin.

    Cost:
        2 forwards.
    """
    if best.shape != found.shape:
        return found
    better = classifier.predict(best)[:, 1] > classifier.predict(found)[:, 1]
    return np.where(better.reshape(-1, *[1] * (found.ndim - 1)), best, found)


@contextlib.contextmanager
def contained(target: Model, device: torch.device, *, writes: bool) -> Iterator[None]:
    """Run ART on a device: silence its warnings, discard its files, and restore the model's training flags."""
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
    """Return a temporary folder that exists until the process ends."""
    return tempfile.TemporaryDirectory()
