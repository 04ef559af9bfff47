"""Loads attacks and losses by name, and checks their signatures."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, Protocol, cast, runtime_checkable

from advseg_bench.errors import IncompatibleError, PluginError, SpecError, UserError, expected, one_line, unknown
from advseg_bench.losses import Loss, probe
from advseg_bench.protocols import Attack
from advseg_bench.registry import catalogue, plugins, toolkits
from advseg_bench.registry.plugins import Plugin
from advseg_bench.types import DefenceTraits, Task


@runtime_checkable
class Configurable(Protocol):
    """A function as an attack, see `attacks.function.attack`: it is configured after it is created."""

    def renamed(self, name: str) -> Configurable:
        """Return the attack with another name."""
        ...

    def configure(self, loss: Loss | None = None, **settings: Any) -> Attack:
        """Return the attack with a loss and settings."""
        ...


def load_attack(
    name: str,
    settings: Mapping[str, Any],
    loss: str,
    task: Task,
    counted: Callable[[], Loss] | None = None,
) -> Attack:
    """Build an attack from its name, its settings and its loss.

    The name refers to a class, which is called with the settings and the loss as keywords; to a function decorated by
    `attacks.function.attack`; to a callable as in `protocols.Attack`; or to a class of a toolkit.

    Args:
        name: Name in the catalogue or of a plug-in, `<toolkit>.<Class>`, or `package.module:object`.
        settings: Keyword arguments of the attack.
        loss: Name of the attack loss; "" for none.
        task: Task type and classes.
        counted: Returns `class_balanced_ce` with the weights of the training split, for an attack with this loss or
            this value of a setting; without it that loss raises an error when it is called.

    Returns:
        The attack.

    Raises:
        PluginError: If the name cannot be loaded, or is not an attack.
        SpecError: If the attack does not take the settings.
        IncompatibleError: If the loss is invalid, see `losses.probe`.
    """
    given = dict(settings)
    follows = load_loss(loss, task) if loss else None
    if counted is not None:
        given = {key: counted() if value == catalogue.COUNTED else value for key, value in given.items()}
        follows = counted() if loss == catalogue.COUNTED else follows
    toolkit = toolkits.find_toolkit(name)
    if toolkit is not None:
        return _load_from_toolkit(toolkit, name, given, follows, task)
    target = plugins.load_object("attack", name)
    if entry := catalogue.ATTACKS.get(name):
        target = plugins.load_object("attack", entry.find_target(given))
    if configurable := _as_configurable(name, target):
        return configurable.renamed(name).configure(follows, **given)
    if isinstance(target, type):
        target = _construct(target, f"attack {name}", given if follows is None else given | {"loss": follows})
    elif given or follows:
        raise SpecError(
            f"attack {name}: expected no settings and no losses, since it is a plain function. Remove them."
        )
    check_call(name, target)
    return cast(Attack, target)


def load_loss(name: str, task: Task) -> Loss:
    """Load a loss and check it with `losses.probe`.

    Args:
        name: Name in the catalogue or of a plug-in, or `package.module:object`.
        task: Task type and classes.

    Raises:
        PluginError: If the name cannot be loaded, or is not a function (logits, labels, valid pixels, task).
        IncompatibleError: If it is not a valid loss for the task.
    """
    return check_loss(plugins.load_object("loss", name), task, name)


def load_defence(name: str, settings: Mapping[str, Any], where: str) -> Any:
    """Load a defence: a class that is called with the settings, or a callable as in `defences.base.Defence`.

    Args:
        name: Name in the catalogue or of a plug-in, or `package.module:object`.
        settings: Keyword arguments of the defence.
        where: Prefix of error messages.

    Returns:
        The defence, a callable (model, task, bounds) -> model with `traits`.

    Raises:
        PluginError: If the name cannot be loaded, or is not a defence.
        SpecError: If the defence does not take the settings.
    """
    target = plugins.load_object("defence", name, where)
    if isinstance(target, type):
        target = _construct(target, where, settings)
    elif settings:
        raise SpecError(expected(where, "no settings, since it is a plain function", sorted(settings), "Remove them."))
    if not callable(target) or not isinstance(getattr(target, "traits", None), DefenceTraits):
        what = "a callable (model, task, bounds) with an attribute `traits` of type DefenceTraits"
        raise PluginError(expected(where, what, type(target).__name__, "See docs/defences.md."))
    return target


def check_loss(loss: object, task: Task, name: str) -> Loss:
    """Return a function if `losses.probe` accepts it as a loss for a task. Raises: as `load_loss`."""
    if not callable(loss) or isinstance(loss, type):
        what = "a function (logits, y, valid, task) -> one value per image"
        raise PluginError(expected(f"loss {name}", what, loss if isinstance(loss, type) else type(loss).__name__))
    try:
        probe(cast(Loss, loss), task, name)
    except (UserError, KeyboardInterrupt):
        raise
    except BaseException as error:  # user code may stop with SystemExit and its like
        raise IncompatibleError(
            f"loss {name}: fails on logits of a {task.kind} task: {one_line(error)}. "
            "Expected (logits, y, valid, task) -> one value per image; `losses.per_image` wraps other criteria."
        ) from error
    return cast(Loss, loss)


def _as_configurable(name: str, target: object) -> Configurable | None:
    """Return an object if it is an attack made of a function; an object whose attributes raise is a `PluginError`."""
    try:
        return target if isinstance(target, Configurable) else None
    except Exception as error:
        what, found = "a function, a class or an attack object", f"an object that raises {one_line(error)}"
        raise PluginError(f"attack {name}: expected {what}, got {found}. Correct it.") from error


def _construct(target: type, where: str, arguments: Mapping[str, Any]) -> object:
    """Create an object of the class of an attack or a defence."""
    try:
        return target(**arguments)
    except (TypeError, ValueError) as error:
        known = {key for key in getattr(target, "__dataclass_fields__", {}) if key != "loss"}
        wrong = next((key for key in arguments if known and key not in {*known, "loss"}), None)
        reason = unknown("", "setting", wrong, known) if wrong else error
        raise SpecError(f"{where}: does not take these settings: {reason}") from None
    except (Exception, KeyboardInterrupt):
        raise
    except BaseException as error:  # SystemExit and its like
        raise PluginError(f"{where}: cannot be created: {one_line(error)}. Correct its constructor.") from error


def check_call(name: str, attack: object) -> None:
    """Check that an object has the call signature of an attack. Raises: PluginError."""
    call = "(model, batch, *, budget, generators)"
    if not callable(attack):
        what = f"a function or class with the call {call}"
        raise PluginError(expected(f"attack {name}", what, type(attack).__name__))
    try:
        signature = inspect.signature(attack)
    except ValueError:  # some built-in callables have no signature
        return
    except Exception as error:  # an object whose attributes raise
        found = one_line(error)
        raise PluginError(f"attack {name}: expected the call {call}, got {found}. Make it a function.") from error
    try:
        signature.bind(None, None, budget=None, generators=None)
    except TypeError:
        remedy = "Decorate a function f(model, x, y, eps) with @advseg_bench.attack."
        raise PluginError(f"attack {name}: expected the call {call}, got {signature}. {remedy}") from None


def _load_from_toolkit(toolkit: Plugin, name: str, settings: dict[str, Any], loss: Loss | None, task: Task) -> Attack:
    """Build an attack of a toolkit; if it is not installed, the error states the command that installs it."""
    owner = f"attack {name}: {toolkit.target} of distribution {toolkit.distribution}"
    try:
        attack = import_module(toolkit.target).load(name.partition(".")[2], settings, loss, task)
    except (UserError, KeyboardInterrupt):
        raise
    except BaseException as error:
        if isinstance(error, ModuleNotFoundError) and error.name == toolkit.name:
            missing = f"attack {name}: needs {toolkit.name}, which is not installed"
            raise PluginError(f"{missing}. Run: {toolkits.install(toolkit)}") from None
        remedy = f"Run: {toolkits.install(toolkit)}" if isinstance(error, ImportError) else plugins.remedy(toolkit)
        raise PluginError(f"{owner} fails: {one_line(error)}. {remedy}") from error
    if not callable(attack):
        raise PluginError(expected(owner, "an attack from its `load`", type(attack).__name__, plugins.remedy(toolkit)))
    return cast(Attack, attack)
