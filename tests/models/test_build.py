import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from advseg_bench.errors import IncompatibleError, PluginError, SpecError
from advseg_bench.models.build import build_model, set_head_bias
from advseg_bench.models.module import SegmentationModule
from advseg_bench.models.weights import count_parameters
from advseg_bench.registry import catalogue
from advseg_bench.suite.specs import ModelSpec
from advseg_bench.types import Task

TASK = Task("multilabel", ("gm", "wm", "csf"))
ENCODERS = {"smp.DPT": "tu-vit_tiny_patch16_224", "monai.FlexibleUNet": "efficientnet-b0"}
SETTINGS: dict[str, dict[str, Any]] = {
    "monai.BasicUNet": {"features": [8, 8, 16, 16, 32, 8]},
    "monai.BasicUNetPlusPlus": {"features": [8, 8, 16, 16, 32, 8]},
    "monai.UNETR": {"hidden_size": 48, "mlp_dim": 96, "num_heads": 4, "feature_size": 8},
    "monai.SwinUNETR": {"depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 4], "feature_size": 12},
    "monai.DynUNet": {"filters": [8, 8, 16, 16]},
}
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
    "monai.BasicUNetPlusPlus": 16,
    "monai.UNETR": 16,
    "monai.DynUNet": 8,
}


def specify(architecture: str, encoder: str | None = None, **keys: Any) -> ModelSpec:
    return ModelSpec(name="it", architecture=architecture, encoder=encoder, **keys)


def specify_usual(architecture: str) -> ModelSpec:
    """Every architecture with a small encoder, if it takes one."""
    encoder = ENCODERS.get(architecture, "resnet18" if architecture.startswith("smp.") else None)
    return specify(architecture, encoder, settings=SETTINGS.get(architecture, {}))


def build(
    spec: ModelSpec, *, channels: int = 1, task: Task = TASK, size: int | tuple[int, ...] = 64, seed: int = 0
) -> SegmentationModule:
    return build_model(spec, channels=channels, task=task, size=size, seed=seed)


def draw(*size: int) -> Tensor:
    return torch.rand(size, generator=torch.Generator().manual_seed(1))


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
    wide = (60, 64) if architecture == "monai.UNETR" else (70, 96)  # it takes images of one size after padding
    with torch.no_grad():
        assert model(draw(1, 1, 50 + extra, wide[0] + extra)).shape == (1, 3, 50 + extra, wide[0] + extra)
        x = draw(1, 1, 64 + extra, wide[1] + extra)
        assert torch.equal(model(x), model.net(x))


def test_odd_size_at_build_time_is_padded_too() -> None:
    assert build(specify("smp.Unet", "resnet18"), size=50).eval()(draw(1, 1, 50, 70)).shape == (1, 3, 50, 70)


def test_catalogue_lists_networks_of_monai_that_exist() -> None:
    import monai.networks.nets as nets

    assert all(issubclass(getattr(nets, name), torch.nn.Module) for name in catalogue.MONAI_ARCHITECTURES)


@pytest.mark.parametrize("name", catalogue.MONAI_ARCHITECTURES)
def test_networks_of_monai_take_volumes(name: str) -> None:
    size = (64, 32, 32) if name == "SwinUNETR" else (32, 16, 32)
    architecture = f"monai.{name}"
    encoder = "resnet10" if name == "FlexibleUNet" else None
    settings = SETTINGS.get(architecture, {})
    model = build(specify(architecture, encoder, settings=settings), task=Task("binary", ("a",)), size=size)
    assert model.stride == STRIDES[architecture]
    x = draw(1, 1, *size[:-1], size[-1] - 3).requires_grad_()
    logits = model.eval()(x)
    assert logits.shape == (1, 1, *x.shape[2:])
    (gradient,) = torch.autograd.grad(logits.square().sum(), x)
    assert float((gradient != 0).float().mean()) > 0.9


def test_a_network_that_halves_a_flat_volume_too_often_is_refused() -> None:
    deep = specify("monai.UNet", settings={"channels": [4] * 6})
    with pytest.raises(IncompatibleError, match=r"volumes of 16 pixels or more .* half its stride, got \[15, 64, 64\]"):
        build(deep, size=(15, 64, 64))
    assert build(deep, size=(16, 64, 64)).eval()(draw(1, 1, 16, 64, 64)).shape == (1, 3, 16, 64, 64)
    assert build(deep, size=64).stride == 32


def test_unetr_names_the_size_it_takes() -> None:
    model = build(specify_usual("monai.UNETR"), size=(50, 32))
    assert model.eval()(draw(1, 1, 64, 32)).shape == (1, 3, 64, 32)
    with pytest.raises(
        IncompatibleError, match=r"padded images of \(64, 32\) pixels, got \(64, 64\)\. Build the network"
    ):
        model(draw(1, 1, 64, 64))


@pytest.mark.parametrize("architecture", ["monai.UNETR", "monai.SwinUNETR"])
def test_a_missing_package_is_named_with_the_command(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("advseg_bench.models.build_monai.find_spec", lambda name: None)
    command = r"Run: pip install 'advseg-bench\[monai\]'$"
    with pytest.raises(SpecError, match=f"einops, which {architecture} needs, got 'not installed'. {command}"):
        build(specify_usual(architecture))


def test_networks_of_smp_refuse_volumes() -> None:
    with pytest.raises(IncompatibleError, match=r"expected 2-D images, got '3-D'\. smp\.Unet is for 2-D images"):
        build(specify("smp.Unet", "resnet18"), size=(32, 32, 32))


def test_dynunet_that_shrinks_its_image_is_enlarged_or_refused() -> None:
    settings = {"strides": [2, 2, 2, 2]}
    assert build(specify("monai.DynUNet", settings=settings)).outputs.seen.resized == (2, 2)
    with pytest.raises(IncompatibleError, match=r"logits of \(\d+, \d+\) pixels, got .* Set resize_logits = true"):
        build(specify("monai.DynUNet", settings=settings, resize_logits=False))


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
        ("monai.DynUNet", {"filters": [4, 8, 16]}, 4),
        ("monai.DynUNet", {"filters": [4, 8, 16], "strides": [1, [2, 1], 2], "res_block": True}, 4),
        ("monai.SegResNet", {"blocks_down": [1, 1], "blocks_up": [1], "norm": ["group", {"num_groups": 4}]}, 2),
    ],
)
def test_settings_reach_the_network_and_its_stride(architecture: str, given: dict[str, Any], stride: int) -> None:
    model = build(specify(architecture, "resnet18" if "smp" in architecture else None, settings=given))
    assert model.stride == stride
    assert model.eval()(draw(1, 1, 41, 50)).shape == (1, 3, 41, 50)


def test_specification_sets_normalisation_and_stride() -> None:
    model = build(specify("networks:Plain", mean=0.5, std=0.25, stride=4), size=16)
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


@pytest.mark.parametrize(
    ("used", "unused", "architecture", "encoder"),
    [
        ("segmentation_models_pytorch", "monai", "smp.Unet", "resnet18"),
        pytest.param("monai", "segmentation_models_pytorch", "monai.BasicUNet", None, marks=pytest.mark.slow),
    ],
)
def test_only_the_library_that_is_needed_is_imported(
    used: str, unused: str, architecture: str, encoder: str | None
) -> None:
    script = f"""
import sys
from advseg_bench.models.build import build_model
from advseg_bench.suite.specs import ModelSpec
from advseg_bench.types import Task
assert not {{"monai", "segmentation_models_pytorch", "timm"}} & sys.modules.keys()
spec = ModelSpec(name="it", architecture={architecture!r}, encoder={encoder!r})
build_model(spec, channels=1, task=Task("binary", ("a",)), size=32)
assert {used!r} in sys.modules and {unused!r} not in sys.modules
"""
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_an_image_too_small_for_the_network_is_refused() -> None:
    message = r"fails on images of shape \(1, 64, 64\): RuntimeError: .*Check the channels, dtype and size"
    with pytest.raises(IncompatibleError, match=message):
        build(specify("smp.PAN", "resnet18"), size=64)


# Users' networks.
@pytest.mark.parametrize("name", ["Plain", "make_anything", "Torchvision", "Formula"])
def test_users_network_is_called_with_what_it_accepts(name: str) -> None:
    assert build(specify(f"networks:{name}"), size=16).eval()(draw(2, 1, 16, 16)).shape == (2, 3, 16, 16)


@pytest.mark.parametrize(
    ("architecture", "match"),
    [
        ("no_such_module:Net", "module 'no_such_module' cannot be imported: ModuleNotFoundError.*set PYTHONPATH"),
        (":Net", "module '' cannot be imported"),
        ("networks:Plane", r"unknown object of networks 'Plane'\. Did you mean 'Plain'\?"),
        ("networks:", "unknown object of"),
        ("networks:network", "to be a class or function .*, got 'Formula'"),
        ("networks:FINISHES", "to be a class or function .*, got 'dict'"),
        ("networks:make_nothing", r"torch\.nn\.Module, got 'NoneType'"),
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
        (specify("monai.UNet", "resnet18"), r"expected no `encoder` .*monai\.UNet.*, got 'resnet18'"),
        (specify("networks:Plain", "resnet18"), "expected no `encoder` .*, got 'resnet18'"),
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
            "expected no setting 'activation', got 'sigmoid'",
        ),
        (
            specify("smp.Unet", "resnet18", settings={"encoder_weights": "imagenet"}),
            "expected no setting 'encoder_weights', got 'imagenet'. Use the key `encoder_weights` of the model",
        ),
        (specify("monai.UNet", settings={"in_channels": 3}), "expected no setting 'in_channels', got 3"),
        (specify("monai.UNETR", settings={"img_size": 64}), "expected no setting 'img_size', got 64. It follows"),
        (
            specify("monai.DynUNet", settings={"deep_supervision": True}),
            "expected no setting 'deep_supervision', got True. Only the last output is attacked",
        ),
        (specify("monai.DynUNet", settings={"filters": 8}), r"monai\.DynUNet could not be built: TypeError"),
        (specify("networks:Plain", settings={"classes": 3}), "expected no setting 'classes', got 3. It follows"),
        (
            specify("networks:Plain", settings={"finnish": 3}),
            r"unknown setting of networks:Plain 'finnish'\. Did you mean 'finish'\?",
        ),
        (specify("networks:make_trouble"), r"make_trouble could not be built: RuntimeError: two lines\. Check"),
    ],
    ids=lambda value: value.architecture if isinstance(value, ModelSpec) else "",
)
def test_what_cannot_be_built_is_refused(spec: ModelSpec, match: str) -> None:
    with pytest.raises(SpecError, match=match) as caught:
        build(spec)
    assert str(caught.value).startswith("model 'it': ")
    assert "\n" not in str(caught.value)
