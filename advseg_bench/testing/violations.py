"""The two ways a rule can end other than well."""

from __future__ import annotations


class ContractViolation(AssertionError):  # noqa: N818
    """An attack breaks a rule. The message says what was expected, what was found, where, and the remedy."""


class NotApplicable(Exception):  # noqa: N818
    """A rule says nothing about an attack; the message tells why."""
