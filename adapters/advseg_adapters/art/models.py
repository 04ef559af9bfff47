"""Validate the model and the loss of an ART estimator, and find its layers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from advseg_adapters.art.inputs import check_logits, read_task
from advseg_bench.checks.logits import probe as probe_logits
from advseg_bench.checks.model import check_calls
from advseg_bench.checks.outputs import read_model
from advseg_bench.errors import IncompatibleError, SpecError, UserError, expected, one_line
from advseg_bench.instruments.modes import in_mode
from advseg_bench.losses import Loss, probe
from advseg_bench.protocols import Model
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


def read_segmenter(
    model: Model,
    task: Task | TaskKind,
    shape: Sequence[int],
    bounds: tuple[float, float],
    device: torch.device,
    *,
    stochastic: bool = False,
) -> tuple[nn.Module, Task]:
    """Run a model on random images: its outputs must contain logits, which depend on the image alone.

    Args:
        model: Images -> logits, or outputs that contain them.
        task: What the labels mean.
        shape: (C, *S) of one image.
        bounds: Smallest and largest intensity.
        device: Device of the model.
        stochastic: Whether logits may depend on random numbers.

    Returns:
        A module from images to logits, the model itself if it is one; and the task, its classes numbered if need be.

    Cost:
        Three forwards of one image, and one of two unless it is stochastic.

    Raises:
        IncompatibleError: If it fails, or there are no logits for the task in what it returns.
    """
    generator = torch.Generator().manual_seed(0)
    both = bounds[0] + (bounds[1] - bounds[0]) * torch.rand((2, *shape), generator=generator)
    both = both.to(device)
    x = both[:1]
    reader = read_model("model", model)
    with in_mode(reader, training=False), torch.no_grad():
        try:
            logits = reader(x)
        except UserError:
            raise
        except Exception as error:
            raise IncompatibleError(
                f"model: fails on an image of shape {tuple(shape)}: {one_line(error)}. Check `input_shape`."
            ) from error
    known = read_task(task, logits.shape[1])
    check_logits(logits, known, x)
    probe_logits("model", reader, x, known, function=False)
    if not stochastic:
        with in_mode(reader, training=False), torch.no_grad():
            check_calls("model", reader, both, logits, reader(both))
    reader.announce()
    found = reader.simplest()
    return found if isinstance(found, nn.Module) else reader, known


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
