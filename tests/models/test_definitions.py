"""Networks that files define: MONAI bundles, folders of `save_pretrained`, names of the Hugging Face Hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import segmentation_models_pytorch as smp
import torch
import yaml
from monai.networks import nets
from pydantic import ValidationError
from torch import nn

from advseg_bench.errors import IncompatibleError, SpecError
from advseg_bench.models.build import build_model
from advseg_bench.models.checkpoints import places
from advseg_bench.models.checkpoints.bundles import read_network
from advseg_bench.models.weights import load_weights
from advseg_bench.suite.specs import ModelSpec
from advseg_bench.types import Task

TASK = Task("multiclass", ("background", "organ"))
X = torch.rand((2, 1, 32, 32), generator=torch.Generator().manual_seed(0))


def build(spec: ModelSpec, channels: int = 1, task: Task = TASK, size: Any = 32) -> nn.Module:
    model = build_model(spec, channels=channels, task=task, size=size, seed=3).eval()
    if spec.weights:
        load_weights(spec.weights, model, spec.weights_key)
    return model


def made(make: Any, **arguments: Any) -> nn.Module:
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(1)
        return make(**arguments).eval()


def write_bundle(root: Path, network: Any, form: str = "json", **rest: Any) -> Path:
    (root / "configs").mkdir(exist_ok=True)
    config = {"imports": ["$import os"], "network_def": network} | rest
    text = json.dumps(config) if form == "json" else yaml.safe_dump(config)
    (root / "configs" / f"inference.{form}").write_text(text)
    return root


UNET = {"_target_": "UNet", "spatial_dims": 2, "in_channels": 1, "out_channels": 2}


@pytest.mark.parametrize("form", ["json", "yaml", "yml"])
def test_a_bundle_gives_its_network_and_its_weights(tmp_path: Path, form: str) -> None:
    sizes = {"channels": (8, 16, 32), "strides": (2, 2), "num_res_units": 1}
    net = made(nets.UNet, spatial_dims=2, in_channels=1, out_channels=2, **sizes)
    (tmp_path / "models").mkdir()
    torch.save({"model": net.state_dict()}, tmp_path / "models" / "model.pt")
    network = UNET | {"channels": [8, "@width", "$@width * 2"], "strides": "@plan#strides", "num_res_units": "$1"}
    write_bundle(tmp_path, network, form, width=16, plan={"strides": [2, 2]}, device="$torch.device('cuda')")
    model = build(ModelSpec(name="b", architecture="monai.bundle", weights=tmp_path))
    assert torch.equal(model(X), net(X))
    assert model.stride == 4


def test_a_bundle_with_a_pretrained_encoder_downloads_nothing(tmp_path: Path) -> None:
    arguments = {"in_channels": 3, "out_channels": 2, "backbone": "efficientnet-b0", "spatial_dims": 2}
    net = made(nets.FlexibleUNet, pretrained=False, **arguments)
    torch.save(net.state_dict(), tmp_path / "pytorch_model.bin")
    write_bundle(tmp_path, {"_target_": "FlexibleUNet", "pretrained": True, "img_size": [32, 32]} | arguments)
    model = build(ModelSpec(name="b", architecture="monai.bundle", weights=tmp_path), channels=3)
    assert torch.equal(model(X.expand(-1, 3, -1, -1)), net(X.expand(-1, 3, -1, -1)))
    assert model.stride == 32


def test_a_bundle_of_a_network_outside_the_catalogue(tmp_path: Path) -> None:
    arguments = {"spatial_dims": 2, "in_channels": 1, "out_channels": 2, "init_filters": 8, "dsdepth": 2}
    net = made(nets.SegResNetDS, **arguments)
    torch.save(net.state_dict(), tmp_path / "pytorch_model.bin")
    write_bundle(tmp_path, {"_target_": "monai.networks.nets.SegResNetDS"} | arguments)
    model = build(ModelSpec(name="b", architecture="monai.bundle", weights=tmp_path))
    assert torch.equal(model(X), net(X))


@pytest.mark.parametrize(
    ("network", "match"),
    [
        ({"_target_": "os.system", "command": "touch pwned"}, r"monai\.networks\.nets, got 'os\.system'"),
        ({"_target_": "monai.networks.netsx.UNet"}, r"got 'monai\.networks\.netsx\.UNet'"),
        ({"_target_": "scripts.my_net.Net"}, r"got 'scripts\.my_net\.Net'. Name your network as `architecture`"),
        (
            UNET | {"channels": "$__import__('os').system('touch pwned')"},
            "at network_def#channels, got 'the expression",
        ),
        (UNET | {"channels": "$[i for i in range(3)]"}, "got \"?'?the expression"),
        (UNET | {"channels": "$(9**9)**9"}, "the expression"),
        (UNET | {"channels": "@nowhere"}, "a reference to 'nowhere', which is not there"),
        (UNET | {"channels": "@network_def#channels"}, "round in a circle"),
        (UNET | {"act": {"_target_": "subprocess.run", "args": "ls"}}, r"an object of subprocess\.run"),
        (UNET | {"channels": "%other.json::channels"}, "the macro"),
        (UNET | {"_mode_": "debug"}, "no _mode_"),
        ("$@other", "a network with _target_"),
    ],
)
def test_a_bundle_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network: Any, match: str) -> None:
    monkeypatch.chdir(tmp_path)
    write_bundle(tmp_path, network)
    with pytest.raises(SpecError, match=match) as caught:
        read_network(tmp_path / "configs" / "inference.json")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"in_channels": 4}, r"expected 4 channels of an image .*, got 1\. Set `channels`"),
        ({"out_channels": 5}, r"expected 5 classes .*, got 2\."),
        ({"spatial_dims": 3}, r"expected 3 axes of an image .*, got 2\."),
    ],
)
def test_a_bundle_for_other_data_is_one_line(tmp_path: Path, change: dict[str, int], match: str) -> None:
    write_bundle(tmp_path, UNET | {"channels": [8, 8], "strides": [2]} | change)
    with pytest.raises(IncompatibleError, match=match):
        build(ModelSpec(name="b", architecture="monai.bundle", weights=tmp_path))


def test_what_is_no_bundle_is_one_line(tmp_path: Path) -> None:
    spec = ModelSpec(name="b", architecture="monai.bundle", weights=tmp_path)
    with pytest.raises(SpecError, match=r"model 'b': expected a file configs/inference\.json in .*, got 'none'"):
        build(spec)
    write_bundle(tmp_path, UNET | {"_target_": "SwinUNETRR"})
    with pytest.raises(SpecError, match=r"unknown network of MONAI 'SwinUNETRR'\. Did you mean 'SwinUNETR'"):
        build(spec)
    with pytest.raises(SpecError, match=r"expected the folder that defines .*, got"):
        build(spec.model_copy(update={"weights": tmp_path / "configs" / "inference.json"}))
    with pytest.raises(SpecError, match="expected no `encoder` and `settings`"):
        build(spec.model_copy(update={"encoder": "resnet18"}))
    (tmp_path / "configs" / "inference.json").write_text("{")
    with pytest.raises(SpecError, match="expected a configuration of a MONAI bundle, got 'JSONDecodeError"):
        build(spec)


def save_smp(root: Path, **arguments: Any) -> nn.Module:
    settings = {"encoder_weights": None, "in_channels": 1, "classes": 2, "decoder_channels": (16, 8, 8, 8, 8)}
    net = made(smp.Unet, encoder_name="mobilenet_v2", **(settings | arguments))
    root.mkdir(parents=True, exist_ok=True)
    config = settings | {"encoder_name": "mobilenet_v2", "_model_class": "Unet"} | arguments
    (root / "config.json").write_text(json.dumps(config))
    (root / "model.safetensors").write_bytes(safetensors.torch.save(net.state_dict()))
    return net


def test_a_folder_of_save_pretrained_gives_its_network(tmp_path: Path) -> None:
    """SMP's own call writes the folder; the activation is left out, so that logits come out."""
    settings = {"encoder_weights": None, "in_channels": 1, "classes": 2, "decoder_channels": (16, 8, 8, 8, 8)}
    net = made(smp.Unet, encoder_name="mobilenet_v2", activation="sigmoid", aux_params={"classes": 3}, **settings)
    net.save_pretrained(tmp_path)
    model = build(ModelSpec(name="s", architecture="smp.from_pretrained", weights=tmp_path))
    masks, _ = net(X)
    assert torch.allclose(model(X).sigmoid(), masks, atol=1e-6)
    assert (model(X) < 0).any()


def test_a_folder_of_save_pretrained_is_loaded_into_a_named_network(tmp_path: Path) -> None:
    net = save_smp(tmp_path)
    settings = {"decoder_channels": [16, 8, 8, 8, 8]}
    spec = ModelSpec(name="s", architecture="smp.Unet", encoder="mobilenet_v2", settings=settings, weights=tmp_path)
    assert torch.equal(build(spec)(X), net(X))


def test_what_save_pretrained_did_not_write_is_one_line(tmp_path: Path) -> None:
    spec = ModelSpec(name="s", architecture="smp.from_pretrained", weights=tmp_path)
    with pytest.raises(SpecError, match=r"expected a file .*config\.json, got 'none'"):
        build(spec)
    (tmp_path / "config.json").write_text(json.dumps({"_model_class": "segmentation.evil"}))
    with pytest.raises(SpecError, match=r"unknown _model_class 'segmentation\.evil'"):
        build(spec)
    save_smp(tmp_path, classes=3)
    with pytest.raises(IncompatibleError, match=r"expected 3 classes .*, got 2"):
        build(spec)
    (tmp_path / "config.json").write_text(json.dumps({"_model_class": "Unet", "encoder_name": "tu-hf-hub:a/b"}))
    with pytest.raises(SpecError, match="unknown encoder 'tu-hf-hub:a/b'"):
        build(spec)


# The Hub


@pytest.mark.parametrize(
    ("name", "repo", "revision", "file"),
    [
        ("hf:owner/name", "owner/name", None, None),
        ("hf:/owner/name", "owner/name", None, None),  # what a path makes of hf://owner/name
        ("hf:owner/na.me-1@v1.0", "owner/na.me-1", "v1.0", None),
        ("hf:owner/name@main/a/b.pth", "owner/name", "main", "a/b.pth"),
        ("hf:owner/name/model.ckpt", "owner/name", None, "model.ckpt"),
    ],
)
def test_names_of_the_hub(name: str, repo: str, revision: str | None, file: str | None) -> None:
    match = places.HUB.fullmatch(name)
    assert match is not None
    assert (match["repo"], match["revision"], match["file"]) == (repo, revision, file)
    assert places.is_hub(Path(name))


@pytest.mark.parametrize("name", ["hf:", "hf:name", "hf:a/b@", "hf:a b/c"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(SpecError, match="expected a repository of the Hugging Face Hub"):
        places.fetch(name)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the Hub's client that holds one repository, and no network."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    repo = tmp_path / "models--owner--name"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("c0ffee")
    places.fetch.cache_clear()
    return repo / "snapshots" / "c0ffee"


def test_a_repository_that_was_fetched_once_needs_no_network(hub: Path) -> None:
    net = save_smp(hub)
    name = Path("hf:owner/name")
    assert torch.equal(build(ModelSpec(name="s", architecture="smp.from_pretrained", weights=name))(X), net(X))
    settings = {"decoder_channels": [16, 8, 8, 8, 8]}
    file = Path("hf:owner/name@main/model.safetensors")
    spec = ModelSpec(name="s", architecture="smp.Unet", encoder="mobilenet_v2", settings=settings, weights=file)
    assert torch.equal(build(spec)(X), net(X))


def test_without_a_network_it_is_one_line(hub: Path) -> None:
    hub.mkdir(parents=True)
    for name, match in (
        (
            "hf:owner/other",
            "hf:owner/other: expected files from .* Hub, got no connection, .*Connect",
        ),
        ("hf:owner/name@main/absent.pth", "expected a file absent.pth in the repository, got 'none'"),
    ):
        with pytest.raises(SpecError, match=match) as caught:
            places.fetch(name)
        assert "\n" not in str(caught.value)


def test_the_hub_is_reached_as_before_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "https://nowhere.invalid")
    monkeypatch.setattr(places, "getproxies", dict)
    with places.hub_access():
        assert constants.HF_HUB_OFFLINE
    assert not constants.HF_HUB_OFFLINE


# Pretrained encoders


def test_pretrained_encoders_start_from_the_weights_that_the_library_fetches(tmp_path: Path, hub: Path) -> None:
    """The library's file lies in the cache of the Hub's client, as after a download."""
    spec = ModelSpec(name="e", architecture="smp.Unet", encoder="mobilenet_v2", encoder_weights="imagenet")
    with pytest.raises(
        SpecError, match="encoder_weights = 'imagenet' of mobilenet_v2 to be fetched, got no connection"
    ):
        build(spec, channels=3)
    plain = build(spec.model_copy(update={"encoder_weights": None}), channels=3)
    state = {name: torch.full_like(tensor, 0.5) for name, tensor in plain.net.encoder.state_dict().items()}
    state |= {"classifier.1.weight": torch.ones(1000, 1280), "classifier.1.bias": torch.ones(1000)}
    setting = smp.encoders.encoders["mobilenet_v2"]["pretrained_settings"]["imagenet"]
    folder = tmp_path / f"models--{setting['repo_id'].replace('/', '--')}" / "snapshots" / setting["revision"]
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(safetensors.torch.save(state))
    started = build(spec, channels=3)
    assert all(bool((value == 0.5).all()) for value in started.net.encoder.parameters())
    assert not all(bool((value == 0.5).all()) for value in plain.net.encoder.parameters())


@pytest.mark.parametrize(
    ("keys", "match"),
    [
        (
            {"architecture": "smp.Unet", "encoder": "mobilenet_v2", "encoder_weights": "imagnet"},
            "Did you mean 'imagenet'",
        ),
        (
            {"architecture": "smp.Unet", "encoder": "tu-resnet18", "encoder_weights": "x"},
            "unknown encoder_weights of tu-",
        ),
        (
            {"architecture": "monai.UNet", "encoder_weights": "imagenet"},
            "monai.UNet, which has no pretrained encoder, got",
        ),
        (
            {"architecture": "torch.nn:Identity", "encoder_weights": "imagenet"},
            "for a user network, got 'imagenet'",
        ),
        (
            {"architecture": "monai.FlexibleUNet", "encoder": "efficientnet-b0", "encoder_weights": "x"},
            "unknown encoder_weights of efficientnet-b0 'x'",
        ),
    ],
)
def test_encoder_weights_that_do_not_exist_are_one_line(keys: dict[str, str], match: str) -> None:
    with pytest.raises(SpecError, match=match):
        build(ModelSpec(name="e", **keys), channels=3)


@pytest.mark.parametrize(
    ("keys", "match"),
    [
        ({"architecture": "monai.UNet", "weights_key": "ema"}, "weights_key: selects a part of `weights`"),
        (
            {"architecture": "smp.Unet", "encoder_weights": "imagenet", "weights": "a.pt"},
            "encoder_weights: `weights` replace them all",
        ),
        ({"architecture": "monai.bundle"}, "weights: monai.bundle reads the network from there"),
        ({"architecture": "smp.from_pretrained"}, "weights: smp.from_pretrained reads the network"),
    ],
)
def test_keys_about_weights_agree(keys: dict[str, str], match: str) -> None:
    with pytest.raises(ValidationError, match=match):
        ModelSpec(name="e", **keys)


def test_unused_keys_are_in_no_record() -> None:
    """Cell ids and the keys of trained models are hashes of this."""
    assert set(ModelSpec(name="m", architecture="monai.UNet").model_dump()) == {
        *("name", "architecture", "encoder", "settings", "weights", "mean", "std", "stride")
    }
    used = ModelSpec(name="m", architecture="monai.UNet", weights="a.pt", weights_key="ema")
    assert used.model_dump(mode="json")["weights_key"] == "ema"
    assert ModelSpec.model_validate(used.model_dump(mode="json")) == used
