"""Geometry of the phantom: smooth random fields, ellipsoids and tubes, each evaluated on an axial plane.

All lengths are in millimetres, in image directions: x increases to the right of the image (the patient's left), y
downwards (posterior), z towards the head. Shapes do not depend on organs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Ints = NDArray[np.intp]

FAR = np.float32(99.0)
"""The distance in mm that means "not near"."""

MARGIN = 5.0
"""Distances are exact up to this many mm outside a tube; beyond that they may be `FAR`."""


@dataclass(frozen=True, slots=True)
class Plane:
    """An axial plane with the pixel centres of an image on it.

    Attributes:
        z: Height.
        y: Rows, ascending, shape (H,).
        x: Columns, ascending, shape (W,).
    """

    z: float
    y: Doubles
    x: Doubles


class Noise:
    """A stationary Gaussian random field: white noise on a periodic lattice, smoothed by cubic B-splines.

    The field depends only on the position, so neighbouring slices are consistent and the texture is the same for all
    pixel sizes. Mean 0, variance 1 on average over positions.

    Args:
        rng: Random generator of the lattice values.
        cell: Edge length of a lattice cell; the correlation length is about 1.5 cells.
        period: Cells after which the field repeats, in each direction.
    """

    def __init__(self, rng: np.random.Generator, cell: float, period: int = 48) -> None:
        self.cell = cell
        self.values = rng.standard_normal((period, period, period), dtype=np.float32)

    def sample(self, plane: Plane) -> Floats:
        """Evaluate the field on a plane, shape (H, W)."""
        layer = np.tensordot(self._weights(np.array([plane.z]))[0], self.values, axes=1)
        return self._weights(plane.y) @ layer @ self._weights(plane.x).T

    def _weights(self, positions: Doubles) -> Floats:
        """Return the weight of each lattice index at each position, shape (positions, period)."""
        scaled = positions / self.cell
        index = np.floor(scaled).astype(np.intp)
        t = scaled - index
        spline = ((1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3)
        period = len(self.values)
        weights = np.zeros((len(positions), period), np.float32)
        rows = np.arange(len(positions))
        scale = 6 * math.sqrt(_SPLINE_POWER)
        for offset, value in enumerate(spline):
            weights[rows, (index + offset - 1) % period] = value / scale
        return weights


_SPLINE_POWER = 151 / 315
"""Mean over positions of the sum of squared cubic B-spline weights."""


class Window(NamedTuple):
    """The part of an image near a shape, with the signed distance to its surface there (negative inside)."""

    rows: slice
    columns: slice
    distance: Floats


@dataclass(frozen=True, slots=True)
class Ellipsoid:
    """An ellipsoid, or with `span` an upright elliptic cylinder.

    Attributes:
        centre: x, y, z.
        axes: Semi-axes along x, y, z before rotation; that along z is ignored with `span`.
        angle: Rotation in the axial plane, radians, from x towards y.
        span: Lowest and highest z of the cylinder; None for an ellipsoid.
    """

    centre: tuple[float, float, float]
    axes: tuple[float, float, float]
    angle: float = 0.0
    span: tuple[float, float] | None = None

    def cut(self, plane: Plane) -> Window | None:
        """Return the distance to the surface on a plane, to first order, or None if the plane does not intersect it."""
        height = 0.0 if self.span else (plane.z - self.centre[2]) / self.axes[2]
        if abs(height) >= 1 or (self.span and not self.span[0] <= plane.z < self.span[1]):
            return None
        a, b = self.axes[:2]
        cos, sin = math.cos(self.angle), math.sin(self.angle)
        reach_x, reach_y = math.hypot(a * cos, b * sin) + MARGIN, math.hypot(a * sin, b * cos) + MARGIN
        rows, columns = _span(plane.y, self.centre[1], reach_y), _span(plane.x, self.centre[0], reach_x)
        dx = (plane.x[columns] - self.centre[0]).astype(np.float32)
        dy = (plane.y[rows] - self.centre[1]).astype(np.float32)[:, None]
        u, v = (dx * cos + dy * sin) / a, (dy * cos - dx * sin) / b
        q = np.maximum(np.sqrt(u * u + v * v + height**2), np.float32(1e-6))
        slope = np.sqrt((u / a) ** 2 + (v / b) ** 2 + (0 if self.span else height / self.axes[2]) ** 2)
        distance = (q - 1) * q / np.maximum(slope, q / max(self.axes))  # the bound has an effect only at the centre
        return Window(rows, columns, distance.astype(np.float32))


@dataclass(frozen=True, slots=True)
class Tubes:
    """Tubes of varying radius along polylines in space.

    Attributes:
        points: Nodes of all polylines, one after the other, float32, shape (N, 3), columns x, y, z.
        radius: Radius at each node, shape (N,).
        path: Index of the polyline of each node, ascending, shape (N,).
    """

    points: Floats
    radius: Floats
    path: Ints

    def nearest(self, plane: Plane) -> tuple[Floats, Floats, Ints]:
        """Find the nearest tube at each pixel of a plane.

        Args:
            plane: The plane, H x W pixels.

        Returns:
            Signed distance to the nearest surface (negative inside), signed distance to the nearest surface of any
            *other* polyline, and a node of the nearest segment; each (H, W). Where nothing is within `MARGIN`, the
            distances are `FAR` and the node is 0.
        """
        shape = (len(plane.y), len(plane.x))
        first, second = np.full(shape, FAR), np.full(shape, FAR)
        node = np.zeros(shape, np.intp)
        heights = self.points[:, 2]
        reach = np.maximum(self.radius[:-1], self.radius[1:]) + MARGIN
        lowest, highest = np.minimum(heights[:-1], heights[1:]), np.maximum(heights[:-1], heights[1:])
        near = (lowest - reach < plane.z) & (plane.z < highest + reach) & (self.path[:-1] == self.path[1:])
        for piece in np.flatnonzero(near).tolist():
            rows, columns, distance = self._piece(piece, plane, float(reach[piece]))
            one, two, at = first[rows, columns], second[rows, columns], node[rows, columns]
            better = distance < one
            other = self.path[at] != self.path[piece]
            np.copyto(two, np.where(better, one, np.minimum(two, distance)), where=other)
            np.copyto(one, distance, where=better)
            np.copyto(at, piece, where=better)
        return first, second, node

    def _piece(self, piece: int, plane: Plane, reach: float) -> Window:
        """Return the distance to one capsule with linearly varying radius."""
        start, step = self.points[piece], self.points[piece + 1] - self.points[piece]
        middle = start + step / 2
        rows = _span(plane.y, float(middle[1]), reach + abs(float(step[1])) / 2)
        columns = _span(plane.x, float(middle[0]), reach + abs(float(step[0])) / 2)
        dx = (plane.x[columns] - start[0]).astype(np.float32)
        dy = (plane.y[rows] - start[1]).astype(np.float32)[:, None]
        dz = np.float32(plane.z - start[2])
        length = np.float32(max(float(step @ step), 1e-6))
        t = np.clip((dx * step[0] + dy * step[1] + dz * step[2]) / length, 0, 1)
        square = (dx - t * step[0]) ** 2 + (dy - t * step[1]) ** 2 + (dz - t * step[2]) ** 2
        radius = self.radius[piece] + t * (self.radius[piece + 1] - self.radius[piece])
        return Window(rows, columns, np.sqrt(square) - radius)


def join_tubes(paths: list[tuple[Doubles, Doubles]]) -> Tubes:
    """Combine polylines, each given by nodes (n, 3) and radii (n,) with n >= 2, into one `Tubes`."""
    return Tubes(
        points=np.concatenate([points for points, _ in paths]).astype(np.float32),
        radius=np.concatenate([radius for _, radius in paths]).astype(np.float32),
        path=np.repeat(np.arange(len(paths)), [len(points) for points, _ in paths]),
    )


def trace_spline(points: Doubles, step: float) -> tuple[Doubles, Doubles]:
    """Interpolate points by a smooth curve.

    Args:
        points: Shape (n, k); the first three columns are x, y, z, the others are interpolated too.
        step: Approximate distance between neighbouring nodes along the curve.

    Returns:
        Nodes, shape (m, k), and their arc length from the start, shape (m,).
    """
    chords = np.linalg.norm(np.diff(points[:, :3], axis=0), axis=1)
    knots = np.concatenate([[0.0], np.cumsum(chords)])
    count = max(2, math.ceil(knots[-1] / step) + 1)
    nodes = CubicSpline(knots, points, bc_type="natural")(np.linspace(0.0, knots[-1], count))
    return nodes, np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(nodes[:, :3], axis=0), axis=1))])


def _span(values: Doubles, middle: float, reach: float) -> slice:
    """Return the slice of ascending values that lie within `reach` of `middle`."""
    low, high = np.searchsorted(values, (middle - reach, middle + reach))
    return slice(int(low), int(high))
