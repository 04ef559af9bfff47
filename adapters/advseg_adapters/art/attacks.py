"""ART: its attack classes on segmenters, and segmenters as estimators and classifiers of ART.

Classes that ask for no more than loss gradients run natively, on an estimator whose labels are masks; those that ask
for a classifier run through the image-level views. Importing this module imports ART, without a file or a change of
logging left behind.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from advseg_adapters.art.classifier import ViewClassifier, as_classifier
from advseg_adapters.art.estimator import SegmentationEstimator, as_estimator
from advseg_adapters.art.routes import MANNERS, ROUTES, Manner
from advseg_adapters.art.run import check_shape, choose, contained, find_start, fit_share, to_lower, write_cosines
from advseg_adapters.art.toolkit import EVASION, EvasionAttack
from advseg_adapters.foreign import ForeignAttack, Route, isolated_randomness
from advseg_adapters.loading import check_settings, find_route, is_batched
from advseg_adapters.views import BlindView
from advseg_bench.attacks.base import FunctionModel
from advseg_bench.batches import Batch
from advseg_bench.errors import IncompatibleError, SpecError
from advseg_bench.losses import Loss
from advseg_bench.protocols import Attack, Model
from advseg_bench.types import Bounds, Budget, Norm, Task

__all__ = ["CLASSES", "ROUTES", "ArtAttack", "SegmentationEstimator", "as_classifier", "as_estimator", "load"]

CLASSES: dict[str, Any] = {
    name: kind
    for name, kind in vars(EVASION).items()
    if isinstance(kind, type) and issubclass(kind, EvasionAttack) and not name.startswith("_")
}
"""Every evasion attack class that the installed ART exports."""

OPTIONAL = {"BrendelBethgeAttack", "RescalingAutoConjugateGradient", "ShapeShifter", "SNAL"}
"""Those that only some versions of ART export, or only beside another package."""

NORMS: dict[Norm, float] = {"linf": np.inf, "l2": 2}
ROUNDING = 1e-6
VOID = -1
FIXED = {
    "estimator": "given by the harness",
    "classifier": "given by the harness",
    "norm": "the key `norm` of a suite",
    "verbose": "off: a run has its own progress",
    "targeted": "off: attacks raise the loss",
    "summary_writer": "off: it writes files where it runs",
    "random_eps": "off: the radius is the key `eps` of a suite",
    "adv_criterion": "given by the harness",
    "optimizer": "off: it would have to be an object",
    "debug": "off: it writes files",
}
MASKED = (
    "ProjectedGradientDescent",
    "ProjectedGradientDescentNumpy",
    "ProjectedGradientDescentPyTorch",
    "BasicIterativeMethod",
    "MomentumIterativeMethod",
)
"""Classes that keep to a `mask` on the way they run here."""


def load(class_name: str, settings: dict[str, Any], loss: Loss | None, task: Task) -> Attack:
    """Build an attack from the name of a class.

    Args:
        class_name: Of `art.attacks.evasion`, such as "ProjectedGradientDescent".
        settings: Parameters of the class; `mask`, numbers that fit an image, where the class keeps to one; and
            `threshold` or `rise` for success-gated ones.
        loss: One value per image.
        task: Not needed: estimator and views serve every kind.
    Raises:
        PluginError: an unknown class.
        IncompatibleError: a class, or a setting, that cannot attack a segmenter.
        SpecError: settings that the class does not take, or no loss.
    """
    name = f"art.{class_name}"
    route = _adapt(find_route("art", class_name, ROUTES, CLASSES.keys() | OPTIONAL), settings)
    attack = ArtAttack(name=name, route=route, loss=loss, settings=settings, batched=is_batched("art", class_name))
    if class_name not in CLASSES:
        raise IncompatibleError(f"attack {name}: the installed ART does not export it. Install another version.")
    _check_mask(f"attack {name}", class_name, settings)
    eps = {route.eps: "the key `eps` of a suite"} if route.eps else {}
    check_settings(
        f"attack {name}", CLASSES[class_name], {k: v for k, v in settings.items() if k != "mask"}, fixed=FIXED | eps
    )
    if settings.get("loss_type") == "difference_logits_ratio":
        raise IncompatibleError(
            f"attack {name}: the difference of logits ratio needs three classes, and a view has two. "
            "Remove `loss_type`."
        )
    attack.rehearse()
    return attack


def _adapt(route: Route, settings: dict[str, Any]) -> Route:
    """Choose another way for what ART does with classifiers alone: random starts, and the smallest step of FGM."""
    if "num_random_init" not in route.random_by:
        return route
    if settings.get("minimal"):
        extra = {"eps_step": "0.05*eps", **route.settings}
        return replace(route, view="margin", objective="success-gated", settings=extra)
    starts = settings.get("num_random_init", 0)
    if not isinstance(starts, int) or starts < 1:
        return route
    # Of several starts ART keeps the last that succeeds, and in a loss view every start does.
    return replace(route, view="loss" if starts == 1 else "margin")


def _check_mask(where: str, class_name: str, settings: dict[str, Any]) -> None:
    """Refuse a mask that the class would drop without a word, and one that is none."""
    if "mask" not in settings:
        return
    if class_name == "FastGradientMethod":
        raise IncompatibleError(
            f"{where}: drops `mask` on estimators that are not classifiers. "
            'Use art.ProjectedGradientDescent with max_iter = 1 and eps_step = "1*eps", which keeps to it.'
        )
    if class_name not in MASKED:
        raise IncompatibleError(f"{where}: does not keep to a `mask`. Use one of {', '.join(MASKED)}.")
    try:
        mask = np.asarray(settings["mask"], dtype=np.float32)
    except (TypeError, ValueError):
        mask = np.full(1, np.nan)
    if not np.isin(mask, (0, 1)).all():
        raise SpecError(f"{where}: setting 'mask': expected zeros and ones that fit an image (C, *S).")


@dataclass(frozen=True, kw_only=True)
class ArtAttack(ForeignAttack):
    """A class of ART in the shape of ours; see `ForeignAttack`."""

    @property
    def manner(self) -> Manner:
        """How the class wants to be called."""
        return MANNERS.get(self.class_name, Manner())

    def together(self, n: int) -> int:
        """Return how many of `n` images share a call: no more than the `batch_size`, and one if that is the default."""
        takes = inspect.signature(CLASSES[self.class_name]).parameters
        default = self.route.settings.get("batch_size", takes["batch_size"].default if "batch_size" in takes else 1)
        size = self.settings.get("batch_size", default) if default > 1 else 1
        return max(1, min(super().together(n), int(size)))

    def build(self, estimator: Any, budget: Budget) -> Any:
        """Construct the class for an estimator, or classifier, and a budget.

        Raises:
            SpecError: The class refuses its settings.
        """
        kind = CLASSES[self.class_name]
        takes = inspect.signature(kind).parameters
        arguments = {key: value for key, value in self.parameters(budget).items() if key != "mask"}
        arguments = {k: tuple(v) if isinstance(v, list) else v for k, v in arguments.items()}
        if "verbose" in takes:
            arguments["verbose"] = False
        if "norm" in takes and self.manner.norm:
            arguments["norm"] = NORMS[budget.norm]
        channels, *space = estimator.input_shape
        if "patch_shape" in takes:
            arguments.setdefault("patch_shape", (channels, min(space), min(space)))
        if "p_init" in takes:
            arguments.setdefault("p_init", fit_share(space))
        if "nb_parallel" in takes:
            arguments["nb_parallel"] = min(arguments["nb_parallel"], channels * int(np.prod(space)))
        if self.route.view == "native" and "adv_criterion" in takes:
            arguments["adv_criterion"] = lambda logits, y: np.zeros(len(y), dtype=bool)
            arguments["loss"] = partial(to_lower, estimator)
        try:
            return kind(estimator, **arguments)
        except (TypeError, ValueError, LookupError, ArithmeticError, RuntimeError) as error:
            raise SpecError(f"attack {self.name}: does not take these settings: {error}") from None

    def rehearse(self) -> None:
        """Construct the class for a model that is none, so that a wrong setting shows before anything runs."""
        nan, one = (float("nan"), float("nan")), ("",)
        zeros = torch.zeros(1, 1, 32, 32)
        batch = Batch(
            zeros, zeros.bool(), zeros[:, 0] == 0, Task("binary", ("",)), Bounds(), one, one, one, spacing=(nan,)
        )
        target = nn.Identity() if self.route.view == "native" else BlindView(batch)
        with isolated_randomness(torch.Generator()):
            self.build(self._estimator(target, batch), Budget(self.route.norms[0], 1 / 255))

    def attack(self, target: Model, batch: Batch, budget: Budget) -> Tensor:
        """Run the class on images of the view, or of the model itself; see `ForeignAttack.attack`."""
        check_shape(self.class_name, batch.x.shape[1:], budget.norm)
        x = batch.x.detach().cpu().numpy().copy()
        with contained(target, batch.x.device, writes=self.manner.writes):
            estimator = self._estimator(target, batch)
            start = find_start(estimator, x, self.manner.start) if self.manner.start else x
            found = x if start is None else self._generate(estimator, batch, budget, x, start)
        return torch.from_numpy(np.asarray(found, dtype=np.float32)).to(batch.x)

    def _generate(self, estimator: Any, batch: Batch, budget: Budget, x: np.ndarray, start: np.ndarray) -> np.ndarray:
        """Run the class the public way, and make of its result what it owes."""
        attack = self.build(estimator, budget)
        extra: dict[str, Any] = {}
        if "mask" in self.settings:
            extra["mask"] = np.broadcast_to(np.asarray(self.settings["mask"], np.float32), x.shape[1:]).copy()
        if self.manner.start == "uniform":
            extra["x_adv_init"] = start
        if self.class_name == "GeoDA":
            write_cosines(attack.sub_dim, x.shape[2])
        found = attack.generate(x.copy(), self._labels(estimator, batch, x), **extra)
        if self.manner.patch:
            found = attack.apply_patch(x.copy(), scale=self.parameters(budget)["scale_max"])
        if self.manner.rounds:
            found = np.where(np.abs(found - x) < ROUNDING, x, found)
        if self.manner.best:
            found = choose(estimator, found, getattr(attack, "x_max", found))
        return np.asarray(found)

    def _estimator(self, target: Model, batch: Batch) -> Any:
        """What the class is to attack: an estimator of masks, or a view as a classifier."""
        if self.route.view != "native":
            assert isinstance(target, nn.Module)
            classifier = ViewClassifier(target, batch, probabilities=self.manner.probabilities, third=self.manner.third)
            if self.manner.wide:
                classifier._clip_values = classifier._clip_values.astype(np.float64)
            return classifier
        assert self.loss is not None
        return SegmentationEstimator(
            target if isinstance(target, nn.Module) else FunctionModel(target),
            task=batch.task,
            loss=self.loss,
            input_shape=batch.x.shape[1:],
            device=batch.x.device,
            clip_values=(batch.bounds.lower, batch.bounds.upper),
            ignore=VOID,
            preprocessing=None,
        )

    def _labels(self, estimator: Any, batch: Batch, x: np.ndarray) -> np.ndarray | None:
        """What the class gets as `y`."""
        if self.class_name.startswith("FeatureAdversaries"):
            return np.flip(x, axis=tuple(range(2, x.ndim))).copy()
        if self.route.view != "native":
            return None if self.manner.label is None else estimator.one_hot(self.manner.label)
        valid = batch.valid if batch.task.kind == "multiclass" else batch.valid.unsqueeze(1)
        return torch.where(valid, batch.y.long(), VOID).cpu().numpy()
