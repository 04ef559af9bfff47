"""Certificates of randomised smoothing: tests hold their level, bounds hold under attack, settings are checked."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy import stats

import advseg_bench as ab
from advseg_bench.defences import Certificate, Smoothing, bound_scores, certify
from advseg_bench.defences.certified import reject
from advseg_bench.errors import SettingError
from advseg_bench.types import Task

BINARY = Task("binary", ("organ",))


def hold_level(p: np.ndarray, trials: int, n: int, tau: float, alpha: float) -> float:
    """Share of trials in which any pixel whose probability is at most tau is certified."""
    rng = np.random.default_rng(0)
    wrong = 0
    for _ in range(trials):
        passed = reject(rng.binomial(n, p), n, tau, alpha)
        wrong += bool((passed & (p <= tau)).any())
    return wrong / trials


@pytest.mark.slow
@pytest.mark.parametrize("above", [0, 200])
def test_any_pixel_is_wrongly_certified_in_at_most_alpha_of_2000_trials(above):
    p = np.concatenate([np.full(100, 0.75), np.full(above, 0.99)])
    alpha = 0.05
    share = hold_level(p, 2000, 200, 0.75, alpha)
    assert share <= alpha + 3 * np.sqrt(alpha * (1 - alpha) / 2000)
    if above:  # those that are rejected leave their share of alpha to the others
        assert share > 0.002


def test_a_segmenter_with_known_probabilities_is_certified_where_they_exceed_tau():
    """Logits x: a pixel is positive with probability Phi(x / sigma)."""
    sigma, edge = 0.25, 24
    x = torch.linspace(-0.6, 0.6, edge * edge).reshape(1, edge, edge)
    p = stats.norm.cdf(x.abs().numpy() / sigma)
    settings = Smoothing(sigma=sigma, n0=50, n=400, alpha=0.05, batch=200)
    wrong = 0
    for seed in range(40):
        found = certify(lambda images: images, x, BINARY, settings, torch.Generator().manual_seed(seed))
        wrong += bool((found.certified.numpy() & (p <= settings.tau)).any())
        assert found.certified.numpy()[p > 0.95].mean() > 0.9
        assert torch.equal(found.labels[found.certified], (x > 0)[found.certified])
    assert wrong / 40 <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 40)


def test_holm_equals_its_definition_on_all_small_cases():
    n, tau, alpha = 6, 0.5, 0.2
    for hits in itertools.product(range(3, 7), repeat=3):
        p = [stats.binomtest(k, n, tau, alternative="greater").pvalue for k in hits]
        wanted, order = [False] * 3, sorted(range(3), key=lambda i: (p[i], i))
        for rank, i in enumerate(order):
            if p[i] > alpha / (3 - rank):
                break
            wanted[i] = True
        assert reject(np.array(hits), n, tau, alpha).tolist() == wanted


@pytest.mark.parametrize("kind", ["multilabel", "multiclass"])
def test_bounds_are_the_lowest_scores_of_all_predictions_that_are_left(kind):
    """Brute force: all predictions that agree with the certificate where it holds."""
    rng = np.random.default_rng(1)
    k, pixels = 2, 4
    for _ in range(20):
        if kind == "multiclass":
            truth, labels = (np.eye(k, dtype=bool)[rng.integers(k, size=pixels)].T for _ in "ab")
            certified = np.broadcast_to(rng.random(pixels) < 0.5, (k, pixels))
            choices = [np.eye(k, dtype=bool)[list(each)].T for each in itertools.product(range(k), repeat=pixels)]
        else:
            truth, labels, certified = (rng.random((k, pixels)) < 0.5 for _ in range(3))
            flat = itertools.product([False, True], repeat=k * pixels)
            choices = [np.array(each).reshape(k, pixels) for each in flat]
        left = [each for each in choices if (each == labels)[certified].all()]
        valid = rng.random(pixels) < 0.8
        found = bound_scores(
            Certificate(*(torch.from_numpy(np.array(each)) for each in (labels, certified)), 0.1),
            torch.from_numpy(truth),
            torch.from_numpy(valid),
        )
        for c in range(k):
            scores = [_score(each[c][valid], truth[c][valid]) for each in left]
            if any(np.isnan(score).any() for score in scores):
                continue
            for mine, lowest in zip((float(each[c]) for each in found), np.min(scores, axis=0), strict=True):
                assert mine <= lowest + 1e-12
                if kind == "multilabel":  # classes are decided apart, so that the bound is reached
                    assert mine == pytest.approx(lowest)


def _score(prediction: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    tp, fp, fn = (prediction & truth).sum(), (prediction & ~truth).sum(), (~prediction & truth).sum()
    with np.errstate(invalid="ignore"):
        return 2 * tp / np.float64(2 * tp + fp + fn), tp / np.float64(tp + fp + fn)


@pytest.mark.slow
def test_no_attack_within_the_radius_beats_the_certificate():
    """A small smooth segmenter, attacked by L2 attacks on its smoothed logits; every certified pixel stays."""
    edge, sigma = 16, 0.3
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        net = torch.nn.Sequential(
            torch.nn.Conv2d(1, 4, 5, padding=2), torch.nn.Tanh(), torch.nn.Conv2d(4, 1, 5, padding=2)
        ).requires_grad_(False)
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(3, 1, edge, edge, generator=generator)
    y = net(x)[:, :1] > 0
    settings = Smoothing(sigma=sigma, n0=50, n=400, alpha=0.01, batch=400)
    noise = sigma * torch.randn(64, 1, edge, edge, generator=generator)

    class Smoothed(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            soft = torch.stack([torch.sigmoid(8 * net(image[None] + noise)).mean(0) for image in images])
            return torch.logit(soft.clamp(1e-4, 1 - 1e-4))

    batch = ab.Batch.of(x, y[:, 0], task="binary")
    budget = ab.Budget("l2", 0.99 * settings.radius)
    attacks = [ab.attacks.PGD(loss="bce", steps=10), ab.attacks.APGD(loss="bce", steps=10)]
    for attack in attacks:
        moved = attack.perturb(Smoothed().eval(), batch, budget=budget, generators=[generator] * 3)
        for image, adversarial, truth in zip(x, moved, y, strict=True):
            certificate = certify(net, image, BINARY, settings, torch.Generator().manual_seed(3))
            attacked = certify(net, adversarial, BINARY, settings, torch.Generator().manual_seed(4))
            assert 0.1 < float(certificate.certified.float().mean()) < 1
            both = certificate.certified & attacked.certified
            assert torch.equal(attacked.labels[both], certificate.labels[both])
            bound = bound_scores(certificate, truth, torch.ones(edge, edge, dtype=torch.bool))[0]
            counts = [int((a & b).sum()) for a, b in ((attacked.labels, truth), (attacked.labels, ~truth))]
            missed = int((~attacked.labels & truth).sum())
            assert float(bound) <= 2 * counts[0] / (2 * counts[0] + counts[1] + missed) + 1e-12


@pytest.mark.parametrize(
    "wrong", [{"sigma": 0}, {"n": 0}, {"n0": 1.5}, {"tau": 0.4}, {"tau": 1.0}, {"alpha": 0}, {"batch": True}]
)
def test_wrong_setting_is_one_line(wrong):
    with pytest.raises(SettingError, match=f"smoothing: {next(iter(wrong))}"):
        Smoothing(**({"sigma": 0.25} | wrong))
