"""Models behind sliding windows: logits as MONAI's, gradients as those of all windows at once, and little memory."""

from __future__ import annotations

import copy

import pytest
import torch
from monai.inferers.utils import sliding_window_inference
from runs import edit_json, write_run
from torch import nn
from typer.testing import CliRunner

import advseg_bench as ab
from advseg_bench.checks.sample import choose_sample, crop_volumes
from advseg_bench.cli.app import app
from advseg_bench.errors import IncompatibleError, SpecError
from advseg_bench.models.build import build_model
from advseg_bench.models.inference import Windows, slide
from advseg_bench.models.lean import Lean
from advseg_bench.models.module import SegmentationModule
from advseg_bench.models.prepare import prepare, prepare_checked
from advseg_bench.models.properties import count_flops, measure_receptive_field
from advseg_bench.report.contents import compose
from advseg_bench.report.summary import summarise
from advseg_bench.results.run import Run
from advseg_bench.suite.cells import model_identity, plan
from advseg_bench.suite.specs import Inference, ModelSpec
from advseg_bench.types import Task


def network(axes: int, channels: int = 1) -> nn.Module:
    """A network with a global statistic, so that windows do not see what whole images show."""
    convolution, norm = (nn.Conv2d, nn.InstanceNorm2d) if axes == 2 else (nn.Conv3d, nn.InstanceNorm3d)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(
            convolution(channels, 4, 3, padding=1),
            norm(4),
            nn.SiLU(),
            convolution(4, 4, 3, padding=1),
            nn.ReLU(),
            convolution(4, 2, 1),
        )
    return net.eval().requires_grad_(False)


def images(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(1))


CASES = [
    ((2, 1, 50, 37), (16, 24), 0.25),
    ((1, 3, 64, 64), (32, 32), 0.5),
    ((1, 1, 20, 70), (32, 32), 0.25),
    ((1, 1, 9, 11), (16, 32), 0.0),
    ((1, 1, 32, 33), (32, 32), 0.9),
    ((1, 1, 20, 33, 18), (16, 16, 24), 0.5),
]


@pytest.mark.parametrize("mode", ["constant", "gaussian"])
@pytest.mark.parametrize(("shape", "roi", "overlap"), CASES)
def test_logits_and_gradients_equal_those_of_monai(shape, roi, overlap, mode) -> None:
    net, x = network(len(roi), shape[1]), images(*shape)
    model = ab.SlidingWindow(net, roi, overlap, mode)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    logits = model(ours)
    expected = sliding_window_inference(theirs, roi, 1, net, overlap=overlap, mode=mode)
    assert torch.allclose(logits, expected, rtol=0, atol=1e-6)
    towards = torch.randn(logits.shape, generator=torch.Generator().manual_seed(2))
    (found,) = torch.autograd.grad(logits, ours, towards)
    (wanted,) = torch.autograd.grad(expected, theirs, towards)
    assert torch.allclose(found, wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))
    assert wanted.abs().min(dim=0).values.count_nonzero() > 0.9 * wanted[0].numel() * bool(overlap < 0.9)


def test_small_images_are_padded_after_normalisation_as_monai_does() -> None:
    net, x = network(2), images(2, 1, 20, 27)
    windows = Windows((32, 32), 0.25, "gaussian")
    model = SegmentationModule(net, mean=0.449, std=0.226, windows=windows)
    wanted = sliding_window_inference((x - 0.449) / 0.226, (32, 32), 1, net, 0.25, "gaussian")
    assert torch.allclose(model(x), wanted, atol=1e-5)


def test_a_window_as_large_as_the_image_is_the_network_itself() -> None:
    net, x = network(2), images(2, 1, 24, 24)
    assert torch.equal(ab.SlidingWindow(net, 24)(x), net(x))


def test_gradients_of_parameters_are_those_of_all_windows_at_once() -> None:
    net, x = network(2).requires_grad_(), images(1, 1, 40, 40)
    model = ab.SlidingWindow(net, 16, 0.5, "gaussian")
    wanted = torch.autograd.grad(
        sliding_window_inference(x, (16, 16), 1, net, 0.5, mode="gaussian").sum(), net[0].weight
    )
    for training in (False, True):
        model.train(training)
        found = torch.autograd.grad(model(x).sum(), net[0].weight)
        assert torch.allclose(found[0], wanted[0], rtol=1e-4, atol=1e-4 * float(wanted[0].abs().max()))


def test_second_derivatives_are_refused() -> None:
    model, x = ab.SlidingWindow(network(2), 16), images(1, 1, 24, 24).requires_grad_()
    (gradient,) = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)
    with pytest.raises(IncompatibleError, match=r"inference.*second derivative"):
        torch.autograd.grad(gradient.sum(), x)


class _Held:
    """The bytes of the tensors that autograd saves, at most."""

    def __init__(self) -> None:
        self.now, self.most = 0, 0

    def pack(self, tensor: torch.Tensor) -> _Kept:
        return _Kept(self, tensor)


class _Kept:
    def __init__(self, held: _Held, tensor: torch.Tensor) -> None:
        self.held, self.tensor, self.size = held, tensor, tensor.nbytes
        held.now += self.size
        held.most = max(held.most, held.now)

    def __del__(self) -> None:
        self.held.now -= self.size


def measure_saved(model: nn.Module, x: torch.Tensor) -> int:
    held = _Held()
    leaf = x.clone().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(held.pack, lambda kept: kept.tensor):
        logits = model(leaf)
        torch.autograd.grad(logits.sum(), leaf)
    return held.most


def test_the_gradient_saves_what_one_window_needs() -> None:
    net = network(2)
    one = measure_saved(net, images(1, 1, 128, 128))
    whole = measure_saved(net, images(1, 1, 512, 512))
    windows = measure_saved(ab.SlidingWindow(net, 128), images(1, 1, 512, 512))
    assert windows < 1.5 * one + 4 * 512**2 * 4
    assert whole > 10 * one


@pytest.mark.parametrize("steps", [("lean",), ("fold", "lean")])
def test_copies_prepared_for_attacks_agree_and_are_lean_in_each_window(steps) -> None:
    model = SegmentationModule(network(2), windows=Windows((256,))).eval().requires_grad_(False)
    x = images(1, 1, 300, 280)
    choice = prepare_checked(model, x, steps)
    assert (choice.steps, choice.rejected) == (steps, {})
    copied = prepare(model, x, steps)
    mine, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    with Lean(small=0):
        assert Lean.innermost().small == 0
    assert Lean.innermost() is None
    assert torch.allclose(copied(mine), model(theirs), atol=1e-6)
    found = torch.autograd.grad(copied(mine).sum(), mine)[0]
    wanted = torch.autograd.grad(model(theirs).sum(), theirs)[0]
    assert torch.equal(found, wanted) if steps == ("lean",) else torch.allclose(found, wanted, atol=1e-4)


def test_a_window_is_run_again_under_the_conditions_of_its_forward() -> None:
    seen = []

    def net(x: torch.Tensor) -> torch.Tensor:
        seen.append((Lean.innermost() is not None, torch.is_autocast_enabled("cpu")))
        return 2 * x

    model, x = ab.SlidingWindow(net, 16, 0), images(1, 1, 16, 32).requires_grad_()
    with Lean(), torch.autocast("cpu", torch.bfloat16):
        logits = model(x)
    torch.autograd.grad(logits.sum(), x)
    assert seen == [(True, True)] * 4


class Dropping(nn.Module):
    """A network in eval mode whose random numbers are those of the global generator."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 3 * nn.functional.dropout(x, 0.5, training=True).tanh()


@pytest.mark.parametrize("roi", [16, 40])
def test_the_gradient_of_a_stochastic_model_uses_the_random_numbers_of_its_logits(roi) -> None:
    net, x = Dropping().eval(), images(1, 1, 40, 40)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    with torch.random.fork_rng():
        torch.manual_seed(3)
        wanted = sliding_window_inference(theirs, (roi, roi), 1, net, overlap=0.5, mode="gaussian")
        after = torch.rand(1)
        torch.manual_seed(3)
        logits = ab.SlidingWindow(net, roi, 0.5, "gaussian")(ours)
        assert torch.allclose(logits, wanted, atol=1e-6)
        torch.rand(7)
        state = torch.get_rng_state()
        (gradient,) = torch.autograd.grad(logits.square().sum(), ours)
        assert torch.equal(torch.get_rng_state(), state)
        torch.manual_seed(3)
        ab.SlidingWindow(net, roi, 0.5)(x)
        assert torch.equal(torch.rand(1), after)
    (expected,) = torch.autograd.grad(wanted.square().sum(), theirs)
    assert (expected == 0).any()
    assert torch.allclose(gradient, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def test_evaluate_attacks_through_windows_and_counts_passes_of_the_model() -> None:
    net = network(2)
    batch = ab.Batch.of(images(2, 1, 40, 40), torch.zeros(2, 2, 40, 40), task="multilabel")
    attacks = [ab.attacks.FGSM(loss="bce"), ab.attacks.PGD(loss="bce", steps=3)]
    whole = ab.evaluate(net, [batch], attacks, batch=2)
    run = ab.evaluate({"Sequential": ab.SlidingWindow(net, 16, 0.5)}, [batch], attacks, batch=2)
    assert not run.failures
    assert set(run.rows["cell"]).isdisjoint(whole.rows["cell"])
    steps = run.rows.filter(run.rows["attack"] == "PGD") if "PGD" in set(run.rows["attack"]) else run.rows
    assert steps["forwards"].max() == 3
    assert steps["backwards"].max() == 3
    assert run.rows["flags"].explode().drop_nulls().to_list() == []


def test_a_built_model_is_the_model_in_every_respect() -> None:
    settings = {"kernel_size": 3, "padding": 1}
    spec = ModelSpec(name="tiny", architecture="torch.nn:Conv2d", settings=settings, mean=0.5, std=0.25)
    task = Task("multilabel", ("liver", "spleen"))
    inference = Inference(roi=16, overlap=0.5, mode="gaussian")
    model = build_model(spec, channels=1, task=task, size=40, inference=inference).eval()
    assert model.describe_outputs() == {"inference": {"roi": [16], "overlap": 0.5, "mode": "gaussian"}}
    assert model.head == ""
    x = images(1, 1, 40, 40)
    wanted = sliding_window_inference(x, (16, 16), 1, lambda z: model.net((z - 0.5) / 0.25), 0.5, mode="gaussian")
    assert torch.allclose(model(x), wanted, atol=1e-6)
    windows = len(Windows((16,), 0.5).list_places((40, 40)))
    assert count_flops(model, x) == windows * count_flops(model.net, images(1, 1, 16, 16))
    assert measure_receptive_field(model, x) == 3
    assert torch.equal(copy.deepcopy(model)(x), model(x))


def test_inference_enters_the_identity_of_a_model_only_if_it_is_given() -> None:
    suite = ab.Suite.load("smoke")
    assert "inference" not in suite.as_json()
    assert "inference" not in model_identity(suite, suite.models[0])
    given = ab.Suite.model_validate(suite.as_json() | {"inference": {"roi": [16, 16]}})
    assert ab.Suite.model_validate(given.as_json()) == given
    assert not {cell.id for cell in plan(given)} & {cell.id for cell in plan(suite)}
    same = ab.Suite.model_validate(suite.as_json() | {"inference": {"roi": 16}})
    other = ab.Suite.model_validate(suite.as_json() | {"inference": {"roi": [16]}})
    assert [cell.id for cell in plan(same)] == [cell.id for cell in plan(other)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"roi": [16, 16, 16]}, "inference.roi"),
        ({"roi": [0, 16]}, "roi"),
        ({"roi": 16, "overlap": 1.0}, "overlap"),
        ({"roi": 16, "mode": "box"}, "mode"),
        ({}, "roi"),
    ],
)
def test_an_invalid_table_is_refused(change, message, tmp_path) -> None:
    path = tmp_path / "suite.toml"
    values = "\n".join(f"{key} = {value!r}" for key, value in change.items())
    path.write_text(f'extends = "smoke"\nname = "windows"\n[inference]\n{values}\n')
    with pytest.raises(SpecError, match=message) as error:
        ab.Suite.load(path)
    assert "\n" not in str(error.value)


def test_windows_that_do_not_fit_are_refused() -> None:
    with pytest.raises(SpecError, match=r"overlap.*1\.5"):
        Windows((16,), 1.5)
    with pytest.raises(SpecError, match=r"mode.*'box'"):
        Windows((16,), 0.5, "box")
    with pytest.raises(SpecError, match=r"roi.*\[0\]"):
        Windows((0,))
    with pytest.raises(IncompatibleError, match=r"roi.*2 edges.*\[8, 8, 8\]"):
        ab.SlidingWindow(network(2), (8, 8, 8))(images(1, 1, 16, 16))
    with pytest.raises(IncompatibleError, match=r"window.*\(16, 16\).*\(15, 15\)"):
        slide(lambda z: z[:, :, 1:, 1:], nn.Identity().eval(), images(1, 1, 20, 20), Windows((16,)))


def test_windows_too_small_for_the_network_are_named_with_what_it_accepts() -> None:
    settings = {"channels": [4, 8, 8], "strides": [2, 2], "norm": "instance"}
    spec = ModelSpec(name="net", architecture="monai.UNet", settings=settings)
    task = Task("multilabel", ("a", "b"))
    with pytest.raises(IncompatibleError, match=r"net.*inference\.roi: .*such as \[8, 8\], got \[4, 4\]"):
        build_model(spec, channels=1, task=task, size=32, inference=Inference(roi=4))
    build_model(spec, channels=1, task=task, size=32, inference=Inference(roi=8))
    with pytest.raises(IncompatibleError, match=r"inference\.roi\) of 2 pixels.*got \[1, 1, 1\].*`inference\.roi`"):
        build_model(spec, channels=1, task=task, size=(16, 16, 16), inference=Inference(roi=1))
    deeper = nn.Sequential(nn.MaxPool2d(2), nn.ReflectionPad2d(2), nn.AvgPool2d(5, 1), nn.Upsample(scale_factor=2))
    model = ab.SlidingWindow(deeper, 4)
    batch = ab.Batch.of(images(1, 1, 32, 32), torch.zeros(1, 1, 32, 32), task="binary")
    with pytest.raises(IncompatibleError, match=r"inference\.roi.*such as \[8, 8\], got \[4, 4\]"):
        ab.evaluate(model, [batch], ab.attacks.FGSM(loss="bce"), batch=1)
    assert model.windows.roi == (4,)


def test_plan_and_report_show_the_sliding_windows(tmp_path):
    windows = "[inference]\nroi = [16, 24]\noverlap = 0.5\nmode = 'gaussian'\n"
    (tmp_path / "windows.toml").write_text(f'extends = "smoke"\nname = "windows"\n{windows}')
    suite = ab.Suite.load(tmp_path / "windows.toml")
    edges = suite.data.edges
    count = len(Windows((16, 24), 0.5).list_places([max(pair) for pair in zip(edges, (16, 24), strict=True)]))
    shown = f"16 x 24 px, overlap 0.5, gaussian; {count} per image"
    done = CliRunner().invoke(app, ["plan", str(tmp_path / "windows.toml")])
    assert f"sliding windows: {shown}" in done.output
    assert "sliding" not in CliRunner().invoke(app, ["plan", "smoke"]).output
    out = write_run(tmp_path / "run")
    assert "Sliding windows" not in dict(compose(summarise(Run(out))).facts)
    edit_json(out / "run.json", lambda info: info | {"suite": suite.as_json()})
    document = compose(summarise(Run(out)))
    assert dict(document.facts)["Sliding windows"] == shown
    repeated = next(section for section in document.sections if section.anchor == "repeat")
    tables = {getattr(block, "name", ""): block for block in repeated.blocks}
    assert dict(tables["conventions"].data.iter_rows())["Sliding windows"] == shown


def test_the_report_of_windows_in_memory_names_the_models_that_have_them():
    batch = ab.Batch.of(images(1, 1, 40, 40), torch.ones(1, 1, 40, 40), task="binary")
    attack = ab.attacks.FGSM(loss="bce")
    models = {"whole": lambda x: 4 * x - 2, "parts": ab.SlidingWindow(lambda x: 4 * x - 2, 16, 0)}
    facts = dict(compose(summarise(ab.evaluate(models, [batch], attack, batch=1))).facts)
    assert facts["Sliding windows"] == "parts: 16 x 16 px, overlap 0, constant; 9 per image"


def test_volumes_are_checked_on_crops_if_the_network_runs_on_them() -> None:
    x = images(1, 1, 128, 100, 40)
    assert torch.equal(crop_volumes(x), x[:, :, 48:80, 32:68])
    assert torch.equal(crop_volumes(x[:, :, 0]), x[:, :, 0])
    assert choose_sample(network(3), x).shape == (1, 1, 32, 36, 40)

    def picky(z: torch.Tensor) -> torch.Tensor:
        if z.shape != x.shape:
            raise ValueError(z.shape)
        return z

    assert choose_sample(picky, x) is x


def test_receptive_fields_do_not_depend_on_the_images_per_pass() -> None:
    net, x = network(3), images(3, 1, 20, 20, 20)
    assert measure_receptive_field(net, x, 1) == measure_receptive_field(net, x, 2) == measure_receptive_field(net, x)
