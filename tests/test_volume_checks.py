"""Checks of models use few images: at most a compute batch, and crops of volumes; memory stays in proportion."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import advseg_bench as ab
from advseg_bench.models.build import build_model
from advseg_bench.models.training import obtain_model
from advseg_bench.running.work import Context
from advseg_bench.running.worker import Worker
from advseg_bench.suite.specs import ModelSpec
from advseg_bench.types import Task

BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "volume_memory.py"
SEEN: list[tuple[torch.dtype, bool, tuple[int, ...]]] = []
"""Dtype, whether a gradient was wanted, and shape of the images of each forward."""


class Listening(nn.Module):
    """A network that records what it is given, in its copies, too."""

    def __init__(self, in_channels: int = 1, classes: int = 1, axes: int = 2, edge: int | None = None) -> None:
        super().__init__()
        convolution = nn.Conv2d if axes == 2 else nn.Conv3d
        self.layer = convolution(in_channels, classes, 1)
        self.edge = edge

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.edge is not None and x.shape[-1] != self.edge:
            raise ValueError(f"images of {self.edge} pixels only")
        SEEN.append((x.dtype, x.requires_grad, tuple(x.shape)))
        return self.layer(x)


@pytest.fixture(autouse=True)
def _nothing_seen():
    SEEN.clear()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.mark.parametrize(("batch", "steps", "checked"), [(1, ("lean",), {1}), (8, ("lean",), {2}), (8, (), set())])
def test_the_float64_check_honours_the_compute_batch_and_is_skipped_by_raw(batch, steps, checked) -> None:
    tables = ab.Suite.load("smoke").as_json()
    suite = ab.Suite.model_validate(tables | {"compute": {"batch": batch}})
    worker = Worker(Context(suite, "cpu"), print)
    choice = worker._prepare(Listening(worker.dataset.batch([0]).x.shape[1]), steps)
    assert choice.steps == steps
    assert {shape[0] for dtype, _, shape in SEEN if dtype == torch.float64} == checked
    assert bool(SEEN) == bool(steps)


def test_volumes_are_checked_in_float64_on_a_crop() -> None:
    x = torch.rand(1, 1, 64, 70, 64)
    run = ab.evaluate(Listening(axes=3), [(x, x > 0.5)], ab.attacks.FGSM(loss="bce"), task="binary", batch=1)
    assert not run.failures
    assert {shape for dtype, _, shape in SEEN if dtype == torch.float64} == {(1, 1, 32, 38, 32)}


def test_a_network_of_one_size_is_checked_on_whole_volumes() -> None:
    x = torch.rand(1, 1, 64, 64, 64)
    model = Listening(axes=3, edge=64)
    run = ab.evaluate(model, [(x, x > 0.5)], ab.attacks.FGSM(loss="bce"), task="binary", batch=1)
    assert not run.failures
    assert {shape for dtype, _, shape in SEEN if dtype == torch.float64} == {(1, 1, 64, 64, 64)}


def test_a_network_for_volumes_is_built_with_one_whole_volume() -> None:
    spec = ModelSpec(name="listening", architecture="test_volume_checks:Listening", settings={"axes": 3})
    build_model(spec, channels=1, task=Task("binary", ("lesion",)), size=(64, 64, 96))
    shapes = [shape for _, _, shape in SEEN]
    assert shapes.count((1, 1, 64, 64, 96)) == 1
    assert set(shapes) == {(1, 1, 64, 64, 96), (2, 1, 32, 32, 32)}


@pytest.mark.parametrize(("batch", "gradients"), [(1, [1, 1, 1, 1]), (3, [3, 1]), (None, [4])])
def test_descriptions_use_a_compute_batch_at_a_time(batch, gradients) -> None:
    suite = ab.Suite.load("smoke")
    dataset = Worker(Context(suite, "cpu"), print).dataset
    recipe = suite.training.model_copy(update={"epochs": 1, "floor": 0.0, "batch": 4, "head_bias": None})
    spec = ModelSpec(name="listening", architecture="test_volume_checks:Listening")
    info = obtain_model(spec, recipe, dataset, 0, batch=batch).info
    assert info["receptive_field_px"] == 1
    assert [shape[0] for _, wanted, shape in SEEN if wanted] == gradients


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peak memory is compared as Linux counts it")
def test_a_suite_on_a_volume_needs_at_most_twice_the_memory_of_a_plain_loop() -> None:
    command = [sys.executable, str(BENCHMARK), "--edges", "64"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "64^3: plain loop" in done.stdout


def test_volumes_have_a_compute_batch_of_1_unless_the_suite_has_one() -> None:
    tables = {
        "name": "volumes",
        "data": {"name": "nnunet", "path": "nowhere", "size": [8, 16, 16]},
        "models": [{"name": "xs", "architecture": "monai.UNet"}],
        "attacks": [{"name": "fgsm", "losses": ["bce"], "eps": [0.01]}],
        "training": {"augment": []},
    }
    assert ab.Suite.model_validate(tables).compute.batch == 1
    assert ab.Suite.model_validate(tables | {"compute": {"threads": 2}}).compute.batch == 1
    assert ab.Suite.model_validate(tables | {"compute": {"batch": 2}}).compute.batch == 2
    assert ab.Suite.model_validate(tables | {"data": tables["data"] | {"size": 16}}).compute.batch == 8
    suite = ab.Suite.model_validate(tables)
    assert ab.Suite.model_validate(suite.as_json()) == suite


@pytest.mark.parametrize(("axes", "batch"), [(2, 8), (3, 1)])
def test_evaluate_runs_volumes_one_at_a_time_by_default(axes, batch) -> None:
    x = torch.rand(2, 1, *[16] * axes)
    run = ab.evaluate(Listening(axes=axes), [(x, x > 0.5)], ab.attacks.FGSM(loss="bce"), task="binary")
    assert not run.failures
    assert run.info["suite"]["compute"]["batch"] == batch
