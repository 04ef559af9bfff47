"""The decorator `@attack`, which turns a function `f(model, x, y, eps)` into an attack."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from operator import attrgetter
from pickle import PicklingError
from typing import Any, get_args, overload

import torch
from torch import Tensor

from advseg_bench.attacks.base import BaseAttack
from advseg_bench.attacks.objective import find_loss
from advseg_bench.batches import Batch, select_images
from advseg_bench.errors import IncompatibleError, PluginError, SpecError, expected, unknown
from advseg_bench.instruments.counter import rows_of
from advseg_bench.instruments.guard import frozen
from advseg_bench.losses import Loss
from advseg_bench.protocols import Model
from advseg_bench.types import Budget, Norm, Traits

GIVEN = {
    "model": "images -> logits",
    "x": "clean images, a copy that may be modified",
    "y": "labels, a copy",
    "eps": "the radius",
    "norm": 'the norm of the budget, "linf" or "l2"',
    "valid": "bool (N, *S), False at pixels excluded from losses and scores",
    "task": "what the labels mean",
    "bounds": "the smallest and largest intensity, `bounds.lower` and `bounds.upper`",
    "loss": "the loss set in the suite: (logits, y, valid, task) -> one value per image",
    "generators": "one random generator per image",
    "generator": "the generator of the image; with `per_image=True`",
}
"""Parameters that are passed to a function by name. Any other parameter is a setting and needs a default."""

Function = Callable[..., Tensor]


@dataclass(frozen=True)
class FunctionAttack(BaseAttack):
    """An attack defined by a function; created by `attack`, configured by `configure`.

    It is pickled by the qualified name of its function, so that it can be sent to the workers of a data loader.

    The function gets the parameters that it names (see `GIVEN`) as copies, with gradients enabled and the parameters of
    the model frozen. So the simplest code is correct: `loss(...).sum().backward()` has no side effects. The result is
    neither clipped nor projected; the harness checks bounds and budget.

    Attributes:
        function: The function.
        name: Name in messages; by default that of the function.
        declared: Its traits.
        per_image: Whether the function is called once per image, with N = 1.
        loss: The loss passed to the function.
        settings: Values of its settings.
    """

    function: Function
    name: str
    declared: Traits
    per_image: bool = False
    loss: Loss | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def traits(self) -> Traits:
        """The declared traits."""
        return self.declared

    def why_not(self, batch: Batch, budget: Budget) -> str | None:
        """Return the reason why the attack does not support a batch and a budget, or None."""
        if self.needs_loss and self.loss is None:
            return f'attack {self.name!r} needs a loss; set one with .configure("dice")'
        return BaseAttack.why_not(self, batch, budget)

    @property
    def needs_loss(self) -> bool:
        """Whether the function needs a loss."""
        parameter = self._parameters.get("loss")
        return parameter is not None and parameter.default is parameter.empty

    def renamed(self, name: str) -> FunctionAttack:
        """Return the attack with another name, such as that of an entry point."""
        return replace(self, name=name)

    def configure(self, loss: Loss | str | None = None, **settings: Any) -> FunctionAttack:
        """Return the attack with a loss and settings.

        Args:
            loss: Name of a loss, or a function.
            settings: Values of the function's settings.

        Returns:
            The configured attack.

        Raises:
            SpecError: A setting is unknown, the function takes no loss, or a required loss is missing.
        """
        own = self._parameters.keys() - GIVEN.keys()
        for key in settings:
            if key not in own:
                known = own or {"(none)"}
                raise SpecError(unknown(f"attack {self.name}", "setting", key, known))
        if loss is not None and "loss" not in self._parameters:
            remedy = "Remove it, or add a parameter `loss` to the function."
            what = loss if isinstance(loss, str) else "one"
            raise SpecError(expected(f"attack {self.name}", "no loss", what, remedy))
        made = replace(self, loss=find_loss(loss) if loss else self.loss, settings={**self.settings, **settings})
        made._demand_loss()
        return made

    def perturb(self, model: Model, batch: Batch, *, budget: Budget, generators: Sequence[torch.Generator]) -> Tensor:
        """Return adversarial images.

        Args:
            model: Images (N, C, *S) -> logits (N, K, *S).
            batch: Images and labels.
            budget: Norm and radius.
            generators: One random generator per image.

        Returns:
            Images (N, C, *S) with the dtype of `batch.x`.

        Raises:
            IncompatibleError: The norm is not supported.
            PluginError: The function does not return images.

        Cost:
            The cost of the function.
        """
        self._demand_loss()
        if budget.norm not in self.traits.norms:
            known = " or ".join(self.traits.norms)
            raise IncompatibleError(expected(f"attack {self.name}", f"a budget in {known}", budget.norm, "Change it."))
        if not self.per_image:
            return self._run(model, batch, budget, generators)
        results = []
        for i in range(len(batch.x)):
            with rows_of([i]):
                results.append(self._run(model, select_images(batch, [i]), budget, [generators[i]]))
        return torch.cat(results)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the function by its qualified name, which refers to the decorated function."""
        place = (self.function.__module__, self.function.__qualname__)
        if "<" in place[1]:
            remedy = "Move it to the top level of a module."
            raise PicklingError(f"attack {self.name}: expected a module-level function, got {place[1]}. {remedy}")
        return _restore, (*place, self.name, self.declared, self.per_image, self.loss, dict(self.settings))

    @property
    def _parameters(self) -> Mapping[str, inspect.Parameter]:
        return inspect.signature(self.function).parameters

    def _demand_loss(self) -> None:
        if self.needs_loss and self.loss is None:
            raise SpecError(f'attack {self.name}: needs a loss. Set at least one, such as losses = ["dice"].')

    def _run(self, model: Model, batch: Batch, budget: Budget, generators: Sequence[torch.Generator]) -> Tensor:
        """Call the function with the parameters that it names."""
        given = {
            "model": model,
            "x": batch.x.detach().clone(),
            "y": batch.y.clone(),
            "eps": budget.eps,
            "norm": budget.norm,
            "valid": batch.valid.clone(),
            "task": batch.task,
            "bounds": batch.bounds,
            "generators": generators,
            "generator": generators[0],
        }
        if self.loss is not None:
            given["loss"] = self.loss
        arguments = {name: given[name] for name in self._parameters if name in given}
        with frozen(model), torch.enable_grad():
            result: object = self.function(**arguments, **self.settings)
        found = tuple(result.shape) if isinstance(result, Tensor) else type(result).__name__
        if not isinstance(result, Tensor) or found != tuple(batch.x.shape):
            what = f"images of shape {tuple(batch.x.shape)}"
            raise PluginError(expected(f"attack {self.name}", what, found, "Return the adversarial images."))
        return result.detach().to(batch.x.dtype)


@overload
def attack(function: Function, /) -> FunctionAttack: ...
@overload
def attack(
    *, norm: Norm | Sequence[Norm] = ..., per_image: bool = ..., **traits: Any
) -> Callable[[Function], FunctionAttack]: ...
def attack(
    function: Function | None = None, /, *, norm: Norm | Sequence[Norm] = "linf", per_image: bool = False, **traits: Any
) -> FunctionAttack | Callable[[Function], FunctionAttack]:
    """Make an attack from a function; a decorator, with or without options.

    Arguments are passed by the names of the function's parameters: `model`, `x` and `y` (copies of images and labels),
    `eps`, `norm`, `valid`, `task`, `bounds`, `loss`, `generators`, and `generator` with `per_image=True`. Any other
    parameter is a setting and needs a default; a suite sets it under `settings`. The original function is `f.function`.

    Args:
        function: `f(model, x, y, eps)` -> images (N, C, *S); only `x` and `eps` are required.
        norm: The supported norm of the budget, or several norms if the function has a parameter `norm`.
        per_image: Call the function once per image, with N = 1.
        traits: Further fields of `Traits`, such as `gradient=False`. By default an attack without a parameter `model`
            is a noise baseline, and one without generators is not random.

    Returns:
        The attack, or a decorator if only options are given.

    Raises:
        PluginError: A parameter is unknown and has no default, `x` or `eps` is missing, or an option is invalid.

    Cost:
        The cost of the function.

    Example:
        >>> import torch
        >>> import advseg_bench as ab
        >>> @ab.attack
        ... def one_step(model, x, y, eps, loss, valid, task):
        ...     x.requires_grad_()
        ...     loss(model(x), y, valid, task).sum().backward()
        ...     return (x + eps * x.grad.sign()).clamp(0, 1)
        >>> x = torch.full((1, 1, 4, 4), 0.75)
        >>> batch = ab.Batch.of(x, x > 0.5, task="binary")
        >>> one_step.configure("bce")(lambda x: 4 * x - 2, batch, eps=0.125).unique()
        tensor([0.6250])
    """
    if function is None:
        return lambda f: _make(f, norm, per_image, traits)
    return _make(function, norm, per_image, traits)


def _make(
    function: Function, norm: Norm | Sequence[Norm], per_image: bool, traits: Mapping[str, Any]
) -> FunctionAttack:
    """Check a function and wrap it."""
    name = getattr(function, "__qualname__", repr(function))
    where = f"attack {name}"
    if not inspect.isfunction(function):
        raise PluginError(expected(where, "a function f(model, x, y, eps)", type(function).__name__))
    norms = (norm,) if isinstance(norm, str) else tuple(norm)
    options = {"norm", "per_image", *Traits.__dataclass_fields__} - {"norms"}
    for key in traits.keys() - options:
        raise PluginError(unknown(where, "option", key, options))
    for given in norms:
        if given not in get_args(Norm):
            raise PluginError(unknown(where, "norm", str(given), get_args(Norm)))
    parameters = inspect.signature(function).parameters
    _check_parameters(where, parameters, per_image)
    if len(norms) != 1 and "norm" not in parameters:
        remedy = "Keep one norm, or add a parameter `norm` to the function."
        raise PluginError(expected(where, "one norm, or a parameter `norm`", norms, remedy))
    found = {"control": "model" not in parameters, "random": bool({"generator", "generators"} & parameters.keys())}
    made = FunctionAttack(function, name, Traits(norms=norms, **{**found, **traits}), per_image)
    made.__dict__.update(__doc__=function.__doc__, __name__=name, __qualname__=name, __module__=function.__module__)
    return made


def _check_parameters(where: str, parameters: Mapping[str, inspect.Parameter], per_image: bool) -> None:
    """Refuse parameters that have no value."""
    for key, parameter in parameters.items():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            remedy = "Name each parameter, so that misspelt settings raise an error."
            raise PluginError(expected(where, "parameters with names", str(parameter), remedy))
        if key not in GIVEN and parameter.default is parameter.empty:
            raise PluginError(f"{unknown(where, 'parameter', key, GIVEN)} A setting needs a default.")
    if missing := [key for key in ("x", "eps") if key not in parameters]:
        raise PluginError(expected(where, f"a parameter {missing[0]!r}", tuple(parameters), "See f(model, x, y, eps)."))
    if "generator" in parameters and not per_image:
        raise PluginError(
            f"{where}: expected `generators`, one per image, got `generator`. "
            "Rename it, or write @attack(per_image=True)."
        )


def _restore(module: str, name: str, label: str, traits: Traits, per_image: bool, *rest: Any) -> FunctionAttack:
    """Rebuild the attack in another process."""
    found = attrgetter(name)(import_module(module))
    function = found.function if isinstance(found, FunctionAttack) else found
    return FunctionAttack(function, label, traits, per_image, *rest)
