"""Foolbox: its attack classes on segmentation models, through the image-level views.

Foolbox attacks a `PyTorchModel` of the view with the criterion "any class but 0". Attacks with an epsilon get the
radius and clip their result in their own distance. Minimal-norm attacks take no radius; their result is projected into
the budget.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from advseg_adapters.foreign import ForeignAttack, Route
from advseg_adapters.loading import check_settings, find_route, is_batched
from advseg_bench.batches import Batch
from advseg_bench.errors import PluginError, SpecError
from advseg_bench.geometry import align
from advseg_bench.losses import Loss
from advseg_bench.protocols import Attack, Model
from advseg_bench.types import Budget, Task

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # it imports from a deprecated module of SciPy
    import foolbox
    from foolbox import attacks as library
    from foolbox.attacks.base import MinimizationAttack

__all__ = ["CLASSES", "ROUTES", "FoolboxAttack", "load"]

CLASSES: dict[str, type[library.Attack]] = {
    kind.__name__: kind
    for kind in vars(library).values()
    if inspect.isclass(kind) and issubclass(kind, library.Attack) and kind is not library.Attack
}
"""Every attack class of the installed package by its full name; aliases such as PGD are omitted."""

FIXED = {
    "distance": "set by the key `norm` of a suite",
    "constraint": "set by the key `norm` of a suite",
    "init_attack": "an object, which a suite cannot name",
    "tensorboard": "off: a run keeps its own records",
    "channel_axis": "set by the harness",
}
"""Parameters that are not settings -> why."""

_PLAIN: dict[str, Any] = {"random": True, "random_by": ("random_start",)}
_STARTED: dict[str, Any] = _PLAIN | {"settings": {"random_start": True}}
_NOISE: dict[str, Any] = {"view": "none", "objective": "none", "random": True, "gradient": False}
_GATED: dict[str, Any] = {"view": "margin", "objective": "success-gated"}
_MINIMAL: dict[str, Any] = _GATED | {"norms": ("l2",), "eps": None}
_L1: dict[str, Any] = {
    "norms": ("l2",),
    "eps": None,
    "note": "Its L1 radius is that of the smallest L1 ball around the L2 ball; the result is projected.",
}
_BOTH_WAYS = "Increases the divergence from the clean view in either direction: it may improve a segmentation."
_PLAIN_STEPS = "Accepts Adam's settings, but its steps are those of {} (Foolbox 3.3.4)."
_CONTRAST = "A network that normalises its input is insensitive to contrast."
_SAMPLED = "Returns the clean image unless a noise sample exceeds the threshold."
_FAR = "Starts from distant noise; its projection into the budget seldom exceeds the threshold."
_BRENDEL: dict[str, Any] = {
    "settings": {"steps": 50},
    "random": True,
    "note": "Requires numba, which foolbox does not install, and compiles for half a minute.",
}
_REPEATED: dict[str, Any] = _GATED | {
    "random": True,
    "settings": {"repeats": 50},
    "gradient": False,
    "note": _SAMPLED,
}

ROUTES: dict[str, Route] = {
    "L2ContrastReductionAttack": Route(view="none", objective="none", norms=("l2",), gradient=False, note=_CONTRAST),
    "VirtualAdversarialAttack": Route(
        objective="own loss", norms=("l2",), random=True, settings={"steps": 5, "xi": 0.01}, note=_BOTH_WAYS
    ),
    "DDNAttack": Route(**_MINIMAL, random=True),
    "L1ProjectedGradientDescentAttack": Route(**_L1, **_STARTED),
    "L2ProjectedGradientDescentAttack": Route(norms=("l2",), **_STARTED),
    "LinfProjectedGradientDescentAttack": Route(**_STARTED),
    "L1AdamProjectedGradientDescentAttack": Route(**_L1, **_STARTED),
    "L2AdamProjectedGradientDescentAttack": Route(norms=("l2",), **_STARTED),
    "LinfAdamProjectedGradientDescentAttack": Route(**_STARTED),
    "L1BasicIterativeAttack": Route(**_L1, **_PLAIN),
    "L2BasicIterativeAttack": Route(norms=("l2",), **_PLAIN),
    "LinfBasicIterativeAttack": Route(**_PLAIN),
    "L1AdamBasicIterativeAttack": Route(
        **_L1 | {"note": f"{_L1['note']} {_PLAIN_STEPS.format('L1BasicIterativeAttack')}"}, **_PLAIN
    ),
    "L2AdamBasicIterativeAttack": Route(norms=("l2",), **_PLAIN, note=_PLAIN_STEPS.format("L2BasicIterativeAttack")),
    "LinfAdamBasicIterativeAttack": Route(**_PLAIN),
    "L1MomentumIterativeFastGradientMethod": Route(**_L1, **_PLAIN),
    "L2MomentumIterativeFastGradientMethod": Route(norms=("l2",), **_PLAIN),
    "LinfMomentumIterativeFastGradientMethod": Route(
        **_PLAIN, note="Accumulates signs: the gradient is not divided by its L1 norm."
    ),
    "L1FastGradientAttack": Route(**_L1, **_PLAIN),
    "L2FastGradientAttack": Route(norms=("l2",), **_PLAIN),
    "LinfFastGradientAttack": Route(**_PLAIN),
    "L2AdditiveGaussianNoiseAttack": Route(**_NOISE, norms=("l2",)),
    "L2AdditiveUniformNoiseAttack": Route(**_NOISE, norms=("l2",)),
    "L2ClippingAwareAdditiveGaussianNoiseAttack": Route(**_NOISE, norms=("l2",)),
    "L2ClippingAwareAdditiveUniformNoiseAttack": Route(**_NOISE, norms=("l2",)),
    "LinfAdditiveUniformNoiseAttack": Route(**_NOISE),
    "L2RepeatedAdditiveGaussianNoiseAttack": Route(**_REPEATED, norms=("l2",)),
    "L2RepeatedAdditiveUniformNoiseAttack": Route(**_REPEATED, norms=("l2",)),
    "L2ClippingAwareRepeatedAdditiveGaussianNoiseAttack": Route(**_REPEATED, norms=("l2",)),
    "L2ClippingAwareRepeatedAdditiveUniformNoiseAttack": Route(**_REPEATED, norms=("l2",)),
    "LinfRepeatedAdditiveUniformNoiseAttack": Route(**_REPEATED),
    "SparseL1DescentAttack": Route(
        **_L1 | {"note": f"{_L1['note']} Its projection of an image depends on the other images of the batch."},
        **_PLAIN,
        single=True,
    ),
    "InversionAttack": Route(view="none", objective="none", norms=("l2",), eps=None, gradient=False, note=_CONTRAST),
    "BinarySearchContrastReductionAttack": Route(**_MINIMAL, gradient=False, note=_CONTRAST),
    "LinearSearchContrastReductionAttack": Route(
        **_MINIMAL, settings={"steps": 100}, gradient=False, note=_CONTRAST, single=True
    ),
    "L2CarliniWagnerAttack": Route(
        **_MINIMAL, settings={"binary_search_steps": 5, "steps": 50, "initial_const": 0.1}, single=True
    ),
    "NewtonFoolAttack": Route(**_MINIMAL),
    "EADAttack": Route(**_MINIMAL, settings={"binary_search_steps": 5, "steps": 50, "initial_const": 0.1}, single=True),
    "GaussianBlurAttack": Route(
        **_MINIMAL, settings={"steps": 50, "max_sigma": 5.0}, gradient=False, dims=(2,), single=True
    ),
    "SpatialAttack": Route(reason="it rotates and shifts the image but not the mask, and no norm bounds the change"),
    "L2DeepFoolAttack": Route(**_MINIMAL, single=True),
    "LinfDeepFoolAttack": Route(**_GATED, eps=None, single=True),
    "SaltAndPepperNoiseAttack": Route(**_MINIMAL, random=True, settings={"steps": 100}, gradient=False),
    "LinearSearchBlendedUniformNoiseAttack": Route(
        **_MINIMAL, random=True, settings={"directions": 10, "steps": 100}, gradient=False, note=_FAR
    ),
    "BinarizationRefinementAttack": Route(reason="it refines the result of another attack on models that binarize"),
    "DatasetAttack": Route(reason="it returns other images of the data set, which lie outside any budget"),
    "BoundaryAttack": Route(**_MINIMAL, random=True, settings={"steps": 500}, gradient=False, note=_FAR),
    "HopSkipJumpAttack": Route(
        **_GATED,
        norms=("linf", "l2"),
        eps=None,
        random=True,
        settings={"steps": 5, "initial_gradient_eval_steps": 50},
        gradient=False,
    ),
    "L0BrendelBethgeAttack": Route(**_MINIMAL, **_BRENDEL),
    "L1BrendelBethgeAttack": Route(**_MINIMAL, **_BRENDEL),
    "L2BrendelBethgeAttack": Route(**_MINIMAL, **_BRENDEL),
    "LinfinityBrendelBethgeAttack": Route(**_GATED, **_BRENDEL, eps=None),
    "L0FMNAttack": Route(**_MINIMAL),
    "L1FMNAttack": Route(**_MINIMAL),
    "L2FMNAttack": Route(
        **_MINIMAL, note="Its projection has no effect (Foolbox 3.3.4): with a small budget it equals the L2 FGSM."
    ),
    "LInfFMNAttack": Route(**_GATED, eps=None),
    "GenAttack": Route(**_GATED, random=True, settings={"steps": 100}, gradient=False),
    "PointwiseAttack": Route(**_MINIMAL, random=True, gradient=False),
}
"""How each class attacks a segmentation model, or why it cannot; by name of the class."""


def load(class_name: str, settings: dict[str, Any], loss: Loss | None, task: Task) -> Attack:
    """Build an attack of Foolbox from the name of its class.

    Args:
        class_name: Full name of a class of `foolbox.attacks`, such as "LinfProjectedGradientDescentAttack".
        settings: Parameters of the class, and `threshold` or `rise` for success-gated classes.
        loss: (logits, y, valid, task) -> one value per image, (N,); None for classes that ignore the model.
        task: Unused, since the views support every task type.

    Returns:
        The attack; call it with a model and a batch, see `BaseAttack`.

    Raises:
        PluginError: The class is unknown, or the name is an alias.
        IncompatibleError: The class cannot attack a segmentation model.
        SpecError: The class does not accept the settings, or the loss is missing.

    Source:
        Foolbox Native, Rauber et al. 2020, JOSS 5(53), 2607; Foolbox, arXiv:1707.04131.

    Example:
        >>> import torch
        >>> import advseg_bench as ab
        >>> from advseg_adapters import foolbox
        >>> attack = foolbox.load("LinfFastGradientAttack", {}, ab.losses.bce, ab.Task("binary", ("lesion",)))
        >>> batch = ab.Batch.of(torch.full((1, 1, 8, 8), 0.5), torch.ones(1, 1, 8, 8), task="binary")
        >>> x_adv = attack(torch.nn.Conv2d(1, 1, 1), batch, eps=0.1)
        >>> round(float((x_adv - batch.x).abs().max()), 3)
        0.1
    """
    name = f"foolbox.{class_name}"
    full = next((known for known, kind in CLASSES.items() if getattr(library, class_name, None) is kind), class_name)
    if full != class_name:
        raise PluginError(f"attack {name}: expected the full name of the class, got an alias. Use foolbox.{full}.")
    route = find_route("foolbox", class_name, ROUTES, CLASSES)
    attack = FoolboxAttack(
        name=name, route=route, loss=loss, settings=settings, batched=is_batched("foolbox", class_name)
    )
    check_settings(f"attack {name}", CLASSES[class_name], settings, fixed=FIXED, gated=route.view == "margin")
    attack.build(Budget(route.norms[0], 1 / 255))
    return attack


@dataclass(frozen=True, kw_only=True)
class FoolboxAttack(ForeignAttack):
    """An attack class of Foolbox as an attack of this package; built by `load`.

    Images whose bounds are not [0, 1] are mapped to [0, 1] for the class, and back.

    Attributes:
        name: "foolbox.<Class>".
        route: How the class attacks a segmentation model.
        loss: (logits, y, valid, task) -> one value per image, (N,).
        settings: Parameters of the class, and `threshold` or `rise`; see `ForeignAttack`.
        batched: Whether images may share a call.

    Cost:
        That of the class; `docs/support.md` lists the measured passes per image.

    Example:
        >>> import advseg_bench as ab
        >>> from advseg_adapters.foolbox import ROUTES, FoolboxAttack
        >>> name = "LinfFastGradientAttack"
        >>> attack = FoolboxAttack(name=f"foolbox.{name}", route=ROUTES[name], loss=ab.losses.dice)
        >>> attack.class_name, attack.traits.norms
        ('LinfFastGradientAttack', ('linf',))
    """

    unit: ClassVar[bool] = True

    def build(self, budget: Budget) -> library.Attack:
        """Construct the class; a radius, if it takes one, is passed with the call.

        Args:
            budget: Norm and radius.

        Returns:
            An object of the class.

        Raises:
            SpecError: The class does not accept its settings.
            PluginError: A package that only this class requires is missing.
        """
        kind = CLASSES[self.class_name]
        arguments = self.parameters(budget)
        arguments.pop("eps", None)
        takes = inspect.signature(kind).parameters
        if "constraint" in takes:
            arguments["constraint"] = budget.norm
        try:
            with _quiet():
                return kind(**arguments)
        except ImportError as error:
            remedy = f"which foolbox does not install. Run: pip install {error.name}"
            raise PluginError(f"attack {self.name}: requires {error.name}, {remedy}") from None
        except (TypeError, ValueError, AssertionError) as error:
            raise SpecError(f"attack {self.name}: does not take these settings: {error}") from None

    def attack(self, target: Model, batch: Batch, budget: Budget) -> Tensor:
        """Run the class on images of the view; see `ForeignAttack.attack`."""
        assert isinstance(target, nn.Module)
        bounds = (batch.bounds.lower, batch.bounds.upper)
        model = foolbox.PyTorchModel(target, bounds=bounds, device=batch.x.device)
        attack = self.build(budget)
        labels = torch.zeros(len(batch.x), dtype=torch.int64, device=batch.x.device)
        criterion: foolbox.criteria.Criterion = foolbox.criteria.Misclassification(labels)
        if self.class_name == "GenAttack":  # it only supports targeted attacks; the target is class 1
            criterion = foolbox.criteria.TargetedMisclassification(labels + 1)
        with _quiet():
            try:
                _, found, _ = attack(model, batch.x, criterion, epsilons=self._radius(attack, batch, budget))
            except (AssertionError, ValueError) as error:
                if not _is_start_missing(error):
                    raise
                return batch.x.clone()
        result: Tensor = torch.where(align((found == 0).flatten(1).all(1), found), batch.x, found)
        return result

    def _radius(self, attack: library.Attack, batch: Batch, budget: Budget) -> float | None:
        """Return the radius in the distance of the class; None for a minimal-norm attack."""
        if isinstance(attack, MinimizationAttack):
            return None
        if attack.distance is foolbox.distances.l1:
            return budget.eps * math.sqrt(batch.x[0].numel())
        return budget.eps


def _is_start_missing(error: Exception) -> bool:
    """Return whether the error states that no starting point beyond the threshold was found.

    Foolbox raises a bare assertion if rounding brings the starting point back below the threshold.
    """
    return not str(error) or "init_attack failed" in str(error)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence Foolbox's internal warnings, and prevent its messages from configuring the root logger."""
    handler = logging.NullHandler()
    logging.root.addHandler(handler)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"foolbox|eagerpy|numpy")
            yield
    finally:
        logging.root.removeHandler(handler)
