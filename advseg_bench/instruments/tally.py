"""What an attack asks of a model, image by image, and how often it may."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from advseg_bench.errors import QueryLimitError, expected

OWNERS: ContextVar[tuple[int, ...] | None] = ContextVar("OWNERS", default=None)
"""Whose rows the model is given: positions in the batch that is counted for; None: its whole batch, one row each."""


@contextmanager
def rows_of(images: Sequence[int]) -> Iterator[None]:
    """Say whose rows the model is given meanwhile, for an attack that does not put its whole batch to it each time.

    Of one image any number of rows may come; of several, one each. Nobody need be counting.

    Args:
        images: Positions in the batch; inside another `rows_of`, positions among its images.
    """
    outer = OWNERS.get()
    token = OWNERS.set(tuple(images) if outer is None else tuple(outer[i] for i in images))
    try:
        yield
    finally:
        OWNERS.reset(token)


@dataclass(slots=True)
class Tally:
    """What one call of an attack on N images asked of the model.

    Attributes:
        forwards: Rows put to the model, of each image.
        backwards: Rows whose gradient was asked for, of each image; once for each time that one flows into the logits.
        max_forwards: What each image may have, or None.
        all_forwards: Rows put to the model, whosever they were.
        all_backwards: Rows whose gradient was asked for, whosever they were.
        attributed: Whether every row had an owner; if not, `forwards` and `backwards` lack some.
    """

    forwards: list[int]
    backwards: list[int]
    max_forwards: int | None = None
    all_forwards: int = 0
    all_backwards: int = 0
    attributed: bool = True

    def per_image(self) -> list[tuple[int, int]] | None:
        """Return each image's forwards and backwards, or None if they are not known exactly."""
        return list(zip(self.forwards, self.backwards, strict=True)) if self.attributed else None

    def admit(self, rows: int) -> tuple[int, ...]:
        """Count a forward before it is run. Returns: the image of each row; nobody if that is unknown.

        Raises: QueryLimitError: it would be one too many.
        """
        owners = self._find_owners(rows)
        self._demand_budget(owners, rows)
        self.attributed &= bool(owners) or not rows
        self.all_forwards += rows
        for i in owners:
            self.forwards[i] += 1
        return owners

    def add_backward(self, owners: tuple[int, ...], rows: int) -> None:
        """Count a gradient that flows into the logits of a forward."""
        self.all_backwards += rows
        for i in owners:
            self.backwards[i] += 1

    def _find_owners(self, rows: int) -> tuple[int, ...]:
        told = OWNERS.get()
        images = tuple(range(len(self.forwards))) if told is None else told
        if len(images) == 1:
            return images * rows
        return images if len(images) == rows else ()

    def _demand_budget(self, owners: tuple[int, ...], rows: int) -> None:
        """Rows without an owner are too many when no image could have had them."""
        if self.max_forwards is None:
            return
        asked = max((self.forwards[i] + owners.count(i) for i in set(owners)), default=0)
        if asked > self.max_forwards or self.all_forwards + rows > self.max_forwards * len(self.forwards):
            what = f"at most {self.max_forwards} forwards per image"
            found = max(asked, self.max_forwards + 1)
            raise QueryLimitError(expected("attack", what, found, "Give it fewer steps, or raise `max_forwards`."))
