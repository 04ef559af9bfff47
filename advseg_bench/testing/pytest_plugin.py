"""The pytest plug-in: `pytest --advseg-attack NAME` checks an attack against the contract, without a test file.

pytest loads this module at every start if the package is installed. Without the option it does nothing, and it imports
only pytest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from advseg_bench.testing.contract import Rule, Trial


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options."""
    group = parser.getgroup("advseg-bench", "contract of adversarial attacks")
    group.addoption(
        "--advseg-attack",
        action="append",
        default=[],
        metavar="NAME",
        help="Check this attack against the contract of advseg-bench. Test files run only if they are listed.",
    )
    group.addoption("--advseg-loss", default=None, metavar="NAME", help="Attack loss.")
    group.addoption(
        "--advseg-settings",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="Constructor argument of the attack.",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Collect no test files if the command line has only an attack."""
    if config.getoption("--advseg-attack") and config.args_source is not pytest.Config.ArgsSource.ARGS:
        config.args = []


def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]) -> None:
    """Add one test per attack and rule."""
    for name in config.getoption("--advseg-attack"):
        items += _make_items(session, config, name)


class RuleItem(pytest.Item):
    """One rule as a test."""

    def __init__(self, *, trial: Trial, rule: Rule, **keywords: Any) -> None:
        super().__init__(**keywords)
        self.trial, self.rule = trial, rule

    def runtest(self) -> None:
        """Check the attack against the rule."""
        self.trial.judge(self.rule)

    def reportinfo(self) -> tuple[str, None, str]:
        """Return the location that pytest reports."""
        return "advseg-bench contract", None, self.name


def _make_items(session: pytest.Session, config: pytest.Config, name: str) -> list[RuleItem]:
    from advseg_bench.errors import UserError
    from advseg_bench.testing.case import find_case
    from advseg_bench.testing.command import read_settings
    from advseg_bench.testing.contract import RULES, Trial

    try:
        settings = read_settings(config.getoption("--advseg-settings"))
        trial = Trial(find_case(name, loss=config.getoption("--advseg-loss"), settings=settings))
    except UserError as error:
        raise pytest.UsageError(str(error)) from None
    return [
        RuleItem.from_parent(
            session, name=rule.name, nodeid=f"advseg-bench::{name}::{rule.name}", trial=trial, rule=rule
        )
        for rule in RULES
    ]
