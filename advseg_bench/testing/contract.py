"""The attack contract: its rules, their outcomes, and the contract as a test class."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from advseg_bench.errors import SpecError
from advseg_bench.testing import independence, path, rules, strength
from advseg_bench.testing.case import Case, find_case
from advseg_bench.testing.violations import ContractViolation, NotApplicable
from advseg_bench.types import Traits

Verdict = Literal["ok", "FAILED", "not applicable", "not checked"]


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule of the contract.

    Attributes:
        name: Name of the rule, one word.
        check: Function of a case that raises `ContractViolation` or `NotApplicable`.

    Example:
        >>> import advseg_bench as ab
        >>> ab.testing.RULES[1].name
        'output'
        >>> ab.testing.RULES[1].statement
        'It returns finite images with the shape, dtype and device of `batch.x`, detached from the graph.'
    """

    name: str
    check: Callable[[Case], None]

    @property
    def statement(self) -> str:
        """The rule as one sentence."""
        return " ".join((self.check.__doc__ or "").partition("\n\n")[0].split())


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of a rule.

    Attributes:
        rule: The rule.
        verdict: "ok", "FAILED", "not applicable" or "not checked".
        message: The statement of the rule if the verdict is "ok", else the reason.

    Example:
        >>> import advseg_bench as ab
        >>> trial = ab.testing.Trial(ab.testing.find_case("random_sign"))
        >>> [trial.ask(rule).verdict for rule in ab.testing.RULES[:2]]
        ['ok', 'ok']
    """

    rule: Rule
    verdict: Verdict
    message: str


RULES: tuple[Rule, ...] = tuple(
    Rule(check.__name__.removeprefix("check_"), check)
    for check in (
        rules.check_runs,
        rules.check_output,
        rules.check_batch,
        rules.check_model,
        rules.check_globals,
        rules.check_bounds,
        rules.check_budget,
        rules.check_zero_eps,
        independence.check_repeatable,
        independence.check_neighbours,
        independence.check_void,
        independence.check_dim,
        strength.check_noise,
        strength.check_optimum,
        strength.check_more_budget,
        path.check_path,
        strength.check_cost,
    )
)
"""All rules of the contract. If an attack violates one of the first two, the rules after it are not checked."""

GATES = 2


class Trial:
    """Checks rules on one attack and caches the outcomes.

    Args:
        case: The attack under test.

    Example:
        >>> import advseg_bench as ab
        >>> trial = ab.testing.Trial(ab.testing.find_case("fgsm"))
        >>> trial.ask(ab.testing.RULES[0]).verdict
        'ok'
    """

    def __init__(self, case: Case) -> None:
        self.case = case
        self._known: dict[str, Outcome] = {}

    def ask(self, rule: Rule) -> Outcome:
        """Check one rule, after the gates before it.

        Args:
            rule: One of `RULES`.

        Returns:
            Its outcome, computed once.
        """
        for gate in RULES[:GATES]:
            if gate == rule:
                break
            if self.ask(gate).verdict != "ok":
                return Outcome(rule, "not checked", f"because the attack violates {gate.name!r}")
        if rule.name not in self._known:
            self._known[rule.name] = self._check(rule)
        return self._known[rule.name]

    def _check(self, rule: Rule) -> Outcome:
        try:
            rule.check(self.case)
        except ContractViolation as violation:
            return Outcome(rule, "FAILED", str(violation))
        except NotApplicable as reason:
            return Outcome(rule, "not applicable", str(reason))
        return Outcome(rule, "ok", rule.statement)

    def judge(self, rule: Rule) -> None:
        """Report the outcome of a rule to pytest: pass, fail with one message, or skip.

        Args:
            rule: One of `RULES`.
        """
        import pytest

        outcome = self.ask(rule)
        if outcome.verdict == "FAILED":
            pytest.fail(f"attack {self.case.name}, rule {rule.name}: {outcome.message}", pytrace=False)
        if outcome.verdict != "ok":
            pytest.skip(f"{outcome.verdict}: {outcome.message}")


def check_attack(attack: object, **options: Any) -> list[Outcome]:
    """Check an attack against every rule.

    Args:
        attack: An attack, its class, its name, or a `Case`.
        options: Options of `find_case`.

    Returns:
        One outcome per rule, in the order of `RULES`.

    Raises:
        UserError: The attack cannot be built.

    Cost:
        Some 350 calls of the attack on batches of up to four images of 88 pixels.

    Example:
        >>> import advseg_bench as ab
        >>> def brighten(model, batch, *, budget, generators):
        ...     return (batch.x + budget.eps).clamp(batch.bounds.lower, batch.bounds.upper)
        >>> outcomes = ab.testing.check_attack(brighten, traits=ab.Traits(norms=("linf",), kinds=("binary",)))
        >>> [outcome.rule.name for outcome in outcomes if outcome.verdict == "FAILED"]
        ['void', 'noise', 'optimum', 'cost']
    """
    trial = Trial(attack if isinstance(attack, Case) else find_case(attack, **options))
    return [trial.ask(rule) for rule in RULES]


class AttackContract:
    """The contract as a pytest class: a subclass that sets `attack` has one test per rule.

    Attributes:
        attack: An attack, its class, or its name, see `find_case`.
        loss: Name of the loss; None for the default of `find_case`.
        settings: Constructor arguments, for a class or a name.
        traits: Replaces the traits that the attack declares.
        device: Device of images and models.

    Example:
        >>> import advseg_bench as ab
        >>> class TestMine(ab.testing.AttackContract):
        ...     attack = ab.attacks.PGD(loss="dice", steps=20)
        >>> sorted(name for name in dir(TestMine) if name.startswith("test_"))[:3]
        ['test_batch', 'test_bounds', 'test_budget']
    """

    attack: ClassVar[Any]
    loss: ClassVar[str | None] = None
    settings: ClassVar[Mapping[str, Any]] = {}
    traits: ClassVar[Traits | None] = None
    device: ClassVar[str] = "cpu"
    _trial: ClassVar[Trial]

    @classmethod
    def trial(cls) -> Trial:
        """Return the trial of the attack, built once per class."""
        if "_trial" not in cls.__dict__:
            # Read from the dictionary of the class, because attribute access turns a function into a method.
            found = [base.__dict__["attack"] for base in cls.__mro__ if "attack" in base.__dict__]
            if not found:
                raise SpecError(
                    f"{cls.__name__}: expected an attribute `attack`, got none. Add the line `attack = MyAttack()`."
                )
            attack = found[0].__func__ if isinstance(found[0], staticmethod) else found[0]
            case = find_case(attack, loss=cls.loss, settings=cls.settings, traits=cls.traits, device=cls.device)
            cls._trial = Trial(case)
        return cls._trial


def _as_test(rule: Rule) -> Callable[[AttackContract], None]:
    def test(self: AttackContract) -> None:
        self.trial().judge(rule)

    test.__doc__ = rule.statement
    test.__name__ = f"test_{rule.name}"
    test.__qualname__ = f"AttackContract.{test.__name__}"
    return test


for _rule in RULES:
    setattr(AttackContract, f"test_{_rule.name}", _as_test(_rule))
