"""Puts the defences of a model's specification around its network."""

from __future__ import annotations

from typing import Any

from torch import nn

from advseg_bench.errors import IncompatibleError, expected
from advseg_bench.registry.loading import load_defence
from advseg_bench.suite.specs import ModelSpec
from advseg_bench.types import Bounds, Task


def defend(spec: ModelSpec, model: nn.Module, task: Task, bounds: Bounds, axes: int) -> nn.Module:
    """Put a model's defences around its network: an image passes the first one first.

    Args:
        spec: The model.
        model: The network, images (N, C, *S) within the bounds -> logits (N, K, *S).
        task: The task of the logits.
        bounds: The intensity range of the images.
        axes: Number of space axes of the images.

    Returns:
        The defended network; `model` itself without defences.

    Raises:
        PluginError: If a defence cannot be imported or is none.
        SpecError: If it does not take its settings.
        IncompatibleError: If it does not fit the task, the bounds or the images.
    """
    for each in reversed(spec.defence):
        where = f"model {spec.name!r}: defence {each.name}"
        defence = load_defence(each.name, each.settings, where)
        traits = defence.traits
        if task.kind not in traits.kinds:
            raise IncompatibleError(expected(where, f"a task of type {' or '.join(traits.kinds)}", task.kind))
        if axes not in traits.dims:
            dims = " or ".join(map(str, traits.dims))
            raise IncompatibleError(expected(where, f"images with {dims} space axes", axes, "Use another defence."))
        if traits.random and not spec.random:
            remedy = "Set stochastic = true, so that it is scored over several repeats."
            raise IncompatibleError(expected(where, "a model that is declared stochastic", "a random defence", remedy))
        model = defence(model, task, bounds)
        if not isinstance(model, nn.Module):
            raise IncompatibleError(expected(where, "a torch.nn.Module", type(model).__name__, "Return one."))
    return model


def describe_defences(spec: ModelSpec, axes: int) -> dict[str, Any]:
    """Return what a record stores about the defences of a model: nothing without them."""
    if not spec.defence:
        return {}
    known = []
    for each in spec.defence:
        traits = load_defence(each.name, each.settings, f"model {spec.name!r}: defence {each.name}").traits
        entry = each.traits_of(axes)
        known.append(
            {
                "name": each.name,
                "settings": dict(each.settings),
                "differentiable": traits.differentiable if entry is None else entry.differentiable,
                "random": traits.random,
                "forwards": traits.forwards if entry is None else entry.forwards,
            }
        )
    return {"defence": known}
