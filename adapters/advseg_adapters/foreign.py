"""What the attacks of all toolkits share: a route to the segmenter, one mask per call, contained randomness."""

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
"""By what share of its clean loss an image must get worse to count as broken, unless a threshold is given."""

_NUMBER = r"((?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)"
SHARE = re.compile(rf"^\s*{_NUMBER}(?:\s*/\s*{_NUMBER})?\s*\*\s*eps\s*$")
"""A setting as a share of the radius: "0.25*eps", "1/4*eps"."""

View = Literal["native", "loss", "margin", "none"]
Objective = Literal["follows loss", "success-gated", "own loss", "none"]
UNIT = Bounds(0.0, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """How one attack class of a toolkit reaches a segmenter: declared by hand, proven by `measure_support`.

    Attributes:
        view: "loss" (`LossView`), "margin" (`MarginView`), "native" (an ART estimator of masks) or "none": it never
            looks at the model, and needs no loss.
        objective: "follows loss": it climbs the loss it is given. "success-gated": it stops, or returns the clean
            image, by its own test of success; it gets a margin view with a recorded threshold. "own loss": it climbs
            something of its own that only depends on the view. "none": it climbs nothing.
        norms: Norms of a budget it can be given.
        eps: The class's parameter that takes the radius, or None: it looks for a minimal norm or knows no budget, and
            its result is projected into the budget.
        settings: Defaults of ours where the class's own make no sense here. A text such as "0.25*eps" is a share of
            the radius.
        random: Whether it draws random numbers, with these settings or with others that it takes.
        random_by: If only some settings make it draw: those. It draws when one of them is given and not false.
        gradient: Whether it differentiates the model.
        single: Whether images of one call can influence each other, or what each costs, such as by a stop that asks
            for progress of the whole batch, though few images need not show it.
        dims: Numbers of space axes it can be given.
        square: Whether it fails on images whose space axes differ in length.
        note: What its user must know, as a full sentence; "" if nothing.
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
        """What the class can do; a toolkit does not tell what it costs."""
        return Traits(
            norms=self.norms,
            dims=self.dims,
            gradient=self.gradient and self.objective == "follows loss",
            control=self.view == "none",
            minimal_norm=self.eps is None or self.objective == "success-gated",
        )


@dataclass(frozen=True, kw_only=True)
class ForeignAttack(BaseAttack):
    """An attack class of a toolkit in the shape of ours.

    Each image is attacked by itself, with its own mask and its own randomness, unless the attack was shown to treat a
    batch of images as so many single ones. Randomness comes from the image's generator: torch's, NumPy's and Python's
    global states are set from it and put back. Parameters of the model get no gradient meanwhile.

    A subclass with `unit` gets images whose intensities were mapped to [0, 1], and a budget to match: for toolkits
    that know no other bounds. Settings in units of intensity then count in [0, 1] too.

    Attributes:
        name: "<toolkit>.<Class>".
        route: How it reaches the segmenter.
        loss: One value per image; None only for a route that does not look at the model.
        settings: The class's own parameters, and two of ours for margin views: `threshold`, the loss above which a
            segmentation counts as broken, or `rise`, the same as a share above each image's clean loss.
        batched: Whether images may share a call.
    """

    unit: ClassVar[bool] = False

    name: str
    route: Route
    loss: Loss | None
    settings: Mapping[str, Any] = field(default_factory=dict)
    batched: bool = False

    def __post_init__(self) -> None:
        """Refuse what is known to fail."""
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
        """Return adversarial images, inside the budget; shape and dtype of `batch.x`. Cost: that of the class.

        Raises:
            IncompatibleError: The class does not know the norm, the number of space axes, or images that are not
                square.
        """
        if budget.norm not in self.route.norms:
            remedy = f"Use {' or '.join(self.route.norms)}."
            raise IncompatibleError(expected(f"attack {self.name}", "a norm it knows", budget.norm, remedy))
        axes = batch.x.dim() - 2
        if axes not in self.route.dims:
            dims = " or ".join(map(str, self.route.dims))
            raise IncompatibleError(
                expected(f"attack {self.name}", f"images with {dims} space axes", axes, "Use another attack.")
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
        """The name of the class in its package."""
        return self.name.partition(".")[2]

    @property
    def traits(self) -> Traits:
        """What it can do by its route; it is not random where its settings draw nothing."""
        return replace(self.route.traits, random=None if self.is_random() else False)

    def is_random(self) -> bool:
        """Return whether it draws random numbers with its settings."""
        by, settings = self.route.random_by, {**self.route.settings, **self.settings}
        return self.route.random and (not by or any(settings.get(name) for name in by))

    def _is_mapped(self, batch: Batch) -> bool:
        return self.unit and batch.bounds != UNIT

    def _attack_group(self, model: Model, batch: Batch, budget: Budget) -> Tensor:
        """Attack the images of one call, through [0, 1] if the toolkit knows nothing else."""
        if not self._is_mapped(batch):
            return self.attack(self._look(model, batch), batch, budget).detach().to(batch.x)
        lower, width = batch.bounds.lower, batch.bounds.upper - batch.bounds.lower
        mapped = replace(batch, x=((batch.x - lower) / width).clamp(0, 1), bounds=UNIT)
        view = self._look(lambda x: model(x * width + lower), mapped)
        found = self.attack(view, mapped, Budget(budget.norm, budget.eps / width)).detach().to(batch.x)
        return torch.where(found == mapped.x, batch.x, found * width + lower)

    @abstractmethod
    def attack(self, target: Model, batch: Batch, budget: Budget) -> Tensor:
        """Run the toolkit's class.

        Args:
            target: A view, whose label is 0 for each image; for native routes the model itself.
            batch: The images of the view.
            budget: Norm and radius.

        Returns:
            Images like `batch.x`.
        """

    def reached(self, logits: Tensor, clean: Tensor, batch: Batch) -> Tensor | None:
        """Tell for which images a success-gated attack got past its threshold.

        Args:
            logits: Of the adversarial images as they are scored.
            clean: Of the clean images.
            batch: Images and labels.

        Returns:
            bool (N,), or None if the attack knows no success.
        """
        if self.route.view != "margin":
            return None
        assert self.loss is not None
        threshold, _ = self._threshold(clean, batch)
        return self.loss(logits, batch.y, batch.valid, batch.task) > threshold

    def parameters(self, budget: Budget) -> dict[str, Any]:
        """Return the class's constructor arguments for a budget; shares of the radius are worked out."""
        settings = {**self.route.settings, **self.settings}
        if self.route.eps in settings:
            raise SpecError(f"attack {self.name}: {self.route.eps!r} is the key `eps` of a suite. Remove the setting.")
        settings = {k: _share(v, budget.eps) for k, v in settings.items() if k not in ("threshold", "rise")}
        return settings | ({self.route.eps: budget.eps} if self.route.eps else {})

    def _look(self, model: Model, batch: Batch) -> Model:
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
    """Return the loss that counts as success, and what a margin of 1 is, for each image.

    Args:
        loss: One value per image.
        clean: Logits of the clean images.
        batch: Images and labels.
        settings: `threshold` or `rise`, see `ForeignAttack`; `RISE` if neither is there.

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
    """Seed the global generators of torch, NumPy and Python from a generator, and put their states back."""
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
    """Work out "0.25*eps" and "1/4*eps", inside tables too; anything else is returned as it is."""
    if isinstance(value, Mapping):
        return {key: _share(entry, eps) for key, entry in value.items()}
    found = SHARE.match(value) if isinstance(value, str) else None
    if found and float(found[2] or 1) == 0:
        raise SpecError(expected("a share of the radius", "no division by 0", value, 'Such as "1/4*eps".'))
    return float(found[1]) / float(found[2] or 1) * eps if found else value
