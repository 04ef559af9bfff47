"""Detects and reverts changes of a model: an attack must leave the model as it was."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from advseg_bench.instruments.modes import read_modes
from advseg_bench.instruments.profiling import timed
from advseg_bench.protocols import Model

Hooks = dict[tuple[int, str], dict[Any, Any]]
"""Index of a module and name of a registry -> its hooks."""

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class ModelGuard:
    """A snapshot of everything in a frozen model that an attack could change by accident.

    It covers parameters, buffers, training and gradient flags, gradients and hooks of every module. Write counters of
    tensors reveal most changes; changes through `tensor.data` bypass the counters and need a comparison of values.
    Cost: a copy of the weights, and one comparison per thorough check.

    What the model's own forward changes, such as a counter of calls in a buffer, is not attributed to an attack and not
    reverted. When a change is found and `sample` is known, the model is run once more to see who made the change.

    Args:
        model: A frozen model, in the mode in which it must stay.
        sample: Images (N, C, *S) on which the model can be run; None if it must not be run.
    """

    @timed("guard of the model")
    def __init__(self, model: nn.Module, sample: Tensor | None = None) -> None:
        self.model, self.sample = model, sample
        self.own_tensors: set[int] = set()
        self.own_hooks: set[tuple[int, str]] = set()
        self.modules = list(model.modules())
        named = dict(model.named_parameters()) | dict(model.named_buffers())
        self.names, self.tensors = list(named), list(named.values())
        self.grads = [None if tensor.grad is None else tensor.grad.clone() for tensor in self.tensors]
        self.values = [tensor.detach().clone() for tensor in self.tensors]
        self.marks = self._read_marks()
        self.flags = self._read_flags()
        self.hooks = self._read_hooks()

    def find_changes(self) -> list[str]:
        """Describe what was changed, the most severe first; gradients that existed before are compared by value."""
        changed = [self.names[i] for i in self._find_changed(range(len(self.tensors)))]
        (training, wanted, _), hooks = self._read_flags(), self._read_hooks()
        grads = [
            name
            for name, tensor, grad in zip(self.names, self.tensors, self.grads, strict=True)
            if (tensor.grad is None) != (grad is None)
            or (grad is not None and tensor.grad is not None and not _is_same(tensor.grad, grad))
        ]
        flagged = [name for name, now, was in zip(self.names, wanted, self.flags[1], strict=True) if now != was]
        return [
            *(f"value of {name}" for name in changed),
            *(["training flags"] if training != self.flags[0] else []),
            *(f"requires_grad of {name}" for name in flagged),
            *(f"gradient of {name}" for name in grads),
            *(["hooks"] if hooks != self.hooks else []),
        ]

    @timed("guard of the model")
    def restore(self, *, thorough: bool = True) -> bool:
        """Revert all changes.

        Args:
            thorough: Whether to compare all values, not only those of tensors whose write counter changed.

        Returns:
            Whether anything was changed.
        """
        marks = zip(self._read_marks(), self.marks, strict=True)
        changed = self._find_changed(i for i, (now, was) in enumerate(marks) if thorough or now != was)
        flags = self._read_flags()
        if flags != self.flags:
            for module, training in zip(self.modules, self.flags[0], strict=True):
                if training is not None:
                    module.training = training
            for tensor, requires_grad in zip(self.tensors, self.flags[1], strict=True):
                tensor.requires_grad_(requires_grad)
                tensor.grad = None
        hooked = self._restore_hooks()
        if changed and self.sample is not None:
            before = {i: self.tensors[i].detach().clone() for i in changed}
            self._run()
            self.own_tensors |= {i for i in changed if not _is_same(self.tensors[i], before[i])}
            changed = [i for i in changed if i not in self.own_tensors]
        with torch.no_grad():
            for i in changed:
                self.tensors[i].data.copy_(self.values[i])
        self.marks = self._read_marks()
        return bool(changed) or flags != self.flags or hooked

    def _restore_hooks(self) -> bool:
        """Revert the hooks that were changed by others than the model itself; return whether there were any."""
        hooks = self._read_hooks()
        if hooks != self.hooks and self.sample is not None:
            self._run()
            again = self._read_hooks()
            self.own_hooks |= _differ(hooks, again)
            hooks = {key: found for key, found in again.items() if key not in self.own_hooks}
            self.hooks = {key: found for key, found in self.hooks.items() if key not in self.own_hooks}
        changed = _differ(hooks, self.hooks)
        for i, name in changed:
            registry = getattr(self.modules[i], name)
            registry.clear()
            registry.update(self.hooks.get((i, name), {}))
        return bool(changed)

    def _run(self) -> None:
        """Run the model as an attack does, to see what it changes in itself."""
        assert self.sample is not None
        devices = () if self.sample.device.type == "cpu" else (self.sample.device,)
        rng = torch.random.fork_rng(devices, device_type=self.sample.device.type if devices else "cuda")
        with rng, torch.enable_grad():
            self.model(self.sample.detach().clone().requires_grad_())

    def _find_changed(self, places: Iterable[int]) -> list[int]:
        """Indices of the tensors with other values than before, without those that the model itself changes."""
        there = (i for i in places if i not in self.own_tensors)
        return [i for i in there if not _is_same(self.tensors[i], self.values[i])]

    def _read_marks(self) -> list[tuple[int, int]]:
        return [(tensor._version, tensor.data_ptr()) for tensor in self.tensors]

    def _read_flags(self) -> tuple[list[bool | None], list[bool], list[bool]]:
        training = [getattr(module, "training", None) for module in self.modules]  # frozen TorchScript has none
        return training, [t.requires_grad for t in self.tensors], [t.grad is not None for t in self.tensors]

    def _read_hooks(self) -> Hooks:
        """The registered hooks, by index of the module and name of the registry."""
        found = ((i, name, getattr(module, name)) for i, module in enumerate(self.modules) for name in HOOKS)
        return {(i, name): dict(hooks) for i, name, hooks in found if hooks and (i, name) not in self.own_hooks}


@contextmanager
def frozen(model: Model) -> Iterator[None]:
    """Set `requires_grad` of a module's parameters to False inside, and restore it; nothing else changes."""
    flags = [(p, p.requires_grad) for p in model.parameters()] if isinstance(model, nn.Module) else []
    for parameter, _ in flags:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


@contextmanager
def lent(model: Model) -> Iterator[None]:
    """Prepare a user's model for an attack: eval mode, frozen, without gradients; all are restored on exit.

    Changes of values, modes and hooks by the attack are not detected here; create a `ModelGuard` inside for that.
    """
    parameters = list(model.parameters()) if isinstance(model, nn.Module) else []
    modes = read_modes(model) if isinstance(model, nn.Module) else []
    flags = [(parameter.requires_grad, parameter.grad) for parameter in parameters]
    for module, _ in modes:
        module.training = False
    for parameter in parameters:
        parameter.requires_grad_(False)
        parameter.grad = None
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for parameter, (flag, grad) in zip(parameters, flags, strict=True):
            parameter.requires_grad_(flag)
            parameter.grad = grad


def _differ(one: Hooks, other: Hooks) -> set[tuple[int, str]]:
    """Keys of the registries that are not equal."""
    return {key for key in one.keys() | other.keys() if one.get(key) != other.get(key)}


def _is_same(tensor: torch.Tensor, value: torch.Tensor) -> bool:
    """Whether shapes and all values are equal, where NaN equals NaN."""
    if tensor.shape != value.shape:
        return False
    return torch.equal(tensor, value) or bool(((tensor == value) | (tensor.isnan() & value.isnan())).all())
