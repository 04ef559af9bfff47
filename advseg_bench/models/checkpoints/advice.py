"""What to change where a checkpoint and a network do not fit: distinguished by which names and shapes differ."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from torch import Size

Shapes = Mapping[str, tuple[Size, Size]]
"""Name -> shape in the file, shape in the network, where they differ."""

OTHER = "Use the architecture, encoder, channels and classes that it was trained with."

WHOLE = "Save the state dict of the whole network."


def advise(missing: Sequence[str], unexpected: Sequence[str], shapes: Shapes, wanted: Collection[str]) -> str:
    """Return the remedy: for other classes or channels, extra heads, another part, or another network.

    Args:
        missing: Names that only the network has.
        unexpected: Names that only the file has.
        shapes: Where shapes differ.
        wanted: Names of the tensors of the network.
    """
    alien = [*missing, *unexpected]
    if len(missing) == len(wanted):
        fronts = {name.partition(".")[0] for name in wanted}
        held = [
            front for front in fronts if 2 * sum(f"{front}.{name}" in wanted for name in unexpected) > len(unexpected)
        ]
        if held:
            return f"Its tensors are those of {held[0]!r}: the file holds a part of the network only. {WHOLE}"
        return f"No name agrees: it is another network, or its parts were renamed. {OTHER}"
    if unexpected and not missing and not shapes:
        heads = _find_modules(unexpected, wanted)
        if len(heads) <= 2 and len(unexpected) * 2 <= len(wanted):
            return (
                f"All tensors of the network are there. If {' and '.join(map(repr, heads))} only helped training, save "
                "the state dict without; if not, use the `architecture` and `settings` that it was trained with."
            )
    if missing and not unexpected and not shapes:
        parts = _find_modules(missing, set(wanted) - set(missing))
        if not any("." in part for part in parts):
            return f"The file lacks {', '.join(map(repr, parts[:3]))}: it holds a part of the network only. {WHOLE}"
    for part, remedy in (("decoder", "`architecture` and `settings`"), ("encoder", "`encoder`")):
        if alien and all(name.startswith(f"{part}.") for name in (*alien, *shapes)):
            return f"Only the {part} differs: use the {remedy} that it was trained with."
    changes = {_find_change(*pair) for pair in shapes.values()}
    if shapes and not alien and all(len(old) != len(new) for old, new in shapes.values()):
        old, new = next(iter(shapes.values()))
        if {len(old), len(new)} == {4, 5}:
            return f"Its network is for {len(old) - 2}-D images, this one for {len(new) - 2}-D ones."
    found = {change[0]: change[1:] for change in changes if change is not None}
    if alien or len(found) < len(changes):  # more than one number of an axis, or shapes of another type
        return OTHER
    advice = {
        1: "Channels of an image: {0} in the file, {1} here. Set `channels` in [data] to {0}.",
        0: "Classes: {0} in the file, {1} here. Use data with the classes that it was trained for.",
    }
    return " ".join(advice[axis].format(*found[axis]) for axis in advice if axis in found)


def _find_modules(names: Sequence[str], others: Collection[str]) -> list[str]:
    """Outermost modules that hold some tensors and none of others."""
    taken = {".".join(name.split(".")[:i]) for name in others for i in range(1, name.count(".") + 1)}
    modules = set()
    for name in names:
        parts = name.split(".")
        modules.add(next((m for i in range(1, len(parts)) if (m := ".".join(parts[:i])) not in taken), name))
    return sorted(modules)


def _find_change(old: Size, new: Size) -> tuple[int, int, int] | None:
    """Return axis, old and new length of two shapes that differ in the first or the second axis alone, else None."""
    differing = [i for i, pair in enumerate(zip(old, new, strict=False)) if len(set(pair)) > 1]
    if len(old) != len(new) or differing not in ([0], [1]):
        return None
    axis = differing[0]
    return axis, old[axis], new[axis]


def name_first(names: Sequence[str]) -> str:
    """Name the first of some tensors, if there is one."""
    return f" (first {names[0]!r})" if names else ""
