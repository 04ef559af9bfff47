"""The code outside of this package that a suite names, and whether a new process can import it. Imports none of it."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from advseg_bench.registry import plugins, toolkits
from advseg_bench.registry.plugins import Kind
from advseg_bench.registry.source_files import MAIN
from advseg_bench.suite.suite import Suite


@dataclass(frozen=True, slots=True)
class Code:
    """The code outside of this package that a suite names.

    Attributes:
        modules: Names of its modules.
    """

    modules: frozenset[str]

    @property
    def in_script(self) -> bool:
        """Whether objects of the caller's script are part of it."""
        return MAIN in self.modules

    @property
    def importable(self) -> bool:
        """Whether a new process finds each module; not the caller's script, nor modules that exist in memory alone."""
        return not self.in_script and all(map(_is_found, self.modules))


def find_code(suite: Suite) -> Code:
    """Return the modules of plug-ins, toolkits and `package.module:object` that a suite names; imports none of them."""
    found = {_find_module(kind, name) for kind, name in list_names(suite)}
    return Code(frozenset(found - {""}))


def list_names(suite: Suite) -> set[tuple[Kind, str]]:
    """Return the names in a suite that may refer to plug-ins."""
    losses = {suite.training.loss, *(loss for attack in suite.attacks for loss in attack.losses)}
    names: dict[Kind, set[str]] = {
        "attack": {attack.name for attack in suite.attacks},
        "architecture": {model.architecture for model in suite.models},
        "loss": losses,
        "defence": {defence.name for model in suite.models for defence in model.defence},
        "data set": {suite.data.name},
    }
    return {(kind, name) for kind, found in names.items() for name in found}


def _find_module(kind: Kind, name: str) -> str:
    """The module that defines a name; "" if it is part of this package."""
    plugin = (toolkits.find_toolkit(name) if kind == "attack" else None) or plugins.find_plugin(kind, name)
    target = plugin.target if plugin else name if ":" in name else ""
    return target.partition(":")[0]


def _is_found(module: str) -> bool:
    """Whether a new process finds the top-level package of a module."""
    top = module.partition(".")[0]
    for finder in sys.meta_path:
        try:
            if finder.find_spec(top, None) is not None:
                return True
        except Exception:
            continue  # a finder of somebody else's
    return False
