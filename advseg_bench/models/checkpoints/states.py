"""The state dicts in a checkpoint: where they are, and which of their tensors a network takes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import product

import torch
from torch import Tensor

DEPTH = 4
"""Levels of containers that are searched."""

MOST_CONTAINERS = 10_000
"""Containers that are searched."""

WRAPPERS = {"module", "model", "net", "network", "_orig_mod"}
"""Attributes under which training frameworks hold the network."""

_TRANSPARENT = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"}
"""Attributes that compilers and parallel wrappers put between a module and its parameters, anywhere in a name."""

OPTIONAL = ".num_batches_tracked"
"""A buffer that changes no logit and that old releases of PyTorch did not write."""


@dataclass(frozen=True, slots=True)
class State:
    """A group of tensors in a checkpoint.

    Attributes:
        key: Dotted path in the file, "" for the whole file.
        tensors: By name.
        beside: Names of tensors that the same group has under other starts of names, where a start was selected.
    """

    key: str
    tensors: Mapping[str, Tensor]
    beside: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Match:
    """What of a state dict a network takes, if all that is behind a prefix is meant for it.

    Attributes:
        state: The state dict.
        prefix: Start of the names of the tensors, as they are in the file but for wrappers: "model.", or "".
        found: Name in the network -> tensor of the file.
        missing: Names that only the network has.
        unexpected: Names behind the prefix that only the file has, without the prefix.
        outside: Names in the file that do not start with the prefix.
        reshaped: Names of both whose shapes differ.
        clashes: Pairs of names in the file that mean one tensor of the network, with unequal values.
    """

    state: State
    prefix: str
    found: Mapping[str, Tensor]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    outside: tuple[str, ...]
    reshaped: tuple[str, ...] = field(default=())
    clashes: tuple[tuple[str, str], ...] = field(default=())

    @property
    def key(self) -> str:
        """What selects these tensors as `weights_key`; "." for the whole file."""
        return ".".join(filter(None, (self.state.key, self.prefix.rstrip(".")))) or "."

    @property
    def is_complete(self) -> bool:
        """Whether the network gets every tensor that it needs, in its own shape."""
        return bool(self.found) and not self.reshaped and all(name.endswith(OPTIONAL) for name in self.missing)

    @property
    def agreement(self) -> tuple[int, int]:
        """How well the tensors fit: names with the same shape, and names at all."""
        return len(self.found) - len(self.reshaped), len(self.found)


def find_states(content: object) -> list[State]:
    """Return the groups of tensors that a checkpoint holds, outer ones first.

    Args:
        content: What was read. Of a content whose containers hold each other again and again, which a small file can
            describe, the first `MOST_CONTAINERS` are searched.
    """
    return list(_search(content, "", DEPTH, iter(range(MOST_CONTAINERS))))


def _search(content: object, key: str, depth: int, left: Iterator[int]) -> Iterator[State]:
    """Search one container; each takes a number of those that are left."""
    if next(left, None) is None:
        return
    if isinstance(content, (list, tuple)):
        content = {str(i): value for i, value in enumerate(content) if isinstance(value, Mapping)}
    if not isinstance(content, Mapping) or not depth:
        return
    named = {str(name): value for name, value in content.items() if isinstance(name, str)}
    if tensors := {name: value for name, value in named.items() if isinstance(value, Tensor)}:
        yield State(key, tensors)
    for name, value in named.items():
        if isinstance(value, (Mapping, list, tuple)):
            yield from _search(value, f"{key}.{name}" if key else name, depth - 1, left)


def select(states: list[State], key: str) -> list[State]:
    """Return the state dicts that a `weights_key` names: a path in the file, or a path and the start of names.

    Args:
        states: All state dicts of the file.
        key: Such as "state_dict_ema", "ema.state_dict", "state_dict.student", or "." for the whole file.
    """
    if key == ".":
        return [state for state in states if not state.key]
    if exact := [state for state in states if state.key == key]:
        return exact
    selected = []
    for state in states:
        front = f"{key.removeprefix(f'{state.key}.') if state.key else key}."
        if state.key and not key.startswith(f"{state.key}."):
            continue
        part = {name[len(front) :]: tensor for name, tensor in state.tensors.items() if name.startswith(front)}
        if part:
            beside = tuple(name for name in state.tensors if not name.startswith(front))
            selected.append(State(key, part, beside))
    return selected


def match(state: State, wanted: Mapping[str, Tensor]) -> list[Match]:
    """Compare a state dict with the tensors of a network, once for each prefix that some of its names have.

    Args:
        state: The state dict.
        wanted: State dict of the network.

    Returns:
        The complete matches; if there are none, the best one.
    """
    best: list[Match] = []
    tied = find_tied(wanted)
    doubled = sum(len(group) - 1 for group in tied)
    for clean, front in product((_clean, _clean_more), _fronts(wanted)):
        ours = {clean(name.removeprefix(front)): name for name in wanted}
        theirs: dict[str, str] = {}
        clashes = []
        for name, tensor in state.tensors.items():
            other = theirs.setdefault(clean(name), name)
            if not equal_tensors(state.tensors[other], tensor):
                clashes.append((other, name))
        counts = _count_prefixes(theirs, ours)
        required = sum(not name.endswith(OPTIONAL) for name in ours) - doubled
        likely = [prefix for prefix, count in counts.items() if count >= required]
        likely = likely or [prefix for prefix, _ in counts.most_common(1)] or [""]
        matches = [_match(state, prefix, theirs, ours, wanted) for prefix in likely]
        for i, found in enumerate(matches):
            ours_only = [pair for pair in clashes if _is_of(found, clean(pair[0]), ours)]
            matches[i] = _complete(found, tied, ours_only, wanted)
        if complete := [found for found in matches if found.is_complete]:
            return complete
        best += matches
    return [max(best, key=lambda found: found.agreement)]


def find_tied(tensors: Mapping[str, Tensor]) -> list[list[str]]:
    """Groups of names of a state dict that share one tensor's memory."""
    groups: dict[object, list[str]] = {}
    for name, tensor in tensors.items():
        if is_plain(tensor) and tensor.numel():
            key = (tensor.data_ptr(), tensor.device, tensor.dtype, tensor.shape, tensor.stride())
            groups.setdefault(key, []).append(name)
    return [names for names in groups.values() if len(names) > 1]


def _is_of(found: Match, name: str, ours: Mapping[str, str]) -> bool:
    """Whether a cleaned name of the file is of a tensor that a network takes."""
    return name.startswith(found.prefix) and name.removeprefix(found.prefix) in ours


def _complete(
    match: Match, tied: list[list[str]], clashes: list[tuple[str, str]], wanted: Mapping[str, Tensor]
) -> Match:
    """Give tied tensors that the file names once to all their names; note which names clash."""
    found = dict(match.found)
    for group in tied:
        held = [name for name in group if name in found]
        clashes += [(held[0], name) for name in held[1:] if not equal_tensors(found[held[0]], found[name])]
        found |= {name: found[held[0]] for name in group if held and name not in found}
    missing = tuple(name for name in match.missing if name not in found)
    reshaped = tuple(name for name in wanted if name in found and found[name].shape != wanted[name].shape)
    return replace(match, found=found, missing=missing, reshaped=reshaped, clashes=tuple(clashes))


def _fronts(wanted: Mapping[str, Tensor]) -> list[str]:
    """Starts of all names of a network that a file may lack: "", and the wrapper that holds the whole network."""
    first = {name.partition(".")[0] for name in wanted}
    return ["", *(f"{name}." for name in first & WRAPPERS if len(first) == 1)]


def _clean(name: str) -> str:
    """Take out the wrappers."""
    return ".".join(part for part in name.split(".") if part not in _TRANSPARENT)


def _clean_more(name: str) -> str:
    """Take out `module` too, which parallel wrappers around a part of a network leave inside names."""
    return ".".join(part for part in name.split(".") if part not in _TRANSPARENT | {"module"})


def _count_prefixes(theirs: Mapping[str, str], ours: Mapping[str, str]) -> Counter[str]:
    """Prefix -> how many names of the network the file has behind it."""
    counts: Counter[str] = Counter()
    for name in theirs:
        parts = name.split(".")
        for i in range(len(parts)):
            rest = ".".join(parts[i:])
            if rest in ours and not rest.endswith(OPTIONAL):
                counts["".join(f"{part}." for part in parts[:i])] += 1
    return counts


def _match(
    state: State, prefix: str, theirs: Mapping[str, str], ours: Mapping[str, str], wanted: Mapping[str, Tensor]
) -> Match:
    """Compare under one prefix."""
    found: dict[str, Tensor] = {}
    unexpected: list[str] = []
    outside: list[str] = []
    for name, original in theirs.items():
        rest = name.removeprefix(prefix)
        if not name.startswith(prefix):
            outside.append(original)
        elif rest in ours:
            found[ours[rest]] = state.tensors[original]
        else:
            unexpected.append(rest)
    missing = tuple(name for name in wanted if name not in found)
    reshaped = tuple(name for name in wanted if name in found and found[name].shape != wanted[name].shape)
    return Match(state, prefix, found, missing, tuple(sorted(unexpected)), tuple(outside), reshaped)


def is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is dense, has values, and is not quantised."""
    return tensor.layout == torch.strided and not tensor.is_meta and not tensor.is_quantized


def equal_tensors(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are the same, or plain and equal in type and values."""
    if a is b:
        return True
    if not (is_plain(a) and is_plain(b) and a.dtype == b.dtype and a.shape == b.shape):
        return False
    return not _is_expanded(a) and not _is_expanded(b) and torch.equal(a, b)


def _is_expanded(tensor: Tensor) -> bool:
    """Whether a tensor has more elements than its memory, so that a small file can hold one of any size."""
    return tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes()
