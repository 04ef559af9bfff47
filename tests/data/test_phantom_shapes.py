"""The phantom's geometry: distances against closed forms, random fields against their stated moments."""

from __future__ import annotations

import numpy as np
import pytest

from advseg_bench.data.phantom.shapes import FAR, MARGIN, Ellipsoid, Noise, Plane, join_tubes, trace_spline


def _plane(z: float, count: int = 81, spacing: float = 1.0) -> Plane:
    axis = (np.arange(count) - (count - 1) / 2) * spacing
    return Plane(z, axis, axis)


def _radius(plane: Plane) -> np.ndarray:
    return np.hypot(plane.x, plane.y[:, None])


def test_sphere_distance_is_exact_at_every_height():
    for z in (0.0, 7.0, 19.0):
        plane = _plane(z)
        window = Ellipsoid((0, 0, 0), (20, 20, 20)).cut(plane)
        expected = np.hypot(_radius(plane), z) - 20
        np.testing.assert_allclose(window.distance, expected[window.rows, window.columns], atol=1e-4)
        assert window.distance.size < plane.x.size**2
        outside = np.ones_like(expected, bool)
        outside[window.rows, window.columns] = False
        assert (expected[outside] > 0).all()


def test_ellipsoid_is_missed_above_its_pole_and_cylinder_outside_of_its_span():
    assert Ellipsoid((0, 0, 0), (20, 20, 10)).cut(_plane(10.0)) is None
    cylinder = Ellipsoid((0, 0, 0), (20, 10, 1), span=(-5, 5))
    assert cylinder.cut(_plane(5.0)) is None
    assert cylinder.cut(_plane(-5.0)) is not None


@pytest.mark.parametrize("angle", [0.0, 0.4, -1.2])
def test_turned_ellipse_has_the_area_and_the_axis_of_the_formula(angle):
    plane = _plane(0.0, 321, 0.25)
    window = Ellipsoid((3, -2, 0), (24, 9, 1), angle, span=(-1, 1)).cut(plane)
    rows, columns = np.nonzero(window.distance < 0)
    assert len(rows) * 0.25**2 == pytest.approx(np.pi * 24 * 9, rel=5e-3)
    x, y = plane.x[window.columns][columns], plane.y[window.rows][rows]
    assert (x.mean(), y.mean()) == (pytest.approx(3, abs=0.02), pytest.approx(-2, abs=0.02))
    _, vectors = np.linalg.eigh(np.cov(x, y))
    assert abs(vectors[:, 1] @ [np.cos(angle), np.sin(angle)]) == pytest.approx(1, abs=1e-3)


def test_nearest_tube_and_runner_up_agree_with_brute_force():
    rng = np.random.default_rng(3)
    paths = [(rng.uniform(-30, 30, (5, 3)), rng.uniform(4, 9, 5)) for _ in range(4)]
    plane = _plane(1.5, 41, 2.0)
    first, second, node = join_tubes(paths).nearest(plane)
    points = np.stack([*np.broadcast_arrays(plane.x, plane.y[:, None], 1.5)], axis=-1)
    distances = np.stack([_brute_force(points, *path) for path in paths])
    ranked = np.sort(distances, axis=0)
    near = ranked[0] < MARGIN
    np.testing.assert_allclose(first[near], ranked[0][near], atol=1e-3)
    assert (node[near] // 5 == distances.argmin(axis=0)[near]).mean() > 0.99
    contact = ranked[1] < MARGIN
    np.testing.assert_allclose(second[contact], ranked[1][contact], atol=1e-3)
    assert contact.sum() > 50
    assert (first[ranked[0] > 40] == FAR).all()


def _brute_force(points: np.ndarray, nodes: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """Distance to a chain of capsules: the axis point nearest in space, and the radius there."""
    best = np.full(points.shape[:-1], np.inf)
    for a, b, r, s in zip(nodes[:-1], nodes[1:], radius[:-1], radius[1:], strict=True):
        t = np.clip((points - a) @ (b - a) / ((b - a) @ (b - a)), 0, 1)
        best = np.minimum(best, np.linalg.norm(points - a - t[..., None] * (b - a), axis=-1) - r - t * (s - r))
    return best


def test_tubes_far_from_the_plane_leave_no_trace():
    first, second, node = join_tubes([(np.array([[0.0, 0, 100], [0, 0, 120]]), np.full(2, 9.0))]).nearest(_plane(0))
    assert (first == FAR).all()
    assert (second == FAR).all()
    assert (node == 0).all()


def test_spline_goes_through_its_ends_in_even_steps():
    controls = np.array([[0.0, 0, 0, 5], [10, 20, 5, 6], [40, 25, 0, 9], [60, 0, -5, 4]])
    nodes, length = trace_spline(controls, 3.0)
    np.testing.assert_allclose(nodes[[0, -1]], controls[[0, -1]])
    assert length[0] == 0
    assert np.diff(length).max() < 5
    assert np.abs(nodes[:, None] - controls).sum(axis=-1).min(axis=0).max() < 4


def test_noise_has_mean_zero_and_variance_one():
    values = [Noise(np.random.default_rng(s), 4.0).sample(_plane(0.3 * s, 160, 1.1)) for s in range(20)]
    assert np.mean(values) == pytest.approx(0, abs=0.05)
    assert np.var(values) == pytest.approx(1, abs=0.1)


def test_noise_is_a_function_of_the_point_whatever_the_grid():
    noise = Noise(np.random.default_rng(0), 4.0)
    coarse, fine = noise.sample(_plane(2.0, 41, 2.0)), noise.sample(_plane(2.0, 161, 0.5))
    np.testing.assert_allclose(coarse, fine[::4, ::4], atol=1e-5)
    near, far = noise.sample(_plane(2.4, 41, 2.0)), noise.sample(_plane(30.0, 41, 2.0))
    assert np.corrcoef(coarse.ravel(), near.ravel())[0, 1] > 0.95
    assert abs(np.corrcoef(coarse.ravel(), far.ravel())[0, 1]) < 0.2


def test_noise_repeats_after_its_period_and_is_continuous_across_zero():
    noise = Noise(np.random.default_rng(0), 2.0, period=16)
    axis = np.array([-32.0, -0.001, 0.001, 32.0])
    values = noise.sample(Plane(5.0, axis, axis))
    np.testing.assert_allclose(values[0], values[3], atol=1e-5)
    np.testing.assert_allclose(values[1], values[2], atol=1e-2)
