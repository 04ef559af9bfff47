"""Earlier timings of models, from which `plan` estimates minutes. No result depends on them."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.resources import files

from advseg_bench.cache import cache_dir, cache_root, content_hash, sweep, write_json
from advseg_bench.cache.digests import hash_json
from advseg_bench.cache.lease import LEASE, hold
from advseg_bench.cache.notices import report
from advseg_bench.errors import RecordError
from advseg_bench.suite.cells import Cell, model_identity
from advseg_bench.suite.cost import estimate
from advseg_bench.suite.specs import ImageData, ModelSpec
from advseg_bench.suite.specs.experiment import RESOURCES
from advseg_bench.suite.suite import Suite

START_SECONDS = 12.0
"""Seconds to import the libraries and load the data, in each worker."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Measured run time of one model on one machine.

    Attributes:
        train_seconds: Seconds of the whole training; 0 for a model with given weights.
        pass_seconds: Seconds of one forward pass of one image, overhead included; a backward pass counts as two.
        train_images: Number of training images of the measurement; training time scales in proportion.
    """

    train_seconds: float
    pass_seconds: float
    train_images: int


@dataclass(frozen=True, slots=True)
class Estimate:
    """Expected minutes of a run, and the source of the timings."""

    minutes: float
    source: str


def remember(suite: Suite, model: ModelSpec, timing: Timing) -> None:
    """Store the timing of a model on this machine."""
    values = asdict(timing)
    with suppress(RecordError):  # failing to store an estimate must not fail the run
        folder = cache_dir("timings")
        with hold(folder / LEASE, what="writing a timing", wait=False):
            sweep(folder)
            write_json(folder / f"{timing_key(suite, model)}.json", values | {"sha256": hash_json(values)})


def recall(suite: Suite, model: ModelSpec) -> tuple[Timing, str] | None:
    """Return the timing of a model on this or else on the reference machine, and its source; None if there is none."""
    path = cache_root() / "timings" / f"{timing_key(suite, model)}.json"
    if path.exists():
        with suppress(ValueError, TypeError, AttributeError, OSError):
            values = json.loads(path.read_text())
            if values.pop("sha256", hash_json(values)) == hash_json(values):
                return Timing(**values), "measured here"
        report(f"{path}: is damaged. Without it `plan` estimates from other timings; the next whole run replaces it.")
    shipped = json.loads(files("advseg_bench.suite.shipped").joinpath("timings.json").read_text())
    if (found := shipped["models"].get(timing_key(suite, model))) is not None:
        return Timing(**found), f"measured on {shipped['machine']}"
    return None


def expect(suite: Suite, cells: tuple[Cell, ...], images: tuple[int, int], workers: int) -> Estimate | None:
    """Estimate the minutes of a run that trains every model.

    Args:
        suite: The suite.
        cells: Its cells.
        images: Number of training and of test images.
        workers: Number of processes.

    Returns:
        The estimate, or None if a model was never timed or the cost of an attack is unknown.
    """
    found = expect_models(suite, cells, images)
    if found is None:
        return None
    jobs = [seconds for seconds, _ in found.values()]
    seconds = START_SECONDS + max(max(jobs), sum(jobs) / min(workers, len(jobs)))
    return Estimate(seconds / 60, ", ".join(sorted({source for _, source in found.values()})))


def expect_models(
    suite: Suite, cells: tuple[Cell, ...], images: tuple[int, int]
) -> dict[str, tuple[float, str]] | None:
    """Estimate the seconds of training and attacking each model.

    Args:
        suite: The suite.
        cells: Its cells.
        images: Number of training and of test images.

    Returns:
        Model -> seconds, and the source of its timing; None if a model was never timed or the cost of an attack is
        unknown.
    """
    found = {}
    train, test = images
    for model in suite.models:
        known = recall(suite, model)
        cost = estimate(tuple(cell for cell in cells if cell.model == model.name))
        if known is None or cost is None:
            return None
        timing, source = known
        passes = test * (cost.shared_forwards + 2 * cost.shared_backwards)
        seconds = timing.train_seconds * train / timing.train_images + passes * timing.pass_seconds
        found[model.name] = seconds, source
    return found


def timing_key(suite: Suite, model: ModelSpec) -> str:
    """Return a hash of everything the time depends on, except machine, number of images and preparation of models."""
    identity = model_identity(suite, model) | {
        "compute": suite.compute.model_dump(mode="json", exclude={"prepare", *RESOURCES})
    }
    identity["model"] = model.model_dump(mode="json", exclude={"name"})
    identity["data"] = suite.data.model_dump(mode="json", include=set(ImageData.model_fields) | {"name"})
    return content_hash(identity)
