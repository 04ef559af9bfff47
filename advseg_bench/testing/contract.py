"""The contract: the list of rules, what came of each, and the same as a class of tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from advseg_bench.errors import SpecError
from advseg_bench.testing import independence, rules, strength
from advseg_bench.testing.case import Case, find_case
from advseg_bench.testing.violations import ContractViolation, NotApplicable
from advseg_bench.types import Traits

Verdict = Literal["ok", "FAILED", "not applicable", "not checked"]


@dataclass(frozen=True, slots=True)
class Rule:
    """One thing that every attack must keep.

    Attributes:
        name: One word.
        check: Returns if it is kept; raises `ContractViolation` or `NotApplicable`.
    """

    name: str
    check: Callable[[Case], None]

    @property
    def statement(self) -> str:
        """Return the rule in a sentence."""
        return " ".join((self.check.__doc__ or "").partition("\n\n")[0].split())


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a rule: its verdict, and the statement or the reason."""

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
        strength.check_noise,
        strength.check_optimum,
        strength.check_more_budget,
        strength.check_cost,
    )
)
"""All rules. The first two are gates: about an attack that breaks one, the rules behind it say nothing."""

GATES = 2


class Trial:
    """An attack held to the rules, each of which can be asked by itself.

    Args:
        case: The attack.
    """

    def __init__(self, case: Case) -> None:
        self.case = case
        self._known: dict[str, Outcome] = {}

    def ask(self, rule: Rule) -> Outcome:
        """Hold the attack to one rule; to the gates before it first. Each is worked out once."""
        for gate in RULES[:GATES]:
            if gate == rule:
                break
            if self.ask(gate).verdict != "ok":
                return Outcome(rule, "not checked", f"since it breaks {gate.name!r}")
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
        """Turn the outcome of a rule into what pytest knows: nothing, a failure of one message, or a skip."""
        import pytest

        outcome = self.ask(rule)
        if outcome.verdict == "FAILED":
            pytest.fail(f"attack {self.case.name}, rule {rule.name}: {outcome.message}", pytrace=False)
        if outcome.verdict != "ok":
            pytest.skip(f"{outcome.verdict}: {outcome.message}")


def check_attack(attack: object, **options: Any) -> list[Outcome]:
    """Hold an attack to every rule. Cost: 348 calls of FGSM on images of 88 pixels, under a second.

    Args:
        attack: An attack, its class or its name, or a `Case`.
        options: Those of `find_case`.

    Returns:
        One outcome per rule, in order.

    Raises:
        UserError: If the attack cannot be built.
    """
    trial = Trial(attack if isinstance(attack, Case) else find_case(attack, **options))
    return [trial.ask(rule) for rule in RULES]


class AttackContract:
    """The contract as tests: a subclass that names an attack is a whole test file.

    ```
    class TestMine(advseg_bench.testing.AttackContract):
        attack = "mypackage.attacks:Mine"
    ```

    Attributes:
        attack: The attack, its class, or its name, see `find_case`.
        loss: Name of the loss to follow, None for the usual one.
        settings: Constructor arguments, for a class or a name.
        traits: What it is held to, in place of its own `traits`.
        device: Where it is tried.
    """

    attack: ClassVar[Any]
    loss: ClassVar[str | None] = None
    settings: ClassVar[Mapping[str, Any]] = {}
    traits: ClassVar[Traits | None] = None
    device: ClassVar[str] = "cpu"
    _trial: ClassVar[Trial]

    @classmethod
    def trial(cls) -> Trial:
        """Return the attack before the rules, built once per class."""
        if "_trial" not in cls.__dict__:
            # From the dictionary of the class: a plain function must not become a method.
            found = [base.__dict__["attack"] for base in cls.__mro__ if "attack" in base.__dict__]
            if not found:
                raise SpecError(f"{cls.__name__}: names no attack. Add the line `attack = MyAttack()`.")
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
