"""The hollow organs of the phantom: large bowel, small bowel and stomach as tubes along curves in space.

The course of the colon, the position of the stomach and the calibres are constant for a subject. From day to day the
colon is shifted, and the loops of the small bowel and the contents of all organs are sampled again.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from advseg_bench.data.phantom.body import ABDOMEN_MM, Tissue, Trunk
from advseg_bench.data.phantom.shapes import Doubles, Floats, Ints, Tubes, join_tubes, trace_spline

ORGANS = ("large_bowel", "small_bowel", "stomach")
"""The classes, in the order of every mask of the phantom."""

LARGE_BOWEL, SMALL_BOWEL, STOMACH = range(3)

_COLON = np.array(
    [
        # fractions of the cavity's width, depth and height; radius in mm
        [-0.52, 0.00, 0.13, 17],
        [-0.68, 0.12, 0.20, 21],
        [-0.74, 0.20, 0.32, 19],
        [-0.72, 0.16, 0.43, 18],
        [-0.62, -0.20, 0.50, 18],
        [-0.36, -0.62, 0.47, 18],
        [0.00, -0.76, 0.44, 17],
        [0.36, -0.62, 0.49, 17],
        [0.66, -0.20, 0.60, 16],
        [0.78, 0.10, 0.66, 16],
        [0.78, 0.24, 0.54, 15],
        [0.77, 0.22, 0.36, 14],
        [0.70, 0.16, 0.22, 14],
        [0.45, -0.02, 0.11, 15],
        [0.18, -0.10, 0.15, 15],
        [-0.08, 0.06, 0.12, 15],
        [0.00, 0.30, 0.03, 14],
    ]
)
"""Course of the colon from the caecum to the rectum."""

_STOMACH = np.array(
    [
        [0.36, 0.18, 0.93, 24],
        [0.42, 0.10, 0.85, 33],
        [0.45, -0.15, 0.74, 31],
        [0.36, -0.42, 0.64, 26],
        [0.10, -0.56, 0.58, 20],
        [-0.10, -0.44, 0.58, 15],
        [-0.20, -0.28, 0.60, 10],
    ]
)
"""Course of the stomach from the fundus to the pylorus; columns as above."""


@dataclass(frozen=True, slots=True)
class Bowel:
    """The hollow organs of one day.

    Attributes:
        tubes: The tubes of all organs.
        organ: Index into `ORGANS` for each node of the tubes, shape (N,).
        content: `Tissue` inside the tube at each node, shape (N,).
        fluid: Fluid replaces the content where a standard normal field exceeds this level, shape (N,).
        gas_y: Gas fills the lumen in front of this position (smaller y), mm, shape (N,).
    """

    tubes: Tubes
    organ: Ints
    content: Ints
    fluid: Floats
    gas_y: Floats


@dataclass(frozen=True, slots=True)
class _Loop:
    """One polyline: nodes (n, 3), radii (n,), organ, and the other attributes of `Bowel`, (n,) each."""

    nodes: Doubles
    radius: Doubles
    organ: int
    content: Ints
    fluid: Doubles
    gas_y: Doubles


def build_bowel(trunk: Trunk, subject: np.random.Generator, day: np.random.Generator) -> Bowel:
    """Sample the hollow organs of a day.

    Args:
        trunk: The subject's trunk.
        subject: Random generator of what is constant for the subject; must have the same state for each day.
        day: Random generator of what changes from day to day.

    Returns:
        The tubes with their contents.
    """
    loops = [_lay_colon(trunk, subject, day), _lay_stomach(trunk, subject, day)]
    count = int(subject.integers(6, 12))
    calibre = subject.uniform(8.0, 14.0, count)
    loops += [_lay_small_bowel(trunk, radius, day) for radius in calibre]
    return Bowel(
        tubes=join_tubes([(loop.nodes, loop.radius) for loop in loops]),
        organ=np.repeat([loop.organ for loop in loops], [len(loop.nodes) for loop in loops]),
        content=np.concatenate([loop.content for loop in loops]),
        fluid=np.concatenate([loop.fluid for loop in loops]).astype(np.float32),
        gas_y=np.concatenate([loop.gas_y for loop in loops]).astype(np.float32),
    )


def _place(trunk: Trunk, course: Doubles) -> Doubles:
    """Convert relative positions (n, 4) to millimetres."""
    return course * [trunk.inner_width, trunk.inner_depth, ABDOMEN_MM, 1.0]


def _wander(rng: np.random.Generator, length: Doubles, knot: float) -> Doubles:
    """Sample a Gaussian process along an arc: variance 1 at knots that are `knot` mm apart, linear in between.

    It uses the same number of random values for every arc, so that the subject's generator has one state on all days.
    """
    values = rng.normal(size=64)
    assert length[-1] < knot * (len(values) - 1), "the arc is longer than its knots"
    return np.interp(length / knot, np.arange(len(values)), values)


def _fill_gas(nodes: Doubles, radius: Doubles, share: Doubles, block: Ints) -> Doubles:
    """Return the gas level at each node: one level per segment of the lumen, at a fraction `share` from its front."""
    gas_y = np.empty(len(nodes))
    for number in np.unique(block):
        here = block == number
        front, back = (nodes[here, 1] - radius[here]).min(), (nodes[here, 1] + radius[here]).max()
        gas_y[here] = front + share[number] * (back - front)
    return gas_y


def _lay_colon(trunk: Trunk, subject: np.random.Generator, day: np.random.Generator) -> _Loop:
    """Sample the colon: haustra, stool, and gas in front."""
    controls = _place(trunk, _COLON) + subject.normal(0, [7, 6, 9, 1.2], _COLON.shape)
    controls[:, :3] += day.normal(0, 4, (len(_COLON), 3))
    controls[:, 2] = np.maximum(controls[:, 2], 3.0)
    nodes, length = trace_spline(controls, 4.0)
    wave = 14 + 10 * (0.5 + 0.5 * np.tanh(_wander(subject, length, 90.0)))
    phase = np.cumsum(np.gradient(length) * 2 * np.pi / wave) + day.uniform(0, 2 * np.pi)
    squeeze = 1 + 0.16 * np.sin(phase) + 0.10 * _wander(day, length, 60.0)
    radius = np.clip(nodes[:, 3] * squeeze, 8.0, 26.0)
    block = (length / 55.0).astype(np.intp)
    gas_y = _fill_gas(nodes, radius, np.clip(day.normal(0.12, 0.3, 64), 0, 0.75), block)
    formed = _wander(day, length, 110.0) + 3 * length / length[-1] > 0.6
    content = np.where(formed, Tissue.STOOL, Tissue.CHYME)
    fluid = 1.6 + 0.5 * _wander(day, length, 60.0)
    return _Loop(nodes[:, :3], radius, LARGE_BOWEL, content, fluid, gas_y)


def _lay_stomach(trunk: Trunk, subject: np.random.Generator, day: np.random.Generator) -> _Loop:
    """Sample the stomach; it has one lumen, so its gas has one level."""
    controls = _place(trunk, _STOMACH) + subject.normal(0, [6, 5, 6, 1.5], _STOMACH.shape)
    controls[:, :3] += day.normal(0, 3, 3)
    nodes, _ = trace_spline(controls, 6.0)
    radius = np.maximum(nodes[:, 3] * day.uniform(0.75, 1.4), 8.0)
    front = float((nodes[:, 1] - radius).min())
    gas_y = np.full(len(nodes), front + day.uniform(-5.0, 28.0))
    content = np.full(len(nodes), day.choice([Tissue.FOOD, Tissue.FOOD, Tissue.CHYME]))
    fluid = np.full(len(nodes), day.uniform(0.6, 1.8))
    return _Loop(nodes[:, :3], radius, STOMACH, content, fluid, gas_y)


def _lay_small_bowel(trunk: Trunk, radius: float, day: np.random.Generator) -> _Loop:
    """Sample one loop of small bowel: a random walk that is bent back towards the centre of its envelope."""
    middle = np.array([0.05 * trunk.inner_width, -0.3 * trunk.inner_depth, 0.28 * ABDOMEN_MM])
    axes = np.array([0.62 * trunk.inner_width, 0.48 * trunk.inner_depth, 0.26 * ABDOMEN_MM])
    count = int(day.integers(18, 34))
    start = day.normal(size=3)
    nodes = [middle + axes * start / np.linalg.norm(start) * day.uniform(0.2, 1.0)]
    heading = day.normal(size=3)
    for turn in day.normal(0, [0.55, 0.55, 0.4], (count, 3)):
        inside = (nodes[-1] - middle) / axes
        heading = heading / np.linalg.norm(heading) + turn
        if np.linalg.norm(inside) > 0.9:
            heading -= 0.9 * inside
        nodes.append(nodes[-1] + 7.0 * heading / np.linalg.norm(heading))
    smooth, length = trace_spline(np.array(nodes)[::2], 5.0)
    calibre = np.clip(radius * (1 + 0.14 * _wander(day, length, 25.0)), 6.0, 15.0)
    content = np.full(len(smooth), Tissue.CHYME)
    fluid = 1.5 + 0.9 * _wander(day, length, 50.0)
    share = np.clip(day.normal(-0.25, 0.3, 64), 0, 0.5)
    gas_y = _fill_gas(smooth, calibre, share, (length / 50.0).astype(np.intp))
    return _Loop(smooth, calibre, SMALL_BOWEL, content, fluid, gas_y)
