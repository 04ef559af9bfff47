"""Means over images and then over subjects, for many groups of rows at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from advseg_bench.results.numbering import close_gaps, number_rows
from advseg_bench.stats import group_intervals

Places = NDArray[np.int32]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Grouping:
    """The group, subject and image of each row, computed once for all scores.

    Attributes:
        groups: The columns that identify the groups, one row per group.
        image: For each row, the index of its image among the images of all groups.
        subject: For each of these images, the index of its subject among the subjects of all groups, ascending by
            group.
        group: For each of these subjects, its row in `groups`.
    """

    groups: pl.DataFrame
    image: Places
    subject: Places
    group: Places

    def average(self, scores: Sequence[pl.Series]) -> tuple[list[list[Floats]], NDArray[np.int64]]:
        """Average scores over the rows of an image, such as repeats, and then over the images of a subject.

        Args:
            scores: One value per row each, null where there is none; only rows with a value for every score are used.

        Returns:
            For each score, the subject means of each group; and the number of images of each group.
        """
        values = [score.to_numpy() for score in scores]
        known = ~np.any([np.isnan(each) for each in values], axis=0)
        image = self.image[known]
        rows = np.bincount(image, minlength=len(self.subject))
        subject = self.subject[rows > 0]
        images = np.bincount(subject, minlength=len(self.group))
        group = self.group[images > 0]
        ends = np.cumsum(np.bincount(group, minlength=len(self.groups)))[:-1]
        means = []
        for each in values:
            of_images = np.bincount(image, each[known], len(self.subject))[rows > 0] / rows[rows > 0]
            of_subjects = np.bincount(subject, of_images, len(self.group))[images > 0] / images[images > 0]
            means.append(np.split(of_subjects, ends) if len(self.groups) else [])
        return means, np.bincount(self.group, images, len(self.groups)).astype(np.int64)


def group_rows(frame: pl.DataFrame, by: Sequence[str]) -> Grouping:
    """Group the rows of a frame.

    Args:
        frame: A frame with the columns `by`, `subject` and `image`.
        by: Columns that define the groups.

    Returns:
        The grouping; groups, subjects and images are sorted by name.
    """
    group, groups = number_rows(frame, by)
    image, images = number_rows(frame, ("subject", "image"))
    owner, subjects = number_rows(images, ("subject",))
    n_images, n_subjects = max(len(images), 1), max(len(subjects), 1)
    image_of_row, pairs = close_gaps(group * n_images + image)
    subject_of_pair = pairs // n_images * n_subjects + owner[pairs % n_images]
    subject_of_image, subjects_of_groups = close_gaps(subject_of_pair)
    return Grouping(
        groups,
        image_of_row.astype(np.int32),
        subject_of_image.astype(np.int32),
        (subjects_of_groups // n_subjects).astype(np.int32),
    )


def make_table(grouping: Grouping, scores: Sequence[pl.Series], level: float) -> pl.DataFrame:
    """Average scores over images and subjects, with an interval over subjects.

    Args:
        grouping: The groups of the rows.
        scores: One score; or two, for 1 minus the ratio of their means, which has no interval.
        level: Confidence level, above 0 and up to 0.999.

    Returns:
        `grouping.groups` with `mean`, `lower`, `upper`, `n_images` and `n_subjects`.
    """
    parts, images = grouping.average(scores)
    means = [pl.Series([each.mean() if len(each) else None for each in part], dtype=pl.Float64) for part in parts]
    intervals = group_intervals(parts[0], level) if len(parts) == 1 else [None] * len(images)
    mean = means[0] if len(means) == 1 else pl.select(pl.when(means[1] > 0).then(1 - means[0] / means[1])).to_series()
    return grouping.groups.with_columns(
        mean.alias("mean"),
        pl.Series("lower", [ends and ends[0] for ends in intervals], dtype=pl.Float64),
        pl.Series("upper", [ends and ends[1] for ends in intervals], dtype=pl.Float64),
        pl.Series("n_images", images, dtype=pl.Int64),
        pl.Series("n_subjects", [len(each) for each in parts[0]], dtype=pl.Int64),
    )
