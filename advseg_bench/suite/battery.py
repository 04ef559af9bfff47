"""The versioned batteries: literal tables of the attacks that `battery = "standard"` adds to a suite."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from advseg_bench.types import TaskKind

ENTROPY = "entropy"
"""In place of a loss: "bce" on sigmoid channels, "ce" in multiclass tasks."""

OTHERS = "each other model"
"""In place of a setting: the member has one cell for each other model of the suite."""

SKIPPED, KEPT_SMALLER = "skipped", "kept_smaller"
"""Flags of rows: an image that was left out, since an earlier member had finished it; a result of a smaller radius that
was kept, since it is better."""


@dataclass(frozen=True, slots=True)
class Member:
    """An attack of a battery.

    Attributes:
        attack: Name in the catalogue.
        loss: Name of the loss, `ENTROPY`, or "" for an attack without one.
        settings: Settings of the attack; the value `OTHERS` stands for the name of each other model.
        gated: Whether images that an earlier member has finished may be left out: false for noise baselines.
        warm: Whether it may keep the best result at the smaller radii: true for attacks that climb. Square does
            not, so that it needs no gradient.
    """

    attack: str
    loss: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    gated: bool = True
    warm: bool = False


_NOISE = (Member("random_sign", gated=False), Member("uniform_noise", gated=False))
_JUDGED = {"keep": "best", "keep_by": "hard_dice", "objective": "present_dice"}

BATTERIES: dict[str, dict[str, tuple[Member, ...]]] = {
    "standard-1": {
        "full": (
            *_NOISE,
            Member("fgsm", "dice"),
            Member("fgsm", ENTROPY),
            Member("apgd", "present_dice", {"steps": 50, **_JUDGED}, warm=True),
            Member("apgd", "balanced_ce", {"steps": 50, **_JUDGED}, warm=True),
            Member("apgd", "margin", {"steps": 50, **_JUDGED}, warm=True),
            Member("apgd", "segpgd", {"steps": 50, **_JUDGED}, warm=True),
            Member("mifgsm", "present_dice", {"steps": 10}, warm=True),
            Member("square", settings={"queries": 1000}),
            Member("transfer", "present_dice", {"source": OTHERS}),
        ),
        "fast": (
            *_NOISE,
            Member("fgsm", "dice"),
            Member("apgd", "present_dice", {"steps": 10, **_JUDGED}, warm=True),
            Member("apgd", "balanced_ce", {"steps": 10, **_JUDGED}, warm=True),
            Member("square", settings={"queries": 50}),
        ),
    },
}
"""Name -> profile -> members in the order in which they attack. An entry never changes: a change is a new name."""

ALIASES: dict[str, str] = {"standard": "standard-1"}
"""Names of the newest batteries."""


def list_members(
    battery: str, profile: str, task: TaskKind, others: Sequence[str] = ()
) -> Iterator[tuple[int, Member]]:
    """List the attacks of a battery on one model, in the order in which they attack.

    Args:
        battery: Full name, such as "standard-1".
        profile: "full" or "fast".
        task: Task type, which decides the entropy loss.
        others: Names of the other models of the suite.

    Yields:
        The position in the battery, and the attack. Attacks that differ in the other model share a position.

    Example:
        >>> [member.loss for _, member in list_members("standard-1", "fast", "binary") if member.attack == "apgd"]
        ['present_dice', 'balanced_ce']
    """
    for position, member in enumerate(BATTERIES[battery][profile]):
        if member.loss == ENTROPY:
            member = replace(member, loss="ce" if task == "multiclass" else "bce")
        open_settings = [name for name, value in member.settings.items() if value == OTHERS]
        if not open_settings:
            yield position, member
            continue
        for other in others:
            yield position, replace(member, settings={**member.settings, **dict.fromkeys(open_settings, other)})
