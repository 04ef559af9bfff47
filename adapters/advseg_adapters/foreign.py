"""Base of all toolkit attacks: a route to the segmentation model, one mask per call, isolated randomness."""

from __future__ import annotations

import random
import re
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from advseg_adapters.views import BlindView, LossView, MarginView
from advseg_bench.attacks.base import BaseAttack
from advseg_bench.batches import Batch, select_images
from advseg_bench.errors import IncompatibleError, SpecError, expected
from advseg_bench.geometry import project
from advseg_bench.instruments.counter import rows_of
from advseg_bench.instruments.guard import frozen
from advseg_bench.losses import Loss
from advseg_bench.protocols import Model
from advseg_bench.types import Bounds, Budget, Norm, Traits

RISE = 0.1
"""Default relative threshold of success: the increase as a share of the clean loss."""

_NUMBER = r"((?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)"
SHARE = re.compile(rf"^\s*{_NUMBER}(?:\s*/\s*{_NUMBER})?\s*\*\s*eps\s*$")
"""A setting as a share of the radius: "0.25*eps", "1/4*eps"."""

View = Literal["native", "loss", "margin", "none"]
Objective = Literal["follows loss", "success-gated", "own loss", "none"]
UNIT = Bounds(0.0, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """How an attack class of a toolkit attacks a segmentation model; `measure_support` verifies it.

    Attributes:
        view: "loss" (`LossView`), "margin" (`MarginView`), "native" (an ART estimator of masks) or "none" (the class
            ignores the model and needs no loss).
        objective: "follows loss": it increases the given loss. "success-gated": it stops, or returns the clean image,
            by its own criterion of success, so it gets a margin view with a recorded threshold. "own loss": it
            increases a different function of the view. "none": it optimises nothing.
        norms: Supported norms of a budget.
        eps: Name of the parameter that takes the radius; None for minimal-norm attacks and classes without a budget,
            whose result is projected.
        settings: Defaults that replace those of the class. A text such as "0.25*eps" is a share of the radius.
        random: Whether the class uses random numbers under any settings.
        random_by: Settings that make it random if one of them is given and true; empty if it always is.
        gradient: Whether it differentiates the model.
        single: Whether images of one call can influence each other's result or cost, such as by a stopping rule on the
            progress of the whole batch.
        dims: Supported numbers of spatial axes.
        square: Whether all spatial axes must have the same length.
        note: A full sentence that users must know; "" if there is none.
        reason: Why it cannot run; "" if it can.
    """

    view: View = "loss"
    objective: Objective = "follows loss"
    norms: tuple[Norm, ...] = ("linf",)
    eps: str | None = "eps"
    settings: Mapping[str, Any] = field(default_factory=dict)
    random: bool = False
    random_by: tuple[str, ...] = ()
    gradient: bool = True
    single: bool = False
    dims: tuple[int, ...] = (2, 3)
    square: bool = False
    note: str = ""
    reason: str = ""

    @property
    def traits(self) -> Traits:
        """Return the capabilities of the class; its cost is unknown."""
        return Traits(
            norms=self.norms,
            dims=self.dims,
            gradient=self.gradient and self.objective == "follows loss",
            control=self.view == "none",
            minimal_norm=self.eps is None or self.objective == "success-gated",
        )


@dataclass(frozen=True, kw_only=True)
class ForeignAttack(BaseAttack):
    """An attack class of a toolkit as an attack of this package.

    Each image is attacked separately, with its own mask and random generator, unless a measurement shows that the class
    treats a batch like separate images. The global random states of torch, NumPy and Python are seeded from the
    generator of the image and restored afterwards. The parameters of the model are frozen during the call.

    If `unit` is true, the class gets images mapped to [0, 1] and a budget scaled accordingly, for toolkits that support
    no other bounds. Settings in units of intensity then refer to [0, 1] too.

    Attributes:
        name: "<toolkit>.<Class>".
        route: How the class attacks a segmentation model.
        loss: (logits, y, valid, task) -> one value per image, (N,); None only if the class ignores the model.
        settings: Parameters of the class; for margin views also `threshold`, the loss above which an attack succeeds,
            or `rise`, the same threshold as a share above the clean loss of each image.
        batched: Whether images may share a call.
    """

    unit: ClassVar[bool] = False

    name: str
    route: Route
    loss: Loss | None
    settings: Mapping[str, Any] = field(default_factory=dict)
    batched: bool = False

    def __post_init__(self) -> None:
        """Validate route, loss and settings."""
        if self.route.reason:
            raise IncompatibleError(f"attack {self.name}: cannot attack a segmenter: {self.route.reason}.")
        if self.loss is None and self.route.view != "none":
            raise SpecError(expected(f"attack {self.name}", "a loss", None, 'Add `losses = ["dice"]` to the attack.'))
        given = {"threshold", "rise"} & self.settings.keys()
        if given and self.route.view != "margin":
            raise SpecError(
                f"attack {self.name}: does not support {min(given)!r}: it has no success criterion. Remove it."
            )
        if len(given) == 2:
            raise SpecError(f"attack {self.name}: expected `threshold` or `rise`, got both. Remove one.")
        for key in given:
            value = self.settings[key]
            if isinstance(value, bool) or not isinstance(value, (int, float)) or (key == "rise" and value <= 0):
                raise SpecError(expected(f"attack {self.name}", f"a number as {key!r}, such as 0.1", value))

    def perturb(self, model: Model, batch: Batch, *, budget: Budget, generators: Sequence[torch.Generator]) -> Tensor:
        """Return adversarial images (N, C, *S) inside the budget, with shape and dtype of `batch.x`.

        Raises:
            IncompatibleError: The class does not support the norm or the shape of the images.
        """
        if budget.norm not in self.route.norms:
            remedy = f"Use {' or '.join(self.route.norms)}."
            raise IncompatibleError(expected(f"attack {self.name}", "a supported norm", budget.norm, remedy))
        axes = batch.x.dim() - 2
        if axes not in self.route.dims:
            dims = " or ".join(map(str, self.route.dims))
            raise IncompatibleError(
                expected(f"attack {self.name}", f"images with {dims} spatial axes", axes, "Use another attack.")
            )
        size = tuple(batch.x.shape[2:])
        if self.route.square and len(set(size)) > 1:
            raise IncompatibleError(
                expected(f"attack {self.name}", "square images", size, "Resize or pad them, or use another attack.")
            )
        if budget.eps == 0:
            return batch.x.clone()
        n = len(batch.x)
        share = self.together(n)
        groups = [range(i, min(i + share, n)) for i in range(0, n, share)]
        results = []
        for group in groups:
            part = select_images(batch, group)
            with isolated_randomness(generators[group[0]]), frozen(model), rows_of(group):
                results.append(self._attack_group(model, part, budget))
        x_adv = torch.cat(results)
        exact = self.route.eps and not self._is_mapped(batch)
        return x_adv if exact else project(x_adv, batch.x, budget, batch.bounds)

    def together(self, n: int) -> int:
        """Return how many of `n` images share a call."""
        return n if self.batched and not self.is_random() and not self.route.single else 1

    @property
    def class_name(self) -> str:
        """Return the name of the class in its package."""
        return self.name.partition(".")[2]

    @property
    def traits(self) -> Traits:
        """Return the capabilities of its route; `random` is False where its settings use no random numbers."""
        return replace(self.route.traits, random=None if self.is_random() else False)

    def is_random(self) -> bool:
        """Return whether it uses random numbers under its settings."""
        by, settings = self.route.random_by, {**self.route.settings, **self.settings}
        return self.route.random and (not by or any(settings.get(name) for name in by))

    def _is_mapped(self, batch: Batch) -> bool:
        return self.unit and batch.bounds != UNIT

    def _attack_group(self, model: Model, batch: Batch, budget: Budget) -> Tensor:
        """Attack the images of one call, mapped to [0, 1] if the toolkit requires that."""
        if not self._is_mapped(batch):
            return self.attack(self._make_view(model, batch), batch, budget).detach().to(batch.x)
        lower, width = batch.bounds.lower, batch.bounds.upper - batch.bounds.lower
        mapped = replace(batch, x=((batch.x - lower) / width).clamp(0, 1), bounds=UNIT)
        view = self._make_view(lambda x: model(x * width + lower), mapped)
        found = self.attack(view, mapped, Budget(budget.norm, budget.eps / width)).detach().to(batch.x)
        return torch.where(found == mapped.x, batch.x, found * width + lower)

    @abstractmethod
    def attack(self, target: Model, batch: Batch, budget: Budget) -> Tensor:
        """Run the class of the toolkit.

        Args:
            target: A view, in which every image has the label 0; for native routes the model itself.
            batch: The images of the view.
            budget: Norm and radius.

        Returns:
            Adversarial images, (N, C, *S).
        """

    def reached(self, logits: Tensor, clean: Tensor, batch: Batch) -> Tensor | None:
        """Return for which images a success-gated attack exceeded its threshold.

        Args:
            logits: Logits (N, K, *S) of the adversarial images as they are scored.
            clean: Logits (N, K, *S) of the clean images.
            batch: Images and labels.

        Returns:
            bool (N,), or None if the attack has no success criterion.
        """
        if self.route.view != "margin":
            return None
        assert self.loss is not None
        threshold, _ = self._threshold(clean, batch)
        return self.loss(logits, batch.y, batch.valid, batch.task) > threshold

    def parameters(self, budget: Budget) -> dict[str, Any]:
        """Return the constructor arguments of the class for a budget; shares of the radius are evaluated."""
        settings = {**self.route.settings, **self.settings}
        if self.route.eps in settings:
            raise SpecError(
                f"attack {self.name}: {self.route.eps!r} is set by the key `eps` of a suite. Remove the setting."
            )
        settings = {k: _share(v, budget.eps) for k, v in settings.items() if k not in ("threshold", "rise")}
        return settings | ({self.route.eps: budget.eps} if self.route.eps else {})

    def _make_view(self, model: Model, batch: Batch) -> Model:
        if self.route.view == "native":
            return model
        if self.route.view == "none":
            return BlindView(batch)
        assert self.loss is not None
        if self.route.view == "loss":
            return LossView(model, batch, self.loss)
        with torch.no_grad():
            threshold, scale = self._threshold(model(batch.x), batch)
        return MarginView(model, batch, self.loss, threshold=threshold, scale=scale)

    def _threshold(self, clean: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        assert self.loss is not None
        return find_threshold(self.loss, clean, batch, self.settings)


def find_threshold(loss: Loss, clean: Tensor, batch: Batch, settings: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Return the loss threshold of success and the loss difference of a margin of 1, for each image.

    Args:
        loss: (logits, y, valid, task) -> one value per image.
        clean: Logits (N, K, *S) of the clean images.
        batch: Images and labels.
        settings: `threshold` or `rise`, see `ForeignAttack`; the default is `RISE`.

    Returns:
        Two tensors (N,); the second is positive.
    """
    value = loss(clean, batch.y, batch.valid, batch.task).detach()
    if "threshold" in settings:
        threshold = torch.full_like(value, float(settings["threshold"]))
        rise = (threshold - value).abs()
    else:
        rise = value.abs() * float(settings.get("rise", RISE))
        threshold = value + rise
    return threshold, torch.where(rise > 0, rise, 1)


@contextmanager
def isolated_randomness(generator: torch.Generator) -> Iterator[None]:
    """Seed the global generators of torch, NumPy and Python from a generator, and restore their states at exit."""
    seed = int(torch.randint(2**31, (1,), generator=generator, device=generator.device))
    of_numpy, of_python = np.random.get_state(), random.getstate()  # noqa: NPY002
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        random.seed(seed)
        try:
            yield
        finally:
            np.random.set_state(of_numpy)  # noqa: NPY002
            random.setstate(of_python)


def _share(value: Any, eps: float) -> Any:
    """Evaluate "0.25*eps" and "1/4*eps", also inside tables; other values are returned unchanged."""
    if isinstance(value, Mapping):
        return {key: _share(entry, eps) for key, entry in value.items()}
    found = SHARE.match(value) if isinstance(value, str) else None
    if found and float(found[2] or 1) == 0:
        raise SpecError(expected("a share of the radius", "no division by 0", value, 'Use for example "1/4*eps".'))
    return float(found[1]) / float(found[2] or 1) * eps if found else value
