"""Foolbox: each of its attack classes on segmenters, through the image-level views.

Foolbox sees a `PyTorchModel` of the view and the criterion "another class than 0". Attacks with an epsilon get the
radius and return what their own distance clips to it. Attacks that look for a minimal norm know no radius: what they
find is projected.
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
    warnings.simplefilter("ignore", DeprecationWarning)  # it imports from an old place of SciPy
    import foolbox
    from foolbox import attacks as library
    from foolbox.attacks.base import MinimizationAttack

CLASSES: dict[str, type[library.Attack]] = {
    kind.__name__: kind
    for kind in vars(library).values()
    if inspect.isclass(kind) and issubclass(kind, library.Attack) and kind is not library.Attack
}
"""Every attack class that the installed package exports, by its own name; short names such as PGD are left out."""

FIXED = {
    "distance": "the key `norm` of a suite",
    "constraint": "the key `norm` of a suite",
    "init_attack": "an object, which a suite cannot name",
    "tensorboard": "off: a run has its own record",
    "channel_axis": "given by the harness",
}

_PLAIN: dict[str, Any] = {"random": True, "random_by": ("random_start",)}
_STARTED: dict[str, Any] = _PLAIN | {"settings": {"random_start": True}}
_NOISE: dict[str, Any] = {"view": "none", "objective": "none", "random": True, "gradient": False}
_GATED: dict[str, Any] = {"view": "margin", "objective": "success-gated"}
_MINIMAL: dict[str, Any] = _GATED | {"norms": ("l2",), "eps": None}
_L1: dict[str, Any] = {
    "norms": ("l2",),
    "eps": None,
    "note": "Its L1 radius is the smallest that holds the L2 ball; the result is projected.",
}
_BOTH_WAYS = "Climbs the divergence from the clean view, upwards or downwards: it may improve a segmentation."
_PLAIN_STEPS = "Takes Adam's settings, but its steps are those of {} (Foolbox 3.3.4)."
_CONTRAST = "A network that normalises does not mind contrast."
_DRAWN = "Returns the clean image unless a draw passes the threshold."
_FAR = "Starts from noise far away; what it finds is brought into the budget, and seldom passes the threshold there."
_BRENDEL: dict[str, Any] = {
    "settings": {"steps": 50},
    "random": True,
    "note": "Needs numba, which foolbox does not install, and compiles for half a minute.",
}
_REPEATED: dict[str, Any] = _GATED | {
    "random": True,
    "settings": {"repeats": 50},
    "gradient": False,
    "note": _DRAWN,
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
        **_L1 | {"note": f"{_L1['note']} Its projection moves an image by what its neighbours do."},
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
    "SpatialAttack": Route(reason="it turns and shifts the image, which no norm bounds, and leaves the mask"),
    "L2DeepFoolAttack": Route(**_MINIMAL, single=True),
    "LinfDeepFoolAttack": Route(**_GATED, eps=None, single=True),
    "SaltAndPepperNoiseAttack": Route(**_MINIMAL, random=True, settings={"steps": 100}, gradient=False),
    "LinearSearchBlendedUniformNoiseAttack": Route(
        **_MINIMAL, random=True, settings={"directions": 10, "steps": 100}, gradient=False, note=_FAR
    ),
    "BinarizationRefinementAttack": Route(reason="it refines the result of another attack on models that binarize"),
    "DatasetAttack": Route(reason="it returns other images of the data set, which no budget holds"),
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
        **_MINIMAL, note="Its projection does nothing (Foolbox 3.3.4): in a small budget it is the L2 FGSM."
    ),
    "LInfFMNAttack": Route(**_GATED, eps=None),
    "GenAttack": Route(**_GATED, random=True, settings={"steps": 100}, gradient=False),
    "PointwiseAttack": Route(**_MINIMAL, random=True, gradient=False),
}


def load(class_name: str, settings: dict[str, Any], loss: Loss | None, task: Task) -> Attack:
    """Build an attack from the name of a class.

    Args:
        class_name: Of the package, such as "LinfProjectedGradientDescentAttack".
        settings: Parameters of the class, and `threshold` or `rise` for success-gated ones.
        loss: One value per image.
        task: Not needed: the views serve every kind.
    Raises:
        PluginError: an unknown class, or a short name.
        IncompatibleError: a class that cannot attack a segmenter.
        SpecError: settings that the class does not take, or no loss.
    """
    name = f"foolbox.{class_name}"
    full = next((known for known, kind in CLASSES.items() if getattr(library, class_name, None) is kind), class_name)
    if full != class_name:
        raise PluginError(f"attack {name}: is short for a name of Foolbox. Use foolbox.{full}.")
    route = find_route("foolbox", class_name, ROUTES, CLASSES)
    attack = FoolboxAttack(
        name=name, route=route, loss=loss, settings=settings, batched=is_batched("foolbox", class_name)
    )
    check_settings(f"attack {name}", CLASSES[class_name], settings, fixed=FIXED, gated=route.view == "margin")
    attack.build(Budget(route.norms[0], 1 / 255))
    return attack


@dataclass(frozen=True, kw_only=True)
class FoolboxAttack(ForeignAttack):
    """A class of Foolbox in the shape of ours; see `ForeignAttack`."""

    unit: ClassVar[bool] = True

    def build(self, budget: Budget) -> library.Attack:
        """Construct the class; its radius, if it has one, comes with the call.

        Raises:
            SpecError: the class refuses its settings.
            PluginError: a package that only this class needs is missing.
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
            raise PluginError(
                f"attack {self.name}: needs {error.name}, which foolbox does not install. Run: pip install {error.name}"
            ) from None
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
        if self.class_name == "GenAttack":  # it only knows targets; of two classes the other one is the target
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
        """The radius in the distance of the class; None for a class that minimizes it."""
        if isinstance(attack, MinimizationAttack):
            return None
        if attack.distance is foolbox.distances.l1:
            return budget.eps * math.sqrt(batch.x[0].numel())
        return budget.eps


def _is_start_missing(error: Exception) -> bool:
    """Whether an attack that starts from a broken segmentation found none, or lost it to rounding: a bare assertion."""
    return not str(error) or "init_attack failed" in str(error)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep Foolbox's warnings about its own steps away, and its messages from configuring the root logger."""
    handler = logging.NullHandler()
    logging.root.addHandler(handler)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"foolbox|eagerpy|numpy")
            yield
    finally:
        logging.root.removeHandler(handler)
