"""Defences: what they do to images, logits and gradients, and how suites name them."""

from __future__ import annotations

import sys
import types

import polars as pl
import pytest
import torch
from torch import nn

import advseg_bench as ab
from advseg_bench.defences.combining import combine_logits
from advseg_bench.errors import IncompatibleError, SpecError
from advseg_bench.models.defend import defend
from advseg_bench.registry.catalogue_defences import DEFENCES
from advseg_bench.registry.loading import load_defence
from advseg_bench.suite.specs import ModelSpec
from advseg_bench.types import Bounds, Task

TASK = Task("multilabel", ("liver", "spleen"))
UNIT, GREY = Bounds(), Bounds(0.0, 255.0)


def make_net(channels: int = 1, axes: int = 2) -> nn.Module:
    """A small network that is smooth, so that finite differences tell its gradient."""
    conv = nn.Conv3d if axes == 3 else nn.Conv2d
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        net = nn.Sequential(conv(channels, 3, 3, padding=1), nn.Tanh(), conv(3, 2, 3, padding=1))
    return net.eval().requires_grad_(False)


def make_images(axes: int = 2, edge: int = 8, bounds: Bounds = UNIT) -> torch.Tensor:
    x = torch.rand(2, 1, *[edge] * axes, generator=torch.Generator().manual_seed(1))
    return x * (bounds.upper - bounds.lower) + bounds.lower


def defend_by(name: str, model: nn.Module, bounds: Bounds = UNIT, **settings: object) -> nn.Module:
    return load_defence(name, settings, name)(model, TASK, bounds)


@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize("name", DEFENCES)
def test_logits_keep_shape_gradient_flows_and_images_stay_within_bounds(name, axes):
    if axes not in DEFENCES[name].traits.dims:
        pytest.skip("2-D only")
    for bounds in (UNIT, GREY):
        x = make_images(axes, bounds=bounds).requires_grad_()
        seen: list[torch.Tensor] = []
        net = make_net(axes=axes)
        net.register_forward_pre_hook(lambda _, given, seen=seen: seen.append(given[0]))
        with torch.random.fork_rng(devices=()):
            logits = defend_by(name, net, bounds)(x)
        assert logits.shape == (2, 2, *x.shape[2:])
        logits.square().sum().backward()
        assert float(x.grad.abs().sum()) > 0
        assert len(seen) == DEFENCES[name].traits_of({}, axes).forwards
        for image in seen:
            lowest, highest = image.detach().aminmax()
            assert float(lowest) >= bounds.lower - 1e-4
            assert float(highest) <= bounds.upper + 1e-4


@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize("name", [name for name, entry in DEFENCES.items() if entry.traits.differentiable])
def test_gradient_of_differentiable_defence_equals_finite_differences(name, axes):
    model, x = defend_by(name, make_net(axes=axes).double()), make_images(axes, edge=6).double()
    weights = torch.rand(2, 2, *x.shape[2:], generator=torch.Generator().manual_seed(3), dtype=x.dtype)

    def objective(images: torch.Tensor) -> torch.Tensor:
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(5)  # the same draw for a random defence
            return (model(images) * weights).sum()

    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(objective(leaf), leaf)
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(4), dtype=x.dtype)
    step = 1e-6
    slope = (objective(x + step * direction) - objective(x - step * direction)) / (2 * step)
    assert float((gradient * direction).sum()) == pytest.approx(float(slope), rel=2e-4)


@pytest.mark.parametrize("name", ["bit_depth", "jpeg"])
def test_bpda_is_the_gradient_of_the_network_at_the_transformed_image(name):
    net, x = make_net(), make_images(edge=16)
    through = x.clone().requires_grad_()
    defend_by(name, net)(through).square().sum().backward()
    inside = load_defence(name, {}, name).transform(x, UNIT).requires_grad_()
    net(inside).square().sum().backward()
    assert not torch.equal(inside, x)
    assert torch.equal(through.grad, inside.grad)


@pytest.mark.parametrize("bits", [1, 3, 8])
def test_bit_depth_leaves_2_to_the_bits_levels(bits):
    x = torch.linspace(0, 255, 4096).reshape(1, 1, 64, 64)
    levels = load_defence("bit_depth", {"bits": bits}, "").transform(x, GREY).unique()
    assert torch.allclose(levels, torch.linspace(0, 255, 2**bits), atol=1e-3)


def test_jpeg_at_lower_quality_is_farther_from_the_image():
    x = make_images(edge=32)
    near, far = (load_defence("jpeg", {"quality": q}, "").transform(x, UNIT).sub(x).square().mean() for q in (95, 10))
    assert 0 < float(near) < float(far)


def test_gaussian_and_median_equal_scipy():
    from scipy import ndimage

    x = make_images(3, edge=9)
    for name, settings, reference in (
        ("gaussian_smoothing", {"sigma": 0.8}, lambda a: ndimage.gaussian_filter(a, 0.8, mode="nearest", radius=3)),
        ("median", {"size": 3}, lambda a: ndimage.median_filter(a, 3, mode="nearest")),
    ):
        ours = load_defence(name, settings, "").transform(x, UNIT)
        theirs = torch.stack([torch.from_numpy(reference(image[0].numpy()))[None] for image in x])
        assert torch.allclose(ours, theirs, atol=1e-6), name


def test_total_variation_minimises_its_energy():
    x = make_images(edge=16).double()
    smooth = load_defence("total_variation", {"weight": 0.1, "steps": 2000}, "").transform(x, UNIT)

    def energy(u: torch.Tensor) -> float:
        rows, columns = torch.zeros_like(u), torch.zeros_like(u)
        rows[..., :-1, :], columns[..., :-1] = u.diff(dim=-2), u.diff(dim=-1)
        return float((rows.square() + columns.square()).sqrt().sum() + (u - x).square().sum() / (2 * 0.1))

    generator = torch.Generator().manual_seed(2)
    nearby = [
        smooth + s * torch.randn(x.shape, generator=generator, dtype=x.dtype) for s in (1e-3, 1e-2) for _ in "abc"
    ]
    assert all(energy(smooth) < energy(other) for other in (x, *nearby))


def test_mirroring_equals_the_mean_over_views_written_out():
    net, x = make_net(), make_images(edge=8)
    flips = [(), (2,), (3,), (2, 3)]
    mean = torch.stack([net(x.flip(axes)).flip(axes) for axes in flips]).mean(0)
    assert torch.allclose(defend_by("mirroring", net)(x), mean, atol=1e-6)
    one = torch.stack([net(x), net(x.flip(2)).flip(2)]).mean(0)
    assert torch.allclose(defend_by("mirroring", net, axes=[0])(x), one, atol=1e-6)


def test_mirroring_with_rotations_has_the_symmetries_of_the_square():
    model, x = defend_by("mirroring", make_net(), rotations=True), make_images(edge=8)
    turned = model(x.rot90(1, (-2, -1))).rot90(-1, (-2, -1))
    assert torch.allclose(model(x), turned, atol=1e-6)


@pytest.mark.parametrize("kind", ["multilabel", "multiclass"])
def test_combinations_are_what_they_are_called(kind):
    task = Task(kind, ("a", "b", "c"))
    logits = [3 * torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    probabilities = [each.softmax(1) if kind == "multiclass" else each.sigmoid() for each in logits]
    mean = torch.stack(probabilities).mean(0)
    combined = combine_logits(logits, task, "probabilities")
    found = combined.softmax(1) if kind == "multiclass" else combined.sigmoid()
    assert torch.allclose(found, mean, atol=1e-5)
    votes = combine_logits(logits, task, "vote")
    if kind == "multiclass":
        counted = torch.stack([nn.functional.one_hot(each.argmax(1), 3).movedim(-1, 1) for each in logits]).sum(0)
        assert torch.equal(votes.argmax(1), counted.argmax(1))
    else:
        assert torch.equal(votes > 0, torch.stack([each > 0 for each in logits]).sum(0) >= 2)


def test_vote_has_the_gradient_of_the_mean_of_probabilities():
    logits = [torch.randn(1, 2, 3, 3, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    gradients = []
    for how in ("vote", "probabilities"):
        leaves = [each.clone().requires_grad_() for each in logits]
        combine_logits(leaves, TASK, how).sum().backward()
        gradients.append([leaf.grad for leaf in leaves])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_first_defence_gets_the_image(monkeypatch):
    order: list[str] = []

    class Noted:
        traits = ab.defences.BitDepth.traits

        def __init__(self, name: str) -> None:
            self.name = name

        def __call__(self, model: nn.Module, task: Task, bounds: Bounds) -> nn.Module:
            return ab.defences.Defended(model, lambda x: (order.append(self.name), x)[1])

    module = types.ModuleType("noted_defences")
    module.first, module.second = Noted("first"), Noted("second")
    monkeypatch.setitem(sys.modules, "noted_defences", module)
    spec = ModelSpec(name="net", architecture="monai.UNet", defence=["noted_defences:first", "noted_defences:second"])
    defend(spec, make_net(), TASK, UNIT, 2)(make_images())
    assert order == ["first", "second"]


@pytest.mark.parametrize(
    ("defence", "words"),
    [
        ({"name": "jpeg", "quality": 0}, ("quality", "0")),
        ({"name": "jpeg", "quality": True}, ("quality", "True")),
        ({"name": "bit_depth", "bits": 17}, ("bits", "17")),
        ({"name": "bit_depth", "bit": 3}, ("bit", "bits")),
        ({"name": "median", "size": 4}, ("size", "4")),
        ({"name": "gaussian_smoothing", "sigma": 0}, ("sigma", "0")),
        ({"name": "total_variation", "weight": -1}, ("weight", "-1")),
        ({"name": "random_noise", "sigma": "much"}, ("sigma", "much")),
        ({"name": "random_resize", "smallest": 1.0}, ("smallest", "1.0")),
        ({"name": "mirroring", "axes": [0, 0]}, ("axes", "[0, 0]")),
        ({"name": "mirroring", "combine": "mean"}, ("combine", "'mean'")),
    ],
)
def test_wrong_setting_is_one_line(defence, words):
    spec = ModelSpec(name="net", architecture="monai.UNet", defence=defence)
    with pytest.raises(SpecError) as caught:
        defend(spec, make_net(), TASK, UNIT, 2)
    assert all(word in str(caught.value) for word in words)
    assert "\n" not in str(caught.value)


def make_suite(**model: object) -> ab.Suite:
    data = {"name": "phantom", "size": 16, "subjects": 4, "slices": 2}
    net = {"name": "net", "architecture": "monai.UNet", "settings": {"channels": [4, 4], "strides": [2]}}
    attacks = [{"name": "fgsm", "losses": ["dice"], "eps": ["4/255"]}]
    training = {"epochs": 1, "floor": 0}
    models = [net, net | {"name": "twin"} | model]
    return ab.Suite(name="tiny", data=data, models=models, training=training, attacks=attacks)


def test_undefended_model_keeps_its_identity():
    plain = make_suite().models[0]
    assert "defence" not in plain.model_dump(mode="json")
    assert make_suite(defence="jpeg").models[1].model_dump(mode="json")["defence"] == [{"name": "jpeg", "settings": {}}]
    assert not plain.random
    assert make_suite(defence="random_noise").models[1].random


def test_settings_beside_the_name_or_below_settings_are_the_same():
    beside = make_suite(defence={"name": "jpeg", "quality": 50})
    below = make_suite(defence=[{"name": "jpeg", "settings": {"quality": 50}}])
    assert beside == below
    assert ab.Suite.model_validate(below.as_json()) == below


@pytest.mark.parametrize(
    ("defence", "words"),
    [
        ({"name": "jpg"}, ("jpg", "jpeg")),
        ({"quality": 3}, ("name",)),
        ({"name": "jpeg", "quality": 3, "settings": {"quality": 4}}, ("quality", "Remove one")),
        (3, ("defence", "3")),
    ],
)
def test_mistake_in_a_suite_is_found_by_its_validation(defence, words, tmp_path):
    path = tmp_path / "suite.toml"
    value = "3" if defence == 3 else "{" + ", ".join(f"{k} = {_toml(v)}" for k, v in defence.items()) + "}"
    path.write_text(
        'schema = 1\nname = "a"\n[data]\nname = "phantom"\nsize = 16\n[[models]]\nname = "a"\n'
        f'architecture = "monai.UNet"\ndefence = {value}\n[[attacks]]\nname = "fgsm"\nlosses = ["dice"]\neps = [0.1]\n'
    )
    with pytest.raises(SpecError) as caught:
        ab.Suite.load(path)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def _toml(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k} = {_toml(v)}" for k, v in value.items()) + "}"
    return f'"{value}"' if isinstance(value, str) else str(value)


def test_jpeg_of_volumes_or_of_wide_intensities_is_refused():
    with pytest.raises(Exception, match="2 space axes") as caught:
        ab.Suite(
            name="tiny",
            data={"name": "folder", "path": "nowhere", "task": "binary", "classes": ["a"], "size": [8, 16, 16]},
            models=[{"name": "net", "architecture": "monai.UNet", "weights": "net.pt", "defence": "jpeg"}],
            attacks=[{"name": "fgsm", "losses": ["dice"], "eps": [0.1]}],
        )
    assert "jpeg" in str(caught.value)
    with pytest.raises(IncompatibleError, match="8 bits"):
        defend_by("jpeg", make_net(), Bounds(-1000.0, 1000.0))


def test_defended_twin_shares_the_training_and_differs_in_its_rows(tmp_path, monkeypatch):
    monkeypatch.setenv("ADVSEG_BENCH_CACHE", str(tmp_path / "cache"))
    suite = make_suite(defence=[{"name": "bit_depth", "bits": 2}, "mirroring"])
    run = ab.run(suite, tmp_path / "run")
    assert not run.failures
    entries = run.models
    assert entries["net"]["key"] == entries["twin"]["key"]
    assert [each["name"] for each in entries["twin"]["defence"]] == ["bit_depth", "mirroring"]
    assert "defence" not in entries["net"]
    counts = {name: part["fp"].to_list() for (name,), part in run.rows.group_by("model", maintain_order=True)}
    assert counts["net"] != counts["twin"]
    again = ab.run(suite, tmp_path / "again", shard=1)
    assert again.rows.drop("settings").equals(run.rows.drop("settings"))


def test_random_defence_has_repeats(tmp_path, monkeypatch):
    monkeypatch.setenv("ADVSEG_BENCH_CACHE", str(tmp_path / "cache"))
    run = ab.run(make_suite(defence={"name": "random_noise", "sigma": 0.2}, repeats=3), tmp_path / "run")
    assert not run.failures
    draws = run.rows.group_by("model", "attack").agg(n=pl.col("draw").n_unique()).rows()
    assert {(model, n) for model, _, n in draws} == {("net", 1), ("twin", 3)}
