from __future__ import annotations

import json
import multiprocessing
from dataclasses import replace
from itertools import product
from typing import ClassVar

import numpy as np
import pytest
import torch
from strategies import make_batch

from advseg_bench.cache import cache_dir
from advseg_bench.data.augment import Augmentation
from advseg_bench.data.dataset import Case, Dataset, Sample
from advseg_bench.errors import DataError, TrainingError
from advseg_bench.models import training, training_loop
from advseg_bench.models.build import build_model
from advseg_bench.models.training import obtain_model
from advseg_bench.models.training_loop import Sampler, Training, evaluate
from advseg_bench.suite.specs import ModelSpec, Recipe
from advseg_bench.types import Task

SPEC = ModelSpec(name="m", architecture="monai.UNet", settings={"channels": [4, 8], "strides": [2]})


def recipe(**changes: object) -> Recipe:
    return Recipe.model_validate({"epochs": 4, "floor": 0.0, "batch": 4} | changes)


def discs(fingerprint: str = "discs", empty_validation: bool = False) -> Dataset:
    """Bright discs on dark ground; class 1 is rare: one image in eight shows it."""
    draw = np.random.default_rng(0)
    samples, cases = [], []
    rows, columns = np.mgrid[:32, :32]
    for i in range(24):
        y, x = draw.integers(8, 24, 2)
        disc = (rows - y) ** 2 + (columns - x) ** 2 < 36
        label = np.stack([disc, disc & (columns < x) & (i % 8 == 0)])
        split = "train" if i < 16 else "validation"
        if split == "validation" and empty_validation:
            label = np.zeros_like(label)
        image = (0.2 + 0.6 * disc + draw.normal(0, 0.05, disc.shape)).clip(0, 1).astype(np.float32)
        samples.append(Sample(image[None], label, np.ones((32, 32), dtype=bool)))
        cases.append(Case(f"i{i}", f"s{i}", "b", (1.0, 1.0), split))
    task = Task("multilabel", ("disc", "half"))
    return Dataset(name="discs", task=task, cases=cases, read=samples.__getitem__, fingerprint=fingerprint)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ADVSEG_BENCH_CACHE", str(tmp_path / "cache"))


def weights(trained) -> list[torch.Tensor]:
    return [tensor.clone() for tensor in trained.model.state_dict().values()]


def same(a, b) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_a_second_call_trains_nothing_and_returns_the_same_model():
    epochs: list[int] = []
    first = obtain_model(SPEC, recipe(), discs(), 0, lambda done, total: epochs.append(done))
    assert epochs == [1, 2, 3, 4]
    again = obtain_model(SPEC, recipe(), discs(), 0, lambda done, total: epochs.append(done))
    assert epochs == [1, 2, 3, 4]
    assert same(weights(first), weights(again))
    assert first.info == again.info
    assert not again.model.training


def test_everything_weights_depend_on_is_in_the_key_and_nothing_else(monkeypatch):
    def key(spec=SPEC, data=None, seed=0, **changes) -> str:
        return obtain_model(spec, recipe(epochs=1, **changes), data or discs(), seed).info["key"]

    base = key()
    assert key(spec=SPEC.model_copy(update={"name": "other"})) == base
    assert key(floor=0.001) == base
    assert key(seed=1) != base
    assert key(lr=1e-4) != base
    assert key(data=discs("other")) != base
    assert key(spec=SPEC.model_copy(update={"std": 2.0})) != base
    torch.set_num_threads(2)
    assert key() != base
    torch.set_num_threads(1)
    monkeypatch.setattr(training.environment, "describe_libraries", lambda: {"torch": "another"})
    assert key() != base


def test_changed_code_of_a_network_trains_anew(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    text = "from torch import nn\n\ndef net(in_channels, classes):\n    return nn.Conv2d(in_channels, classes, {})\n"
    spec = ModelSpec(name="m", architecture="net_of_the_user:net")
    keys = []
    for size in (1, "1, bias=True"):
        (tmp_path / "net_of_the_user.py").write_text(text.format(size))
        __import__("sys").modules.pop("net_of_the_user", None)
        __import__("importlib").invalidate_caches()
        keys.append(obtain_model(spec, recipe(epochs=1), discs(), 0).info["key"])
    assert keys[0] != keys[1]


@pytest.mark.parametrize("sampling", ["balanced", "uniform"])
def test_a_training_stopped_anywhere_ends_with_the_same_weights(monkeypatch, tmp_path, sampling):
    whole = obtain_model(SPEC, recipe(sampling=sampling), discs(), 0)
    monkeypatch.setenv("ADVSEG_BENCH_CACHE", str(tmp_path / "other"))
    monkeypatch.setattr(training, "SAVE_EVERY_S", 0.0)
    monkeypatch.setattr(training, "SAVE_SHARE", 1e9)

    class StopError(Exception):
        pass

    for stop in (1, 2, 3):

        def progress(done: int, total: int, stop: int = stop) -> None:
            if done == stop:
                raise StopError

        with pytest.raises(StopError):
            obtain_model(SPEC, recipe(sampling=sampling), discs(), 0, progress)
    epochs: list[int] = []
    resumed = obtain_model(SPEC, recipe(sampling=sampling), discs(), 0, lambda done, total: epochs.append(done))
    assert epochs == [4]
    assert same(weights(whole), weights(resumed))


@pytest.mark.parametrize("lost", ["resume.pt", "model.safetensors"])
def test_damaged_or_lost_cache_files_are_made_again(monkeypatch, lost):
    monkeypatch.setattr(training, "SAVE_EVERY_S", 0.0)
    monkeypatch.setattr(training, "SAVE_SHARE", 1e9)
    first = obtain_model(SPEC, recipe(), discs(), 0)
    folder = cache_dir("models", first.info["key"])
    (folder / "model.safetensors").unlink()
    (folder / "resume.pt").write_bytes(b"damaged")
    again = obtain_model(SPEC, recipe(), discs(), 0)
    assert same(weights(first), weights(again))


def _train_elsewhere(folder: str, queue: multiprocessing.Queue) -> None:
    __import__("os").environ["ADVSEG_BENCH_CACHE"] = folder
    torch.set_num_threads(1)
    epochs: list[int] = []
    obtain_model(SPEC, recipe(epochs=6), discs(), 0, lambda done, total: epochs.append(done))
    queue.put(len(epochs))


def test_two_processes_train_one_model_once(tmp_path):
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    both = [context.Process(target=_train_elsewhere, args=(str(tmp_path / "c"), queue)) for _ in range(2)]
    for process in both:
        process.start()
    counts = sorted(queue.get(timeout=120) for _ in both)
    for process in both:
        process.join()
    assert counts == [0, 6]


def test_the_best_checkpoint_is_kept_not_the_last(monkeypatch):
    scores = iter([0.1, 0.7, 0.3, 0.2])
    seen: list[list[torch.Tensor]] = []

    def judge(model, dataset, batch):
        seen.append([tensor.clone() for tensor in model.state_dict().values()])
        return next(scores)

    monkeypatch.setattr(training_loop, "evaluate", judge)
    trained = obtain_model(SPEC, recipe(), discs(), 0)
    assert trained.info["validation_dice"] == 0.7
    assert same(weights(trained), seen[1])
    assert not same(weights(trained), seen[3])


def test_a_model_under_the_floor_is_not_handed_on_and_is_not_trained_again():
    for _ in range(2):
        with pytest.raises(TrainingError, match=r"model m: expected a validation Dice of at least 0\.99 .*got 0\.\d+"):
            obtain_model(SPEC, recipe(floor=0.99), discs(), 0)
    assert obtain_model(SPEC, recipe(), discs(), 0, lambda done, total: pytest.fail("trained again")).info["key"]


def test_validation_images_without_any_class_are_refused():
    with pytest.raises(DataError, match="expected a validation image that shows a class, got 8 images without any"):
        obtain_model(SPEC, recipe(), discs("empty", empty_validation=True), 0)


def test_training_learns_and_evaluate_is_the_mean_dice():
    trained = obtain_model(SPEC, recipe(epochs=30, augment=[]), discs(), 0)
    assert trained.info["validation_dice"] > 0.4
    assert evaluate(trained.model, discs(), 3) == pytest.approx(trained.info["validation_dice"])


def test_balanced_sampling_shows_each_class_equally_often_and_uniform_every_image_once():
    data = discs()
    balanced = Sampler(data, recipe(sampling="balanced"), 0)
    drawn = [i for step in range(200) for i in balanced.draw(step)]
    rare = sum(data.read(i).label[1].any() for i in drawn) / len(drawn)
    assert 0.5 < rare < 0.65, "half of the draws pick the rare class, and some of the others show it too"
    uniform = Sampler(data, recipe(sampling="uniform"), 0)
    epoch = [i for step in range(uniform.steps_per_epoch) for i in uniform.draw(step)]
    assert sorted(epoch) == list(data.split("train"))
    assert epoch != [i for step in range(4, 8) for i in uniform.draw(step)]


def test_the_learning_rate_falls_along_a_cosine():
    """Two epochs of four steps; a step's rate is that of the share of steps before it."""
    rule = recipe(epochs=2, batch=4, lr=1e-2, min_lr=1e-4)
    model = build_model(SPEC, channels=1, task=discs().task, size=32)
    loop = Training(model, rule, discs(), 0)
    found = []
    loop.optimizer.register_step_pre_hook(lambda optimizer, *_: found.append(optimizer.param_groups[0]["lr"]))
    with torch.random.fork_rng(devices=()):
        loop.run_epoch()
        loop.run_epoch()
    middle, half = (1e-2 + 1e-4) / 2, (1e-2 - 1e-4) / 2
    shares = np.arange(8) / 8
    assert found == pytest.approx(list(middle + half * np.cos(np.pi * shares)))
    assert found[0] == 1e-2
    assert found[4] == pytest.approx(middle)


@pytest.mark.parametrize("kind", ["binary", "multilabel", "multiclass"])
def test_augmentation_moves_image_label_and_valid_pixels_together(kind):
    batch, _ = make_batch(kind, n=6, space=(32, 32))
    disc = ((torch.arange(32)[:, None] - 12) ** 2 + (torch.arange(32)[None] - 18) ** 2 < 49).expand(6, 32, 32)
    x = disc[:, None].float() * 0.8
    y = disc.long() if kind == "multiclass" else disc[:, None].expand_as(batch.y)
    batch = replace(batch, x=x, y=y.clone(), valid=torch.ones_like(disc))
    transform = Augmentation(("flip", "rot90", "affine"), (32, 32))
    new = transform(batch, np.random.default_rng(0))
    label = new.y if kind == "multiclass" else new.y[:, 0].long()
    assert new.y.dtype == batch.y.dtype
    assert new.y.shape == batch.y.shape
    disagree = ((new.x[:, 0] > 0.4) != (label > 0)) & new.valid
    assert disagree.double().mean() < 0.02
    assert not torch.equal(new.x, batch.x)
    assert torch.equal(batch.x, x)
    assert torch.equal(transform(batch, np.random.default_rng(0)).x, new.x)
    assert new.x.amin() >= 0
    assert new.x.amax() <= 1


@pytest.mark.parametrize("kind", ["multilabel", "multiclass"])
def test_augmentation_of_volumes_moves_all_together(kind):
    batch, _ = make_batch(kind, n=6, space=(8, 24, 24))
    z, y, x = torch.meshgrid(*(torch.arange(n) for n in (8, 24, 24)), indexing="ij")
    ball = (4 * (z - 2) ** 2 + (y - 9) ** 2 + (x - 14) ** 2 < 30).expand(6, 8, 24, 24)
    labels = ball.long() if kind == "multiclass" else ball[:, None].expand_as(batch.y)
    batch = replace(batch, x=ball[:, None] * 0.8, y=labels.clone(), valid=torch.ones_like(ball))
    new = Augmentation(("flip", "rot90", "affine"), (8, 24, 24))(batch, np.random.default_rng(0))
    label = new.y if kind == "multiclass" else new.y[:, 0].long()
    assert (new.y.shape, new.valid.shape) == (batch.y.shape, batch.valid.shape)
    assert (((new.x[:, 0] > 0.4) != (label > 0)) & new.valid).double().mean() < 0.02
    first = label.flatten(2).sum(2).argmax(1)
    assert {int(n) for n in first} & {5, 4, 6}, "some volume is flipped in depth"
    assert len({tuple(volume.flatten().tolist()) for volume in label}) == 6


@pytest.mark.parametrize("space", [(4, 6), (3, 4, 6)])
def test_flips_take_every_axis(space):
    batch, _ = make_batch("binary", n=1, space=space)
    corner = torch.zeros(1, 1, *space)
    corner.flatten()[0] = 1.0
    transform = Augmentation(("flip",), space)
    found = {
        tuple(transform(replace(batch, x=corner), np.random.default_rng(seed)).x[0, 0].nonzero()[0].tolist())
        for seed in range(80)
    }
    assert found == set(product(*((0, n - 1) for n in space)))


def test_a_volume_is_turned_about_depth_alone():
    batch, _ = make_batch("binary", n=1, space=(9, 33, 33))
    rod = torch.zeros(1, 1, 9, 33, 33)
    rod[:, :, 4, 14:19, 4:29] = 1.0  # turned about another axis, its ends would leave the slice
    transform = Augmentation(("affine",), (9, 33, 33))
    slopes = []
    for seed in range(40):
        mass = transform(replace(batch, x=rod), np.random.default_rng(seed)).x[0, 0]
        depth = (mass.sum((1, 2)) * torch.arange(9)).sum() / mass.sum()
        ends = [mass[..., columns].sum((1, 2)) for columns in (slice(4, 14), slice(19, 29))]
        tilt = [float((end * torch.arange(9)).sum() / end.sum() - depth) for end in ends]
        rows = [
            (mass[..., c].sum((0, 2)) * torch.arange(33)).sum() / mass[..., c].sum()
            for c in (slice(4, 14), slice(19, 29))
        ]
        slopes.append((max(map(abs, tilt)), abs(float(rows[0] - rows[1]))))
    assert max(tilt for tilt, _ in slopes) < 1e-3
    assert max(turn for _, turn in slopes) > 2


def test_the_affine_map_moves_both_axes():
    grid = torch.zeros(1, 1, 33, 33)
    grid[..., 14:19, 14:19] = 1.0
    batch, _ = make_batch("binary", n=1, space=(33, 33))
    batch = replace(batch, x=grid)
    transform = Augmentation(("affine",), (33, 33))
    centres = []
    for seed in range(60):
        mass = transform(batch, np.random.default_rng(seed)).x[0, 0]
        centres.append([(mass.sum(1 - axis) * torch.arange(33)).sum() / mass.sum() for axis in (0, 1)])
    spread = torch.tensor(centres).std(0)
    assert (spread > 0.4).all(), spread


def test_the_sidecar_is_plain_json():
    trained = obtain_model(SPEC, recipe(epochs=1), discs(), 0)
    text = (cache_dir("models", trained.info["key"]) / "model.json").read_text()
    assert set(json.loads(text)) == {"validation_dice", "train_seconds", "epochs", "threads", "torch"}


class HalfSeen(torch.nn.Conv2d):
    """A network of one layer that notes in which precision it computes."""

    seen: ClassVar[set[torch.dtype]] = set()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = super().forward(x)
        if self.training:
            self.seen.add(out.dtype)
        return out


def make_half_seen(in_channels: int, classes: int) -> HalfSeen:
    return HalfSeen(in_channels, classes, 3, padding=1)


@pytest.mark.parametrize(("amp", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_mixed_precision_computes_in_half_and_keeps_weights_whole(amp, dtype):
    HalfSeen.seen.clear()
    spec = ModelSpec(name="m", architecture="test_training:make_half_seen")
    trained = obtain_model(spec, recipe(epochs=2, amp=amp, floor=0.0), discs(), 0)
    assert HalfSeen.seen == {dtype}
    assert {weight.dtype for weight in weights(trained)} == {torch.float32}
    assert not torch.is_autocast_enabled("cpu")


def test_mixed_precision_learns_as_much():
    dice = {
        amp: obtain_model(SPEC, recipe(epochs=8, amp=amp), discs(), 0).info["validation_dice"] for amp in (True, False)
    }
    assert dice[True] == pytest.approx(dice[False], abs=0.1)
    assert dice[True] > 0.6
