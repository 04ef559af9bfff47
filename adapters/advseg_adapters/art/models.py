"""Validate the model and the loss of an ART estimator, and find its layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from advseg_adapters.art.inputs import ROUNDING, check_logits, read_task
from advseg_bench.checks.logits import probe as probe_logits
from advseg_bench.errors import IncompatibleError, SpecError, UserError, expected, one_line
from advseg_bench.losses import Loss, probe
from advseg_bench.registry import catalogue
from advseg_bench.registry.loading import load_loss
from advseg_bench.types import Task, TaskKind


def read_loss(loss: str | Loss | None, task: Task) -> Loss:
    """Return the loss, validated for the task.

    Raises:
        IncompatibleError: The loss does not fit the task.
        PluginError: The loss is unknown.
    """
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
    """Validate a loss given as an object; losses of torch fail here, since they take other arguments."""
    try:
        probe(loss, task, name)
    except UserError:
        raise
    except Exception as error:
        what = "a function (logits, y, valid, task) -> one value per image"
        remedy = "Wrap it in such a function, or use the name of a loss, such as 'dice'."
        raise IncompatibleError(f"loss {name}: expected {what}, got {one_line(error)}. {remedy}") from error


class Function(nn.Module):
    """A module without parameters that calls a function."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self._function = function

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, K, *S) of images (N, C, *S)."""
        return self._function(x)


def check_model(
    model: nn.Module, task: Task | TaskKind, shape: Sequence[int], bounds: tuple[float, float], device: torch.device
) -> Task:
    """Run a model on a random image and check that it returns logits.

    Args:
        model: Images (N, C, *S) -> logits (N, K, *S).
        task: The task or its type.
        shape: Shape (C, *S) of one image.
        bounds: Smallest and largest intensity.
        device: Device of the model.

    Returns:
        The task; for a task type, with numbered classes.

    Raises:
        UserError: The model fails, or its output is not logits of the task.

    Cost:
        Two forwards of one image.
    """
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
    if not layered and _is_squeezed(logits, known):
        raise IncompatibleError(
            "model: expected raw logits, got only values between 0 and 1"
            + (" that sum to 1" if known.kind == "multiclass" else ", which predict every class at every pixel")
            + ". Remove the final sigmoid or softmax."
        )
    return known


def _is_squeezed(logits: Tensor, task: Task) -> bool:
    """Return whether the values of logits are those of probabilities, for a model without known layers."""
    unit = bool((logits >= 0).all() and (logits <= 1).all())
    return unit and (task.kind != "multiclass" or bool(((logits.sum(1) - 1).abs() < ROUNDING).all()))


def list_layers(model: nn.Module) -> list[str]:
    """Return the names of a model's modules, without the model itself."""
    return [name for name, _ in model.named_modules() if name]


def find_layer(model: nn.Module, layer: int | str) -> nn.Module:
    """Return a module of a model by its name, or by its index in `list_layers`.

    Raises:
        SpecError: The layer does not exist.
    """
    names = list_layers(model)
    if isinstance(layer, int) and -len(names) <= layer < len(names):
        layer = names[layer]
    if not isinstance(layer, str) or layer not in names:
        what = f"an index below {len(names)}, or one of the `layer_names`" if names else "a model with layers"
        raise SpecError(expected("get_activations: layer", what, layer))
    return model.get_submodule(layer)


@contextmanager
def mode(model: nn.Module, training: bool) -> Iterator[None]:
    """Set training or eval mode, and restore the flag of each module at exit."""
    flags = [(module, module.training) for module in model.modules()]
    model.train(training)
    try:
        yield
    finally:
        for module, flag in flags:
            module.training = flag
