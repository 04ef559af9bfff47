"""Certificates of randomised smoothing for segmenters: which pixels no small enough perturbation can change.

The smoothed segmenter gives each pixel the class that the network finds most often in images with Gaussian noise. If
that class has a probability above `tau` under the noise, no perturbation of L2 norm below sigma * Phi^-1(tau) changes
it. The probability is tested: `n0` noisy images choose the class, `n` others test it, and the tests of all pixels
together are wrong anywhere with probability at most `alpha` (Holm). Pixels that are not rejected abstain.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from advseg_bench.errors import SettingError, expected
from advseg_bench.types import Task


@dataclass(frozen=True, kw_only=True)
class Smoothing:
    """The settings of a certificate.

    Attributes:
        sigma: Standard deviation of the noise, in input units, above 0.
        n0: Noisy images that choose the class of each pixel.
        n: Further noisy images that test it.
        tau: Probability that the class must exceed, from 0.5 to below 1.
        alpha: Probability that any certified pixel of an image is wrong.
        batch: Noisy images per forward.

    Source:
        arXiv 2107.00228 (SegCertify).

    Cost:
        n0 + n forwards per image.

    Example:
        >>> from advseg_bench.defences import Smoothing
        >>> round(Smoothing(sigma=0.25).radius, 3)
        0.169
    """

    sigma: float
    n0: int = 100
    n: int = 1000
    tau: float = 0.75
    alpha: float = 0.001
    batch: int = 32

    def __post_init__(self) -> None:
        """Validate the settings."""
        for name in ("n0", "n", "batch"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise SettingError(expected(f"smoothing: {name}", "an integer of at least 1", value))
        if not 0 < self.sigma < math.inf:
            raise SettingError(expected("smoothing: sigma", "a number above 0", self.sigma))
        if not 0.5 <= self.tau < 1:
            raise SettingError(expected("smoothing: tau", "a probability from 0.5 to below 1", self.tau))
        if not 0 < self.alpha < 1:
            raise SettingError(expected("smoothing: alpha", "a probability between 0 and 1", self.alpha))

    @property
    def radius(self) -> float:
        """L2 radius, in input units, within which certified pixels keep their class: sigma * Phi^-1(tau)."""
        return float(self.sigma * stats.norm.ppf(self.tau))


@dataclass(frozen=True, slots=True)
class Certificate:
    """What is certified of one image.

    Attributes:
        labels: The smoothed prediction: bool (K, *S), one class map per channel; of a multiclass task each pixel is in
            one of them.
        certified: Where it is certified: bool (K, *S); of a multiclass task equal in all channels.
        radius: L2 radius of the certificate, in input units.

    Example:
        >>> import torch
        >>> from advseg_bench.defences import Certificate
        >>> yes = torch.tensor([[True, True]])
        >>> Certificate(labels=yes, certified=torch.tensor([[True, False]]), radius=0.1).abstained
        0.5
    """

    labels: Tensor
    certified: Tensor
    radius: float

    @property
    def abstained(self) -> float:
        """Share of decisions that are not certified."""
        return float((~self.certified).float().mean())


def certify(
    model: Callable[[Tensor], Tensor], x: Tensor, task: Task, settings: Smoothing, generator: torch.Generator
) -> Certificate:
    """Certify the smoothed prediction of one image.

    Args:
        model: Images (N, C, *S) -> logits (N, K, *S), in eval mode. Noisy images are not clipped to the bounds.
        x: One image, shape (C, *S).
        task: Its task.
        settings: Noise and tests.
        generator: Source of the noise, on the device of the image.

    Returns:
        The certificate.

    Cost:
        n0 + n forwards of one image.

    Source:
        arXiv 2107.00228, algorithm SegCertify; Holm's step-down tests over all pixels and, where classes are decided
        apart, over all classes.

    Example:
        >>> import torch
        >>> from advseg_bench.defences import Smoothing, certify
        >>> from advseg_bench.types import Task
        >>> x, settings = torch.tensor([[[-1.0, 0.0, 1.0]]]), Smoothing(sigma=0.25, n=500)
        >>> generator = torch.Generator().manual_seed(0)
        >>> certify(lambda images: images, x, Task("binary", ("organ",)), settings, generator).certified.tolist()
        [[[True, False, True]]]
    """
    multiclass = task.kind == "multiclass"
    chosen = _count(model, x, multiclass, settings.n0, settings, generator)
    counts = _count(model, x, multiclass, settings.n, settings, generator)
    if multiclass:
        best = chosen.argmax(0, keepdim=True)
        hits = counts.gather(0, best)
        labels = torch.zeros_like(chosen, dtype=torch.bool).scatter_(0, best, True)
    else:
        labels = 2 * chosen > settings.n0
        hits = torch.where(labels, counts, settings.n - counts)
    passed = reject(hits.cpu().numpy(), settings.n, settings.tau, settings.alpha)
    certified = torch.from_numpy(passed).to(x.device).expand_as(labels)
    return Certificate(labels, certified, settings.radius)


def reject(hits: np.ndarray, n: int, tau: float, alpha: float) -> np.ndarray:
    """Return for which counts the hypothesis "the probability is at most tau" is rejected, by Holm's method.

    Args:
        hits: Number of successes among n trials for each test, int, any shape.
        n: Number of trials.
        tau: The probability.
        alpha: Probability that any rejection is wrong, however the tests depend on each other.

    Returns:
        bool, of the same shape.

    Example:
        >>> import numpy as np
        >>> from advseg_bench.defences.certified import reject
        >>> reject(np.array([100, 80, 75]), n=100, tau=0.75, alpha=0.01)
        array([ True, False, False])
    """
    of_count = stats.binom.sf(np.arange(n + 1) - 1, n, tau)  # P(X >= count)
    p = of_count[hits.ravel()]
    order = np.argsort(p, kind="stable")
    bounds = alpha / np.arange(len(p), 0, -1)
    failed = p[order] > bounds
    rejected = np.zeros(len(p), dtype=bool)
    rejected[order[: int(failed.argmax()) if failed.any() else len(p)]] = True
    return rejected.reshape(hits.shape)


def bound_scores(certificate: Certificate, truth: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Return the lowest Dice and IoU of each class that the certificate leaves possible within its radius.

    A pixel that abstains, or is certified to be wrong, counts as a false positive of each class that it does not
    show, and as a false negative of the one that it shows.

    Args:
        certificate: Of one image.
        truth: The ground truth, bool (K, *S).
        valid: Pixels that count, bool (*S).

    Returns:
        Dice and IoU, float64 (K,); NaN for a class that is neither there nor possible anywhere.

    Cost:
        None.

    Example:
        >>> import torch
        >>> from advseg_bench.defences import Certificate, bound_scores
        >>> labels = torch.tensor([[True, True, False, False]])
        >>> found = Certificate(labels, torch.tensor([[True, False, True, True]]), 0.1)
        >>> dice, iou = bound_scores(found, labels, torch.ones(4, dtype=torch.bool))
        >>> round(float(dice), 3), float(iou)
        (0.667, 0.5)
    """
    sure = certificate.certified
    there = (sure & certificate.labels & truth & valid).flatten(1).sum(1)
    missed = (truth & valid & ~(sure & certificate.labels)).flatten(1).sum(1)
    invented = (~truth & valid & ~(sure & ~certificate.labels)).flatten(1).sum(1)
    tp, errors = there.double(), (missed + invented).double()
    return 2 * tp / (2 * tp + errors), tp / (tp + errors)


def _count(
    model: Callable[[Tensor], Tensor],
    x: Tensor,
    multiclass: bool,
    n: int,
    settings: Smoothing,
    generator: torch.Generator,
) -> Tensor:
    """Count how often each class is found in n noisy images, int64 (K, *S)."""
    total: Tensor | None = None
    for start in range(0, n, settings.batch):
        shape = (min(settings.batch, n - start), *x.shape)
        noise = torch.randn(shape, generator=generator, device=x.device, dtype=x.dtype)
        with torch.no_grad():
            logits = model(x + settings.sigma * noise)
        if multiclass:
            found = torch.zeros_like(logits, dtype=torch.bool).scatter_(1, logits.argmax(1, keepdim=True), True)
        else:
            found = logits > 0
        counts = found.sum(0)
        total = counts if total is None else total + counts
    assert total is not None, "n is at least 1"
    return total
