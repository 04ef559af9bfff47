from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import eps_values, make_generators, norms, seeds, spaces

from advseg_bench import geometry
from advseg_bench.types import Bounds, Budget

few = settings(max_examples=60, deadline=None)


def images(seed: int, space: tuple[int, ...], n: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.rand((n, 2, *space), generator=g), torch.rand((n, 2, *space), generator=g) * 3 - 1


@few
@given(seeds, spaces, eps_values, norms)
def test_projection_lands_inside_budget_and_bounds(seed, space, eps, norm):
    x, far = images(seed, space)
    near = geometry.project(far, x, Budget(norm, eps), Bounds())
    assert near.amin() >= 0
    assert near.amax() <= 1
    assert (geometry.distance(near, x, norm) <= eps + 1e-6).all()
    assert near.dtype == x.dtype


@few
@given(seeds, spaces, eps_values, norms)
def test_projection_leaves_alone_what_is_allowed(seed, space, eps, norm):
    x, far = images(seed, space)
    inside = geometry.project(far, x, Budget(norm, eps * 0.9), Bounds())
    again = geometry.project(inside, x, Budget(norm, eps + 1e-5), Bounds())
    assert torch.equal(again, inside)


@few
@given(seeds, spaces, st.sampled_from([torch.float32, torch.float64, torch.float16]))
def test_moves_are_both_distances_and_the_share_that_stayed(seed, space, dtype):
    x, far = (each.to(dtype) for each in images(seed, space))
    far = torch.where(far > 0.5, x, far)
    moves = geometry.measure_moves(far, x)
    assert torch.equal(moves.linf, geometry.distance(far, x, "linf"))
    assert torch.equal(moves.l2, geometry.distance(far, x, "l2"))
    assert torch.equal(moves.unmoved, (far == x).flatten(1).double().mean(1))
    assert all(not value.any() for value in geometry.measure_moves(x, x)[:2])


@few
@given(seeds, spaces, norms)
def test_images_do_not_influence_each_other(seed, space, norm):
    x, far = images(seed, space)
    budget = Budget(norm, 0.1)
    together = geometry.project(far, x, budget, Bounds())
    alone = torch.cat([geometry.project(far[i : i + 1], x[i : i + 1], budget, Bounds()) for i in range(3)])
    assert torch.equal(together, alone)
    assert torch.equal(
        geometry.steepest(far, norm), torch.cat([geometry.steepest(far[i : i + 1], norm) for i in range(3)])
    )


def test_linf_projection_is_the_nearest_point():
    x = torch.tensor([[[0.1, 0.5, 0.95]]])
    far = torch.tensor([[[-2.0, 0.55, 2.0]]])
    near = geometry.project(far, x, Budget("linf", 0.25), Bounds())
    assert torch.equal(near, torch.tensor([[[0.0, 0.55, 1.0]]]))


@few
@given(seeds, spaces)
def test_distances_equal_numpy_in_float64(seed, space):
    x, y = images(seed, space)
    moved = (x.numpy().astype(np.float64) - y.numpy().astype(np.float64)).reshape(3, -1)
    assert geometry.distance(x, y, "linf").tolist() == np.abs(moved).max(1).tolist()
    np.testing.assert_allclose(geometry.distance(x, y, "l2"), np.linalg.norm(moved, axis=1), rtol=1e-12)


def test_sign_of_zero_is_zero():
    assert geometry.steepest(torch.tensor([[0.0, -0.0, 1e-40, -3.0]]), "linf").tolist() == [[0, 0, 1, -1]]


@pytest.mark.parametrize("scale", [1e-38, 1e-20, 1.0, 1e30])
def test_l2_direction_has_length_one_at_any_scale(scale):
    gradient = torch.tensor([[[3.0, 4.0]]]) * scale
    torch.testing.assert_close(geometry.steepest(gradient, "l2"), torch.tensor([[[0.6, 0.8]]]))


def test_l2_direction_of_zero_is_zero():
    assert geometry.steepest(torch.zeros(1, 1, 3), "l2").abs().sum() == 0


def test_random_signs_are_fair_and_belong_to_the_image():
    x = torch.zeros(2, 1, 100, 100)
    signs = geometry.random_sign(x, make_generators(2))
    assert set(signs.unique().tolist()) == {-1.0, 1.0}
    assert signs.mean().abs() < 0.03
    alone = geometry.random_sign(x[1:], make_generators(2)[1:])
    assert torch.equal(signs[1:], alone)


def test_uniform_noise_fills_the_interval():
    noise = geometry.random_uniform(torch.zeros(1, 1, 200, 200), make_generators(1))
    assert -1 <= noise.min() < -0.99
    assert 0.99 < noise.max() < 1
    assert noise.std().item() == pytest.approx(3**-0.5, abs=0.01)


def test_random_starts_fill_the_ball_evenly():
    x = torch.zeros(2000, 1, 1, 2)
    drawn = geometry.random_in_ball(x, "l2", make_generators(2000))
    radius = drawn.flatten(1).norm(dim=1)
    assert radius.max() <= 1 + 1e-6
    for r in (0.3, 0.5, 0.8):  # in the plane, r^2 of the points lie within r
        assert abs(float((radius <= r).double().mean()) - r**2) < 0.04
    corners = geometry.random_in_ball(x, "linf", make_generators(2000))
    assert abs(float((corners.abs().amax(dim=(1, 2, 3)) <= 0.5).double().mean()) - 0.25) < 0.04
