"""A plain function becomes an attack: `@attack` above `def f(model, x, y, eps)`."""

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
    "x": "clean images, a copy that may be written to",
    "y": "labels, a copy",
    "eps": "the radius",
    "norm": 'the norm of the budget, "linf" or "l2"',
    "valid": "bool (N, *S), False where a pixel counts in no loss and no score",
    "task": "what the labels mean",
    "bounds": "the smallest and largest intensity, `bounds.lower` and `bounds.upper`",
    "loss": "the loss a suite asks for: (logits, y, valid, task) -> one value per image",
    "generators": "one source of randomness per image",
    "generator": "the image's own; with `per_image=True`",
}
"""What a function may ask for, by the name of a parameter. Any other parameter is a setting and has a default."""

Function = Callable[..., Tensor]


@dataclass(frozen=True)
class FunctionAttack(BaseAttack):
    """A function in the shape of an attack; made by `attack`, settled by `configure`.

    It is pickled by the name of its function: a data loader's workers get the transforms that hold an attack so.

    The function gets what its parameters ask for (see `GIVEN`), on copies, with gradients enabled and the model's
    parameters frozen, so that the shortest code is right: `loss(...).sum().backward()` leaves nothing behind. Its
    result is neither clipped nor projected: whether it keeps bounds and budget is for the harness to see.

    Attributes:
        function: The function itself.
        name: For messages; by default the function's.
        declared: Its traits: what it can be given, norms of a budget among it.
        per_image: Whether it is called once for each image, with N = 1.
        loss: What it is given as `loss`.
        settings: Values for parameters of its own.
    """

    function: Function
    name: str
    declared: Traits
    per_image: bool = False
    loss: Loss | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def traits(self) -> Traits:
        """What it was declared to be."""
        return self.declared

    def why_not(self, batch: Batch, budget: Budget) -> str | None:
        """Return the reason why it cannot be given a batch and a budget, or None."""
        if self.needs_loss and self.loss is None:
            return f'attack {self.name!r} follows a loss; give it one with .configure("dice")'
        return BaseAttack.why_not(self, batch, budget)

    @property
    def needs_loss(self) -> bool:
        """Whether it cannot do without a loss."""
        parameter = self._parameters.get("loss")
        return parameter is not None and parameter.default is parameter.empty

    def renamed(self, name: str) -> FunctionAttack:
        """Return the attack under another name, such as that of an entry point."""
        return replace(self, name=name)

    def configure(self, loss: Loss | str | None = None, **settings: Any) -> FunctionAttack:
        """Return the attack with a loss, by name or as a function, and with values for parameters of its own.

        Raises:
            SpecError: An unknown setting, a loss that it does not follow, or none where it must have one.
        """
        own = self._parameters.keys() - GIVEN.keys()
        for key in settings:
            if key not in own:
                known = own or {"(none)"}
                raise SpecError(unknown(f"attack {self.name}", "setting", key, known))
        if loss is not None and "loss" not in self._parameters:
            raise SpecError(f"attack {self.name}: follows no loss. Remove it, or give the function a parameter `loss`.")
        made = replace(self, loss=find_loss(loss) if loss else self.loss, settings={**self.settings, **settings})
        made._demand_loss()
        return made

    def perturb(self, model: Model, batch: Batch, *, budget: Budget, generators: Sequence[torch.Generator]) -> Tensor:
        """Return adversarial images; shape and dtype of `batch.x`. Cost: that of the function.

        Raises:
            IncompatibleError: if it does not know the norm.
            PluginError: if it returns anything but images.
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
        """Pickle the function by its name, which by then is this attack's."""
        place = (self.function.__module__, self.function.__qualname__)
        if "<" in place[1]:
            raise PicklingError(f"attack {self.name}: {place[1]} is no function of a module. Move it to the top level.")
        return _restore, (*place, self.name, self.declared, self.per_image, self.loss, dict(self.settings))

    @property
    def _parameters(self) -> Mapping[str, inspect.Parameter]:
        return inspect.signature(self.function).parameters

    def _demand_loss(self) -> None:
        if self.needs_loss and self.loss is None:
            raise SpecError(f'attack {self.name}: follows a loss. Give at least one, such as losses = ["dice"].')

    def _run(self, model: Model, batch: Batch, budget: Budget, generators: Sequence[torch.Generator]) -> Tensor:
        """Call the function with what it asks for."""
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
    """Make an attack of a function; a decorator, with or without options.

    The function is called by the names of its parameters: `model`, `x`, `y`, `eps` and whatever else of `GIVEN` it
    asks for. Its other parameters are settings, each with a default; a suite sets them under `settings`. The function
    itself stays at `f.function`.

    Args:
        function: `f(model, x, y, eps)`.
        norm: The norm of the budgets it understands, or several if it has a parameter `norm`.
        per_image: Call it once for each image, with N = 1 and, if it asks, that image's `generator`.
        traits: Further fields of `types.Traits`, such as `gradient=False`. By default an attack without a parameter
            `model` is a control, and one that takes no generator is not random.

    Returns:
        An `Attack`.

    Raises:
        PluginError: If a parameter is unknown and has no default, `x` or `eps` is missing, or an option is wrong.
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
        remedy = "Name one norm, or give the function a parameter `norm`."
        raise PluginError(expected(where, "a function that is told which of its norms is meant", norms, remedy))
    found = {"control": "model" not in parameters, "random": bool({"generator", "generators"} & parameters.keys())}
    made = FunctionAttack(function, name, Traits(norms=norms, **{**found, **traits}), per_image)
    made.__dict__.update(__doc__=function.__doc__, __name__=name, __qualname__=name, __module__=function.__module__)
    return made


def _check_parameters(where: str, parameters: Mapping[str, inspect.Parameter], per_image: bool) -> None:
    """Refuse parameters that nobody would fill."""
    for key, parameter in parameters.items():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            remedy = "Name each one, so that a misspelt setting is noticed."
            raise PluginError(expected(where, "parameters with names", str(parameter), remedy))
        if key not in GIVEN and parameter.default is parameter.empty:
            raise PluginError(f"{unknown(where, 'parameter', key, GIVEN)} A setting of its own needs a default.")
    if missing := [key for key in ("x", "eps") if key not in parameters]:
        raise PluginError(expected(where, f"a parameter {missing[0]!r}", tuple(parameters), "See f(model, x, y, eps)."))
    if "generator" in parameters and not per_image:
        raise PluginError(
            f"{where}: asks for `generator`, but each image has its own. Write @attack(per_image=True), or take "
            "`generators`, one for each image."
        )


def _restore(module: str, name: str, label: str, traits: Traits, per_image: bool, *rest: Any) -> FunctionAttack:
    """Find the function again in another process."""
    found = attrgetter(name)(import_module(module))
    function = found.function if isinstance(found, FunctionAttack) else found
    return FunctionAttack(function, label, traits, per_image, *rest)
