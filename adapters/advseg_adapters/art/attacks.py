"""ART: its attack classes on segmentation models.

Classes that need only loss gradients run natively, on an estimator with masks as labels. Classes that require a
classifier run through the image-level views. This module imports ART without writing files or changing the logging.
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
"""Every evasion attack class that the installed ART exports, by name."""

OPTIONAL = {"BrendelBethgeAttack", "RescalingAutoConjugateGradient", "ShapeShifter", "SNAL"}
"""Classes that only some versions of ART export, or only if another package is installed."""

NORMS: dict[Norm, float] = {"linf": np.inf, "l2": 2}
ROUNDING = 1e-6
VOID = -1
FIXED = {
    "estimator": "set by the harness",
    "classifier": "set by the harness",
    "norm": "set by the key `norm` of a suite",
    "verbose": "off: a run shows its own progress",
    "targeted": "off: attacks increase the loss",
    "summary_writer": "off: it writes files to the current folder",
    "random_eps": "off: the key `eps` of a suite sets the radius",
    "adv_criterion": "set by the harness",
    "optimizer": "off: it requires an object",
    "debug": "off: it writes files",
}
"""Parameters that are not settings -> why."""
MASKED = (
    "ProjectedGradientDescent",
    "ProjectedGradientDescentNumpy",
    "ProjectedGradientDescentPyTorch",
    "BasicIterativeMethod",
    "MomentumIterativeMethod",
)
"""Classes that respect a `mask` as they are run here."""


def load(class_name: str, settings: dict[str, Any], loss: Loss | None, task: Task) -> Attack:
    """Build an attack of ART from the name of its class.

    Args:
        class_name: Name of a class of `art.attacks.evasion`, such as "ProjectedGradientDescent".
        settings: Parameters of the class; `mask`, zeros and ones of shape (C, *S), for classes that respect one; and
            `threshold` or `rise` for success-gated classes.
        loss: (logits, y, valid, task) -> one value per image, (N,).
        task: Unused, since estimator and views support every task type.

    Returns:
        The attack; call it with a model and a batch, see `BaseAttack`.

    Raises:
        PluginError: The class is unknown.
        IncompatibleError: The class, or one of the settings, cannot attack a segmentation model.
        SpecError: The class does not accept the settings, or the loss is missing.

    Source:
        Adversarial Robustness Toolbox, arXiv:1807.01069.

    Example:
        >>> import torch
        >>> import advseg_bench as ab
        >>> from advseg_adapters import art
        >>> attack = art.load("FastGradientMethod", {}, ab.losses.bce, ab.Task("binary", ("lesion",)))
        >>> batch = ab.Batch.of(torch.full((1, 1, 8, 8), 0.5), torch.ones(1, 1, 8, 8), task="binary")
        >>> x_adv = attack(torch.nn.Conv2d(1, 1, 1), batch, eps=0.1)
        >>> round(float((x_adv - batch.x).abs().max()), 3)
        0.1
    """
    name = f"art.{class_name}"
    route = _adapt(find_route("art", class_name, ROUTES, CLASSES.keys() | OPTIONAL), settings)
    attack = ArtAttack(name=name, route=route, loss=loss, settings=settings, batched=is_batched("art", class_name))
    if class_name not in CLASSES:
        raise IncompatibleError(f"attack {name}: the installed ART does not export it. Install another version.")
    _check_mask(f"attack {name}", class_name, settings)
    eps = {route.eps: "set by the key `eps` of a suite"} if route.eps else {}
    check_settings(
        f"attack {name}", CLASSES[class_name], {k: v for k, v in settings.items() if k != "mask"}, fixed=FIXED | eps
    )
    if settings.get("loss_type") == "difference_logits_ratio":
        raise IncompatibleError(
            f"attack {name}: loss_type: the difference of logits ratio needs three classes, but a view has two. "
            "Remove `loss_type`."
        )
    attack.rehearse()
    return attack


def _adapt(route: Route, settings: dict[str, Any]) -> Route:
    """Change the route for features that ART supports only with classifiers: random starts, and FGM's `minimal`."""
    if "num_random_init" not in route.random_by:
        return route
    if settings.get("minimal"):
        extra = {"eps_step": "0.05*eps", **route.settings}
        return replace(route, view="margin", objective="success-gated", settings=extra)
    starts = settings.get("num_random_init", 0)
    if not isinstance(starts, int) or starts < 1:
        return route
    # Of several starts ART keeps the last successful one, and in a loss view every start counts as successful.
    return replace(route, view="loss" if starts == 1 else "margin")


def _check_mask(where: str, class_name: str, settings: dict[str, Any]) -> None:
    """Reject an invalid mask, and a mask that the class would silently ignore."""
    if "mask" not in settings:
        return
    if class_name == "FastGradientMethod":
        raise IncompatibleError(
            f"{where}: ignores `mask` on estimators that are not classifiers. "
            'Use art.ProjectedGradientDescent with max_iter = 1 and eps_step = "1*eps".'
        )
    if class_name not in MASKED:
        raise IncompatibleError(f"{where}: does not support `mask`. Use one of {', '.join(MASKED)}.")
    try:
        mask = np.asarray(settings["mask"], dtype=np.float32)
    except (TypeError, ValueError):
        mask = np.full(1, np.nan)
    if not np.isin(mask, (0, 1)).all():
        raise SpecError(f"{where}: setting 'mask': expected zeros and ones of shape (C, *S), got other values.")


@dataclass(frozen=True, kw_only=True)
class ArtAttack(ForeignAttack):
    """An attack class of ART as an attack of this package; built by `load`.

    Attributes:
        name: "art.<Class>".
        route: How the class attacks a segmentation model.
        loss: (logits, y, valid, task) -> one value per image, (N,).
        settings: Parameters of the class, `mask`, and `threshold` or `rise`; see `load` and `ForeignAttack`.
        batched: Whether images may share a call.

    Cost:
        That of the class; `docs/support.md` lists the measured passes per image.

    Example:
        >>> import advseg_bench as ab
        >>> from advseg_adapters.art import ROUTES, ArtAttack
        >>> attack = ArtAttack(name="art.DeepFool", route=ROUTES["DeepFool"], loss=ab.losses.dice)
        >>> attack.route.objective, attack.traits.norms
        ('success-gated', ('l2',))
    """

    @property
    def manner(self) -> Manner:
        """Return how the class is called."""
        return MANNERS.get(self.class_name, Manner())

    def together(self, n: int) -> int:
        """Return how many of `n` images share a call: at most the `batch_size`, and one if its default is one."""
        takes = inspect.signature(CLASSES[self.class_name]).parameters
        default = self.route.settings.get("batch_size", takes["batch_size"].default if "batch_size" in takes else 1)
        size = self.settings.get("batch_size", default) if default > 1 else 1
        return max(1, min(super().together(n), int(size)))

    def build(self, estimator: Any, budget: Budget) -> Any:
        """Construct the class for an estimator or classifier, and a budget.

        Args:
            estimator: An ART estimator or classifier.
            budget: Norm and radius.

        Returns:
            An object of the class.

        Raises:
            SpecError: The class does not accept its settings.
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
        """Construct the class for a placeholder model, so that invalid settings are found before anything runs."""
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
        """Run the class by its public call, and post-process the result."""
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
        """Return the object that the class attacks: an estimator with masks as labels, or a view as a classifier."""
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
        """Return the argument `y` of the class."""
        if self.class_name.startswith("FeatureAdversaries"):
            return np.flip(x, axis=tuple(range(2, x.ndim))).copy()
        if self.route.view != "native":
            return None if self.manner.label is None else estimator.one_hot(self.manner.label)
        valid = batch.valid if batch.task.kind == "multiclass" else batch.valid.unsqueeze(1)
        return torch.where(valid, batch.y.long(), VOID).cpu().numpy()
