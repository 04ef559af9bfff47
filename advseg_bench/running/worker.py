"""A worker runs the jobs of a run. Data and the last model stay loaded between jobs.

Workers only return results; the main process alone writes to the run directory.
"""

from __future__ import annotations

import io
import math
import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from advseg_bench.batches import Batch, move_batch
from advseg_bench.cache.notices import reported_to
from advseg_bench.checks.model import describe_behaviour
from advseg_bench.checks.results import traits_of
from advseg_bench.checks.sample import choose_sample
from advseg_bench.data import load_dataset
from advseg_bench.data.dataset import Dataset
from advseg_bench.errors import IncompatibleError, UserError
from advseg_bench.instruments.process_state import watched
from advseg_bench.instruments.profiling import span, timed
from advseg_bench.losses import Loss, class_balanced_ce
from advseg_bench.models.defend import defend, describe_defences
from advseg_bench.models.prepare import Choice, prepare_checked
from advseg_bench.models.training import build_given, obtain_model
from advseg_bench.models.weights import digest_weights
from advseg_bench.registry import environment
from advseg_bench.registry.fitting import Images, why_not
from advseg_bench.registry.loading import load_attack, load_loss
from advseg_bench.registry.preparation import read_steps
from advseg_bench.running import runner, sharing
from advseg_bench.running.foreign import list_names
from advseg_bench.running.interrupts import is_ctrl_c
from advseg_bench.running.runner import Conditions
from advseg_bench.running.supply import Supply, count_training, needs_counts
from advseg_bench.running.work import (
    CHECKED_ON,
    Check,
    Context,
    Describe,
    Description,
    Emit,
    Job,
    MakePanels,
    Note,
    PackData,
    Panels,
    PanelSpec,
    Running,
    RunUnit,
    TakeData,
    Train,
    Training,
    Unit,
    UnitResult,
    list_sources,
)
from advseg_bench.suite.cells import CLEAN, Cell, find_source, plan
from advseg_bench.suite.specs import ModelSpec


@dataclass(frozen=True, slots=True)
class _Loaded:
    """A loaded model: the model, the copy that is attacked, and its entry in the record."""

    model: nn.Module
    attacked: nn.Module
    info: dict[str, Any]
    stochastic: bool


class Worker:
    """Runs the jobs of one run, one at a time.

    Args:
        context: Suite and device.
        emit: Called with the progress of trainings.
    """

    def __init__(self, context: Context, emit: Emit) -> None:
        self.suite, self.device = context.suite, context.device
        compute = self.suite.compute
        self.conditions = Conditions(self.suite.seed, compute.batch, self.device, announce=self._announce)
        self._emit, self._home = emit, Path.cwd()
        self._loaded: dict[str, _Loaded] = {}
        self._session = environment.begin_code(list_names(self.suite))

    def do(self, job: Job[Any]) -> Any:
        """Run a job with the suite's number of torch threads, in the folder in which the worker was started.

        The previous number and folder are restored afterwards. So relative paths of a suite mean the same in all jobs.

        Returns:
            The result that the class of the job documents.
        """
        noted = reported_to(lambda text: self._emit(Note(text)))
        with _threads(self.suite.compute.threads), _in_folder(self._home), noted:
            match job:
                case Describe():
                    return self._describe()
                case PackData():
                    return sharing.pack(self.dataset, self.suite.data)
                case TakeData(packed):
                    self.dataset = sharing.unpack(packed)
                    return None
                case Check():
                    return self._check()
                case Train(name):
                    return self._load(name, lambda done, total: self._emit(Training(name, done, total))).info
                case RunUnit(unit):
                    return self._run_unit(unit)
                case MakePanels(name, panels):
                    return self._make_panels(name, panels)
        raise TypeError(f"worker: expected a job of `running.work`, got {job!r}")

    def _announce(self, cells: Sequence[Cell], batch: Batch) -> None:
        """Send what is attacked, and how long it may take."""
        if cells:
            seconds = self.suite.compute.max_seconds * len(batch.x)
            images = tuple(dict.fromkeys(batch.images))
            self._emit(Running(cells[0].model, tuple(cell.id for cell in cells), images, seconds))

    @cached_property
    def dataset(self) -> Dataset:
        """The suite's data set."""
        with span("data"), watched(wait=False):  # it may be code of others
            return load_dataset(self.suite.data)

    @cached_property
    def class_pixels(self) -> Tensor:
        """The pixels of each class in the training split."""
        return count_training(self.dataset)

    @cached_property
    def _counted_loss(self) -> Loss:
        return class_balanced_ce.counted(self.class_pixels)

    def _supply(self, cells: Iterable[Cell], keep: Collection[str] = ()) -> Supply:
        """Load what attacks need beside their model; models in memory other than these and `keep` are dropped."""
        names = dict.fromkeys(filter(None, (find_source(cell.arm) for cell in cells)))
        sources: dict[str, nn.Module | Exception] = {}
        for name in names:
            try:
                sources[name] = self._load(name, keep={*names, *keep}).attacked
            except Exception as error:
                sources[name] = error
        return Supply(sources, lambda: self._counted_loss)

    def _describe(self) -> Description:
        dataset, suite = self.dataset, self.suite
        test = dataset.split("test")
        device = {"device": environment.describe_device(self.device)}
        libraries = environment.describe_libraries()
        compute = {"threads": suite.compute.threads, "compute_batch": suite.compute.batch}
        counts = {"class_pixels": self.class_pixels.tolist()} if needs_counts(plan(suite)) else {}
        return Description(
            data=dataset.describe() | counts,
            binding=libraries | device | {"code": self._describe_code()},
            environment=libraries | environment.describe_machine() | device | compute,
            images={dataset.cases[i].image: i for i in test},
        )

    def _describe_code(self) -> dict[str, str]:
        """The code of the suite's plug-ins and user objects, as it was imported."""
        return environment.describe_code(list_names(self.suite), self._session)

    @timed("models and training")
    def _check(self) -> None:
        """Build every model and attack, and load given weights.

        Raises:
            UserError: If one of them is invalid; the first error found.
        """
        dataset, suite = self.dataset, self.suite
        with watched(wait=False):
            for spec in suite.models:
                self._defend(spec, build_given(spec, dataset, suite.seed, suite.inference))
            load_loss(suite.training.loss, dataset.task)
        for arm in dict.fromkeys(cell.arm for cell in plan(suite) if cell.arm != CLEAN and cell.skip is None):
            try:
                with watched(wait=False):
                    attack = load_attack(arm.attack, arm.options, arm.loss, dataset.task, lambda: self._counted_loss)
            except UserError:
                raise
            except BaseException as error:
                if is_ctrl_c(error):
                    raise
                continue  # an error of the attack itself fails its cells later
            images = Images(dataset.task.kind, len(suite.data.edges), suite.data.channels)
            if (reason := why_not(arm.attack, traits_of(attack), images)) is not None:
                raise IncompatibleError(f"{reason}. Remove it from the suite.")

    @timed("models and training")
    def _load(
        self,
        name: str,
        progress: Callable[[int, int], None] = lambda done, total: None,
        keep: Collection[str] = (),
    ) -> _Loaded:
        """Return a model in memory, or load it from weights or cache, or train it; it replaces all but `keep`."""
        self._loaded = {other: loaded for other, loaded in self._loaded.items() if other in {name, *keep}}
        if name not in self._loaded:
            suite = self.suite
            spec = next(model for model in suite.models if model.name == name)
            with watched(wait=False):  # the network and the loss may be code of others
                trained = obtain_model(
                    spec,
                    suite.training,
                    self.dataset,
                    suite.seed,
                    progress,
                    self.device,
                    suite.compute.batch,
                    suite.inference,
                    self._session,
                    suite.name,
                    suite.compute.threads,
                )
                info = trained.info | {"weights_sha256": digest_weights(trained.model)}
                model = self._defend(spec, trained.model)
                choice = self._prepare(model, () if spec.random else read_steps(suite.compute.prepare))
                info["prepared"] = choice.as_record()
                info |= describe_behaviour(trained.model.notes, spec.repeats if spec.random else 1)
                info |= describe_defences(spec, len(suite.data.edges))
            self._loaded[name] = _Loaded(model, choice.model, info, spec.random)
        return self._loaded[name]

    def _defend(self, spec: ModelSpec, model: nn.Module) -> nn.Module:
        """Put the defences of a model around its network."""
        return defend(spec, model, self.dataset.task, self.dataset.bounds, len(self.suite.data.edges))

    def _prepare(self, model: nn.Module, steps: Sequence[str]) -> Choice:
        """Prepare a model, if the copy agrees with it on the first test images; without steps the model is returned.

        At most `compute.batch` images are used, and crops of volumes.
        """
        if not steps:
            model.to(self.device).eval().requires_grad_(False)
            return Choice(model, (), math.nan, math.nan)
        images = self.dataset.split("test")[: min(CHECKED_ON, self.suite.compute.batch)]
        x = move_batch(self.dataset.batch(images), self.device).x
        model.to(self.device).eval().requires_grad_(False)
        return prepare_checked(model, choose_sample(model, x), steps)

    def _run_unit(self, unit: Unit) -> UnitResult:
        loaded = self._load(unit.model, keep=list_sources(unit.cells))
        supply = self._supply(unit.cells, [unit.model])
        started = time.perf_counter()
        conditions = replace(self.conditions, stochastic=loaded.stochastic)
        rows, failures = runner.run_unit(unit, loaded.model, self.dataset, conditions, loaded.attacked, supply=supply)
        return UnitResult(rows, failures, time.perf_counter() - started, self._describe_code())

    def _make_panels(self, name: str, panels: tuple[PanelSpec, ...]) -> Panels:
        cells = [cell for panel in panels for cell in panel.cells]
        loaded = self._load(name, keep=list_sources(cells))
        supply = self._supply(cells, [name])
        conditions = replace(self.conditions, stochastic=loaded.stochastic)
        files = []
        for panel in panels:
            arrays = runner.attack_one(
                panel.cells, panel.index, loaded.model, self.dataset, conditions, loaded.attacked, supply
            )
            named: dict[str, Any] = arrays | {"meta": np.array(panel.meta)}
            buffer = io.BytesIO()
            np.savez_compressed(buffer, **named)
            files.append(buffer.getvalue())
        return Panels(files, loaded.info["weights_sha256"])


@contextmanager
def _threads(threads: int) -> Iterator[None]:
    """Set the number of torch threads inside, and restore the previous number."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _in_folder(folder: Path) -> Iterator[None]:
    """Work in a folder inside, and return to the previous one."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
