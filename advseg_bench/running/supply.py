"""What attacks need beside the model that they attack: another model as source, and pixel counts for class weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from advseg_bench.attacks.base import FunctionModel, read_source
from advseg_bench.data.dataset import Dataset
from advseg_bench.errors import IncompatibleError, expected
from advseg_bench.instruments.guard import lent
from advseg_bench.instruments.process_state import watched
from advseg_bench.losses import Loss, count_classes
from advseg_bench.protocols import Attack, NeedsModel
from advseg_bench.registry.catalogue import COUNTED
from advseg_bench.registry.loading import load_attack
from advseg_bench.suite.cells import Arm, Cell, find_source
from advseg_bench.types import Task


@dataclass(frozen=True, slots=True)
class Supply:
    """Builds the attacks of cells, with what they need.

    Attributes:
        sources: Name of a model -> the model that transfer attacks ask, frozen and in eval mode; or the error with
            which it could not be loaded.
        counted: Returns the loss `class_balanced_ce` with the weights of the training split.
    """

    sources: Mapping[str, nn.Module | Exception] = field(default_factory=dict)
    counted: Callable[[], Loss] | None = None

    def build(self, arm: Arm, task: Task) -> Attack:
        """Return the attack of an arm.

        Raises:
            UserError: As `load_attack`, or the source is missing.
        """
        attack = load_attack(arm.attack, arm.options, arm.loss, task, self.counted)
        source = find_source(arm)
        if source is None or not isinstance(attack, NeedsModel):
            return attack
        found = self.sources.get(source)
        if isinstance(found, Exception):
            raise found
        if found is None:
            what = f"the model {source!r} beside the attacked one"
            raise IncompatibleError(
                expected(f"attack {arm.attack}", what, "none", "Run it in a suite with this model.")
            )
        return attack.bind(found)


@contextmanager
def lend_sources(
    arms: Mapping[Arm, Attack], models: Mapping[str, nn.Module], attacked: nn.Module, x: Tensor, task: Task
) -> Iterator[dict[Arm, Attack]]:
    """Give attacks on one model the models that they ask; modes and devices of these are restored on exit.

    Args:
        arms: The attacks; a source is a model, or a name of `models`.
        models: All models by name.
        attacked: The attacked model, which is ready.
        x: Images on the device of the attacked model, for the check of sources.
        task: The task.

    Yields:
        The attacks.
    """
    ready = dict(arms)
    with ExitStack() as stack:
        for arm, attack in arms.items():
            if not isinstance(attack, NeedsModel):
                continue
            source = models[attack.source] if isinstance(attack.source, str) else attack.source
            module = source if isinstance(source, nn.Module) else FunctionModel(source)
            if module is not attacked:
                stack.enter_context(lent(module))
                stack.callback(module.to, find_device(module))
                module.to(x.device)
            with watched(wait=False):
                ready[arm] = read_source(attack.bind(module), x, task, arm.attack)
        yield ready


def find_device(model: nn.Module) -> torch.device:
    """Return the device of a model's parameters."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def needs_counts(cells: Iterable[Cell]) -> bool:
    """Return whether a cell names the loss whose weights are counted, as its loss or in a setting."""
    arms = {cell.arm for cell in cells if cell.skip is None}
    return any(COUNTED in (arm.loss, *arm.options.values()) for arm in arms)


def count_training(dataset: Dataset) -> Tensor:
    """Count the pixels of each class in the training split of a data set.

    Raises:
        IncompatibleError: There is no training image.
    """
    images = dataset.split("train")
    if not images:
        what = f"training images of {dataset.name}, whose pixels are counted"
        raise IncompatibleError(expected(f"loss {COUNTED}", what, "none", "Use balanced_ce, which counts each image."))
    total: Tensor | int = 0
    for image in images:
        batch = dataset.batch([image])
        total = total + count_classes(batch.y, batch.valid, batch.task)
    assert isinstance(total, Tensor), "there is an image"
    return total
