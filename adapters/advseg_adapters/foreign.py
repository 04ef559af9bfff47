"""What the attacks of all toolkits share: a route to the segmenter, one mask per call, contained randomness."""

from __future__ import annotations

import random
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from advseg_adapters.views import LossView, MarginView
from advseg_bench.errors import IncompatibleError, SpecError, expected
from advseg_bench.geometry import project
from advseg_bench.losses import Loss
from advseg_bench.types import Batch, Budget, Model, Norm

RISE = 0.1
"""By what share of its clean loss an image must get worse to count as broken, unless a threshold is given."""

_SHARE = re.compile(r"^\s*([0-9.eE+-]+)(?:\s*/\s*([0-9.]+))?\s*\*\s*eps\s*$")

View = Literal["native", "loss", "margin"]
Objective = Literal["follows loss", "success-gated", "own loss"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """How one attack class of a toolkit reaches a segmenter: declared by hand, proven by `support`.

    Attributes:
        view: "loss" (`LossView`), "margin" (`MarginView`) or "native" (an ART estimator of masks).
        objective: "follows loss": it climbs the loss it is given. "success-gated": it stops, or returns the clean
            image, by its own test of success; it gets a margin view with a recorded threshold. "own loss": it climbs
            something of its own that only depends on the view.
        norms: Norms of a budget it can be given.
        eps: The class's parameter that takes the radius, or None: it looks for a minimal norm or knows no budget, and
            its result is projected into the budget.
        settings: Defaults of ours where the class's own make no sense here. A text such as "0.25*eps" is a share of
            the radius.
        random: Whether it draws random numbers.
        reason: Why it cannot run; "" if it can.
    """

    view: View = "loss"
    objective: Objective = "follows loss"
    norms: tuple[Norm, ...] = ("linf",)
    eps: str | None = "eps"
    settings: Mapping[str, Any] = field(default_factory=dict)
    random: bool = False
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class ForeignAttack(ABC):
    """An attack class of a toolkit in the shape of ours.

    Each image is attacked by itself, with its own mask and its own randomness, unless the attack was shown to treat a
    batch of images as so many single ones. Randomness comes from the image's generator: torch's, NumPy's and Python's
    global states are set from it and put back. Parameters of the model get no gradient meanwhile.

    Attributes:
        name: "<toolkit>.<Class>".
        route: How it reaches the segmenter.
        loss: One value per image.
        settings: The class's own parameters, and two of ours for margin views: `threshold`, the loss above which a
            segmentation counts as broken, or `rise`, the same as a share above each image's clean loss.
        batched: Whether images may share a call.
    """

    name: str
    route: Route
    loss: Loss
    settings: Mapping[str, Any] = field(default_factory=dict)
    batched: bool = False

    def __post_init__(self) -> None:
        """Refuse what is known to fail."""
        if self.route.reason:
            raise IncompatibleError(f"attack {self.name}: cannot attack a segmenter: {self.route.reason}.")
        given = {"threshold", "rise"} & self.settings.keys()
        if given and self.route.view != "margin":
            raise SpecError(f"attack {self.name}: knows no success, so it takes no {min(given)!r}. Remove it.")
        if len(given) == 2:
            raise SpecError(f"attack {self.name}: expected `threshold` or `rise`, got both. Remove one.")
        for key in given:
            value = self.settings[key]
            if isinstance(value, bool) or not isinstance(value, (int, float)) or (key == "rise" and value <= 0):
                raise SpecError(expected(f"attack {self.name}", f"a number as {key!r}, such as 0.1", value))

    def __call__(self, model: Model, batch: Batch, *, budget: Budget, generators: Sequence[torch.Generator]) -> Tensor:
        """Return adversarial images, inside the budget; shape and dtype of `batch.x`. Cost: that of the class."""
        if budget.norm not in self.route.norms:
            remedy = f"Use {' or '.join(self.route.norms)}."
            raise IncompatibleError(expected(f"attack {self.name}", "a norm it knows", budget.norm, remedy))
        if budget.eps == 0:
            return batch.x.clone()
        n = len(batch.x)
        groups = [range(n)] if self.batched and not self.route.random else [range(i, i + 1) for i in range(n)]
        results = []
        for group in groups:
            part = select(batch, group)
            with isolated_randomness(generators[group[0]]), frozen(model):
                found = self.attack(self._look(model, part), part, budget)
            results.append(found.detach().to(part.x))
        x_adv = torch.cat(results)
        return x_adv if self.route.eps else project(x_adv, batch.x, budget, batch.bounds)

    @abstractmethod
    def attack(self, target: Model, batch: Batch, budget: Budget) -> Tensor:
        """Run the toolkit's class.

        Args:
            target: A view, whose label is 0 for each image; for native routes the model itself.
            batch: The images of the view.
            budget: Norm and radius.
        Returns: Images like `batch.x`.
        """

    def reached(self, logits: Tensor, clean: Tensor, batch: Batch) -> Tensor | None:
        """Tell for which images a success-gated attack got past its threshold.

        Args:
            logits: Of the adversarial images as they are scored.
            clean: Of the clean images.
            batch: Images and labels.
        Returns: bool (N,), or None if the attack knows no success.
        """
        if self.route.view != "margin":
            return None
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
        if self.route.view == "loss":
            return LossView(model, batch, self.loss)
        with torch.no_grad():
            threshold, scale = self._threshold(model(batch.x), batch)
        return MarginView(model, batch, self.loss, threshold=threshold, scale=scale)

    def _threshold(self, clean: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """The loss that counts as success, and what a margin of 1 is, for each image."""
        value = self.loss(clean, batch.y, batch.valid, batch.task).detach()
        if "threshold" in self.settings:
            threshold = torch.full_like(value, float(self.settings["threshold"]))
            rise = (threshold - value).abs()
        else:
            rise = value.abs() * float(self.settings.get("rise", RISE))
            threshold = value + rise
        return threshold, torch.where(rise > 0, rise, 1)


def select(batch: Batch, indices: Sequence[int]) -> Batch:
    """Return some images of a batch, in the given order."""
    rows = torch.as_tensor(list(indices), device=batch.x.device)
    named = {
        name: tuple(getattr(batch, name)[i] for i in indices) for name in ("images", "subjects", "blocks", "spacing")
    }
    return replace(batch, x=batch.x[rows], y=batch.y[rows], valid=batch.valid[rows], **cast(dict[str, Any], named))


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


@contextmanager
def frozen(model: Model) -> Iterator[None]:
    """Let the parameters of a model collect no gradients meanwhile."""
    flags = [(p, p.requires_grad) for p in model.parameters()] if isinstance(model, nn.Module) else []
    for parameter, _ in flags:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def _share(value: Any, eps: float) -> Any:
    """Work out "0.25*eps" and "1/4*eps"; anything else is returned as it is."""
    found = _SHARE.match(value) if isinstance(value, str) else None
    return float(found[1]) / float(found[2] or 1) * eps if found else value
