"""The segmenter behind an ART estimator: run once to see that it yields logits, and left in the mode it had."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from advseg_adapters.art.inputs import ROUNDING, check_logits, read_task
from advseg_bench.checks.logits import probe as probe_logits
from advseg_bench.errors import IncompatibleError, UserError, expected, one_line
from advseg_bench.losses import Loss, probe
from advseg_bench.registry import catalogue
from advseg_bench.registry.loading import load_loss
from advseg_bench.types import Task, TaskKind


def read_loss(loss: str | Loss | None, task: Task) -> Loss:
    """Return a loss that was checked to be one for the task. Raises: IncompatibleError, PluginError."""
    if loss is None:
        loss = "ce" if task.kind == "multiclass" else "bce"
    if not isinstance(loss, str):
        _probe_loss(loss, task, getattr(loss, "__name__", type(loss).__name__))
        return loss
    entry = catalogue.LOSSES.get(loss)
    if entry is not None and task.kind not in entry.kinds:
        remedy = f"Use one of {', '.join(sorted(n for n, e in catalogue.LOSSES.items() if task.kind in e.kinds))}."
        raise IncompatibleError(expected("loss", f"a loss for {task.kind} tasks", loss, remedy))
    return load_loss(loss, task)


def _probe_loss(loss: Loss, task: Task, name: str) -> None:
    """Check a loss, such as one of torch, which is called with other arguments."""
    try:
        probe(loss, task, name)
    except UserError:
        raise
    except Exception as error:
        what = "a function (logits, y, valid, task) -> one value per image"
        remedy = "Write such a function around it, or name one of ours, such as 'dice'."
        raise IncompatibleError(
            f"loss {name}: expected {what}; called as one it fails: {one_line(error)}. {remedy}"
        ) from error


class Function(nn.Module):
    """A model that is a plain function, as a module without parameters."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self._function = function

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        return self._function(x)


def check_model(
    model: nn.Module, task: Task | TaskKind, shape: Sequence[int], bounds: tuple[float, float], device: torch.device
) -> Task:
    """Run a model on a random image: it must yield logits. Returns: the task, its classes numbered if need be."""
    generator = torch.Generator().manual_seed(0)
    x = bounds[0] + (bounds[1] - bounds[0]) * torch.rand((1, *shape), generator=generator)
    x = x.to(device)
    with mode(model, False), torch.no_grad():
        try:
            logits = model(x)
        except Exception as error:
            raise IncompatibleError(
                f"model: fails on an image of shape {tuple(shape)}: {one_line(error)}. Check `input_shape`."
            ) from error
    if not isinstance(logits, Tensor):
        remedy = "Return the segmentation alone, without auxiliary outputs."
        raise IncompatibleError(expected("model", "one tensor of logits", type(logits).__name__, remedy))
    outputs = logits.shape[1] if logits.dim() > 1 else 0
    known = read_task(task, outputs)
    check_logits(logits, known, x)
    probe_logits("model", model, x, known)
    layered = any(isinstance(module, (_ConvNd, nn.Linear)) for module in model.modules())
    if not layered and _looks_squeezed(logits, known):
        raise IncompatibleError(
            "model: expected raw logits, got nothing but values between 0 and 1"
            + (" that sum to 1" if known.kind == "multiclass" else ", which would mean every class at every pixel")
            + ". Remove the final sigmoid or softmax."
        )
    return known


def _looks_squeezed(logits: Tensor, task: Task) -> bool:
    """Whether logits look like probabilities by their values alone, in a model whose layers cannot be asked."""
    unit = bool((logits >= 0).all() and (logits <= 1).all())
    return unit and (task.kind != "multiclass" or bool(((logits.sum(1) - 1).abs() < ROUNDING).all()))


@contextmanager
def mode(model: nn.Module, training: bool) -> Iterator[None]:
    """Set training or eval mode, and put back each module's own flag."""
    flags = [(module, module.training) for module in model.modules()]
    model.train(training)
    try:
        yield
    finally:
        for module, flag in flags:
            module.training = flag
