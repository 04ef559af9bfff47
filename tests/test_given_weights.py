"""Suites whose models all have weights: nobody is set aside for training, and one case is enough."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from advseg_bench.cli.run import _print_left_out
from advseg_bench.data import load_dataset
from advseg_bench.errors import DataError, SpecError
from advseg_bench.models.build import build_model
from advseg_bench.models.training import build_given, obtain_model
from advseg_bench.models.weights import save_weights
from advseg_bench.suite.cells import plan
from advseg_bench.suite.specs import FolderData, ModelSpec, Recipe
from advseg_bench.suite.suite import Suite, parse_suite
from advseg_bench.types import Task

SETTINGS = {"features": [8, 8, 8, 8, 8, 8]}
SPEC = ModelSpec(name="net", architecture="monai.BasicUNet", settings=SETTINGS)
RECIPE = Recipe.model_validate({})


def write_pictures(root: Path, subjects: int, labelled: int) -> Path:
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True)
    for i in range(subjects):
        values = np.random.default_rng(i).integers(1, 255, (32, 32), np.uint8)
        mask = np.zeros((32, 32), np.uint8)
        mask[8:20, 8:20] = 255 * (i < labelled)
        Image.fromarray(values).save(root / "images" / f"s{i}.png")
        Image.fromarray(mask).save(root / "masks" / f"s{i}.png")
    return root


def folder(root: Path, **split: float) -> FolderData:
    return FolderData.model_validate(
        {"name": "folder", "path": root, "task": "binary", "classes": ["disc"], "size": 32} | split
    )


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    save_weights(tmp_path / "w.safetensors", build_model(SPEC, channels=1, task=Task("binary", ("disc",)), size=32))
    return tmp_path / "w.safetensors"


def write(data: Path, models: str, split: str = "", name: str = "folder") -> str:
    return (
        f'schema = 1\nname = "given"\n[data]\nname = "{name}"\npath = "{data}"\ntask = "binary"\nsize = 32\n{split}\n'
        f'{models}\n[[attacks]]\nname = "fgsm"\nlosses = ["bce"]\neps = ["4/255"]\n'
    )


def model(name: str, weights: Path | None = None) -> str:
    given = f'weights = "{weights}"\n' if weights else ""
    return (
        f'[[models]]\nname = "{name}"\narchitecture = "monai.BasicUNet"\n'
        f"settings = {{ features = [8, 8, 8, 8, 8, 8] }}\n{given}"
    )


CLASSES = 'classes = ["disc"]\n'


def test_all_subjects_are_attacked_where_no_model_is_trained(tmp_path: Path, weights: Path) -> None:
    root = write_pictures(tmp_path / "data", 8, 8)
    suite = parse_suite(write(root, model("a", weights) + model("b", weights), CLASSES), "s")
    assert load_dataset(suite.data).describe()["splits"] == {"train": 0, "validation": 0, "test": 8}
    again = Suite.model_validate(suite.as_json())
    assert again == suite
    assert [cell.id for cell in plan(again)] == [cell.id for cell in plan(suite)]


@pytest.mark.parametrize("split", ["test = 0.5", "seed = 3", "validation = 0.2"])
def test_a_split_of_the_suite_stays(tmp_path: Path, weights: Path, split: str) -> None:
    root = write_pictures(tmp_path / "data", 8, 8)
    suite = parse_suite(write(root, model("a", weights), CLASSES + split), "s")
    counts = load_dataset(suite.data).describe()["splits"]
    assert counts == {"train": 8 - counts["validation"] - counts["test"]} | counts
    assert counts["test"] == (4 if split == "test = 0.5" else 2)
    assert counts["train"] > 0


def test_one_trained_model_keeps_the_split(tmp_path: Path, weights: Path) -> None:
    root = write_pictures(tmp_path / "data", 8, 8)
    suite = parse_suite(write(root, model("a", weights) + model("b"), CLASSES), "s")
    assert load_dataset(suite.data).describe()["splits"] == {"train": 5, "validation": 1, "test": 2}
    with pytest.raises(SpecError, match=r"data\.test: 1 leaves no subject to train model 'b'"):
        parse_suite(write(root, model("a", weights) + model("b"), CLASSES + "test = 1"), "s")


@pytest.mark.parametrize("labelled", [0, 1])
def test_one_case_is_enough_labelled_or_not(tmp_path: Path, weights: Path, labelled: int) -> None:
    root = write_pictures(tmp_path / "data", 1, labelled)
    suite = parse_suite(write(root, model("a", weights), CLASSES), "s")
    dataset = load_dataset(suite.data)
    assert dataset.describe()["splits"]["test"] == 1
    info = obtain_model(suite.models[0], RECIPE, dataset, 0).info
    assert info["validation_dice"] is None
    assert info["flops"] > 0
    assert info["weights"] == {"key": ".", "left_out": [], "other_entries": []}


def test_validation_images_without_a_class_give_no_dice_to_a_model_with_weights(tmp_path: Path, weights: Path) -> None:
    data = FolderData(
        name="folder", path=write_pictures(tmp_path / "d", 8, 0), task="binary", classes=("disc",), size=32
    )
    given = SPEC.model_copy(update={"weights": weights})
    assert obtain_model(given, RECIPE, load_dataset(data), 0).info["validation_dice"] is None
    full = FolderData(
        name="folder", path=write_pictures(tmp_path / "f", 8, 8), task="binary", classes=("disc",), size=32
    )
    assert 0 <= obtain_model(given, RECIPE, load_dataset(full), 0).info["validation_dice"] <= 1


def test_a_model_without_weights_needs_somebody_to_train_with(tmp_path: Path, weights: Path) -> None:
    root = write_pictures(tmp_path / "data", 3, 3)
    data = folder(root, test=1)
    with pytest.raises(DataError, match=r"data folder: .* got .none in train and validation"):
        build_given(SPEC, load_dataset(data), 0)
    loaded = build_given(SPEC.model_copy(update={"weights": weights}), load_dataset(data), 0)
    assert isinstance(loaded, torch.nn.Module)


def test_too_few_subjects_for_a_training_names_the_way_out(tmp_path: Path) -> None:
    root = write_pictures(tmp_path / "data", 2, 2)
    data = folder(root)
    with pytest.raises(DataError, match=r"got .2 subjects, .* set test = 1 if every model has weights"):
        load_dataset(data)


def test_tensors_left_out_are_told_at_the_end_of_a_run(capsys):
    left_out = ["postprocess.weight", "aux_head.weight", "postprocess.bias"]
    known = {"source": "net.pt", "weights": {"left_out": left_out}}
    silent = {"source": "net.pt", "weights": {"left_out": ["aux_head.weight"]}}
    _print_left_out(SimpleNamespace(models={"ours": known, "other": silent, "trained": {"source": "trained"}}))
    assert capsys.readouterr().out == "model ours: left out 2 tensors of net.pt (first 'postprocess.weight')\n"
