"""Training each model of the grid once: `trained_cache` keeps the result under everything that it depends on.

An interrupted training resumes from its last checkpoint, and ends with the same weights as an uninterrupted one.
"""

from __future__ import annotations

import atexit
import contextlib
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from advseg_bench.cache import cache_root, content_hash
from advseg_bench.cache.lease import Lease
from advseg_bench.checks.model import check_calls
from advseg_bench.checks.sample import choose_sample
from advseg_bench.data.dataset import Dataset, Split
from advseg_bench.errors import DataError, TrainingError, expected
from advseg_bench.models.build import build_model, set_head_bias
from advseg_bench.models.module import SegmentationModule
from advseg_bench.models.properties import count_flops, measure_receptive_field
from advseg_bench.models.trained_cache import TrainedFolder
from advseg_bench.models.training_loop import Training, evaluate
from advseg_bench.models.weights import count_parameters, load_weights
from advseg_bench.registry import catalogue, environment
from advseg_bench.registry.plugins import Kind
from advseg_bench.registry.sources import Session
from advseg_bench.suite.specs import Inference, ModelSpec, Recipe, describe_inference

TRAINING_VERSION = 2
SAVE_EVERY_S = 2.0
SAVE_SHARE = 0.03
"""A training is saved at most every `SAVE_EVERY_S` seconds, and saving takes at most this share of its time."""

DESCRIBED_IMAGES = 4
"""Largest number of images on which a receptive field is measured."""

Progress = Callable[[int, int], None]
"""Called with the number of finished epochs and that of all epochs."""

_session_folders: dict[str, Path] = {}


@dataclass(frozen=True, slots=True)
class TrainedModel:
    """A model ready to be attacked, with its description for the record."""

    model: SegmentationModule
    info: dict[str, Any]


def obtain_model(
    spec: ModelSpec,
    recipe: Recipe,
    dataset: Dataset,
    seed: int,
    progress: Progress = lambda done, total: None,
    device: str = "cpu",
    batch: int | None = None,
    inference: Inference | None = None,
    session: Session | None = None,
    suite: str = "",
    threads: int | None = None,
) -> TrainedModel:
    """Return a model in eval mode: from its `weights`, from the cache, or trained and then cached.

    Args:
        spec: The model.
        recipe: How it is trained if the specification has no `weights`.
        dataset: Its training split for the weights, its validation split for the choice of the checkpoint.
        seed: Seed of initialisation and training.
        progress: Called after every epoch.
        batch: Images per pass when the model is scored and described; that of the training by default.
        inference: Sliding windows through which the model sees images.
        device: Where it is trained. On a CPU the result is bit-identical for equal arguments; not on an accelerator.
        session: As for `environment.describe_code`. Weights of a network or loss that is in no file are kept under it
            until the process ends, and never in the cache.
        suite: Name of the suite, for `advseg-bench cache list`.
        threads: The suite's number of torch threads, which the cache's key contains; by default the present one.

    Returns:
        The model on the CPU, with its description.

    Raises:
        TrainingError: If the validation Dice of a model trained here is below `recipe.floor`.
        DataError: If a model has to be trained and no validation image shows a class.
        SpecError: See `build_model` and `load_weights`.
        IncompatibleError: See `build_model`; and if logits depend on more than the image once the weights are there.
    """
    model, loaded = _build(
        spec, dataset, seed, inference, check_function=False
    )  # `_describe` checks it with its weights
    info = {
        "name": spec.name,
        "architecture": spec.architecture,
        "encoder": spec.encoder,
        "parameters": count_parameters(model),
        "source": str(spec.weights) if spec.weights else "trained",
    }
    most = DESCRIBED_IMAGES if batch is None else batch
    if spec.weights:
        at_once = recipe.batch if batch is None else min(batch, recipe.batch)
        given = {"key": None, "validation_dice": _score(model.eval(), dataset, at_once), "train_seconds": None}
        return TrainedModel(model, info | loaded | given | _describe(spec, model, dataset, recipe.batch, most))
    session = session or Session()
    names: list[tuple[Kind, str]] = [("architecture", spec.architecture), ("loss", recipe.loss)]
    code = environment.describe_code(names, session)
    threads = torch.get_num_threads() if threads is None else threads
    depends = _dependencies(spec, recipe, dataset, seed, torch.device(device).type, threads) | {"code": code}
    key = content_hash(depends | describe_inference(inference))
    path = _session_folder(key) if environment.in_no_file(code) else cache_root() / "models" / key
    kept = TrainedFolder(path, key, spec.name)
    outcome = kept.read(model)
    if outcome is None:
        if count_parameters(model) == 0:  # such as frozen TorchScript
            remedy = 'Set `weights`; for TorchScript also architecture = "torchscript".'
            raise TrainingError(expected(f"model {spec.name}", "a network with parameters to train", 0, remedy))
        with kept.held() as lease:
            outcome = kept.read(model)  # another process may have trained it meanwhile
            if outcome is None:
                kept.discard_damaged()
                kept.describe(_describe_purpose(spec, recipe, dataset, suite))
                if recipe.head_bias is not None:
                    set_head_bias(model, recipe.head_bias)
                with torch.random.fork_rng(devices=[]), _deterministic(device):
                    training = Training(model.to(device), recipe, dataset, seed)
                    _train(training, kept, lease, progress, lambda: environment.describe_code(names, session), threads)
                model.to("cpu")
                outcome = kept.read_written(model)
    if not outcome["validation_dice"] >= recipe.floor:
        raise TrainingError(
            f"model {spec.name}: expected a validation Dice of at least {recipe.floor:g} (`training.floor`), got "
            f"{outcome['validation_dice']:.3f} after {recipe.epochs} epochs. "
            "Train longer, change `training.lr`, or lower `training.floor`."
        )
    described = _describe(spec, model.eval(), dataset, recipe.batch, most)
    return TrainedModel(model.eval(), info | outcome | {"key": key} | described)


class _Listener:
    """A model whose logits are kept."""

    def __init__(self, model: SegmentationModule) -> None:
        self.model = model
        self.logits: list[Tensor] = []
        """Of the first two calls."""

    def __call__(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x)
        if len(self.logits) < 2:
            self.logits.append(logits.detach())
        return logits


def _describe(spec: ModelSpec, model: SegmentationModule, dataset: Dataset, batch: int, at_once: int) -> dict[str, Any]:
    """Properties of the network, measured on a few images not used for training, at most one training batch.

    Its forwards of one image and of all also show whether logits depend on the image alone. If not all fit in one
    pass, two crops of volumes or two other images show it.
    """
    images = dataset.split("validation") or dataset.split("test")
    x = dataset.batch(images[: min(DESCRIBED_IMAGES, batch)]).x
    calls = _Listener(model)
    described = {"flops": count_flops(calls, x), "receptive_field_px": measure_receptive_field(calls, x, at_once)}
    if not spec.stochastic:
        alone, company = calls.logits[:2]
        if at_once < len(x):
            x = choose_sample(model, x[:2])
            with torch.no_grad():
                alone, company = model(x[:1]), model(x)
        check_calls(f"model {spec.name!r}", model, x, alone, company)
    return described | model.describe_outputs()


def _score(model: SegmentationModule, dataset: Dataset, batch: int) -> float | None:
    """Dice on the validation images, of a model that was trained elsewhere; None if no such image shows a class."""
    try:
        return evaluate(model, dataset, batch) if dataset.split("validation") else None
    except DataError:
        return None


def build_given(spec: ModelSpec, dataset: Dataset, seed: int, inference: Inference | None = None) -> SegmentationModule:
    """Build a model for the images of a data set, and load its `weights` if the specification has any.

    Raises:
        SpecError: See `build_model` and `load_weights`.
        IncompatibleError: See `build_model` and `load_weights`.
        PluginError: See `build_model` and `load_weights`.
        DataError: See `build_model` and `load_weights`; and if a model is to be trained on data without training or
            validation images.
    """
    return _build(spec, dataset, seed, inference)[0]


def _build(
    spec: ModelSpec, dataset: Dataset, seed: int, inference: Inference | None, *, check_function: bool = True
) -> tuple[SegmentationModule, dict[str, Any]]:
    """Do what `build_given` does; return what the record describes of the weights, too."""
    _, channels, *edges = dataset.batch([0]).x.shape
    splits: tuple[Split, ...] = ("train", "validation")
    empty = [name for name in splits if not dataset.split(name)]
    if empty and not spec.weights:
        what, remedy = "images in each split", f"Give model {spec.name} `weights`, or the data such images."
        raise DataError(expected(f"data {dataset.name}", what, f"none in {' and '.join(empty)}", remedy))
    model = build_model(
        spec,
        channels=channels,
        task=dataset.task,
        size=edges,
        seed=seed,
        check_function=check_function,
        inference=inference,
    )
    if not spec.weights or spec.architecture == catalogue.TORCHSCRIPT:
        return model, {}
    return model, {"weights": load_weights(spec.weights, model, spec.weights_key).as_record()}


def _describe_purpose(spec: ModelSpec, recipe: Recipe, dataset: Dataset, suite: str) -> dict[str, Any]:
    """What a training is for, as `advseg-bench cache list` shows it."""
    network = {"model": spec.name, "architecture": spec.architecture, "encoder": spec.encoder}
    return network | {"data": dataset.name, "suite": suite, "epochs": recipe.epochs, "loss": recipe.loss}


def _dependencies(
    spec: ModelSpec, recipe: Recipe, dataset: Dataset, seed: int, device: str, threads: int
) -> dict[str, Any]:
    """Everything but code that trained weights depend on, as JSON; not `floor`, the names of model and recipe, and
    defences, which are put around the trained network."""
    return {
        "version": TRAINING_VERSION,
        "model": spec.model_dump(mode="json", exclude={"name", "weights", "defence"}),
        "recipe": recipe.model_dump(mode="json", exclude={"recipe", "floor"}),
        "data": dataset.fingerprint,
        "seed": seed,
        "threads": threads,
        "device": device,
        "libraries": environment.describe_libraries(),
    }


def _session_folder(key: str) -> Path:
    """A folder for weights that no later process may find; removed when this process ends."""
    if key not in _session_folders:
        _session_folders[key] = Path(tempfile.mkdtemp(prefix="advseg-bench-"))
        atexit.register(shutil.rmtree, _session_folders[key], ignore_errors=True)
    return _session_folders[key]


def _train(
    training: Training, kept: TrainedFolder, lease: Lease, progress: Progress, check: Callable[[], object], threads: int
) -> None:
    """Train from the last checkpoint to the end, and write the best weights and their description.

    `check` is called before they are written; it raises if the code changed before it was imported.
    """
    kept.resume(training, lease.previous)
    epochs = training.recipe.epochs
    next_save = time.monotonic() + SAVE_EVERY_S
    while training.epoch < epochs:
        training.run_epoch()
        if time.monotonic() > next_save:
            began = time.monotonic()
            lease.check()
            kept.save(training)
            next_save = time.monotonic() + max(SAVE_EVERY_S, (time.monotonic() - began) / SAVE_SHARE)
        progress(training.epoch, epochs)
    check()
    training.model.load_state_dict(training.best)
    outcome = {"validation_dice": training.best_dice, "train_seconds": round(training.seconds, 2), "epochs": epochs}
    lease.check()
    kept.finish(training, outcome | {"threads": threads, "torch": torch.__version__})


@contextlib.contextmanager
def _deterministic(device: str) -> Iterator[None]:
    """Use deterministic algorithms on a CPU, and restore the caller's setting; an accelerator lacks some of them."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(torch.device(device).type == "cpu")
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
