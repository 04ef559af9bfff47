"""Figures of a run with many attacks, as a battery makes them: their panels keep their height, and marks differ."""

from __future__ import annotations

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Drawing

from advseg_bench.report.document import NARROW, WIDE
from advseg_bench.report.figures import Mark, add_legend
from advseg_bench.report.series import style_line


@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_a_long_legend_leaves_the_panels_their_height(width):
    drawing = Drawing(figsize=(width, 2.95), layout="constrained")
    FigureCanvasAgg(drawing)
    ax = drawing.subplots()
    names = [f"transfer present_dice source=another-model-{i}" for i in range(14)]
    add_legend(drawing, [Mark(name, "#000000", "o", "-") for name in names], width)
    drawing.get_layout_engine().execute(drawing)
    assert ax.get_position().height * drawing.get_figheight() > 1.2  # inches


def test_points_and_lines_of_24_attacks_differ():
    styles = [style_line(turn) for turn in range(24)]
    for left_out in range(3):  # without colour, marker or dash
        seen = {tuple(part for i, part in enumerate(style) if i != left_out) for style in styles}
        assert len(seen) == 24
