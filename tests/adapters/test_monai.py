"""MONAI's side of the fence: networks, inferers, evaluators, bundles, pipelines."""

from __future__ import annotations

import copy
import pickle
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import CacheDataset, DataLoader, Dataset, MetaTensor, decollate_batch, list_data_collate, set_track_meta
from monai.inferers import SlidingWindowInferer
from monai.transforms import Activationsd, AsDiscreted, Compose, EnsureTyped, Flipd, Invertd, RandFlipd, Transform
from monai.utils import set_determinism
from torch import Tensor, nn

from advseg_adapters.monai import AdversarialAttackd, GridNetwork, RandAdversarialAttackd, as_network
from advseg_bench import losses
from advseg_bench.attacks import PGD
from advseg_bench.attacks.gradient import FGSM
from advseg_bench.batches import Batch
from advseg_bench.errors import DataError, IncompatibleError, SpecError, UserError
from advseg_bench.models.build import build_model
from advseg_bench.models.weights import save_weights
from advseg_bench.registry import catalogue
from advseg_bench.suite.specs import ModelSpec
from advseg_bench.types import Bounds, Budget, Task

SMALL: dict[str, Any] = {"architecture": "monai.UNet", "settings": {"channels": [4, 8], "strides": [2]}}
CHANNELS = {"binary": 1, "multilabel": 3, "multiclass": 4}
AFFINE = torch.diag(torch.tensor([2.0, 3.0, 1.0, 1.0], dtype=torch.float64))


class Threshold(nn.Module):
    """Intensities above one half are the class; one convolution, so that every pixel is on its own."""

    def __init__(self, in_channels: int = 1, classes: int = 1, axes: int = 2) -> None:
        super().__init__()
        convolution = {2: nn.Conv2d, 3: nn.Conv3d}[axes]
        with torch.random.fork_rng(devices=()):
            self.layer = convolution(in_channels, classes, 1)
        nn.init.constant_(self.layer.weight, 8.0 / in_channels)
        nn.init.constant_(self.layer.bias, -4.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)  # type: ignore[no-any-return]


def draw(*size: int, seed: int = 0) -> Tensor:
    return torch.rand(size, generator=torch.Generator().manual_seed(seed))


def make_disc(seed: int = 0, edge: int = 16) -> dict[str, Any]:
    """An image of 0.4 with a square of 0.6, and its mask."""
    row, column = np.random.default_rng(seed).integers(2, edge - 8, 2)
    mask = torch.zeros(1, edge, edge)
    mask[:, row : row + 6, column : column + 6] = 1
    image = MetaTensor(0.4 + 0.2 * mask, affine=AFFINE, meta={"case": seed})
    return {"image": image, "label": MetaTensor(mask), "case": seed}


def make_sample(kind: str, space: tuple[int, ...] = (16, 16), seed: int = 0) -> dict[str, Any]:
    """A random image of two channels and a random label for it."""
    if kind == "multiclass":
        label = torch.randint(0, 4, (1, *space), generator=torch.Generator().manual_seed(seed))
    else:
        label = (draw(CHANNELS[kind], *space, seed=seed) < 0.4).float()
    return {"image": MetaTensor(draw(2, *space, seed=seed + 1), affine=AFFINE), "label": MetaTensor(label)}


def make_network(kind: str = "binary", axes: int = 2) -> GridNetwork:
    return GridNetwork(axes, 2, CHANNELS[kind], **SMALL, mean=0.5, std=0.25, img_size=16)


def attack_disc(**options: Any) -> AdversarialAttackd:
    return AdversarialAttackd(
        **{"keys": "image", "label_key": "label", "model": Threshold(), "eps": 0.15}
        | {"task": "binary", "loss": "bce"}
        | options
    )


@pytest.fixture
def _fixed_seed() -> Iterator[None]:
    """MONAI's own way to determinism, which also seeds torch; both undone."""
    with torch.random.fork_rng(devices=()):
        set_determinism(7)
        yield
        set_determinism(None)


# Networks.
@pytest.mark.parametrize(
    ("axes", "given"),
    [
        (2, SMALL),
        (2, {"architecture": "smp.Unet", "encoder": "tu-resnet10t"}),
        (2, {"architecture": "networks:Plain"}),
        (3, SMALL | {"stride": 4}),
        (
            3,
            {"architecture": "monai.UNETR", "img_size": 32}
            | {"settings": {"hidden_size": 24, "mlp_dim": 48, "num_heads": 2, "feature_size": 4}},
        ),
    ],
    ids=["monai", "smp", "user", "monai-3d", "unetr-3d"],
)
def test_grid_models_keep_metadata_and_compute_the_same(
    axes: int, given: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "models"))
    network = GridNetwork(spatial_dims=axes, in_channels=1, out_channels=3, mean=0.5, std=0.25, **given).eval()
    samples = [MetaTensor(draw(1, *[32] * axes, seed=i), affine=AFFINE * (i + 1), meta={"case": i}) for i in range(2)]
    batch = list_data_collate(samples).requires_grad_()
    logits = network(batch)
    assert isinstance(logits, MetaTensor)
    assert logits.is_batch
    for i, one in enumerate(decollate_batch(logits)):
        assert one.shape == (3, *[32] * axes)
        assert one.meta["case"] == i
        assert torch.equal(one.affine, samples[i].affine)
    plain = network(batch.detach().as_tensor())
    assert type(plain) is Tensor
    assert torch.equal(plain, logits.as_tensor())
    (gradient,) = torch.autograd.grad(logits.as_tensor().square().sum(), batch)
    assert float((gradient != 0).float().mean()) > 0.9


def test_metadata_equals_what_monai_itself_would_pass_on() -> None:
    network = make_network().eval()
    image = make_sample("binary")["image"]
    batch = list_data_collate([Flipd("image", 0)({"image": image})["image"]])
    ours, native = network(batch), network.model(batch)
    assert ours.meta.keys() == native.meta.keys()
    assert ours.applied_operations == native.applied_operations
    assert torch.equal(ours, native)


def test_without_tracking_the_output_is_a_plain_tensor() -> None:
    set_track_meta(False)
    try:
        assert type(make_network().eval()(MetaTensor(draw(1, 2, 16, 16)))) is Tensor
    finally:
        set_track_meta(True)


def test_weights_seed_and_state_dict(tmp_path: Path) -> None:
    network = GridNetwork(2, 2, 1, **SMALL, seed=3)
    again, other = GridNetwork(2, 2, 1, **SMALL, seed=3), GridNetwork(2, 2, 1, **SMALL, seed=4)
    state = network.state_dict()
    assert all(torch.equal(state[key], again.state_dict()[key]) for key in state)
    assert any(not torch.equal(state[key], other.state_dict()[key]) for key in state)
    save_weights(tmp_path / "w.safetensors", network.model)
    loaded = GridNetwork(2, 2, 1, **SMALL, weights=tmp_path / "w.safetensors", seed=4).eval()
    x = draw(1, 2, 16, 16)
    assert torch.equal(loaded(x), network.eval()(x))
    other.load_state_dict(state)
    assert torch.equal(other.eval()(x), network(x))
    assert torch.equal(pickle.loads(pickle.dumps(network))(x), network(x))


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"architecture": "monai.Unet"}, r"unknown architecture 'monai\.Unet'\. Did you mean 'monai\.UNet'\?"),
        ({"architecture": "monai.UNet", "std": 0.0}, "std: expected positive numbers, got 0.0"),
        ({"spatial_dims": 4}, "expected 2 or 3 `spatial_dims`, got 4"),
        ({"img_size": (16, 16, 16)}, r"expected 2 edges as `img_size`, got \(16, 16, 16\)"),
        ({"architecture": "monai.UNETR", "settings": {}}, r"expected an `img_size` for monai\.UNETR, got None"),
        ({"settings": {"chanels": [4, 8]}}, r"unknown setting of monai\.UNet 'chanels'\. Did you mean 'channels'"),
        ({"weights": "nowhere.pt"}, "nowhere.pt: expected .*, got 'No such file"),
        ({"spatial_dims": 3, "architecture": "smp.Unet", "encoder": "resnet18", "settings": {}}, "is for 2-D images"),
        ({"architecture": "networks:Plain", "settings": {"finish": "sigmoid"}}, "expected raw logits"),
    ],
)
def test_mistakes_in_a_network_are_one_line(given: dict[str, Any], match: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "models"))
    arguments = {"spatial_dims": 2, "in_channels": 1, "out_channels": 3} | SMALL | given
    with pytest.raises(UserError, match=match) as caught:
        GridNetwork(**arguments)
    assert "\n" not in str(caught.value)


def test_images_and_logits_that_do_not_fit_are_refused() -> None:
    network = make_network()
    with pytest.raises(IncompatibleError, match=r"expected 2-D images, shape \(N, C, \*S\), got \(1, 2, 8, 8, 8\)"):
        network(draw(1, 2, 8, 8, 8))
    with pytest.raises(IncompatibleError, match="expected images of 2 channels, got 3"):
        network(draw(1, 3, 16, 16))
    with pytest.raises(IncompatibleError, match="expected 2 logit channels, got 1"):
        as_network(Threshold(), out_channels=2)(draw(1, 1, 16, 16))


@pytest.mark.parametrize("name", catalogue.MONAI_ARCHITECTURES)
def test_networks_of_monai_are_attacked(name: str) -> None:
    settings: dict[str, dict[str, Any]] = {
        "BasicUNetPlusPlus": {"features": [8, 8, 16, 16, 32, 8]},
        "BasicUNet": {"features": [8, 8, 16, 16, 32, 8]},
        "UNETR": {"hidden_size": 24, "mlp_dim": 48, "num_heads": 2, "feature_size": 4},
        "SwinUNETR": {"depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 4], "feature_size": 12},
    }
    encoder = "resnet10" if name == "FlexibleUNet" else None
    spec = ModelSpec(name="m", architecture=f"monai.{name}", encoder=encoder, settings=settings.get(name, {}))
    task = Task("multilabel", ("a", "b", "c"))
    model = build_model(spec, channels=1, task=task, size=64).eval()
    y, valid = draw(2, 3, 64, 64, seed=1) < 0.4, torch.ones(2, 64, 64, dtype=torch.bool)
    names = ("one", "other")
    batch = Batch(draw(2, 1, 64, 64), y, valid, task, Bounds(), names, names, names, ((1.0, 1.0),) * 2)
    x_adv = FGSM(loss=losses.bce)(model, batch, budget=Budget("linf", 2 / 255), generators=[])
    assert float((x_adv != batch.x).float().mean()) > 0.9
    with torch.no_grad():
        clean, attacked = (losses.bce(model(x), y, valid, task) for x in (batch.x, x_adv))
    assert bool((attacked > clean).all())


# Inferers, evaluators, bundles.
def test_sliding_windows_that_cover_the_image_change_nothing() -> None:
    network = make_network().eval()
    image = list_data_collate([make_sample("binary", (32, 24))["image"]])
    with torch.no_grad():
        whole = SlidingWindowInferer(roi_size=(32, 24), sw_batch_size=2)(image, network)
        assert isinstance(whole, MetaTensor)
        assert torch.equal(whole, network(image))
        assert torch.equal(whole.affine, image.affine)
        pixelwise = as_network(Threshold(2)).eval()
        windows = SlidingWindowInferer(roi_size=(12, 12), sw_batch_size=3, overlap=0.5, mode="gaussian")
        torch.testing.assert_close(windows(image, pixelwise), pixelwise(image), rtol=1e-5, atol=1e-5)


def test_sliding_windows_over_a_volume() -> None:
    network = GridNetwork(3, 1, 2, **SMALL, img_size=16).eval()
    volume = list_data_collate([MetaTensor(draw(1, 24, 20, 16), affine=AFFINE)])
    with torch.no_grad():
        logits = SlidingWindowInferer(roi_size=(16, 16, 16), sw_batch_size=4, overlap=0.25)(volume, network)
    assert logits.shape == (1, 2, 24, 20, 16)
    assert torch.equal(logits.affine, volume.affine)


@pytest.mark.parametrize("attacked", [False, True])
def test_supervised_evaluator_sees_the_attack(attacked: bool) -> None:
    from monai.engines import SupervisedEvaluator
    from monai.handlers import MeanDice, from_engine

    network = as_network(Threshold(), spatial_dims=2, in_channels=1, out_channels=1)
    steps = [attack_disc(model=network)] if attacked else []
    data = Dataset([make_disc(i) for i in range(4)], Compose([EnsureTyped(["image", "label"]), *steps]))
    postprocessing = Compose([Activationsd("pred", sigmoid=True), AsDiscreted("pred", threshold=0.5)])
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(data, batch_size=2, generator=torch.Generator()),
        network=network,
        inferer=SlidingWindowInferer((16, 16)),
        postprocessing=postprocessing,
        key_val_metric={"dice": MeanDice(output_transform=from_engine(["pred", "label"]))},
    )
    evaluator.run()
    assert evaluator.state.metrics["dice"] == (0.0 if attacked else 1.0)


def test_bundle_configuration_builds_and_runs() -> None:
    parser = ConfigParser(
        {
            "network_def": {
                "_target_": "advseg_adapters.monai.GridNetwork",
                "spatial_dims": 2,
                "in_channels": 1,
                "out_channels": 1,
                "architecture": "smp.Unet",
                "encoder": "tu-resnet10t",
                "settings": {"encoder_depth": 3, "decoder_channels": [16, 8, 8]},
                "mean": 0.45,
                "std": 0.25,
            },
            "preprocessing": {
                "_target_": "Compose",
                "transforms": [
                    {"_target_": "EnsureTyped", "keys": ["image", "label"]},
                    {
                        "_target_": "advseg_adapters.monai.RandAdversarialAttackd",
                        "keys": "image",
                        "label_key": "label",
                        "model": "@network_def",
                        "eps": "$4 / 255",
                        "task": "binary",
                        "attack": "pgd",
                        "settings": {"steps": 2},
                        "loss": "dice",
                        "prob": 1.0,
                    },
                ],
            },
            "inferer": {"_target_": "SlidingWindowInferer", "roi_size": [16, 16]},
        }
    )
    network = parser.get_parsed_content("network_def")
    assert isinstance(network, GridNetwork)
    assert network.training
    sample = make_disc()
    attacked = parser.get_parsed_content("preprocessing")(sample)
    moved = (attacked["image"] - sample["image"]).as_tensor()
    assert 0 < float(moved.abs().max()) <= 4 / 255 + 1e-6
    logits = parser.get_parsed_content("inferer")(attacked["image"][None], network.eval())
    assert logits.shape == (1, 1, 16, 16)


# Transforms: what they compute.
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("kind", catalogue.ALL_KINDS)
@pytest.mark.parametrize("axes", [2, 3])
def test_the_transform_computes_what_the_attack_does(kind: str, axes: int, norm: str) -> None:
    network = make_network(kind, axes)
    sample = make_sample(kind, (16,) * axes)
    before = copy.deepcopy(sample)
    options: dict[str, Any] = {"task": kind, "num_classes": CHANNELS[kind], "norm": norm, "eps": 0.03}
    transform = AdversarialAttackd("image", "label", network, attack="fgsm", loss="dice", **options)
    result = transform(sample)
    label = sample["label"].as_tensor()
    batch = Batch(
        x=sample["image"].as_tensor()[None],
        y=label if kind == "multiclass" else label[None].bool(),
        valid=torch.ones(1, *[16] * axes, dtype=torch.bool),
        task=transform.task,
        bounds=Bounds(),
        images=("i",),
        subjects=("s",),
        blocks=("b",),
        spacing=((1.0,) * axes,),
    )
    x_adv = FGSM(loss=losses.dice)(network.eval(), batch, budget=Budget(norm, 0.03), generators=[])  # type: ignore[arg-type]
    assert torch.equal(result["image"].as_tensor(), x_adv[0])
    assert not torch.equal(x_adv, batch.x)
    assert isinstance(result["image"], MetaTensor)
    assert torch.equal(result["image"].affine, AFFINE)
    for key in sample:
        assert torch.equal(sample[key], before[key]), "the sample that was given has changed"
    assert result["label"] is sample["label"]


def test_geometry_before_the_attack_can_be_inverted_after_it() -> None:
    pipeline = Compose([Flipd(["image", "label"], 0), attack_disc()])
    sample = make_disc()
    attacked = pipeline(sample)
    back = Invertd("image", transform=pipeline, orig_keys="image")(attacked)
    straight = attack_disc()(sample)
    assert torch.equal(back["image"].as_tensor(), straight["image"].as_tensor())


def test_arrays_become_tensors_and_missing_keys_are_left_out() -> None:
    sample = {key: make_disc()[key].numpy() for key in ("image", "label")}
    transform = attack_disc(keys=["image", "other"], allow_missing_keys=True)
    assert isinstance(transform(sample)["image"], MetaTensor)
    assert transform({"label": sample["label"]}) == {"label": sample["label"]}
    with pytest.raises(KeyError, match="other"):
        attack_disc(keys=["image", "other"])(sample)


def test_two_images_of_a_sample_are_attacked_apart() -> None:
    sample = make_disc() | {"second": make_disc(1)["image"]}
    both = attack_disc(keys=["image", "second"])(sample)
    assert torch.equal(both["image"], attack_disc()(sample)["image"])
    assert torch.equal(both["second"], attack_disc(keys="second")(sample)["second"])


@pytest.mark.parametrize("how", ["ignore", "mask"])
def test_void_pixels_are_not_attacked(how: str) -> None:
    sample = make_disc()
    void = torch.zeros(1, 16, 16, dtype=torch.bool)
    void[:, :8] = True
    if how == "ignore":
        label = torch.where(void, 255, sample["label"].as_tensor()).to(torch.uint8)
        result = attack_disc(ignore=255)(sample | {"label": label})
    else:
        result = attack_disc(valid_key="valid")(sample | {"valid": ~void})
    unmoved = result["image"].as_tensor() == sample["image"].as_tensor()
    assert torch.equal(unmoved, void)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_the_callers_gradient_mode_does_not_matter(context: Any) -> None:
    transform = attack_disc()
    expected = transform(make_disc())["image"]
    with context():
        assert torch.equal(transform(make_disc())["image"], expected)
        assert torch.equal(
            AdversarialAttackd("image", "label", transform.model, 0.15, task="binary", loss="bce")(make_disc())[
                "image"
            ],
            expected,
        )


def test_controls_and_own_objects_are_attacks_too() -> None:
    sample = make_disc()
    noise = attack_disc(attack="random_sign", loss=None)(sample)["image"] - sample["image"]
    torch.testing.assert_close(noise.as_tensor().abs(), torch.full((1, 16, 16), 0.15))
    pgd = PGD(loss=losses.bce, steps=2)
    named = attack_disc(attack="pgd", settings={"steps": 2})(sample)["image"]
    assert torch.equal(attack_disc(attack=pgd, loss=None)(sample)["image"], named)


# Transforms: what they leave alone.
def read_state(model: nn.Module) -> list[Any]:
    tensors = [t.detach().clone() for t in (*model.parameters(), *model.buffers())]
    grads = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    flags = [m.training for m in model.modules()], [p.requires_grad for p in model.parameters()]
    return [tensors, grads, flags, [len(m._forward_hooks) for m in model.modules()]]


def assert_same_state(model: nn.Module, state: list[Any]) -> None:
    now = read_state(model)
    assert all(map(torch.equal, now[0], state[0]))
    assert all(
        (a is None) == (b is None) and (a is None or torch.equal(a, b)) for a, b in zip(now[1], state[1], strict=True)
    )
    assert now[2:] == state[2:]


def make_trained() -> GridNetwork:
    """In the middle of a training: batch norm, gradients, a frozen layer, modes that differ."""
    network = GridNetwork(2, 1, 1, "monai.UNet", settings={"channels": [4, 8], "strides": [2], "norm": "batch"})
    network.train()(draw(2, 1, 16, 16)).sum().backward()
    first = next(network.parameters())
    first.requires_grad_(False)
    first.grad = None
    next(m for m in network.modules() if isinstance(m, nn.BatchNorm2d)).eval()
    return network


@pytest.mark.parametrize("name", ["fgsm", "pgd", "random_sign"])
def test_a_model_in_training_stays_as_it_was(name: str) -> None:
    network = make_trained()
    state = read_state(network)
    attack_disc(model=network, attack=name, loss=None if name == "random_sign" else "bce")(make_disc())
    assert_same_state(network, state)


@dataclass(frozen=True)
class Vandal:
    """Does what an attack must not do."""

    deed: str

    def __call__(self, model: nn.Module, batch: Batch, *, budget: Budget, generators: Any) -> Tensor:
        x, y = batch.x, batch.y
        match self.deed:
            case "train":
                model.train()
                model(x)
            case "weights":
                next(model.parameters()).data.add_(1)
            case "backward":
                model.requires_grad_(True)
                model(x).sum().backward()
            case "hook":
                model.register_forward_hook(lambda *_: None)
            case "labels":
                y.logical_not_()
                x.zero_()
                return torch.full_like(x, 0.5)
            case "far":
                return x + 0.5
            case "nan":
                return x * torch.nan
            case "none":
                return None  # type: ignore[return-value]
            case "shape":
                return x[:, :, :8]
            case "raise":
                model.train()
                raise RuntimeError("two\nlines")
            case "same":
                return x.clone()
        return x + 0.01


@pytest.mark.parametrize("deed", ["train", "weights", "backward", "hook"])
def test_what_an_attack_does_to_the_model_is_undone_and_told(deed: str) -> None:
    network = make_trained()
    state = read_state(network)
    transform = attack_disc(model=network, attack=Vandal(deed), loss=None)
    with pytest.warns(UserWarning, match="attack Vandal: changed the model"):
        transform(make_disc())
    assert_same_state(network, state)


def test_what_an_attack_does_to_the_sample_reaches_no_one() -> None:
    sample, before = make_disc(), make_disc()
    transform = attack_disc(attack=Vandal("labels"), loss=None)
    assert torch.equal(transform(sample)["image"].as_tensor(), torch.full((1, 16, 16), 0.5))
    assert torch.equal(sample["image"], before["image"])
    assert torch.equal(sample["label"], before["label"])


def test_an_attack_that_does_nothing_is_told() -> None:
    transform = attack_disc(attack=Vandal("same"), loss=None)
    with pytest.warns(UserWarning, match="returned the clean image"):
        transform(make_disc())


def test_a_result_outside_the_budget_is_brought_back_and_told() -> None:
    with pytest.warns(UserWarning, match="moved the image further than `eps` .*; left the bounds"):
        result = attack_disc(attack=Vandal("far"), loss=None)(make_disc())
    assert float((result["image"] - make_disc()["image"]).abs().max()) <= 0.15 + 1e-6


def test_an_attack_may_move_an_image_as_far_as_its_traits_allow() -> None:
    """The released blend goes up to twice as far as eps by definition: no warning, and nothing is cut."""
    sample, options = make_disc(), {"eps": 0.1, "settings": {"form": "blend_released"}}
    sample["image"] = 1 - 0.1 * sample["label"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = attack_disc(**options)(sample)
    moved = float((result["image"] - sample["image"]).abs().max())
    assert 0.15 < moved <= 0.2 + 1e-6


@pytest.mark.parametrize(
    ("deed", "match"),
    [
        ("nan", "attack Vandal: expected finite intensities, got NaN or infinity"),
        ("shape", r"expected torch\.float32 \(1, 1, 16, 16\), got torch\.float32 \(1, 1, 8, 16\)"),
        ("none", r"expected torch\.float32 \(1, 1, 16, 16\), got NoneType"),
        ("raise", r"attack Vandal: fails on an image of \(1, 16, 16\): RuntimeError: two lines\.$"),
    ],
)
def test_a_failing_attack_is_one_line_and_the_model_is_given_back(deed: str, match: str) -> None:
    network = make_trained()
    state = read_state(network)
    with pytest.raises(IncompatibleError, match=match) as caught:
        attack_disc(model=network, attack=Vandal(deed), loss=None)(make_disc())
    assert "\n" not in str(caught.value)
    assert_same_state(network, state)


# Randomness, workers, threads.
def make_random(prob: float = 1.0) -> RandAdversarialAttackd:
    return RandAdversarialAttackd("image", "label", Threshold(), 0.15, prob=prob, task="binary", attack="uniform_noise")


def test_probability_zero_and_one() -> None:
    sample = make_disc()
    assert torch.equal(make_random(0.0)(sample)["image"], sample["image"])
    assert not torch.equal(make_random(1.0)(sample)["image"], sample["image"])
    untracked = {"image": sample["image"].numpy(), "label": sample["label"]}
    assert isinstance(make_random(0.0)(untracked)["image"], MetaTensor)


def test_the_random_state_decides_and_nothing_else() -> None:
    sample = make_disc()

    def run(seed: int) -> list[Tensor]:
        pipeline = Compose([RandFlipd("image", 0.5), make_random(0.5)]).set_random_state(seed)
        return [pipeline(sample)["image"].as_tensor() for _ in range(6)]

    first, again, other = run(3), run(3), run(4)
    assert all(map(torch.equal, first, again))
    assert not all(map(torch.equal, first, other))
    attacked = [image for image in first if image.unique().numel() > 2]
    assert 0 < len(attacked) < 6
    assert len({float(image.sum()) for image in attacked}) == len(attacked), "two samples got the same noise"


@pytest.mark.usefixtures("_fixed_seed")
def test_set_determinism_reaches_the_attack() -> None:
    runs = []
    for _ in range(2):
        set_determinism(7)
        runs.append(Compose([make_random(1.0)])(make_disc())["image"])
    set_determinism(8)
    other = Compose([make_random(1.0)])(make_disc())["image"]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], other)


def test_two_workers_give_the_same_again_and_each_sample_its_own() -> None:
    def run(seed: int) -> Tensor:
        data = Dataset([make_disc(0) for _ in range(6)], Compose([make_random(1.0)]))
        loader = DataLoader(data, batch_size=2, num_workers=2, generator=torch.Generator().manual_seed(seed))
        return torch.cat([batch["image"].as_tensor() for batch in loader])

    first = run(1)
    assert torch.equal(first, run(1))
    assert not torch.equal(first, run(2))
    assert len({float(image.sum()) for image in first}) == 6


def test_workers_and_cache_threads_compute_what_one_process_does() -> None:
    samples = [make_disc(i) for i in range(4)]
    network = GridNetwork(2, 1, 1, **SMALL)
    transform = Compose([attack_disc(model=network)])
    alone = torch.stack([transform(sample)["image"].as_tensor() for sample in samples])
    loader = DataLoader(Dataset(samples, transform), batch_size=4, num_workers=2, generator=torch.Generator())
    batch = next(iter(loader))
    assert torch.equal(batch["image"].as_tensor(), alone)
    assert torch.equal(batch["image"].affine, AFFINE.expand(4, 4, 4))
    cached = CacheDataset(samples, transform, num_workers=4, progress=False)
    assert torch.equal(torch.stack([cached[i]["image"].as_tensor() for i in range(4)]), alone)
    assert network.training


FIRST: list[int] = []
FIRST_INSIDE, ALL_INSIDE, ONE_LEFT = threading.Event(), threading.Barrier(4, timeout=120), threading.Semaphore(0)


class Enter(Transform):
    """Lets a thread go on when the first one is inside the attack."""

    def __call__(self, data: Any) -> Any:
        FIRST.append(threading.get_ident())
        assert FIRST[0] == threading.get_ident() or FIRST_INSIDE.wait(120)
        return data


@dataclass(frozen=True)
class InTurn:
    """Four threads are inside; the first leaves, then one after another, each if the model is still frozen."""

    def __call__(self, model: nn.Module, batch: Batch, *, budget: Budget, generators: Any) -> Tensor:
        FIRST_INSIDE.set()
        ALL_INSIDE.wait()
        assert FIRST[0] == threading.get_ident() or ONE_LEFT.acquire(timeout=120)
        if any(module.training for module in model.modules()):
            raise RuntimeError("another thread has thawed the model")
        return batch.x + 0.01


class Leave(Transform):
    def __call__(self, data: Any) -> Any:
        ONE_LEFT.release()
        return data


def test_threads_do_not_thaw_each_others_model() -> None:
    samples = [make_disc(i) for i in range(4)]
    attack = attack_disc(model=GridNetwork(2, 1, 1, **SMALL), attack=InTurn(), loss=None)
    cached = CacheDataset(samples, Compose([Enter(), attack, Leave()]), num_workers=4, progress=False)
    assert len(cached) == 4


# Mistakes.
@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"eps": 4}, r"expected an L_inf `eps` below 1, in units of the image, got 4\. For 4 of 255 grey levels write"),
        ({"eps": -0.1}, "expected a finite number of at least 0 as `eps`, such as 4/255, got -0.1"),
        ({"eps": "4/255"}, "expected a finite number of at least 0 as `eps`, such as 4/255, got '4/255'"),
        ({"norm": "l1"}, "unknown norm 'l1'"),
        ({"bounds": (1, 0)}, r"expected a smaller and a larger number as `bounds`, got \(1, 0\)"),
        ({"task": "multilable"}, r"unknown task 'multilable'\. Did you mean 'multilabel'\?"),
        ({"task": "multilabel"}, "expected 1 or more as `num_classes` of a multilabel task, got None"),
        ({"task": "multiclass", "num_classes": 1}, r"expected 2 or more \(the background is one\) as `num_classes`"),
        ({"num_classes": 2}, "expected 1 as `num_classes` of a binary task, got 2"),
        ({"attack": "fgms"}, r"unknown attack 'fgms'\. Did you mean 'fgsm'\?"),
        ({"loss": "dise"}, r"unknown loss 'dise'\. Did you mean 'dice'\?"),
        ({"loss": None}, "expected a `loss` for 'fgsm', got None. Give one, such as loss='dice'"),
        ({"attack": "random_sign"}, "expected no `loss` for 'random_sign', got 'bce'. Remove `loss`"),
        (
            {"task": "multiclass", "num_classes": 3},
            "expected a loss for multiclass tasks, got 'bce'. Use it for",
        ),
        ({"settings": {"stepz": 3}}, "attack fgsm: does not take these settings"),
        ({"settings": {"steps": torch.ones(1)}}, "settings: expected numbers, strings, booleans and lists"),
        ({"attack": FGSM(loss=losses.bce)}, "an attack object has its own loss and settings"),
        ({"attack": FGSM, "loss": None}, "expected an attack's name, or an object called with a model and a batch"),
        ({"model": abs}, r"expected a torch\.nn\.Module as `model`, got 'builtin_function_or_method'"),
    ],
)
def test_mistakes_in_arguments_are_one_line(options: dict[str, Any], match: str) -> None:
    with pytest.raises(UserError, match=match) as caught:
        attack_disc(**options)
    assert "\n" not in str(caught.value)


def test_a_random_transform_takes_no_seed() -> None:
    with pytest.raises(SpecError, match=r"expected no `seed`, got 3\. Use set_random_state or set_determinism"):
        RandAdversarialAttackd("image", "label", Threshold(), 0.1, task="binary", loss="bce", seed=3)


ONES = torch.ones(1, 16, 16)


@pytest.mark.parametrize(
    ("changes", "options", "match"),
    [
        (
            {"image": (ONES * 255).to(torch.uint8)},
            {},
            r"'image': expected a float32 image, got 'torch\.uint8'\. First scale it",
        ),
        ({"image": ONES.double()}, {}, r"expected a float32 image, got 'torch\.float64'"),
        ({"image": ONES * 255}, {}, "expected intensities from 0 to 1, got 255 to 255. First scale it"),
        ({"image": ONES * torch.nan}, {}, "expected intensities from 0 to 1, got nan to nan"),
        ({"image": ONES[0, 0]}, {}, r"expected an image of shape \(C, \*S\), got \(16,\)"),
        ({"label": ONES[0]}, {}, r"expected a binary label of shape \(1, 16, 16\), got \(16, 16\)\. Use EnsureChannel"),
        ({"label": ONES[:, :8]}, {}, r"expected a binary label of shape \(1, 16, 16\), got \(1, 8, 16\)"),
        ({"label": ONES * 255}, {}, "expected labels 0 and 1, got 255. Map its values"),
        ({"label": ONES * 0.5}, {}, "expected labels 0 and 1, got 0.5"),
        ({"label": ONES * torch.nan}, {}, "expected labels 0 and 1, got nan"),
        ({"label": ONES * 4}, {"task": "multiclass", "num_classes": 4, "loss": "ce"}, "expected labels 0 to 3, got 4"),
        ({"label": ONES * 254}, {"ignore": 255}, "expected labels 0 and 1, got 254"),
        (
            {},
            {"label_key": "mask"},
            r"expected a sample with 'mask', got \['image', 'label', 'case'\]\. Set `label_key`",
        ),
        ({}, {"valid_key": "valid"}, r"expected a sample with 'valid'.*Set `valid_key`"),
        ({"valid": ONES * 2}, {"valid_key": "valid"}, "mask 'valid': expected labels 0 and 1, got 2"),
    ],
)
def test_mistakes_in_a_sample_are_one_line(changes: dict[str, Any], options: dict[str, Any], match: str) -> None:
    with pytest.raises(DataError, match=match) as caught:
        attack_disc(**options)(make_disc() | changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("model", "image", "match"),
    [
        (Threshold(3), ONES, "model: the network fails on images of shape .*to have 3 channels, but got 1"),
        (as_network(Threshold(), in_channels=1), ONES.repeat(3, 1, 1), "network: expected images of 1 channels, got 3"),
        (Threshold(1, 2), ONES, r"model: expected 1 logit channels \(class0\), got 2"),
        (nn.Sequential(Threshold(), nn.Sigmoid()), ONES, "model: expected raw logits, got values between 0"),
        (nn.Sequential(Threshold(), nn.MaxPool2d(3)), ONES, "Logits must have the size of the image"),
    ],
    ids=["channels", "network-channels", "classes", "probabilities", "size"],
)
def test_models_that_do_not_fit_are_refused(model: nn.Module, image: Tensor, match: str) -> None:
    with pytest.raises(IncompatibleError, match=match) as caught:
        attack_disc(model=model)(make_disc() | {"image": image})
    assert "\n" not in str(caught.value)


def test_a_later_image_of_other_channels_is_refused() -> None:
    transform = attack_disc()
    transform(make_disc())
    with pytest.raises(IncompatibleError, match=r"attack fgsm: fails on an image of \(3, 16, 16\): RuntimeError"):
        transform(make_disc() | {"image": ONES.repeat(3, 1, 1)})
