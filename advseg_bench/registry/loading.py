"""From a name to an attack or a loss that has been seen to be one."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from importlib import import_module
from typing import Any, Protocol, cast, runtime_checkable

from advseg_bench.errors import IncompatibleError, PluginError, SpecError, UserError, expected, one_line, unknown
from advseg_bench.losses import Loss, probe
from advseg_bench.protocols import Attack
from advseg_bench.registry import catalogue, plugins, toolkits
from advseg_bench.registry.plugins import Plugin
from advseg_bench.types import Task


@runtime_checkable
class Configurable(Protocol):
    """A function as an attack, see `attacks.function.attack`: it is settled after it was made."""

    def renamed(self, name: str) -> Configurable:
        """Return the attack under another name."""
        ...

    def configure(self, loss: Loss | None = None, **settings: Any) -> Attack:
        """Return the attack with a loss and settings."""
        ...


def load_attack(name: str, settings: Mapping[str, Any], loss: str, task: Task) -> Attack:
    """Build an attack: what its name stands for, with its settings and its loss.

    That is a class, made with the settings and the loss as keywords; a function that `attacks.function.attack`
    decorates; a callable of the shape of `protocols.Attack`; or a class of a toolkit.

    Args:
        name: In the catalogue, of a plug-in, `<toolkit>.<Class>`, or `package.module:object`.
        settings: Keyword arguments of the attack.
        loss: The name of the loss that it follows; "" if it follows none.
        task: What the labels mean.

    Raises:
        PluginError: if the name cannot be loaded, or is no attack.
        SpecError: if the attack does not take the settings.
        IncompatibleError: if the loss is not one: see `losses.probe`.
    """
    given = dict(settings)
    follows = load_loss(loss, task) if loss else None
    toolkit = toolkits.find_toolkit(name)
    if toolkit is not None:
        return _load_foreign(toolkit, name, given, follows, task)
    target = plugins.load_object("attack", name)
    if entry := catalogue.ATTACKS.get(name):
        target = plugins.load_object("attack", entry.find_target(given))
    if isinstance(target, Configurable):
        return target.renamed(name).configure(follows, **given)
    if isinstance(target, type):
        target = _construct(target, name, given if follows is None else given | {"loss": follows})
    elif given or follows:
        raise SpecError(f"attack {name}: is a plain function, so it takes neither settings nor losses.")
    check_call(name, target)
    return cast(Attack, target)


def load_loss(name: str, task: Task) -> Loss:
    """Return a loss and check that it is one, by `losses.probe`.

    Raises:
        PluginError: if the name cannot be loaded, or is no function of logits, labels, valid pixels and task.
        IncompatibleError: if it is no loss for the task.
    """
    return check_loss(plugins.load_object("loss", name), task, name)


def check_loss(loss: object, task: Task, name: str) -> Loss:
    """Return a function if it is a loss for a task, by `losses.probe`. Raises: as `load_loss`."""
    if not callable(loss) or isinstance(loss, type):
        what = "a function (logits, y, valid, task) -> one value per image"
        raise PluginError(expected(f"loss {name}", what, loss if isinstance(loss, type) else type(loss).__name__))
    try:
        probe(cast(Loss, loss), task, name)
    except UserError:
        raise
    except Exception as error:
        raise IncompatibleError(
            f"loss {name}: fails on logits of a {task.kind} task: {one_line(error)}. "
            "Its call is (logits, y, valid, task) -> one value per image; `losses.per_image` wraps others."
        ) from error
    return cast(Loss, loss)


def _construct(target: type, name: str, arguments: Mapping[str, Any]) -> object:
    """Make an object of an attack's class."""
    try:
        return target(**arguments)
    except (TypeError, ValueError) as error:
        known = {key for key in getattr(target, "__dataclass_fields__", {}) if key != "loss"}
        wrong = next((key for key in arguments if known and key not in {*known, "loss"}), None)
        reason = unknown("", "setting", wrong, known) if wrong else error
        raise SpecError(f"attack {name}: does not take these settings: {reason}") from None


def check_call(name: str, attack: object) -> None:
    """Refuse what cannot be called as an attack is. Raises: PluginError."""
    call = "(model, batch, *, budget, generators)"
    if not callable(attack):
        what = f"a function or class whose call is {call}"
        raise PluginError(expected(f"attack {name}", what, type(attack).__name__))
    try:
        signature = inspect.signature(attack)
    except ValueError:  # some built-in callables have no signature
        return
    try:
        signature.bind(None, None, budget=None, generators=None)
    except TypeError:
        remedy = "Above a function f(model, x, y, eps) put the line @advseg_bench.attack."
        raise PluginError(f"attack {name}: expected the call {call}, got {signature}. {remedy}") from None


def _load_foreign(toolkit: Plugin, name: str, settings: dict[str, Any], loss: Loss | None, task: Task) -> Attack:
    """Build an attack of a toolkit; one that is not installed is one line with the command."""
    owner = f"attack {name}: {toolkit.target} of distribution {toolkit.distribution}"
    try:
        attack = import_module(toolkit.target).load(name.partition(".")[2], settings, loss, task)
    except UserError:
        raise
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name == toolkit.name:
            missing = f"attack {name}: needs {toolkit.name}, which is not installed"
            raise PluginError(f"{missing}. Run: {toolkits.install(toolkit)}") from None
        remedy = f"Run: {toolkits.install(toolkit)}" if isinstance(error, ImportError) else plugins.mend(toolkit)
        raise PluginError(f"{owner} fails: {one_line(error)}. {remedy}") from error
    if not callable(attack):
        raise PluginError(expected(owner, "an attack from its `load`", type(attack).__name__, plugins.mend(toolkit)))
    return cast(Attack, attack)
