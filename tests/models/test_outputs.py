"""Logits from what networks return, and networks that cannot be copied, differ in float64, or are TorchScript."""

from __future__ import annotations

import json
import warnings
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from any_networks import Body, make
from torch import Tensor, nn

import advseg_bench as ab
from advseg_bench.attacks.gradient import FGSM
from advseg_bench.checks.outputs import Outputs, Segmenter, read_model
from advseg_bench.errors import DataError, IncompatibleError, SpecError
from advseg_bench.models.build import build_model
from advseg_bench.models.module import SegmentationModule
from advseg_bench.models.prepare import prepare_checked
from advseg_bench.suite.cells import model_identity
from advseg_bench.suite.specs import ModelSpec
from advseg_bench.suite.suite import Suite


def draw(*size: int, seed: int = 0) -> Tensor:
    return torch.rand(size, generator=torch.Generator().manual_seed(seed))


X = draw(2, 1, 16, 16)
FULL = torch.arange(2 * 2 * 256, dtype=torch.float32).reshape(2, 2, 16, 16)
SMALL = FULL[..., ::4, ::4]
TASK = ab.Task("multilabel", ("a", "b"))
Pair = namedtuple("Pair", ["features", "pred"])


@pytest.mark.parametrize(
    ("returned", "output", "seen"),
    [
        (FULL, None, None),
        ({"aux": SMALL, "out": FULL}, None, "out"),
        ({"logits": FULL, "pred": SMALL}, None, "logits"),
        ({"pred": FULL, "loss": None}, None, "pred"),
        ({"mask": FULL, "out": SMALL}, "mask", "mask"),
        ([FULL, SMALL], None, "0"),
        ((FULL, torch.zeros(2, 5)), None, "0"),
        ([SMALL, FULL], "1", "1"),
        (Pair(X, FULL), None, "pred"),
        (Pair(FULL, X), "features", "features"),
        (SimpleNamespace(logits=FULL), None, "logits"),
        (SimpleNamespace(mask=FULL), "mask", "mask"),
    ],
)
def test_logits_are_found(returned: Any, output: str | None, seen: str | None) -> None:
    outputs = Outputs("it", output)
    assert outputs.read(returned, X) is FULL
    assert outputs.seen.output == seen


@pytest.mark.parametrize(
    ("returned", "output", "match"),
    [
        ({"mask": FULL}, None, "it: expected a tensor of logits or one of out, logits, pred, got dict with mask. Set"),
        ({"out": FULL}, "mask", "it: expected a tensor of logits or output 'mask', got dict with out"),
        (FULL, "out", "it: expected an output 'out', got 'one tensor'. Remove `output`"),
        ([SMALL, FULL], None, r"it: expected the logits of full resolution first .* Set output = \"1\""),
        ([{"masks": FULL}], None, "it: expected a tensor .* got list with no tensors"),
        ([], None, "it: expected a tensor .* got list with no tensors"),
        (None, None, "it: expected a tensor .* got NoneType with no tensors"),
        (FULL > 3, None, r"it: expected float32 tensor of logits, got 'torch\.bool'"),
        (FULL[..., :15], None, r"logits of shape \(2, K, 16, 16\), got \(2, 2, 16, 15\)"),
        (FULL[..., ::3, ::3], None, r"logits of shape \(2, K, 16, 16\), got \(2, 2, 6, 6\)"),
        (FULL[..., :1, :1], None, r"logits of shape \(2, K, 16, 16\), got \(2, 2, 1, 1\)"),
        (FULL[:1], None, r"logits of shape \(2, K, 16, 16\), got \(1, 2, 16, 16\)"),
        (FULL[:, 0], None, r"logits of shape \(2, K, 16, 16\), got \(2, 16, 16\)"),
    ],
)
def test_what_holds_no_logits_is_refused(returned: Any, output: str | None, match: str) -> None:
    with pytest.raises(IncompatibleError, match=match) as caught:
        Outputs("it", output).read(returned, X)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_small_logits_are_enlarged_as_pytorch_does_without_aligned_corners(axes: int) -> None:
    x, small = draw(2, 1, *[8, 12, 16][:axes]), draw(2, 3, *[4, 3, 8][:axes])
    outputs = Outputs("it")
    mode = ("linear", "bilinear", "trilinear")[axes - 1]
    wanted = F.interpolate(small, size=x.shape[2:], mode=mode, align_corners=False)
    assert torch.equal(outputs.read(small, x), wanted)
    assert outputs.seen.resized == (2, 4, 2)[:axes]
    with pytest.raises(IncompatibleError, match="Set resize_logits = true"):
        Outputs("it", resize=False).read(small, x)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_logits_of_another_precision_are_cast_and_it_is_recorded(dtype: torch.dtype) -> None:
    outputs = Outputs("it")
    assert torch.equal(outputs.read(FULL.to(dtype), X), FULL.to(dtype).float())
    assert outputs.describe()["outputs"]["cast"] == str(dtype).removeprefix("torch.")


def test_padding_is_cropped_after_logits_are_enlarged() -> None:
    spec = ModelSpec(name="it", architecture="any_networks:make", settings={"output": "quarter"}, stride=8)
    model = build_model(spec, channels=1, task=TASK, size=(13, 10)).eval()
    assert model(draw(1, 1, 13, 10)).shape == (1, 2, 13, 10)
    assert model.describe_outputs()["outputs"]["resized"] == [4, 4]


def make_batch(x: Tensor) -> ab.Batch:
    return ab.Batch.of(x, draw(len(x), 2, 16, 16, seed=1) > 0.5, task=TASK)


def test_what_is_read_is_told_once_and_recorded() -> None:
    with pytest.warns(UserWarning, match="model it: reads output 'out'. To choose otherwise") as told:
        run = ab.evaluate({"it": make("dict")}, [make_batch(X)], [FGSM(loss="bce")])
    assert len(told) == 1
    assert run.models["it"]["outputs"] == {"output": "out", "described": "reads output 'out'"}


def test_a_declared_output_is_not_told() -> None:
    net = make("dict")
    declared = ab.as_segmenter(net, output="out")
    x_adv = FGSM(loss="bce")(declared, make_batch(X), eps=0.1)
    assert not torch.equal(x_adv, X)
    assert ab.as_segmenter(declared) is declared
    with pytest.raises(SpecError, match="key, attribute or position as `output`, got 1"):
        ab.as_segmenter(net, output=1.5)  # type: ignore[arg-type]


def test_a_plain_network_is_attacked_itself() -> None:
    met = []

    def attack(model: Any, batch: ab.Batch, *, budget: Any, generators: Any) -> Tensor:
        met.append(model)
        return batch.x + 0.01

    net = make()
    run = ab.evaluate(net, [make_batch(X * 0.9)], {"mine": attack})
    assert not run.failures
    assert "outputs" not in run.models["Body"]
    ab.attacks.FGSM(loss="bce")(net, make_batch(X), eps=0.1)
    assert all(not isinstance(model, Segmenter) for model in met)


@pytest.mark.parametrize("wrapper", ["inplace", "frozen", "scripted"])
def test_the_callers_images_and_model_are_left_alone(wrapper: str) -> None:
    net, x = make("tensor", wrapper), X.clone()
    had = [hasattr(module, "training") for module in net.modules()]
    ab.evaluate(net, [make_batch(x)], [FGSM(loss="bce")])
    FGSM(loss="bce")(net, make_batch(x), eps=0.1)
    assert torch.equal(x, X)
    assert [hasattr(module, "training") for module in net.modules()] == had


# Preparation: what cannot be copied or run in float64.


class Counting(Body):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x)


def test_raw_skips_every_check_of_copies() -> None:
    with torch.random.fork_rng(devices=()):
        net = Counting().eval().requires_grad_(False)
    choice = prepare_checked(net, X, ())
    assert choice.model is net
    assert net.calls == 0
    assert choice.as_record() == {
        "steps": [],
        "gradient_error": None,
        "raw_gradient_error": None,
        "rejected": {},
    }
    assert json.loads(json.dumps(choice.as_record(), allow_nan=False)) == choice.as_record()


@pytest.mark.parametrize("wrapper", ["keeping", "old_weight_norm", "weight_norm"])
def test_a_network_that_keeps_its_graph_is_copied_after_a_forward_without_one(wrapper: str) -> None:
    net = make("tensor", wrapper)
    net(X).sum().backward()
    net.requires_grad_(False)
    choice = prepare_checked(net, X, ["lean"])
    assert choice.steps == ("lean",)
    assert 0 < choice.error < 1e-4


@pytest.mark.parametrize(("steps", "taken"), [(("lean",), ("lean",)), (("fold",), ())])
def test_without_float64_a_copy_must_have_the_models_gradient(steps: tuple[str, ...], taken: tuple[str, ...]) -> None:
    net = make("tensor", "fp32").requires_grad_(False)
    net.norm.running_mean.fill_(0.1)  # type: ignore[union-attr, operator]
    choice = prepare_checked(net, X, steps)
    assert choice.steps == taken
    assert "a model that runs in float64" in choice.no_float64
    assert choice.as_record()["gradient_error"] is None
    if not taken:
        assert "another gradient than the model's" in choice.rejected["fold"]


def test_a_copy_that_reads_what_a_hook_writes_to_the_original_is_not_used() -> None:
    net = make("tensor", "stale").requires_grad_(False)
    net(torch.zeros_like(X))
    choice = prepare_checked(net, X, ["lean"])
    assert choice.model is net
    assert choice.rejected


def test_a_network_that_cannot_be_differentiated_is_given_to_the_attacks_as_it_is() -> None:
    net = make().requires_grad_(False)
    net.register_forward_hook(lambda module, args, out: out.detach())
    choice = prepare_checked(net, X, ["lean"])
    assert choice.model is net
    assert "does not require grad" in choice.rejected["lean"]


# TorchScript, torchvision, normalisation.


def save_script(folder: Path, wrapper: str = "scripted") -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated
        torch.jit.save(make("dict", wrapper), folder / "model.ts")
    return folder / "model.ts"


@pytest.mark.parametrize("wrapper", ["scripted", "traced", "frozen"])
def test_a_trusted_torchscript_file_is_a_model(tmp_path: Path, wrapper: str) -> None:
    spec = ModelSpec(name="it", architecture="torchscript", weights=save_script(tmp_path, wrapper), trust=True)
    model = build_model(spec, channels=1, task=TASK, size=16).eval()
    torch.testing.assert_close(model(X), make()(X))


@pytest.mark.parametrize(
    ("keys", "error", "match"),
    [
        ({"trust": False}, SpecError, r"model 'it': expected `trust` to open .*model\.ts, got False"),
        ({"encoder": "resnet18"}, SpecError, "expected no `encoder` for a TorchScript file, got 'resnet18'"),
        ({"weights": Path("absent.ts")}, SpecError, "absent.ts: expected a readable TorchScript file"),
        ({"weights": Path(__file__)}, DataError, r"test_outputs\.py: expected a TorchScript file, got"),
    ],
)
def test_torchscript_that_cannot_be_opened_is_one_line(
    tmp_path: Path, keys: dict[str, Any], error: type[Exception], match: str
) -> None:
    given = {"weights": save_script(tmp_path), "trust": True} | keys
    with pytest.raises(error, match=match) as caught:
        build_model(ModelSpec(name="it", architecture="torchscript", **given), channels=1, task=TASK, size=16)
    assert "\n" not in str(caught.value)


def test_a_file_is_no_architecture() -> None:
    with pytest.raises(ValueError, match="got a file"):
        ModelSpec(name="it", architecture="nets/model.ts")


def test_probabilities_of_torchscript_are_refused_and_its_logits_are_not() -> None:
    from advseg_adapters.art import as_estimator

    options = {"task": "binary", "loss": "bce", "input_shape": (1, 16, 16)}
    with torch.random.fork_rng(devices=()), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated
        net = nn.Conv2d(1, 1, 1)
        net.weight.fill_(0.5)
        nn.init.constant_(net.bias, 0.2)  # type: ignore[arg-type]
        logits = net(X)
        traced = torch.jit.trace(net, X)
        squeezed = torch.jit.trace(nn.Sequential(net, nn.Sigmoid()), X)
    assert 0 < logits.min() < logits.max() < 1
    as_estimator(traced, **options)
    with pytest.raises(IncompatibleError, match="expected raw logits, got values between 0 and 1"):
        as_estimator(squeezed, **options)


@pytest.mark.parametrize("name", ["lraspp_mobilenet_v3_large", "deeplabv3_mobilenet_v3_large"])
def test_torchvisions_networks_download_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torchvision")
    monkeypatch.setattr("torch.hub.load_state_dict_from_url", lambda *args, **keys: pytest.fail("downloads"))
    spec = ModelSpec(name="it", architecture=f"torchvision.models.segmentation:{name}", settings={"progress": False})
    model = build_model(spec, channels=3, task=TASK, size=64)
    assert model.outputs.seen.output == "out"
    assert model.net.get_submodule(model.head).out_channels == 2  # type: ignore[arg-type]


def test_auxiliary_heads_do_not_hide_the_head_or_a_sigmoid() -> None:
    spec = ModelSpec(name="it", architecture="test_outputs:WithAuxiliary")
    assert build_model(spec, channels=1, task=TASK, size=16).head == "head"
    squeezed = ModelSpec(name="it", architecture="test_outputs:WithAuxiliary", settings={"squeeze": True})
    with pytest.raises(IncompatibleError, match=r"expected raw logits, .* layer 'head'"):
        build_model(squeezed, channels=1, task=TASK, size=16)


class WithAuxiliary(nn.Module):
    """Computes the logits of its auxiliary head last."""

    def __init__(self, squeeze: bool = False) -> None:
        super().__init__()
        self.head, self.aux, self.squeeze = nn.Conv2d(1, 2, 1), nn.Conv2d(1, 2, 1), squeeze

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        out = self.head(x)
        return {"out": out.sigmoid() if self.squeeze else out, "aux": self.aux(x)}


def test_mean_and_std_per_channel_are_those_of_the_image() -> None:
    spec = ModelSpec(
        name="it", architecture="torch.nn:Conv2d", settings={"kernel_size": 1}, mean=[0.1, 0.2, 0.3], std=[1, 2, 4]
    )
    model = build_model(spec, channels=3, task=TASK, size=16)
    x = draw(1, 3, 16, 16)
    z = torch.stack([(x[:, 0] - 0.1) / 1, (x[:, 1] - 0.2) / 2, (x[:, 2] - 0.3) / 4], 1)
    torch.testing.assert_close(model(x), model.net(z))
    with pytest.raises(SpecError, match=r"`mean`, or one for each of 1 channels, got \[0\.1, 0\.2, 0\.3\]"):
        build_model(spec, channels=1, task=TASK, size=16)


@pytest.mark.parametrize("std", [0, [1.0, -1.0], [], "wide", True, [float("inf")]])
def test_a_std_without_meaning_is_refused(std: Any) -> None:
    with pytest.raises(ValueError, match=r"std\n.*expected (positive|finite|a) number"):
        ModelSpec(name="it", architecture="torch.nn:Conv2d", std=std)


def test_keys_of_outputs_enter_the_identity_of_a_model_only_where_they_are_set() -> None:
    suite = Suite.load("smoke")
    spec = suite.models[0]
    keys = {"output", "resize_logits", "trust"}
    assert not keys & model_identity(suite, spec)["model"].keys()  # type: ignore[attr-defined]
    changed = spec.model_copy(update={"output": "aux", "resize_logits": False})
    found = model_identity(suite, changed)["model"]
    assert (found["output"], found["resize_logits"]) == ("aux", False)  # type: ignore[index]
    assert ModelSpec.model_validate(spec.model_dump()) == spec


class Overwrites(nn.Module):
    """Halves its input where no counter sees it."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        logits = 4 * x - 2
        if self.how == "data":
            x.data.mul_(0.5)
        else:
            x.detach().numpy()[:] *= 0.5
        return logits


@pytest.mark.parametrize("how", ["data", "numpy"])
def test_a_model_that_overwrites_its_input_unseen_gets_copies(how):
    x = torch.linspace(0, 1, 128).reshape(2, 1, 8, 8)
    reader = read_model("model", Overwrites(how))
    with torch.no_grad():
        reader(x)
    assert reader.simplest() is reader


@pytest.mark.parametrize("wrap", [lambda net: ab.SlidingWindow(net, roi=8), SegmentationModule])
def test_wrappers_announce_and_record_what_they_read(wrap):
    class Halved(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"out": 4 * x[..., ::2, ::2] - 2}

    x = torch.linspace(0, 1, 128).reshape(2, 1, 8, 8)
    given = ab.Batch.of(x, x > 0.5, task="binary")
    with pytest.warns(UserWarning, match="reads output 'out', enlarges logits 2 x 2 times"):
        run = ab.evaluate({"net": wrap(Halved())}, [given], ab.attacks.FGSM(loss="bce"))
    assert run.models["net"]["outputs"]["output"] == "out"
