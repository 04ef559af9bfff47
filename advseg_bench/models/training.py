"""Trains one model of the grid, once: the result is cached under everything it depends on.

Every step draws its images, its augmentation and its dropout from (seed, step), so a training that was killed goes on
from its last checkpoint to the same weights as one that was not.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from advseg_bench import environment, metrics
from advseg_bench.batches import Batch, move_batch
from advseg_bench.cache import cache_dir, content_hash, write_bytes, write_json
from advseg_bench.data.augment import Augmentation
from advseg_bench.data.dataset import Dataset
from advseg_bench.errors import DataError, TrainingError, UserError
from advseg_bench.losses import Loss
from advseg_bench.models.build import build_model, set_head_bias
from advseg_bench.models.module import SegmentationModule
from advseg_bench.models.properties import count_flops, measure_receptive_field
from advseg_bench.models.weights import count_parameters, load_weights, save_weights
from advseg_bench.registry.loading import load_loss
from advseg_bench.suite.specs import ModelSpec, Recipe

TRAINING_VERSION = 2
SAVE_EVERY_S = 2.0
SAVE_SHARE = 0.03
"""A training is saved at most so often, and takes at most this share of its time for it."""

DESCRIBED_IMAGES = 4
"""Images on which a receptive field is measured, at most."""

Progress = Callable[[int, int], None]
"""(epochs done, epochs in all)."""


@dataclass(frozen=True, slots=True)
class TrainedModel:
    """A model ready to be attacked, and what the record says about it."""

    model: SegmentationModule
    info: dict[str, Any]


def obtain_model(
    spec: ModelSpec,
    recipe: Recipe,
    dataset: Dataset,
    seed: int,
    progress: Progress = lambda done, total: None,
    device: str = "cpu",
) -> TrainedModel:
    """Return a model in eval mode: from its `weights`, from the cache, or trained now and cached.

    Args:
        spec: The model.
        recipe: How it is trained if it has no weights of its own.
        dataset: Train split for the weights, validation split for the choice of checkpoint.
        seed: Seeds initialisation and training.
        progress: Told after every epoch.
        device: Where it is trained. On a CPU the same call gives the same bits; an accelerator does not promise that.
    Raises:
        TrainingError: if a model trained here learned nothing: its validation Dice is under `recipe.floor`.
        DataError: if no validation image shows a class.
        SpecError, IncompatibleError: from building the model and loading weights.
    """
    model = build_given(spec, dataset, seed)
    info = {
        "name": spec.name,
        "architecture": spec.architecture,
        "encoder": spec.encoder,
        "parameters": count_parameters(model),
        "source": str(spec.weights) if spec.weights else "trained",
    }
    if spec.weights:
        given = {"key": None, "validation_dice": evaluate(model.eval(), dataset, recipe.batch), "train_seconds": None}
        return TrainedModel(model, info | given | _describe(model, dataset, recipe.batch))
    key = content_hash(_dependencies(spec, recipe, dataset, seed, torch.device(device).type))
    with _locked(cache_dir("models", key)) as folder:
        weights, sidecar = folder / "model.safetensors", folder / "model.json"
        if not _is_whole(weights, sidecar, model):
            if recipe.head_bias is not None:
                set_head_bias(model, recipe.head_bias)
            with torch.random.fork_rng(devices=[]), _deterministic(device):
                _Training(model.to(device), recipe, dataset, seed, folder).run(progress)
            model.to("cpu")
        load_weights(weights, model)
        outcome = json.loads(sidecar.read_text())
    if not outcome["validation_dice"] >= recipe.floor:
        raise TrainingError(
            f"model {spec.name}: expected a validation Dice of at least {recipe.floor:g} (training.floor), got "
            f"{outcome['validation_dice']:.3f} after {recipe.epochs} epochs: it learned nothing worth attacking. "
            "Train longer, change the learning rate, or lower the floor."
        )
    return TrainedModel(model.eval(), info | outcome | {"key": key} | _describe(model.eval(), dataset, recipe.batch))


def _describe(model: SegmentationModule, dataset: Dataset, batch: int) -> dict[str, Any]:
    """Properties of the network, seen on a few validation images: no more than a step of its training holds."""
    x = dataset.batch(dataset.split("validation")[: min(DESCRIBED_IMAGES, batch)]).x
    return {"flops": count_flops(model, x), "receptive_field_px": measure_receptive_field(model, x)}


def build_given(spec: ModelSpec, dataset: Dataset, seed: int) -> SegmentationModule:
    """Build a model for the images of a data set, with its own weights if it has any.

    Raises: SpecError, IncompatibleError, PluginError, DataError: see `build_model` and `load_weights`.
    """
    _, channels, *edges = dataset.batch([0]).x.shape
    model = build_model(spec, channels=channels, task=dataset.task, size=edges, seed=seed)
    if spec.weights:
        load_weights(spec.weights, model)
    return model


def _is_whole(weights: Path, sidecar: Path, model: SegmentationModule) -> bool:
    """Whether a cached training is there and can be read; it is made again otherwise."""
    if not (weights.exists() and sidecar.exists()):
        return False
    try:
        load_weights(weights, model)
        return set(json.loads(sidecar.read_text())) >= {"validation_dice", "train_seconds"}
    except (UserError, ValueError, TypeError):
        return False


def _dependencies(spec: ModelSpec, recipe: Recipe, dataset: Dataset, seed: int, device: str) -> dict[str, Any]:
    """Everything that trained weights depend on, as JSON; the floor and the names of model and preset are not."""
    return {
        "version": TRAINING_VERSION,
        "model": spec.model_dump(mode="json", exclude={"name", "weights"}),
        "recipe": recipe.model_dump(mode="json", exclude={"recipe", "floor"}),
        "data": dataset.fingerprint,
        "seed": seed,
        "threads": torch.get_num_threads(),
        "device": device,
        "libraries": environment.describe_libraries(),
        "code": environment.describe_code([("architecture", spec.architecture), ("loss", recipe.loss)]),
    }


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[Path]:
    """Hold a folder of the cache, so that two processes never train one model at once; the second one waits."""
    with (folder / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder


def evaluate(model: nn.Module, dataset: Dataset, batch: int) -> float:
    """Return the mean Dice over the validation images: per image, classes absent from the truth left out.

    Raises: DataError: if no validation image shows a class.
    """
    indices = dataset.split("validation")
    device = next(model.parameters()).device
    values = []
    for start in range(0, len(indices), batch):
        images = move_batch(dataset.batch(indices[start : start + batch]), device)
        with torch.no_grad():
            prediction = metrics.predict(model(images.x), images.task)
        values.append(metrics.mean_dice(metrics.count(prediction, prediction, images), images.task))
    dice = torch.cat(values)
    if dice.isnan().all():
        raise DataError(
            f"data {dataset.name}: expected a validation image that shows a class, got {len(indices)} images without "
            "any. No checkpoint can be chosen by them; use another split or seed."
        )
    return float(dice.nanmean())


class _Training:
    """One training: model, optimiser, position, best state so far."""

    def __init__(self, model: SegmentationModule, recipe: Recipe, dataset: Dataset, seed: int, folder: Path) -> None:
        self.model, self.recipe, self.dataset, self.seed, self.folder = model, recipe, dataset, seed, folder
        self.loss: Loss = load_loss(recipe.loss, dataset.task)
        self.sampler = _Sampler(dataset, recipe, seed)
        self.augmentation = Augmentation(recipe.augment, dataset.batch([0]).x.shape[2:])
        self.steps = recipe.epochs * self.sampler.steps_per_epoch
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay)
        self.device = next(model.parameters()).device
        half = torch.bfloat16 if self.device.type == "cpu" else torch.float16
        self.autocast = partial(torch.autocast, self.device.type, half, enabled=recipe.amp)
        # bfloat16 has the range of float32: only float16 needs its loss scaled.
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=recipe.amp and half == torch.float16)
        self.epoch = 0
        self.best_dice = -1.0
        self.best: dict[str, Tensor] = {}
        self.seconds = 0.0

    def run(self, progress: Progress) -> None:
        """Train from the last checkpoint to the end, and write the best weights and their sidecar."""
        self._resume()
        next_save = time.monotonic() + SAVE_EVERY_S
        while self.epoch < self.recipe.epochs:
            started = time.perf_counter()
            self._train_epoch()
            self.epoch += 1
            if self.epoch % self.recipe.evaluate_every == 0 or self.epoch == self.recipe.epochs:
                self._keep_best()
            self.seconds += time.perf_counter() - started
            if time.monotonic() > next_save:
                began = time.monotonic()
                self._save()
                took = time.monotonic() - began
                next_save = time.monotonic() + max(SAVE_EVERY_S, took / SAVE_SHARE)
            progress(self.epoch, self.recipe.epochs)
        self.model.load_state_dict(self.best)
        save_weights(self.folder / "model.safetensors", self.model)
        outcome = {"validation_dice": self.best_dice, "train_seconds": round(self.seconds, 2), "epochs": self.epoch}
        write_json(
            self.folder / "model.json", outcome | {"threads": torch.get_num_threads(), "torch": torch.__version__}
        )
        (self.folder / "resume.pt").unlink(missing_ok=True)

    def _train_epoch(self) -> None:
        self.model.train()
        first = self.epoch * self.sampler.steps_per_epoch
        for step in range(first, first + self.sampler.steps_per_epoch):
            rng = np.random.default_rng([self.seed, step])
            torch.manual_seed(int(rng.integers(2**63)))
            batch = move_batch(self.augmentation(self.dataset.batch(self.sampler.draw(step)), rng), self.device)
            for group in self.optimizer.param_groups:
                group["lr"] = _cosine(self.recipe, step / self.steps)
            with self.autocast():
                logits = self.model(batch.x)
            value = self.loss(logits.float(), batch.y, batch.valid, batch.task).mean()
            if not value.isfinite() and not self.scaler.is_enabled():  # which skips a step that overflows
                raise TrainingError(f"training diverged at step {step}: the loss is {value.item()}. Lower training.lr.")
            self.optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(self.scaler.scale(value))
            self.scaler.step(self.optimizer)
            self.scaler.update()

    def _keep_best(self) -> None:
        dice = evaluate(self.model.eval(), self.dataset, self.recipe.batch)
        if dice > self.best_dice or not self.best:
            self.best_dice = dice
            self.best = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}

    def _save(self) -> None:
        state = {name: getattr(self, name) for name in ("epoch", "best_dice", "best", "seconds")}
        state |= {name: getattr(self, name).state_dict() for name in ("model", "optimizer", "scaler")}
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_bytes(self.folder / "resume.pt", buffer.getvalue())

    def _resume(self) -> None:
        path = self.folder / "resume.pt"
        if not path.exists():
            return
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)
        except Exception:  # torch raises many types for a damaged file; the training then starts again
            return
        for name in ("model", "optimizer", "scaler"):
            getattr(self, name).load_state_dict(state.pop(name))
        for name, value in state.items():
            setattr(self, name, value)


class _Sampler:
    """Which images a step sees; a function of (seed, step) alone."""

    def __init__(self, dataset: Dataset, recipe: Recipe, seed: int) -> None:
        self.indices = np.array(dataset.split("train"))
        self.batch, self.seed = min(recipe.batch, len(self.indices)), seed
        self.steps_per_epoch = math.ceil(len(self.indices) / self.batch)
        self.shows = _images_of_each_class(dataset, self.indices) if recipe.sampling == "balanced" else []

    def draw(self, step: int) -> list[int]:
        """Return the indices of one step's images."""
        if self.shows:
            rng = np.random.default_rng([self.seed, 1, step])
            classes = rng.integers(len(self.shows), size=self.batch)
            return [int(rng.choice(self.shows[k])) for k in classes]
        epoch, position = divmod(step, self.steps_per_epoch)
        order = np.random.default_rng([self.seed, 2, epoch]).permutation(self.indices)
        return [
            int(i) for i in np.resize(order, self.steps_per_epoch * self.batch)[position * self.batch :][: self.batch]
        ]


def _images_of_each_class(dataset: Dataset, indices: np.ndarray) -> list[np.ndarray]:
    """For each class that occurs, the images that show it; the background of a multiclass task is no class here."""
    batches: Iterator[tuple[int, Batch]] = ((int(i), dataset.batch([int(i)])) for i in indices)
    counted = [(i, metrics.count(batch.y, batch.y, batch).tp[0]) for i, batch in batches]
    first = 1 if dataset.task.kind == "multiclass" else 0
    shows = [np.array([i for i, tp in counted if tp[k] > 0]) for k in range(first, len(dataset.task.classes))]
    return [images for images in shows if len(images)] or [indices]


def _cosine(recipe: Recipe, done: float) -> float:
    """The learning rate when a share `done` of all steps is done."""
    return recipe.min_lr + (recipe.lr - recipe.min_lr) * (1 + math.cos(math.pi * done)) / 2


@contextlib.contextmanager
def _deterministic(device: str) -> Iterator[None]:
    """Deterministic algorithms inside, the caller's setting again outside; an accelerator lacks some of them."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(torch.device(device).type == "cpu")
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
