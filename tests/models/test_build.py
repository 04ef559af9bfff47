import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from advseg_bench import catalogue
from advseg_bench.errors import IncompatibleError, PluginError, SpecError
from advseg_bench.models.build import build_model, set_head_bias
from advseg_bench.models.module import SegmentationModule
from advseg_bench.models.weights import count_parameters
from advseg_bench.specs import ModelSpec
from advseg_bench.types import Task

TASK = Task("multilabel", ("gm", "wm", "csf"))
ENCODERS = {"smp.DPT": "tu-vit_tiny_patch16_224", "monai.FlexibleUNet": "efficientnet-b0"}
SETTINGS: dict[str, dict[str, Any]] = {"monai.BasicUNet": {"features": [8, 8, 16, 16, 32, 8]}}
STRIDES = {
    **dict.fromkeys(catalogue.ARCHITECTURES, 32),
    "smp.PSPNet": 8,
    "smp.DeepLabV3": 8,
    "smp.DeepLabV3Plus": 16,
    "smp.PAN": 16,
    "monai.BasicUNet": 16,
    "monai.UNet": 8,
    "monai.AttentionUnet": 8,
    "monai.SegResNet": 8,
}


def specify(architecture: str, encoder: str | None = None, **keys: Any) -> ModelSpec:
    return ModelSpec(name="it", architecture=architecture, encoder=encoder, **keys)


def specify_usual(architecture: str) -> ModelSpec:
    """Every architecture with a small encoder, if it takes one."""
    encoder = ENCODERS.get(architecture, "resnet18" if architecture.startswith("smp.") else None)
    return specify(architecture, encoder, settings=SETTINGS.get(architecture, {}))


def build(
    spec: ModelSpec, *, channels: int = 1, task: Task = TASK, size: int = 64, seed: int = 0
) -> SegmentationModule:
    return build_model(spec, channels=channels, task=task, size=size, seed=seed)


def build_own(name: str, *, task: Task = TASK, size: int = 16, seed: int = 0, **keys: Any) -> SegmentationModule:
    """A network of this file."""
    return build(specify(f"{__name__}:{name}", **keys), task=task, size=size, seed=seed)


def draw(*size: int) -> Tensor:
    return torch.rand(size, generator=torch.Generator().manual_seed(1))


# Networks of users.
class Plain(nn.Module):
    """A convolution, and what a test puts behind it."""

    def __init__(
        self, in_channels: int, classes: int, finish: str = "nothing", *, bias: bool = True, level: float | None = None
    ) -> None:
        super().__init__()
        self.first = nn.Conv2d(in_channels, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)
        self.last = nn.Conv2d(4, classes, 1, bias=bias)
        self.finish = FINISHES[finish]
        if level is not None:
            nn.init.zeros_(self.last.weight)
            nn.init.constant_(self.last.bias, level)

    def forward(self, x: Tensor) -> Any:
        return self.finish(self.last(self.drop(self.norm(self.first(x)).relu())))


FINISHES: dict[str, Callable[[Tensor], Any]] = {
    "nothing": lambda z: z,
    "relu": lambda z: z.relu(),
    "bent": lambda z: 2 * z,
    "sigmoid": torch.sigmoid,
    "module": nn.Sequential(nn.Identity(), nn.Sigmoid(), nn.Identity()),
    "formula": lambda z: 1 / (1 + (-z).exp()),
    "softmax": lambda z: z.softmax(dim=1),
    "clamp": lambda z: z.clamp(0, 1),
    "resized": lambda z: nn.functional.interpolate(z.sigmoid()[..., ::2, ::2], scale_factor=2.0),
    "tuple": lambda z: (z, z),
    "dict": lambda z: {"out": z},
    "labels": lambda z: z > 0,
    "half": lambda z: z.half(),
    "small": lambda z: z[..., ::2, ::2],
    "flat": lambda z: z.flatten(1),
    "nan": lambda z: z / 0 - z / 0,
    "many": lambda z: torch.cat([z, z], dim=1),
}


class Torchvision(nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.layer = nn.Conv2d(1, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)  # type: ignore[no-any-return]


class Formula(nn.Module):
    """No layers at all."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight[:, None, None]


class PixelLinear(nn.Module):
    """A head that is a linear layer over channels-last pixels."""

    def __init__(self, in_channels: int, classes: int) -> None:
        super().__init__()
        self.layer = nn.Linear(in_channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.movedim(1, -1)).movedim(-1, 1)  # type: ignore[no-any-return]


def make_anything(**arguments: Any) -> nn.Module:
    return Plain(**arguments)


def make_nothing() -> None:
    return None


def make_trouble() -> nn.Module:
    raise RuntimeError("two\nlines")


network = Formula()


# What the libraries offer.
def test_catalogue_lists_what_smp_exports() -> None:
    import segmentation_models_pytorch as smp

    exported = [getattr(smp, name) for name in smp.__all__]
    networks = {c.__name__ for c in exported if isinstance(c, type) and issubclass(c, smp.base.SegmentationModel)}
    assert networks == set(catalogue.SMP_ARCHITECTURES)


@pytest.mark.parametrize("architecture", catalogue.ARCHITECTURES)
def test_architecture_gives_logits_gradients_and_a_head(architecture: str) -> None:
    size = 128 if architecture == "smp.PAN" else 64
    model = build(specify_usual(architecture), size=size)
    assert model.stride == STRIDES[architecture]
    assert model.training
    model.eval()
    x = draw(1, 1, size, size).requires_grad_()
    logits = model(x)
    assert logits.shape == (1, 3, size, size)
    (gradient,) = torch.autograd.grad(logits.square().sum(), x)
    assert bool(torch.isfinite(gradient).all())
    assert float((gradient != 0).float().mean()) > 0.9
    with torch.no_grad():
        set_head_bias(model, 0.0)
        without = model(x)
        set_head_bias(model, -2.5)
        torch.testing.assert_close(model(x), without - 2.5, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("architecture", catalogue.ARCHITECTURES)
def test_odd_sizes_are_padded_and_whole_ones_equal_the_bare_network(architecture: str) -> None:
    extra = 64 if architecture == "smp.PAN" else 0  # it takes no less than 128 pixels
    model = build(specify_usual(architecture), size=64 + extra).eval()
    with torch.no_grad():
        assert model(draw(1, 1, 50 + extra, 70 + extra)).shape == (1, 3, 50 + extra, 70 + extra)
        x = draw(1, 1, 64 + extra, 96 + extra)
        assert torch.equal(model(x), model.net(x))


def test_odd_size_at_build_time_is_padded_too() -> None:
    assert build(specify("smp.Unet", "resnet18"), size=50).eval()(draw(1, 1, 50, 70)).shape == (1, 3, 50, 70)


@pytest.mark.parametrize(
    ("architecture", "encoder", "parameters"),
    [
        ("smp.Unet", "vgg13", 18_438_835),
        ("smp.Unet", "resnext101_32x8d", 95_755_699),
        ("smp.Unet", "efficientnet-b7", 67_095_619),
        ("smp.UnetPlusPlus", "efficientnet-b7", 68_163_843),
    ],
)
def test_networks_of_the_study_have_the_known_size(architecture: str, encoder: str, parameters: int) -> None:
    assert count_parameters(build(specify(architecture, encoder), channels=3, size=32)) == parameters


@pytest.mark.parametrize("encoder", ["mobilenet_v2", "mit_b0", "tu-convnext_atto", "tu-mobilenetv3_small_050"])
def test_encoders_of_every_origin_build(encoder: str) -> None:
    assert build(specify("smp.Unet", encoder)).head == "segmentation_head.0"


@pytest.mark.parametrize(
    ("architecture", "given", "stride"),
    [
        ("smp.Unet", {"encoder_depth": 3, "decoder_channels": [32, 16, 8]}, 8),
        ("smp.Linknet", {"encoder_depth": 4}, 16),
        ("monai.UNet", {"channels": [4, 8, 16]}, 4),
        ("monai.UNet", {"channels": [4, 8, 16], "strides": [[2, 1], 2], "num_res_units": 0}, 4),
        ("monai.AttentionUnet", {"channels": [4, 8, 16], "strides": [2, 4]}, 8),
        ("monai.SegResNet", {"blocks_down": [1, 1], "blocks_up": [1], "norm": ["group", {"num_groups": 4}]}, 2),
    ],
)
def test_settings_reach_the_network_and_its_stride(architecture: str, given: dict[str, Any], stride: int) -> None:
    model = build(specify(architecture, "resnet18" if "smp" in architecture else None, settings=given))
    assert model.stride == stride
    assert model.eval()(draw(1, 1, 41, 50)).shape == (1, 3, 41, 50)


def test_specification_sets_normalisation_and_stride() -> None:
    model = build_own("Plain", mean=0.5, std=0.25, stride=4)
    assert (float(model.mean), float(model.std), model.stride) == (0.5, 0.25, 4)


# Randomness and state.
@pytest.mark.parametrize("spec", [specify("smp.Unet", "resnet18"), specify("monai.UNet")], ids=["smp", "monai"])
def test_seed_decides_the_weights_and_the_callers_randomness_does_not(spec: ModelSpec) -> None:
    first, state = build(spec, seed=3).state_dict(), torch.random.get_rng_state()
    with torch.random.fork_rng(devices=()):
        torch.default_generator.manual_seed(99)
        again, other = build(spec, seed=3).state_dict(), build(spec, seed=4).state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_check_leaves_buffers_and_training_flags_alone() -> None:
    model = build_own("make_with_frozen_norm")
    assert [model.net.training, model.net.first.training, model.net.norm.training] == [True, True, False]
    assert int(model.net.norm.num_batches_tracked) == 0
    assert float(model.net.norm.running_mean.abs().max()) == 0
    assert all(not module._forward_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def make_with_frozen_norm(in_channels: int, classes: int) -> nn.Module:
    net = Plain(in_channels, classes)
    net.norm.eval()
    return net


@pytest.mark.parametrize(
    ("used", "unused", "architecture", "encoder"),
    [
        ("segmentation_models_pytorch", "monai", "smp.Unet", "resnet18"),
        ("monai", "segmentation_models_pytorch", "monai.BasicUNet", None),
    ],
)
def test_only_the_library_that_is_needed_is_imported(
    used: str, unused: str, architecture: str, encoder: str | None
) -> None:
    script = f"""
import sys
from advseg_bench.models.build import build_model
from advseg_bench.specs import ModelSpec
from advseg_bench.types import Task
assert not {{"monai", "segmentation_models_pytorch", "timm"}} & sys.modules.keys()
spec = ModelSpec(name="it", architecture={architecture!r}, encoder={encoder!r})
build_model(spec, channels=1, task=Task("binary", ("a",)), size=32)
assert {used!r} in sys.modules and {unused!r} not in sys.modules
"""
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# Logits or not.
@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("finish", ["sigmoid", "module", "formula", "clamp", "resized"])
def test_probabilities_are_refused(finish: str, classes: int) -> None:
    task = Task("multilabel", ("a", "b", "c")[:classes])
    with pytest.raises(
        IncompatibleError, match=r"model 'it': expected raw logits, .*'last'.* Remove the final sigmoid"
    ):
        build_own("Plain", task=task, settings={"finish": finish})


def test_softmax_is_refused() -> None:
    with pytest.raises(IncompatibleError, match="Remove the final sigmoid or softmax"):
        build_own("Plain", settings={"finish": "softmax"}, task=Task("multiclass", ("a", "b", "c")))


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    classes=st.integers(1, 3),
    finish=st.sampled_from(["nothing", "relu"]),
    level=st.none() | st.floats(0.0, 1.0, width=32),
)
def test_logits_raise_no_false_alarm(seed: int, classes: int, finish: str, level: float | None) -> None:
    task = Task("multilabel", ("a", "b", "c")[:classes])
    given_settings = {"finish": finish} | ({} if level is None else {"level": level})
    model = build_own("Plain", task=task, settings=given_settings, seed=seed)
    if finish == "nothing":
        assert model.head == "last"


def test_layer_behind_which_logits_are_bent_is_no_head() -> None:
    assert build_own("Plain", settings={"finish": "bent"}).head is None


@pytest.mark.parametrize(
    ("finish", "match"),
    [
        ("tuple", r"one tensor of 3 logit channels \(gm, wm, csf\), got 'tuple'\. Return the segmentation alone"),
        ("dict", "one tensor of 3 logit channels .*, got 'dict'"),
        ("labels", r"float32 tensor of 3 logit channels .*, got 'torch\.bool'\. Return raw logits"),
        ("half", r"got 'torch\.float16'"),
        ("many", r"expected 3 logit channels \(gm, wm, csf\), got 6\. Set the number of classes"),
        ("small", r"logits of shape \(2, 3, 16, 16\), got \(2, 3, 8, 8\)\. Logits must have the size"),
        ("flat", r"logits of shape \(2, 3, 16, 16\), got \(2, 768\)"),
        ("nan", "expected finite logits, got NaN or infinity"),
    ],
)
def test_anything_but_logits_is_refused(finish: str, match: str) -> None:
    for stride in (1, 16):
        with pytest.raises(IncompatibleError, match=match):
            build_own("Plain", settings={"finish": finish}, stride=stride)


def test_an_image_too_small_for_the_network_is_refused() -> None:
    with pytest.raises(IncompatibleError, match=r"fails on images of shape \(1, 64, 64\): RuntimeError: .*Give larger"):
        build(specify("smp.PAN", "resnet18"), size=64)


def test_head_without_bias_or_no_head_is_refused() -> None:
    with pytest.raises(IncompatibleError, match=r"head_bias: expected .* got Plain\. Give its last convolution a bias"):
        set_head_bias(build_own("Plain", settings={"bias": False}), 1.0)
    with pytest.raises(IncompatibleError, match="got Formula"):
        set_head_bias(build_own("Formula"), 1.0)


def test_linear_layer_can_be_the_head() -> None:
    model = build_own("PixelLinear")
    set_head_bias(model, 4.0)
    assert model.net.layer.bias.tolist() == [4.0] * 3


# Users' networks.
@pytest.mark.parametrize("name", ["Plain", "make_anything", "Torchvision", "Formula"])
def test_users_network_is_called_with_what_it_accepts(name: str) -> None:
    assert build_own(name).eval()(draw(2, 1, 16, 16)).shape == (2, 3, 16, 16)


@pytest.mark.parametrize(
    ("architecture", "match"),
    [
        ("no_such_module:Net", "module 'no_such_module' cannot be imported: ModuleNotFoundError.*set PYTHONPATH"),
        (":Net", "module '' cannot be imported"),
        (f"{__name__}:Plane", rf"unknown object of {__name__} 'Plane'\. Did you mean 'Plain'\?"),
        (f"{__name__}:", "unknown object of"),
        (f"{__name__}:network", "to be a class or function that makes a network, got 'Formula'"),
        (f"{__name__}:TASK", "to be a class or function that makes a network, got 'Task'"),
        (f"{__name__}:make_nothing", r"to make a torch\.nn\.Module, got 'NoneType'"),
    ],
)
def test_users_network_that_cannot_be_had_is_refused(architecture: str, match: str) -> None:
    with pytest.raises(PluginError, match=match):
        build(specify(architecture))


def test_broken_module_of_a_user_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_network.py").write_text("import no_such_dependency\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        PluginError, match=r"'broken_network' cannot be imported: .*No module named 'no_such_dependency'"
    ):
        build(specify("broken_network:Net"))


@pytest.mark.parametrize(
    ("spec", "match"),
    [
        (specify("smp.Unet"), r"expected an `encoder` for smp\.Unet, got None\. Try encoder"),
        (specify("monai.FlexibleUNet"), r"expected an `encoder` for monai\.FlexibleUNet"),
        (specify("smp.Unet", "resnet81"), r"unknown encoder 'resnet81'\. Did you mean 'resnet18'\?"),
        (specify("smp.Unet", "tu-resnet81"), r"unknown encoder 'tu-resnet81'\. Did you mean 'tu-resnet18'\?"),
        (specify("smp.Unet", "tu-hf-hub:timm/resnet18"), "unknown encoder 'tu-hf-hub:timm/resnet18'"),
        (specify("smp.DPT", "resnet18"), r"smp\.DPT could not be built: ValueError: Only Timm encoders"),
        (specify("monai.FlexibleUNet", "resnet81"), r"unknown encoder 'resnet81'\. Did you mean 'resnet18'\?"),
        (specify("monai.UNet", "resnet18"), r"expected no `encoder`, which monai\.UNet has not, got 'resnet18'"),
        (specify(f"{__name__}:Plain", "resnet18"), "expected no `encoder` for a network of your own"),
        (
            specify("smp.Unet", "resnet18", settings={"decoder_channel": [8]}),
            r"unknown setting of smp\.Unet 'decoder_channel'\. Did you mean 'decoder_channels'\?",
        ),
        (
            specify("smp.Unet", "tu-resnet18", settings={"decoder_channel": [8]}),
            r"unknown setting of smp\.Unet 'decoder_channel'\. Did you mean 'decoder_channels'\?",
        ),
        (
            specify("smp.Unet", "tu-resnet18", settings={"nonsense": 1}),
            r"smp\.Unet could not be built: TypeError: .*unexpected keyword argument 'nonsense'",
        ),
        (
            specify("monai.UNet", settings={"chanels": [8, 16]}),
            r"unknown setting of monai\.UNet 'chanels'\. Did you mean 'channels'\?",
        ),
        (
            specify("monai.UNet", settings={"channels": [8]}),
            r"monai\.UNet could not be built: ValueError: the length of `channels` should be no less than 2\. Check",
        ),
        (specify("monai.UNet", settings={"channels": 8}), r"monai\.UNet could not be built: TypeError"),
        (
            specify("smp.Unet", "resnet18", settings={"activation": "sigmoid"}),
            "expected no setting 'activation', got 'sigmoid'. Attacks and losses want raw logits",
        ),
        (
            specify("smp.Unet", "resnet18", settings={"encoder_weights": "imagenet"}),
            "expected no setting 'encoder_weights', got 'imagenet'. Nothing is downloaded",
        ),
        (specify("monai.UNet", settings={"in_channels": 3}), "expected no setting 'in_channels', got 3"),
        (specify(f"{__name__}:Plain", settings={"classes": 3}), "expected no setting 'classes', got 3. It follows"),
        (
            specify(f"{__name__}:Plain", settings={"finnish": 3}),
            r"unknown setting of test_build:Plain 'finnish'\. Did you mean 'finish'\?",
        ),
        (specify(f"{__name__}:make_trouble"), r"make_trouble could not be built: RuntimeError: two lines\. Check"),
    ],
    ids=lambda value: value.architecture if isinstance(value, ModelSpec) else "",
)
def test_what_cannot_be_built_is_refused(spec: ModelSpec, match: str) -> None:
    with pytest.raises(SpecError, match=match) as caught:
        build(spec)
    assert str(caught.value).startswith("model 'it': ")
    assert "\n" not in str(caught.value)
