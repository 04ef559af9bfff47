"""Which class of a toolkit, with which settings, claims to be one of our reference attacks: for cross-validation.

Settings make the classes do the same, as far as their parameters allow; what they cannot be told is left to the
verdict. Nothing is imported: the names are resolved by the registry.
"""

from __future__ import annotations

from typing import Any

from advseg_bench.types import Norm

Equivalent = tuple[str, dict[str, Any]]


def find_in_art(reference: str, norm: Norm, settings: dict[str, Any]) -> Equivalent | None:
    """Return ART's class and its settings for a reference attack."""
    step, steps = f"{settings['step_size']!r}*eps", settings["steps"]
    multi = {"eps_step": step, "max_iter": steps}
    return {
        "fgsm": ("art.FastGradientMethod", {}),
        "bim": ("art.BasicIterativeMethod", multi) if norm == "linf" else None,
        "pgd": ("art.ProjectedGradientDescentPyTorch", multi | {"num_random_init": int(settings["random_start"])}),
        "mifgsm": ("art.MomentumIterativeMethod", multi | {"decay": settings["decay"]}),
    }.get(reference)


def find_in_torchattacks(reference: str, norm: Norm, settings: dict[str, Any]) -> Equivalent | None:
    """Return torchattacks' class and its settings for a reference attack."""
    step, steps = f"{settings['step_size']!r}*eps", settings["steps"]
    start = {"random_start": settings["random_start"]}
    if norm == "l2":
        multi = {"alpha": step, "steps": steps}
        return ("torchattacks.PGDL2", multi | start) if reference in ("pgd", "bim") else None
    return {
        "fgsm": ("torchattacks.FGSM", {}),
        "bim": ("torchattacks.BIM", {"alpha": step, "steps": steps}),
        "pgd": ("torchattacks.PGD", {"alpha": step, "steps": steps} | start),
        "mifgsm": ("torchattacks.MIFGSM", {"alpha": step, "steps": steps, "decay": settings["decay"]}),
    }.get(reference)


def find_in_foolbox(reference: str, norm: Norm, settings: dict[str, Any]) -> Equivalent | None:
    """Return Foolbox's class and its settings for a reference attack."""
    prefix = {"linf": "Linf", "l2": "L2"}[norm]
    multi = {"rel_stepsize": settings["step_size"], "steps": settings["steps"]}
    start = {"random_start": settings["random_start"]}
    momentum = "LinfMomentumIterativeFastGradientMethod" if norm == "linf" else "L2MomentumIterativeFastGradientMethod"
    return {
        "fgsm": (f"foolbox.{prefix}FastGradientAttack", {}),
        "bim": (f"foolbox.{prefix}BasicIterativeAttack", multi | start),
        "pgd": (f"foolbox.{prefix}ProjectedGradientDescentAttack", multi | start),
        "mifgsm": (f"foolbox.{momentum}", {"momentum": settings["decay"]} | multi | start),
    }.get(reference)
