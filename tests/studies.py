"""Simulated studies with clustered slices, and how often intervals and tests are right; prints the tables of the docs.

`python tests/studies.py` takes a minute of one core.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import scipy.stats

from advseg_bench.stats import joint_sign_flip_ps, sign_flip_ps, subject_intervals

SLICES = 24
SEEDS = (1, 2, 3, 4, 5)
STUDIES = 1000


def beta_around(generator: np.random.Generator, rates: np.ndarray, size: float) -> np.ndarray:
    """Slices between 0 and 1 whose mean is their subject's rate."""
    shape = (*rates.shape, SLICES)
    return generator.beta((rates * size + 1e-12)[..., None], ((1 - rates) * size + 1e-12)[..., None], size=shape)


def normal(generator, shape):
    """Subjects and their slices vary alike."""
    return generator.normal(0.8, 0.05, size=shape)[..., None] + generator.normal(0, 0.05, size=(*shape, SLICES))


def dice(generator, shape):
    """Good Dice: mean 0.86, with a tail to the left."""
    return beta_around(generator, generator.beta(9, 1.5, size=shape), 20)


def mixed_dice(generator, shape):
    """Dice of a model that fails on some subjects: strongly skewed."""
    return beta_around(generator, generator.beta(4, 0.7, size=shape), 10)


def success(generator, shape):
    """Slices that were fooled or not, subjects that are easy or hard."""
    rates = generator.beta(4, 1, size=shape)
    return (generator.random((*shape, SLICES)) < rates[..., None]).astype(float)


def lost_dice(generator, shape):
    """Dice after a strong attack: near 0 in most subjects, high in a few."""
    return beta_around(generator, generator.beta(0.3, 2, size=shape), 10)


def one_success(generator, shape):
    """One outcome per subject, fooled or not."""
    return np.repeat((generator.random(shape) < 0.8).astype(float)[..., None], SLICES, axis=-1)


def outright_failures(generator, shape):
    """Good Dice, but 15 % of the subjects fail outright: Dice is 0 in all of their slices."""
    values = beta_around(generator, generator.beta(12, 2, size=shape), 20)
    return np.where((generator.random(shape) < 0.15)[..., None], 0.0, values)


SCORES: dict[str, tuple[Callable, float]] = {
    "normal": (normal, 0.8),
    "good Dice, skewed": (dice, 9 / 10.5),
    "mixed Dice, strongly skewed": (mixed_dice, 4 / 4.7),
    "success rate over slices": (success, 0.8),
    "lost Dice, near 0 in most": (lost_dice, 0.3 / 2.3),
    "one success or failure per subject": (one_success, 0.8),
    "good Dice, 15 % fail outright": (outright_failures, 0.85 * 12 / 14),
}
HARD = ("lost Dice, near 0 in most", "one success or failure per subject", "good Dice, 15 % fail outright")


def clustered(draw: Callable, n: int, seed: int, studies: int = STUDIES, fewest: int = 2) -> np.ndarray:
    """Slices of many studies, (studies, subjects, slices); a subject has 2 to 24 of them, the others are NaN."""
    generator = np.random.default_rng((seed, n))
    values = draw(generator, (studies, n))
    counts = generator.integers(fewest, SLICES + 1, size=(studies, n))
    return np.where(np.arange(SLICES) < counts[..., None], values, np.nan)


def covered(score: str, n: int, seed: int) -> tuple[float, float]:
    """Share of studies whose 95 % interval holds the truth: the package's, and Student's t."""
    draw, truth = SCORES[score]
    means = np.nanmean(clustered(draw, n, seed), axis=2)
    lower, upper = subject_intervals(means)
    half = scipy.stats.t.ppf(0.975, n - 1) * scipy.stats.sem(means, axis=1)
    near = 1e-9
    ours = (lower <= truth + near) & (truth - near <= upper)
    return float(ours.mean()), float((np.abs(means.mean(axis=1) - truth) <= half + near).mean())


def differ(draw: Callable) -> Callable:
    """Two attacks between which nothing differs: each has its own draw for each subject and slice."""
    return lambda generator, shape: draw(generator, shape) - draw(generator, shape)


def lopsided(generator, shape):
    """Differences of mean 0 that are not symmetric, which the test assumes: small losses, seldom a large gain."""
    return (generator.exponential(0.1, size=shape) - 0.1)[..., None] + generator.normal(0, 0.02, size=(*shape, SLICES))


NULLS: dict[str, Callable] = {
    "normal": differ(normal),
    "mixed Dice, strongly skewed": differ(mixed_dice),
    "success rate over slices": differ(success),
    "lost Dice, near 0 in most": differ(lost_dice),
    "lopsided, mean 0": lopsided,
}


def alarms(null: str, n: int, seed: int) -> float:
    """Share of studies without an effect that the sign-flip test on subject means calls one, at 5 %."""
    return float((sign_flip_ps(np.nanmean(clustered(NULLS[null], n, seed), axis=2)) <= 0.05).mean())


def rank_alarms(null: str, n: int, seed: int) -> float:
    """The same of Wilcoxon's signed-rank test on subject means."""
    means = np.nanmean(clustered(NULLS[null], n, seed), axis=2)
    return float(np.mean([scipy.stats.wilcoxon(row).pvalue <= 0.05 for row in means]))


def slice_alarms(null: str, n: int, seed: int, studies: int = 200) -> float:
    """The same of Wilcoxon's signed-rank test on slices."""
    slices = clustered(NULLS[null], n, seed, studies).reshape(studies, -1)
    ps = [scipy.stats.wilcoxon(row[~np.isnan(row)], method="approx").pvalue for row in slices]
    return float((np.array(ps) <= 0.05).mean())


ARMS = (1, 3, 6, 12)
"""Numbers of attacks of which the strongest is compared with noise."""

EQUALS: dict[str, Callable] = {
    "normal": lambda generator, shape: generator.normal(size=shape),
    "lost Dice, near 0 in most": lambda generator, shape: generator.beta(0.3, 2, size=shape),
}
"""Scores of subjects under attacks that are no stronger than noise."""


def best_alarms(equal: str, arms: int, n: int, seed: int, studies: int = STUDIES) -> tuple[float, float]:
    """Share of studies without an effect that call the strongest of several attacks stronger than noise, at 5 %.

    The p is that of this attack alone, or that of the largest of all attacks.
    """
    scores = EQUALS[equal](np.random.default_rng((seed, arms, n)), (studies, arms + 1, n))
    alone = jointly = 0
    for differences in scores[:, 1:] - scores[:, :1]:
        best = int(differences.mean(axis=1).argmax())
        if differences[best].mean() > 0:
            alone += bool(sign_flip_ps(differences[best : best + 1])[0] <= 0.05)
            jointly += bool(joint_sign_flip_ps(differences)[best] <= 0.05)
    return alone / studies, jointly / studies


def show(shares: list[float]) -> str:
    """Mean over the seeds, and the lowest and highest of them, in per cent."""
    spread = f" ({100 * min(shares):.1f}-{100 * max(shares):.1f})" if len(shares) > 1 else ""
    return f"{100 * np.mean(shares):.1f}{spread}"


def main() -> None:
    """Print the tables as Markdown."""
    print("| score | interval | n = 5 | 8 | 20 | 40 |\n|---|---|---|---|---|---|")
    for score in SCORES:
        shares = [[covered(score, n, seed) for seed in SEEDS] for n in (5, 8, 20, 40)]
        for i, method in enumerate(("bootstrap", "Student's t")):
            print(f"| {score} | {method} |", " | ".join(show([s[i] for s in c]) for c in shares), "|")
    print("\n| no effect in | test | n = 8 | 20 | 40 |\n|---|---|---|---|---|")
    tests = {
        "sign flip": (alarms, SEEDS),
        "Wilcoxon on subjects": (rank_alarms, SEEDS[:1]),
        "Wilcoxon on slices": (slice_alarms, SEEDS[:1]),
    }
    for null in NULLS:
        for name, (measure, seeds) in tests.items():
            found = [show([measure(null, n, seed) for seed in seeds]) for n in (8, 20, 40)]
            print(f"| {null} | {name} |", " | ".join(found), "|")
    print("\n| scores | p of | 1 attack | 3 | 6 | 12 |\n|---|---|---|---|---|---|")
    for equal in EQUALS:
        shares = [[best_alarms(equal, arms, 8, seed) for seed in SEEDS] for arms in ARMS]
        for i, which in enumerate(("the strongest alone", "the largest of all")):
            print(f"| {equal} | {which} |", " | ".join(show([s[i] for s in c]) for c in shares), "|")


if __name__ == "__main__":
    main()
