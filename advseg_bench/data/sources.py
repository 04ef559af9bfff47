"""What a reader of volumes lists: files with their channels and labels, and what the label values mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from advseg_bench.errors import DataError, expected, unknown
from advseg_bench.suite.specs import DecathlonData, LggData, NnunetData

VolumeData = NnunetData | DecathlonData | LggData

BINARY_CLASS = "foreground"
"""The class of a binary task on data with several classes: the union of all."""

NUMBERS = {2: "two", 3: "three", 4: "four"}


class Channel(NamedTuple):
    """Location of one channel of an image: the file, and the index of the channel in it (None if it has only one)."""

    path: Path
    number: int | None


@dataclass(frozen=True, slots=True)
class Source:
    """A volume or a 2-D image with its labels."""

    name: str
    """Of the volume or the image."""

    subject: str
    """The patient that it shows."""

    block: str
    """The scan that it is part of."""

    channels: tuple[Channel, ...]
    """The channels that make up the image, in order."""

    label: Path
    """The file with the label values."""


@dataclass(frozen=True, slots=True)
class Labels:
    """The meaning of label values.

    Attributes:
        where: Where the meaning is defined, for messages.
        values: Class -> its values, without the background; regions may share values.
        background: Name of value 0.
        ignore: Value of pixels that are ignored.
    """

    where: str
    values: Mapping[str, tuple[int, ...]]
    background: str = "background"
    ignore: int | None = None

    def planes(self, label: NDArray[np.generic], task: str) -> NDArray[np.bool_]:
        """Return one plane for each class, or for a binary task one plane for their union."""
        planes = np.stack([np.isin(label, values) for values in self.values.values()])
        return np.logical_or.reduce(planes)[None] if task == "binary" else planes

    @property
    def known(self) -> set[float]:
        """Every value that has a meaning."""
        return {0, *(value for values in self.values.values() for value in values)} | (
            set() if self.ignore is None else {self.ignore}
        )


def choose_inputs(names: Sequence[str], spec: VolumeData, where: Path) -> list[int]:
    """Choose the channels of the data that become those of the image.

    Args:
        names: Names of the channels of the data.
        spec: `inputs` and `channels` are used.
        where: The file that names the channels, for messages.

    Returns:
        Indices into `names`.

    Raises:
        DataError: If `inputs` contains an unknown name, or is missing although it is needed.
    """
    if spec.inputs is None:
        if len(names) in (1, spec.channels):
            return list(range(len(names)))
        wanted = "one" if spec.channels == 1 else f"one or {NUMBERS.get(spec.channels, spec.channels)}"
        remedy = f"Set `inputs` to {wanted} of {list(names)}, or channels = {len(names)}."
        raise DataError(expected(where, f"{wanted} channel{'s' * (spec.channels > 1)}", len(names), remedy))
    for name in spec.inputs:
        if name not in names:
            raise DataError(unknown(f"{where}: inputs", "channel", name, names))
    return [names.index(name) for name in spec.inputs]
