"""How long models took before, so that `plan` can tell minutes. Estimates only; no result depends on them."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.resources import files

from advseg_bench.cache import cache_dir, cache_root, content_hash, write_json
from advseg_bench.errors import RecordError
from advseg_bench.suite.cells import Cell, estimate, model_identity
from advseg_bench.suite.specs import ImageData, ModelSpec
from advseg_bench.suite.suite import Suite

START_SECONDS = 12.0
"""Importing the libraries and loading the data, in each worker."""


@dataclass(frozen=True, slots=True)
class Timing:
    """What one model cost on some machine.

    Attributes:
        train_seconds: The whole training; 0 for a model with weights of its own.
        pass_seconds: One forward of one image, with everything around it; a backward counts as two.
        train_images: Training images it was measured with; the time for others is in proportion.
    """

    train_seconds: float
    pass_seconds: float
    train_images: int


@dataclass(frozen=True, slots=True)
class Estimate:
    """Minutes a run is expected to take on so many workers, and where the figures come from."""

    minutes: float
    source: str


def remember(suite: Suite, model: ModelSpec, timing: Timing) -> None:
    """Keep what a model cost on this machine."""
    with suppress(RecordError):  # an estimate that cannot be kept is no reason to fail
        write_json(cache_dir("timings") / f"{timing_key(suite, model)}.json", asdict(timing))


def recall(suite: Suite, model: ModelSpec) -> tuple[Timing, str] | None:
    """Return what a model cost here, else on the reference machine of the shipped suites, else None."""
    path = cache_root() / "timings" / f"{timing_key(suite, model)}.json"
    if path.exists():
        with suppress(ValueError, TypeError, OSError):  # a damaged file of estimates counts as no file
            return Timing(**json.loads(path.read_text())), "measured here"
    shipped = json.loads(files("advseg_bench.suite.shipped").joinpath("timings.json").read_text())
    if (found := shipped["models"].get(timing_key(suite, model))) is not None:
        return Timing(**found), f"measured on {shipped['machine']}"
    return None


def expect(suite: Suite, cells: tuple[Cell, ...], images: tuple[int, int], workers: int) -> Estimate | None:
    """Estimate the minutes of a run that trains every model.

    Args:
        suite: What is run.
        cells: Its cells.
        images: Training and test images.
        workers: Processes.

    Returns:
        None if a model was never timed or an attack's cost is unknown.
    """
    sources = set()
    jobs = []
    train, test = images
    for model in suite.models:
        found = recall(suite, model)
        cost = estimate(tuple(cell for cell in cells if cell.model == model.name))
        if found is None or cost is None:
            return None
        timing, source = found
        passes = test * (cost.shared_forwards + 2 * cost.shared_backwards)
        jobs.append(timing.train_seconds * train / timing.train_images + passes * timing.pass_seconds)
        sources.add(source)
    seconds = START_SECONDS + max(max(jobs), sum(jobs) / min(workers, len(jobs)))
    return Estimate(seconds / 60, ", ".join(sorted(sources)))


def timing_key(suite: Suite, model: ModelSpec) -> str:
    """Return everything the cost depends on, beside the machine, the number of images and how models are prepared."""
    identity = model_identity(suite, model) | {"compute": suite.compute.model_dump(mode="json", exclude={"prepare"})}
    identity["model"] = model.model_dump(mode="json", exclude={"name"})
    identity["data"] = suite.data.model_dump(mode="json", include=set(ImageData.model_fields) | {"name"})
    return content_hash(identity)
