"""The exceptions of a rule."""

from __future__ import annotations


class ContractViolation(AssertionError):  # noqa: N818
    """An attack violates a rule; the message states what was expected, what was found, where, and the remedy.

    Example:
        >>> import advseg_bench as ab
        >>> def brighten(model, batch, *, budget, generators):
        ...     return batch.x + budget.eps
        >>> bounds = next(rule for rule in ab.testing.RULES if rule.name == "bounds")
        >>> bounds.check(ab.testing.find_case(brighten))
        Traceback (most recent call last):
        ...
        advseg_bench.testing.violations.ContractViolation: expected intensities in [0, 1], got 0.3 to 1.3 ...
    """


class NotApplicable(Exception):  # noqa: N818
    """A rule does not apply to an attack; the message states the reason.

    Example:
        >>> import advseg_bench as ab
        >>> noise = next(rule for rule in ab.testing.RULES if rule.name == "noise")
        >>> noise.check(ab.testing.find_case("random_sign"))
        Traceback (most recent call last):
        ...
        advseg_bench.testing.violations.NotApplicable: it declares `control=True`
    """
