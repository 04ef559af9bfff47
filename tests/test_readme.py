"""The README's Python and TOML are run; its commands are run by `.ci/run`."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from strategies import make_batch, make_generators

import advseg_bench as ab
from advseg_bench.registry.loading import load_attack
from advseg_bench.suite.suite import parse_suite
from advseg_bench.testing import LinearSegmenter
from advseg_bench.types import Bounds, Budget

README = Path(__file__).parent.parent / "README.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README.read_text(), re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def scope(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The namespace of the first two examples, which belong together, and the folder in which they are run."""
    namespace: dict[str, Any] = {"folder": tmp_path_factory.mktemp("readme")}
    with torch.random.fork_rng(), pytest.MonkeyPatch.context() as patch:
        patch.chdir(namespace["folder"])
        for block in blocks("python")[:2]:
            exec(compile(block, "README.md", "exec"), namespace)
    return namespace


def test_one_line_attacks_a_batch(scope):
    moved = (scope["x_adv"] - scope["x"]).abs().flatten(1).amax(1) * 255
    assert torch.allclose(moved, torch.tensor(4.0), atol=1e-3)


def test_a_model_and_a_loader_are_evaluated_in_memory(scope):
    run = scope["run"]
    assert run.missing == 0
    assert run.rows["image"].n_unique() == 12
    assert run.rows.height == 12 * (1 + 3 * 2)
    assert run.table("dice", by="attack")["attack"].to_list() == ["none", "fgsm", "pgd", "random_sign", "worst_case"]
    assert (scope["folder"] / "runs" / "evaluate" / "report.html").is_file()


def test_the_example_attack_is_one(tmp_path, monkeypatch):
    (tmp_path / "readme_attack.py").write_text(blocks("python")[2])
    monkeypatch.syspath_prepend(tmp_path)
    batch, _ = make_batch("binary")
    attack = load_attack("readme_attack:sign_noise", {}, "", batch.task)
    model = LinearSegmenter(torch.tensor([1.0, 1.0]), 0.0)
    result = attack(model, batch, budget=Budget("linf", 0.1), generators=make_generators(3))
    assert ((result - batch.x).abs() <= 0.1 + 1e-6).all()
    assert result.amin() >= Bounds().lower
    assert not (result == batch.x).all()
    sys.modules.pop("readme_attack")


def test_the_front_page_is_short():
    assert len(README.read_text().splitlines()) <= 150


@pytest.mark.slow
def test_the_example_suite_runs_on_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    draw = np.random.default_rng(0)
    rows, columns = np.mgrid[:70, :60]
    for part in ("images", "masks"):
        (tmp_path / "data" / part).mkdir(parents=True)
    for case in range(10):
        for slice_ in range(3):
            y, x = draw.integers(20, 45, 2)
            disc = (rows - y) ** 2 + (columns - x) ** 2 < 12**2
            image = (60 + 120 * disc + draw.normal(0, 8, disc.shape)).clip(0, 255).astype(np.uint8)
            name = f"case{case:02}_{slice_}.png"
            Image.fromarray(image).save(tmp_path / "data" / "images" / name)
            Image.fromarray(disc.astype(np.uint8) * 255).save(tmp_path / "data" / "masks" / name)
    run = ab.run(parse_suite(blocks("toml")[0], "README.md"), "runs/mine")
    assert run.failures == []
    assert run.missing == 0
    assert run.rows["subject"].n_unique() >= 2


@pytest.mark.parametrize("word", ["bash", "python", "toml"])
def test_the_blocks_are_found(word):
    assert blocks(word)
