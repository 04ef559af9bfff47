"""The equivalents of the reference attacks in each toolkit, with matching settings, for cross-validation.

The settings match those of the reference as far as the parameters of a class allow; the verdict shows the remaining
differences. No toolkit is imported here: the registry resolves the names.
"""

from __future__ import annotations

from typing import Any

from advseg_bench.types import Norm

Equivalent = tuple[str, dict[str, Any]]


def find_in_art(reference: str, norm: Norm, settings: dict[str, Any]) -> Equivalent | None:
    """Return the name and settings of ART's equivalent of a reference attack, or None if there is none."""
    step, steps = f"{settings['step_size']!r}*eps", settings["steps"]
    multi = {"eps_step": step, "max_iter": steps}
    return {
        "fgsm": ("art.FastGradientMethod", {}),
        "bim": ("art.BasicIterativeMethod", multi) if norm == "linf" else None,
        "pgd": ("art.ProjectedGradientDescentPyTorch", multi | {"num_random_init": int(settings["random_start"])}),
        "mifgsm": ("art.MomentumIterativeMethod", multi | {"decay": settings["decay"]}),
        "apgd": ("art.AutoProjectedGradientDescent", {"max_iter": steps}),
    }.get(reference)


def find_in_torchattacks(reference: str, norm: Norm, settings: dict[str, Any]) -> Equivalent | None:
    """Return the name and settings of torchattacks' equivalent of a reference attack, or None if there is none."""
    step, steps = f"{settings['step_size']!r}*eps", settings["steps"]
    start = {"random_start": settings["random_start"]}
    if norm == "l2":
        multi = {"alpha": step, "steps": steps}
        pgd = ("torchattacks.PGDL2", multi | start)
        return {"pgd": pgd, "bim": pgd, "apgd": ("torchattacks.APGD", {"steps": steps})}.get(reference)
    return {
        "fgsm": ("torchattacks.FGSM", {}),
        "bim": ("torchattacks.BIM", {"alpha": step, "steps": steps}),
        "pgd": ("torchattacks.PGD", {"alpha": step, "steps": steps} | start),
        "mifgsm": ("torchattacks.MIFGSM", {"alpha": step, "steps": steps, "decay": settings["decay"]}),
        "nifgsm": ("torchattacks.NIFGSM", {"alpha": step, "steps": steps, "decay": settings["decay"]}),
        "apgd": ("torchattacks.APGD", {"steps": steps}),
    }.get(reference)


def find_in_foolbox(reference: str, norm: Norm, settings: dict[str, Any]) -> Equivalent | None:
    """Return the name and settings of Foolbox's equivalent of a reference attack, or None if there is none."""
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


def find_in_cospgd(reference: str, norm: Norm, settings: dict[str, Any]) -> Equivalent | None:
    """Return the attack of the package `cospgd` and its settings, or None if there is none."""
    name = {"segpgd": "SegPGD", "cospgd": "CosPGD"}.get(reference)
    taken = {name: settings[name] for name in ("steps", "step_size", "random_start")}
    return (f"advseg_adapters.cospgd:{name}", taken) if name else None


def find_in_adv_lib(reference: str, norm: Norm, settings: dict[str, Any]) -> Equivalent | None:
    """Return the attack of adv-lib and its settings, or None if there is none."""
    return ("advseg_adapters.adv_lib:APGD", {"steps": settings["steps"]}) if reference == "apgd" else None
