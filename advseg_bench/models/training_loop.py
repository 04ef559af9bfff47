"""The training loop. Each step depends only on (seed, step), so a resumed training ends with the same weights."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from advseg_bench import metrics
from advseg_bench.batches import Batch, move_batch
from advseg_bench.data.augment import Augmentation
from advseg_bench.data.dataset import Dataset
from advseg_bench.errors import DataError, TrainingError
from advseg_bench.losses import Loss
from advseg_bench.models.module import SegmentationModule
from advseg_bench.registry.loading import load_loss
from advseg_bench.suite.specs import Recipe

_POSITION = ("epoch", "best_dice", "best", "seconds")
_STATEFUL = ("model", "optimizer", "scaler")


class Training:
    """One training, epoch by epoch.

    Args:
        model: Trained on its device.
        recipe: Loss, optimiser, schedule and augmentation.
        dataset: Its training split for the weights, its validation split for the choice of the best state.
        seed: Images, augmentation and dropout of a step depend only on this seed and the number of the step.

    Attributes:
        epoch: Number of finished epochs.
        best_dice: The best mean Dice on the validation images so far; -1 before the first evaluation.
        best: The state of the model with that Dice.
        seconds: Time of training and evaluation in seconds.
    """

    def __init__(self, model: SegmentationModule, recipe: Recipe, dataset: Dataset, seed: int) -> None:
        self.model, self.recipe, self.dataset, self.seed = model, recipe, dataset, seed
        self.loss: Loss = load_loss(recipe.loss, dataset.task)
        self.sampler = Sampler(dataset, recipe, seed)
        self.augmentation = Augmentation(recipe.augment, dataset.batch([0]).x.shape[2:])
        self.steps = recipe.epochs * self.sampler.steps_per_epoch
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay)
        self.device = next(model.parameters()).device
        half = torch.bfloat16 if self.device.type == "cpu" else torch.float16
        self.autocast = partial(torch.autocast, self.device.type, half, enabled=recipe.amp)
        # bfloat16 has the range of float32: only float16 needs loss scaling.
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=recipe.amp and half == torch.float16)
        self.epoch = 0
        self.best_dice = -1.0
        self.best: dict[str, Tensor] = {}
        self.seconds = 0.0

    def run_epoch(self) -> None:
        """Train for one epoch, evaluate if it is due, and keep the state if it is the best so far.

        Raises:
            TrainingError: If the loss is not finite.
            DataError: If no validation image shows a class.
        """
        started = time.perf_counter()
        self._train_epoch()
        self.epoch += 1
        if self.epoch % self.recipe.evaluate_every == 0 or self.epoch == self.recipe.epochs:
            self._keep_best()
        self.seconds += time.perf_counter() - started

    def as_state(self) -> dict[str, Any]:
        """Return everything that the next epochs depend on, in types that PyTorch's weights-only loader reads."""
        state = {name: getattr(self, name) for name in _POSITION}
        return state | {name: getattr(self, name).state_dict() for name in _STATEFUL}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore a state of `as_state`."""
        for name in _STATEFUL:
            getattr(self, name).load_state_dict(state[name])
        for name in _POSITION:
            setattr(self, name, state[name])

    def _train_epoch(self) -> None:
        self.model.train()
        first = self.epoch * self.sampler.steps_per_epoch
        for step in range(first, first + self.sampler.steps_per_epoch):
            rng = np.random.default_rng([self.seed, step])
            torch.manual_seed(int(rng.integers(2**63)))
            batch = move_batch(self.augmentation(self.dataset.batch(self.sampler.draw(step)), rng), self.device)
            for group in self.optimizer.param_groups:
                group["lr"] = _anneal(self.recipe, step / self.steps)
            with self.autocast():
                logits = self.model(batch.x)
            value = self.loss(logits.float(), batch.y, batch.valid, batch.task).mean()
            if not value.isfinite() and not self.scaler.is_enabled():  # the scaler skips a step that overflows
                raise TrainingError(
                    f"training: expected a finite loss, got {value.item()} at step {step}. Lower `training.lr`."
                )
            self.optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(self.scaler.scale(value))
            self.scaler.step(self.optimizer)
            self.scaler.update()

    def _keep_best(self) -> None:
        dice = evaluate(self.model.eval(), self.dataset, self.recipe.batch)
        if dice > self.best_dice or not self.best:
            self.best_dice = dice
            self.best = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}


class Sampler:
    """The images of each step, which depend only on (seed, step)."""

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
    """For each class that occurs, the images that show it; the background of a multiclass task is left out."""
    batches: Iterator[tuple[int, Batch]] = ((int(i), dataset.batch([int(i)])) for i in indices)
    counted = [(i, metrics.count(batch.y, batch.y, batch).tp[0]) for i, batch in batches]
    first = 1 if dataset.task.kind == "multiclass" else 0
    shows = [np.array([i for i, tp in counted if tp[k] > 0]) for k in range(first, len(dataset.task.classes))]
    return [images for images in shows if len(images)] or [indices]


def _anneal(recipe: Recipe, done: float) -> float:
    """Learning rate after a fraction `done` of all steps: half a cosine from `lr` to `min_lr`."""
    return recipe.min_lr + (recipe.lr - recipe.min_lr) * (1 + math.cos(math.pi * done)) / 2


def evaluate(model: nn.Module, dataset: Dataset, batch: int) -> float:
    """Return the mean Dice over the validation images, without classes that are absent from an image's label.

    Args:
        model: Images -> logits, in eval mode.
        dataset: Its validation split is used.
        batch: Number of images per forward.

    Returns:
        A number in [0, 1].

    Cost:
        One forward per validation image.

    Raises:
        DataError: If no validation image shows a class.
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
            "any. Use another split or seed."
        )
    return float(dice.nanmean())
