"""Which tensors of a checkpoint a network is given, and what is left out; or why the file does not fit."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from advseg_bench.errors import SpecError, unknown
from advseg_bench.models.checkpoints.advice import advise, name_first
from advseg_bench.models.checkpoints.reading import CONVERT
from advseg_bench.models.checkpoints.states import Match, equal_tensors, find_states, match, select

TRAINING_ONLY = re.compile(
    r"aux(iliary)?(_?(heads?|classifiers?|decode_heads?|logits?|out(put)?s?|layers?|fc|seg|loss\w*))?_?\d*"
    r"|deep_?sup\w*|ds_?heads?|dsv\d*|super_heads?|seg_layers|seg_outputs"  # deep supervision
    r"|classification_head"
    r"|\w*(loss(es)?|criterion|criteria|metrics?)(_?(fn|func|function)s?)?_?\d*|(loss|criterion)_\w+"
    r"|n_averaged|num_updates|decay|initted|step"  # bookkeeping of averaged models
    r"|total_ops|total_params"  # counters of profilers
    r"|relative_position_index|relative_coords_table|attn_mask|position_ids"  # constants that a network makes itself
)
"""Parts of names whose tensors no logit depends on where the network has no place for them."""


@dataclass(frozen=True, slots=True)
class Fitted:
    """What a network is given.

    Attributes:
        tensors: Complete state dict of the network.
        key: Where it was in the file, as a `weights_key`; "." for the whole file.
        left_out: Names of tensors in that state dict that the network has no place for.
        others: Other entries of the file, such as "optimizer_states".
    """

    tensors: Mapping[str, Tensor]
    key: str
    left_out: tuple[str, ...]
    others: tuple[str, ...]

    def as_record(self) -> dict[str, object]:
        """Return what a run's record keeps."""
        return {"key": self.key, "left_out": list(self.left_out), "other_entries": list(self.others)}


def fit(path: Path, content: object, net: nn.Module, key: str | None = None) -> Fitted:
    """Find the tensors of a network in the content of a checkpoint.

    Wrappers such as "module." and "_orig_mod." are taken off the names, in any order. What only helped training is left
    out by its name (`TRAINING_ONLY`); what else lies beside the network only if `key` is set.

    Args:
        path: The file, for messages.
        content: Of the file.
        net: The bare network.
        key: Which state dict is meant, as a dotted path; needed where more than one fits.

    Returns:
        The tensors, complete.

    Raises:
        SpecError: If none or more than one state dict fits, or the file has tensors whose purpose is unknown.
    """
    wanted: dict[str, Tensor] = dict(net.state_dict())
    states = find_states(content)
    if not states:
        held = f"keys {[str(name) for name in content][:5]}" if isinstance(content, Mapping) else type(content).__name__
        raise SpecError(f"{path}: expected a state dict, got {held}. {CONVERT}")
    if key is not None:
        known = [state.key or "." for state in states]
        states = select(states, key)
        if not states:
            raise SpecError(unknown(path, "weights_key", key, known))
    matches = [found for state in states for found in match(state, wanted)]
    complete = _distinct([found for found in matches if found.is_complete])
    if len(complete) > 1:
        keys = ", ".join(repr(found.key) for found in complete)
        raise SpecError(
            f"{path}: expected one state dict of this {type(net).__name__}, got {len(complete)} that differ: {keys}. "
            "Name one of them as `weights_key`."
        )
    if not complete:
        best = max(matches, key=lambda found: found.agreement)
        raise SpecError(_word(path, net, best, wanted, best.unexpected, "those of another network"))
    (chosen,) = complete
    if chosen.clashes:
        first, second = chosen.clashes[0]
        raise SpecError(
            f"{path}: expected one tensor for each name of this {type(net).__name__}, got two that differ: {first!r} "
            f"and {second!r}. Save the state dict of the network alone."
        )
    if alien := [name for name in chosen.unexpected if not is_training_only(name)]:
        raise SpecError(_word(path, net, chosen, wanted, alien, "more than those"))
    _check_outside(path, net, chosen, key)
    tensors = dict(chosen.found) | {name: wanted[name] for name in chosen.missing}
    others = _list_others(content, chosen)
    return Fitted(tensors, chosen.key, (*chosen.unexpected, *chosen.outside, *chosen.state.beside), others)


def _distinct(matches: Sequence[Match]) -> list[Match]:
    """Leave out matches whose tensors equal those of an earlier one."""
    kept: list[Match] = []
    for found in matches:
        if not any(_equal(found.found, other.found) for other in kept):
            kept.append(found)
    return kept


def _equal(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(equal_tensors(a[name], b[name]) for name in a)


def is_training_only(name: str) -> bool:
    """Whether some part of a name is of training alone."""
    return any(TRAINING_ONLY.fullmatch(part) for part in name.split("."))


def _check_outside(path: Path, net: nn.Module, chosen: Match, key: str | None) -> None:
    """Refuse a network that would be taken from inside another one unless the user names the part."""
    beside = [name for name in chosen.outside if not is_training_only(name)]
    if beside and key is None:
        what = f"the tensors of a {type(net).__name__} by themselves"
        got = f"those and {len(beside)} others beside the prefix {chosen.prefix!r}{name_first(beside)}"
        raise SpecError(
            f"{path}: expected {what}, got {got}. If the network is that part of the file, set "
            f'weights_key = "{chosen.key}".'
        )


def _list_others(content: object, chosen: Match) -> tuple[str, ...]:
    """Entries of the file's outermost level that hold nothing of the network."""
    if not isinstance(content, Mapping) or not chosen.state.key:
        return ()
    return tuple(sorted(str(name) for name in content if str(name) != chosen.state.key.split(".")[0]))


def _word(path: Path, net: nn.Module, best: Match, wanted: Mapping[str, Tensor], alien: Sequence[str], got: str) -> str:
    """One line for a file that does not fit."""
    missing = best.missing
    parts = [f"{len(missing)} missing{name_first(missing)}", f"{len(alien)} unexpected{name_first(alien)}"]
    shapes = {name: (best.found[name].shape, wanted[name].shape) for name in best.reshaped}
    for name, (old, new) in list(shapes.items())[:1]:
        sizes = f"{tuple(old)} in the file, {tuple(new)} in the network"
        parts.append(f"{len(shapes)} of another shape (first {name!r}: {sizes})")
    return (
        f"{path}: expected the {len(wanted)} tensors of this {type(net).__name__}, got {got}: {', '.join(parts)}. "
        f"{advise(missing, alien, shapes, wanted)}"
    )
