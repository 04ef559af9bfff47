"""The worst case over the attacks of a run, from stored counts: image by image, and of the data set for pooled scores.

Candidates of an image at a point (data set, model, norm, eps) are all measured rows of attacks and noise at this point,
each repeat by itself, and the clean image. Rows of an attack that exceeds eps on any image of the point are left out. A
point has a worst case if at least two attacks, noise not counted, have candidates there.

- **Image by image**: the candidate with the lowest Dice; of equal ones that with the lowest IoU, then with the most
  wrong pixels, then the first of the plan. Its row, under the attack `arms.WORST`, costs the passes of all candidates.
- **Of the data set** (`pooled_dice`, `pooled_iou`): one candidate per image, such that the pooled score is low (a
  greedy search), since the candidate with the lowest Dice of an image need not lower the score of summed counts most.

Both are upper bounds of the score that the model keeps within the budget. Another attack can only lower the first.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from advseg_bench.results.arms import ARM, WORST
from advseg_bench.results.numbering import number_rows
from advseg_bench.results.scores import MEASURED, find_scored_classes
from advseg_bench.suite.cells import Arm, Cell
from advseg_bench.suite.specs import Scoring
from advseg_bench.types import Norm, Task

PLACE = ("dataset", "model", "norm", "eps")
"""Columns that identify the point of a worst case."""

SEED = 230612941
"""Seed of the order in which the greedy search visits the images."""

AT_ONCE = 1024
"""Largest number of images that the greedy search compares together."""

Numbers = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Candidates:
    """The rows among which a worst case is chosen.

    Attributes:
        points: The points that have a worst case, sorted: the columns of `PLACE`.
        row: The number of each candidate's row in the frame of rows.
        point: The number of its point; a clean row is a candidate at every point of its model.
        image: The number of its image and point among those of all points, ascending by point.
    """

    points: pl.DataFrame
    row: Numbers
    point: Numbers
    image: Numbers


def find_candidates(rows: pl.DataFrame, controls: Collection[str], *, clean: bool = True) -> Candidates:
    """Find the rows among which worst cases are chosen.

    Args:
        rows: Rows of a run.
        controls: Attacks that are noise baselines.
        clean: Whether the clean image is a candidate.

    Returns:
        The candidates of all points with a worst case.
    """
    names = ["row", "dataset", "model", *ARM, "eps", "image"]
    known = rows.with_row_index("row").lazy().filter(MEASURED).select(names)
    attacked = known.filter(pl.col("attack") != "none", pl.col("eps") > 0)
    arm = ["dataset", "model", *ARM, "eps"]
    wild = rows.lazy().filter(pl.col("flags").list.len() > 0).filter(pl.col("flags").list.contains("beyond_eps"))
    attacked = attacked.join(wild.select(arm).unique(), on=arm, how="anti")
    attacks = attacked.filter(~pl.col("attack").is_in(sorted(controls))).select(arm).unique()
    points = attacks.group_by(PLACE).len().filter(pl.col("len") > 1).select(PLACE).collect()
    points = number_rows(points, PLACE)[1]
    numbered = points.lazy().with_row_index("point")
    found = [attacked.join(numbered, on=PLACE).select("row", "point", "image")]
    if clean:
        at_zero = known.filter(pl.col("attack") == "none").join(numbered, on=["dataset", "model"])
        found.append(at_zero.select("row", "point", "image"))
    frame = pl.concat(found).collect()
    image = number_rows(frame, ("point", "image"))[0]
    row, point = (frame[name].to_numpy().astype(np.int64) for name in ("row", "point"))
    return Candidates(points, row, point, image)


def find_incomplete(
    cells: Iterable[Cell], controls: Collection[str], missing: Collection[str]
) -> list[tuple[str, float, Arm]]:
    """Find the planned points with at least two attacks, some of whose images have no row yet.

    Args:
        cells: The cells of a run.
        controls: Attacks that are noise baselines.
        missing: Ids of the cells that lack rows.

    Returns:
        The model, the eps and the arm of the worst case of each of these points.
    """
    arms: dict[tuple[str, float, Norm], set[Arm]] = {}
    incomplete = set()
    for cell in cells:
        if cell.skip is None and cell.eps > 0 and cell.arm.attack not in controls:
            point = (cell.model, cell.eps, cell.arm.norm)
            arms.setdefault(point, set()).add(cell.arm)
            incomplete |= {point} if cell.id in missing else set()
    found = [point for point, mine in arms.items() if len(mine) > 1 and point in incomplete]
    return [(model, eps, Arm(WORST, "", "{}", norm)) for model, eps, norm in found]


def choose_lowest(scored: pl.DataFrame, candidates: Candidates, plan: Mapping[str, int]) -> Numbers:
    """Choose the worst candidate of each image.

    Args:
        scored: The output of `score_rows`.
        candidates: The candidates among its rows.
        plan: Id of each cell -> its place in the plan.

    Returns:
        The position of the chosen candidate among `candidates`, ascending by image.
    """
    dice = scored["dice"].fill_null(np.inf).to_numpy()[candidates.row]
    lowest = np.full(int(candidates.image.max(initial=-1)) + 1, np.inf)
    np.minimum.at(lowest, candidates.image, dice)
    among = np.flatnonzero(dice == lowest[candidates.image])  # few candidates are as low, so that sorting them is fast
    row, image = candidates.row[among], candidates.image[among]
    known = scored.select("cell", "iou", "wrong_pixels")[row]
    place = known["cell"].cast(pl.String).replace_strict(plan, default=len(plan), return_dtype=pl.Int64).to_numpy()
    iou = known["iou"].fill_null(np.inf).to_numpy()
    order = np.lexsort((row, place, -known["wrong_pixels"].to_numpy(), iou, image))
    return among[order[np.diff(image[order], prepend=-1) > 0]]


def add_worst_case(scored: pl.DataFrame, controls: Collection[str], plan: Mapping[str, int]) -> pl.DataFrame:
    """Append the rows of the worst case of each image.

    Args:
        scored: The output of `score_rows`.
        controls: Attacks that are noise baselines.
        plan: Id of each cell -> its place in the plan.

    Returns:
        The rows, and below them those of the attack `arms.WORST`: counts, scores and measured norms are those of the
        chosen candidate, `forwards` and `backwards` sums over the candidates (null if one is unknown), `draw` is 0,
        `flags` are empty, and `cell` is a name of the point, which no plan has.
    """
    candidates = find_candidates(scored, controls)
    return _append(scored, candidates, choose_lowest(scored, candidates, plan))


def find_members(scored: pl.DataFrame, controls: Collection[str], plan: Mapping[str, int]) -> pl.DataFrame:
    """Return the attacked row that is the worst of each image, as it is stored; the clean image is no candidate.

    Args:
        scored: The output of `score_rows`.
        controls: Attacks that are noise baselines.
        plan: Id of each cell -> its place in the plan.

    Returns:
        One row for each image of each point with a worst case, with the columns of `scored`.
    """
    stored = scored.filter(pl.col("attack") != WORST)
    candidates = find_candidates(stored, controls, clean=False)
    return stored[candidates.row[choose_lowest(stored, candidates, plan)]]


def add_pooled_worst_case(
    rows: pl.DataFrame,
    controls: Collection[str],
    task: Task,
    scoring: Scoring,
    score: str,
    where: Mapping[str, pl.Expr] | None = None,
) -> pl.DataFrame:
    """Append the rows that make a pooled score of the data set low.

    Args:
        rows: Rows of a run, as stored.
        controls: Attacks that are noise baselines.
        task: The task, which defines the meaning of the counts.
        scoring: The empty rule.
        score: "pooled_dice" or "pooled_iou".
        where: Column -> condition on the rows that are needed; points that it excludes are not searched.

    Returns:
        The rows, without those that `where` excludes by a column of `PLACE`, and below them one per image and point,
        under the attack `arms.WORST`, as in `add_worst_case`.

    Source:
        The greedy search of arXiv 2306.12941, section 3.6, over all candidates of an image.
    """
    wanted = [condition for name, condition in (where or {}).items() if name in PLACE]
    if wanted:
        rows = rows.filter(pl.all_horizontal(wanted) | (pl.col("attack") == "none"))
    candidates = find_candidates(rows, controls)
    judge = _make_judge(task, scoring, score)
    places = list(find_scored_classes(task).values())
    counts = np.stack([rows[name].list.gather(places).explode().to_numpy() for name in ("tp", "fp", "fn")], -1)
    counts = counts.reshape(len(rows), len(places), 3)
    cells = rows["cell"].cast(pl.Categorical()).to_physical().to_numpy().astype(np.int64)
    clean = (rows["attack"] == "none").to_numpy()
    chosen = []
    for point in range(len(candidates.points)):
        mine = np.flatnonzero(candidates.point == point)
        table = _tabulate(candidates.image[mine], cells[candidates.row[mine]], clean[candidates.row[mine]])
        chosen.append(mine[search(counts[candidates.row[mine]], table, judge)])
    return _append(rows, candidates, np.concatenate(chosen) if chosen else np.zeros(0, np.int64))


def _tabulate(image: Numbers, cell: Numbers, clean: NDArray[np.bool_]) -> Numbers:
    """Arrange the candidates of a point in a table of images and cells.

    Where an image has no candidate of a cell, the table has its clean image, or else its first candidate.

    Returns:
        The position of each candidate, (images, cells).
    """
    rows, first = np.unique(image, return_index=True)
    i, (_, j) = np.searchsorted(rows, image), np.unique(cell, return_inverse=True)
    fill = first.copy()
    fill[i[clean]] = np.flatnonzero(clean)
    table = np.repeat(fill[:, None], j.max() + 1, axis=1)
    table[i, j] = np.arange(len(image))
    return table


Judge = Callable[[Numbers], Floats]
"""Maps summed counts, (..., classes, 3), to scores, (...)."""


def search(counts: Numbers, table: Numbers, judge: Judge) -> Numbers:
    """Choose one candidate per image so that the score of the summed counts is low.

    It starts from the cell with the lowest score and visits the images in a fixed shuffled order. It switches an image
    to its best candidate if that lowers the current score of the data set, until a pass over all images changes
    nothing. So the score is never above that of any column of the table.

    Args:
        counts: True positives, false positives and false negatives of each candidate and class, (candidates, classes,
            3).
        table: The position of each candidate, (images, cells).
        judge: Score of summed counts, which falls as an attack succeeds; a score of NaN changes nothing.

    Returns:
        The position of the candidate of each image.
    """
    scores = judge(counts[table].sum(axis=0))
    if np.isnan(scores).all():
        return table[:, 0]
    chosen = table[:, int(np.nanargmin(scores))].copy()
    total, current = counts[chosen].sum(axis=0), float(np.nanmin(scores))
    order = np.random.default_rng(SEED).permutation(len(table))
    differ = (counts[table] != counts[table[:, :1]]).any(axis=(1, 2, 3))
    order = order[differ[order]]
    at, since = 0, 0
    while since < len(order):  # the images since the last change, until a whole pass changes nothing
        images = order[at : at + min(max(since, 1), AT_ONCE)]
        totals = (total - counts[chosen[images]])[:, None] + counts[table[images]]
        scores = judge(totals)
        best = scores.argmin(axis=1)
        lower = np.flatnonzero(scores[np.arange(len(images)), best] < current)
        seen = int(lower[0]) + 1 if len(lower) else len(images)
        at, since = (at + seen) % len(order), since + seen
        if len(lower):
            image, option = images[seen - 1], best[seen - 1]
            chosen[image], total, since = table[image, option], totals[seen - 1, option], 0
            current = float(scores[seen - 1, option])
    return chosen


def _make_judge(task: Task, scoring: Scoring, score: str) -> Judge:
    """Return the pooled score of summed counts, equal to that of `scores.pool_counts`."""
    weight = 2 if score == "pooled_dice" else 1

    def judge(counts: Numbers) -> Floats:
        tp, fp, fn = (counts[..., i] for i in range(3))
        below = weight * tp + fp + fn
        ratio = np.divide(weight * tp, below, out=np.zeros(below.shape), where=below > 0)
        present = tp + fn > 0
        if scoring.empty == "skip":
            known = present.sum(-1)
            total: Floats = (ratio * present).sum(-1)
            mean: Floats = np.divide(total, known, out=np.full(known.shape, np.nan), where=known > 0)
            return mean
        absent = (fp == 0).astype(float) if scoring.empty == "one" else np.zeros(fp.shape)
        scores: Floats = np.where(present, ratio, absent).mean(-1)
        return scores

    return judge


def _append(rows: pl.DataFrame, candidates: Candidates, chosen: Numbers) -> pl.DataFrame:
    """Append the rows of chosen candidates, as those of an attack of its own."""
    if not len(chosen):
        return rows
    at = candidates.points[candidates.point[chosen]]
    cell = pl.concat_str(pl.lit(WORST), "model", "norm", pl.col("eps").round(9), separator=" ")
    attacked = (rows["attack"] != "none").to_numpy()[candidates.row]
    passes = []
    for name in ("forwards", "backwards"):
        cost = np.where(attacked, rows[name].cast(pl.Float64).to_numpy()[candidates.row], 0.0)
        total = np.bincount(candidates.image, cost)[candidates.image[chosen]]
        passes.append(pl.Series(name, total).fill_nan(None))
    names = {"attack": WORST, "loss": "", "settings": "{}"}
    made = rows[candidates.row[chosen]].with_columns(
        at.select(cell.alias("cell"))["cell"].cast(rows.schema["cell"]),
        *(pl.lit(value).cast(rows.schema[name]).alias(name) for name, value in names.items()),
        *(at[name].cast(rows.schema[name]) for name in ("norm", "eps")),
        *passes,
        pl.lit(0).cast(rows.schema["draw"]).alias("draw"),
        pl.lit([], dtype=rows.schema["flags"]).alias("flags"),
    )
    return pl.concat([rows, made])
