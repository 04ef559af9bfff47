"""What trainers write: formats told by their bytes, state dicts under any key and prefix, and what is left out."""

import argparse
import datetime
import gzip
import io
import pathlib
import pickle
import tarfile
import zipfile
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from advseg_bench.errors import DataError, SpecError
from advseg_bench.models.checkpoints.standins import Inert
from advseg_bench.models.module import SegmentationModule
from advseg_bench.models.weights import load_weights


class Net(nn.Module):
    """A small network with an encoder, a decoder, a batch norm and a head."""

    def __init__(self, channels: int = 1, classes: int = 2, axes: int = 2) -> None:
        super().__init__()
        conv = nn.Conv2d if axes == 2 else nn.Conv3d
        self.encoder = nn.ModuleDict({"first": conv(channels, 4, 3, padding=1), "norm": nn.BatchNorm2d(4)})
        self.decoder = nn.ModuleList([conv(4, 4, 3, padding=1), conv(4, 4, 3, padding=1)])
        self.head = conv(4, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        z = self.encoder["norm"](self.encoder["first"](x))
        for layer in self.decoder:
            z = layer(z)
        return self.head(z)


def make(seed: int, **sizes: int) -> SegmentationModule:
    """A network whose every tensor depends on the seed."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        net = Net(**sizes)
        for name, tensor in net.state_dict().items():
            tensor.copy_(torch.rand(tensor.shape) + (0.1 if "var" in name else 0.0))
    return SegmentationModule(net.eval())


def tensors(seed: int = 1, front: str = "", **sizes: int) -> dict[str, Tensor]:
    return {front + name: tensor.clone() for name, tensor in make(seed, **sizes).net.state_dict().items()}


def load(path: Path, content: object, key: str | None = None, seed: int = 1) -> dict[str, Any]:
    """Save, load into another network, and hold its logits to those of the network with this seed."""
    torch.save(content, path)
    model = make(99)
    record = load_weights(path, model, key).as_record()
    x = torch.rand((2, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    assert torch.equal(model(x), make(seed)(x))
    assert not torch.equal(model(x), make(seed + 1)(x))
    return record


def refuse(path: Path, match: str, key: str | None = None, error: type[Exception] = SpecError) -> None:
    model = make(99)
    before = tensors(99)
    with pytest.raises(error, match=match) as caught:
        load_weights(path, model, key)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.net.state_dict().items())


def refuse_content(path: Path, content: object, match: str, key: str | None = None) -> None:
    torch.save(content, path)
    refuse(path, match, key)


# Formats


@pytest.mark.parametrize(
    "name", ["best.ckpt", "checkpoint.pth.tar", "pytorch_model.bin", "BEST.PTH", "weights", "w.safetensors"]
)
@pytest.mark.parametrize("write", ["zip", "legacy", "safetensors"])
def test_the_bytes_decide_and_not_the_name(tmp_path: Path, name: str, write: str) -> None:
    path = tmp_path / name
    if write == "safetensors":
        path.write_bytes(safetensors.torch.save(tensors()))
    else:
        torch.save(tensors(), path, _use_new_zipfile_serialization=write == "zip")
    model = make(99)
    load_weights(path, model)
    assert all(torch.equal(tensor, tensors()[name]) for name, tensor in model.net.state_dict().items())


def _tar(data: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        entry = tarfile.TarInfo("checkpoint.pth")
        entry.size = len(data)
        file.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def _zip(data: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("checkpoint.pth", data)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("pack", "match"),
    [
        (gzip.compress, "got 'a gzip archive'. Unpack it"),
        (_tar, "got 'a tar archive'. Unpack it"),
        (_zip, r"got \"a zip archive of \['checkpoint.pth'\]\""),
        (lambda data: b"\x89HDF\r\n\x1a\n" + data, "got 'an HDF5 file"),
    ],
    ids=["gzip", "tar", "zip", "hdf5"],
)
def test_other_formats_are_named(tmp_path: Path, pack: Callable[[bytes], bytes], match: str) -> None:
    torch.save(tensors(), tmp_path / "inner")
    path = tmp_path / "a.pth.tar"
    path.write_bytes(pack((tmp_path / "inner").read_bytes()))
    refuse(path, f"expected a checkpoint of PyTorch or safetensors, {match}")


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "pointer of Git LFS"),
        (b"\n<!DOCTYPE html><html>", "web page"),
    ],
)
def test_what_a_download_leaves_in_place_of_a_file_is_named(tmp_path: Path, data: bytes, match: str) -> None:
    (tmp_path / "a.pt").write_bytes(data)
    refuse(tmp_path / "a.pt", f"damaged file: .*{match}", error=DataError)


# Objects beside the weights


class Settings(dict):
    """Stands for the dictionary classes of trainers, whose modules are made for a test."""


def test_harmless_objects_beside_the_weights_are_passed_over(tmp_path: Path) -> None:
    record = load(
        tmp_path / "a.ckpt",
        {
            "network_weights": tensors(),
            "current_best_ema": np.float64(0.9),
            "logging": {
                "dice": [np.float32(0.5)],
                "curve": np.arange(3.0),
                "ints": np.int64(3),
                "flag": np.bool_(True),
            },
            "init_args": {"folder": pathlib.PurePosixPath("/data"), "device": torch.device("cpu")},
            "hyper_parameters": argparse.Namespace(lr=1e-3, out=Path("x")),
            "date": datetime.datetime(2024, 1, 1) + datetime.timedelta(1),
            "history": defaultdict(list, {"a": [1]}),
            "window": deque([1.0], maxlen=3),
        },
    )
    assert record["key"] == "network_weights"
    assert record["other_entries"] == [
        *("current_best_ema", "date", "history", "hyper_parameters", "init_args", "logging", "window")
    ]


def test_dictionaries_of_trainers_are_read_without_their_packages(tmp_path: Path) -> None:
    """A file that names `easydict.EasyDict`, which is not installed: the name is written into the pickle."""
    torch.save({"cfg": Settings(lr=1.0), "state_dict": tensors()}, tmp_path / "a", _use_new_zipfile_serialization=False)
    named = f"c{Settings.__module__}\nSettings\n".encode()
    data = (tmp_path / "a").read_bytes()
    assert named in data
    (tmp_path / "a").write_bytes(data.replace(named, b"ceasydict\nEasyDict\n"))
    model = make(99)
    assert load_weights(tmp_path / "a", model).key == "state_dict"
    (tmp_path / "a").write_bytes(data)
    refuse(tmp_path / "a", rf"got a pickle with an object of {Settings.__module__}\.Settings: refused")


def test_stand_ins_keep_and_run_nothing() -> None:
    made = Inert(1, callback=print)
    made.__setstate__({"a": print})
    assert vars(made) == {}


@pytest.mark.parametrize(
    "name", ["builtins.eval", "builtins.getattr", "os.system", "functools.partial", "codecs.decode"]
)
def test_functions_are_refused(tmp_path: Path, name: str) -> None:
    module, function = name.split(".")
    body = pickle.dumps({"state_dict": 1}, protocol=2)[:-1]
    call = b"c" + f"{module}\n{function}\n".encode() + b"X\x01\x00\x00\x001\x85R0"
    (tmp_path / "a.pt").write_bytes(body + call + b".")
    refuse(tmp_path / "a.pt", "refused because it could execute code|damaged file", error=(SpecError, DataError))


# State dicts


FRONTS = [
    "_orig_mod.",
    "_orig_mod.module.",
    "module._orig_mod.",
    "model._orig_mod.",
    "module.model.net._orig_mod.",
    "net.module.",
    "network._orig_mod.",
    "_forward_module.model.",
]


@pytest.mark.parametrize("front", FRONTS)
@pytest.mark.parametrize("container", [None, "state_dict", "network_weights", "model", "ema_state_dict", "weights"])
def test_wrappers_come_off_in_any_order(tmp_path: Path, front: str, container: str | None) -> None:
    state = tensors(front=front)
    load(tmp_path / "a.pt", state if container is None else {"epoch": 3, container: state})


@pytest.mark.parametrize("wrapper", ["_orig_mod", "module", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"])
def test_wrappers_around_a_part_of_the_network_come_off(tmp_path: Path, wrapper: str) -> None:
    state = {name.replace("encoder.", f"encoder.{wrapper}."): tensor for name, tensor in tensors().items()}
    load(tmp_path / "a.pt", {"state_dict": state})


def test_a_file_of_the_bare_network_fits_one_that_is_wrapped(tmp_path: Path) -> None:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = make(5).net

    torch.save(tensors(), tmp_path / "a.pt")
    model = SegmentationModule(Wrapped())
    load_weights(tmp_path / "a.pt", model)
    assert torch.equal(model.net.net.head.weight, tensors()["head.weight"])


def test_containers_may_be_nested(tmp_path: Path) -> None:
    assert load(tmp_path / "a.pt", {"ema": {"state_dict": tensors()}, "step": 3})["key"] == "ema.state_dict"
    assert load(tmp_path / "b.pt", [{"lr": 1.0}, {"net": tensors()}])["key"] == "1.net"


def test_a_module_of_lightning_gives_its_network_alone(tmp_path: Path) -> None:
    state = tensors(front="model.") | {"criterion.weight": torch.ones(2)}
    optimizer = {"state": {0: {"exp_avg": torch.ones(3), "step": torch.tensor(1.0)}}, "param_groups": []}
    content = {"state_dict": state, "optimizer_states": [optimizer], "callbacks": {}, "epoch": 1}
    record = load(tmp_path / "a.ckpt", content)
    assert record == {
        "key": "state_dict.model",
        "left_out": ["criterion.weight"],
        "other_entries": ["callbacks", "epoch", "optimizer_states"],
    }


def test_an_averaged_model_of_torch_is_read(tmp_path: Path) -> None:
    record = load(tmp_path / "a.pt", AveragedModel(make(1).net).state_dict())
    assert record["left_out"] == ["n_averaged"]


AVERAGED = {
    "timm": lambda a, b: ({"state_dict": a, "state_dict_ema": b}, "state_dict", "state_dict_ema"),
    "nested": lambda a, b: ({"model": a, "ema": {"state_dict": b}}, "model", "ema.state_dict"),
    "prefixes": lambda a, b: (
        {"state_dict": _front("student.", a) | _front("teacher.", b)},
        "state_dict.student",
        "state_dict.teacher",
    ),
    "ema-pytorch": lambda a, b: (
        _front("online_model.", a) | _front("ema_model.", b) | {"initted": torch.ones(1), "step": torch.ones(1)},
        "online_model",
        "ema_model",
    ),
    "beside": lambda a, b: (a | _front("ema.module.", b) | {"ema.n_averaged": torch.tensor(1)}, ".", "ema.module"),
}


def _front(front: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {front + name: tensor for name, tensor in state.items()}


@pytest.mark.parametrize("layout", AVERAGED)
def test_two_state_dicts_are_listed_and_the_key_selects_one(tmp_path: Path, layout: str) -> None:
    content, raw, averaged = AVERAGED[layout](tensors(1), tensors(2))
    match = rf"expected one state dict of this Net, got 2 that differ: '{raw}', '{averaged}'\. .*`weights_key`"
    refuse_content(tmp_path / "a.pt", content, match.replace("'.'", r"'\.'"))
    if raw != ".":
        load(tmp_path / "a.pt", content, raw, seed=1)
    load(tmp_path / "a.pt", content, averaged, seed=2)
    refuse_content(tmp_path / "a.pt", content, "unknown weights_key 'state_dict_emma'", "state_dict_emma")


def test_two_equal_state_dicts_are_one(tmp_path: Path) -> None:
    assert load(tmp_path / "a.pt", {"state_dict": tensors(), "best": tensors()})["key"] == "state_dict"


def test_batch_norms_of_old_releases_lack_a_counter(tmp_path: Path) -> None:
    state = {name: tensor for name, tensor in tensors().items() if not name.endswith("num_batches_tracked")}
    load(tmp_path / "a.pt", state)


# What is left out


@pytest.mark.parametrize(
    "head",
    [
        "deep_supervision_heads.0.conv.weight",
        "aux_classifier.4.weight",
        "auxiliary_head.conv_seg.weight",
        "classification_head.3.weight",
        "decoder.seg_layers.0.weight",
        "ds_head.weight",
        "loss_fn.weight",
        "val_metrics.total",
        "encoder.total_ops",
    ],
)
@pytest.mark.parametrize("front", ["", "module."])
def test_what_only_helped_training_is_left_out_and_recorded(tmp_path: Path, head: str, front: str) -> None:
    record = load(tmp_path / "a.pt", tensors(front=front) | {front + head: torch.ones(2, 4)})
    assert record["left_out"] == [head]


@pytest.mark.parametrize("name", ["aux_encoder.weight", "metric_attention.weight", "final_conv.weight"])
@pytest.mark.parametrize("front", ["", "net."])
def test_what_may_change_logits_is_refused_inside_and_beside(tmp_path: Path, name: str, front: str) -> None:
    state = tensors(front=front) | {name: torch.ones(2, 2)}
    refuse_content(tmp_path / "a.pt", state, "weights_key" if front else f"1 unexpected .first '{name}'")
    if front:
        assert load(tmp_path / "a.pt", state, "net")["left_out"] == [name]


# Advice


def test_heads_of_unknown_purpose_are_refused_by_name(tmp_path: Path) -> None:
    state = tensors() | {"boundary.weight": torch.ones(1), "decoder.refine.weight": torch.ones(1)}
    match = (
        r"0 missing, 2 unexpected .* All tensors of the network are there\. If 'boundary' and 'decoder\.refine' only"
    )
    refuse_content(tmp_path / "a.pt", state, match)


def test_a_network_inside_another_one_is_not_taken_unasked(tmp_path: Path) -> None:
    state = tensors(front="segmenter.") | {"registration.weight": torch.ones(3)}
    refuse_content(tmp_path / "a.pt", state, r"beside the prefix 'segmenter\.' .*set weights_key = \"segmenter\"\.$")
    assert load(tmp_path / "a.pt", state, "segmenter")["key"] == "segmenter"
    load(tmp_path / "b.pt", tensors(front="segmenter."))


@pytest.mark.parametrize("front", ["", "module.", "student."])
def test_classes_channels_and_axes_are_distinguished_behind_any_prefix(tmp_path: Path, front: str) -> None:
    cases = {
        r"Classes: 5 in the file, 2 here. .*\.$": {"classes": 5},
        r"Channels of an image: 3 in the file, 1 here. .* to 3\.$": {"channels": 3},
        r"Channels of an image: 3 .* Classes: 5 in the file, 2 here": {"channels": 3, "classes": 5},
        r"Its network is for 3-D images, this one for 2-D ones\.$": {"axes": 3},
    }
    for match, sizes in cases.items():
        refuse_content(tmp_path / "a.pt", {"state_dict": tensors(front=front, **sizes)}, match)


def test_a_part_another_decoder_and_another_network_are_distinguished(tmp_path: Path) -> None:
    state = tensors()
    part = {name: tensor for name, tensor in state.items() if name.startswith("encoder.")}
    refuse_content(tmp_path / "a.pt", part, r"lacks 'decoder', 'head': it holds a part of the network only")
    bare = {name.removeprefix("encoder."): tensor for name, tensor in part.items()}
    refuse_content(tmp_path / "a.pt", bare, r"Its tensors are those of 'encoder': the file holds a part")
    deeper = state | {f"encoder.more.{i}.weight": torch.ones(1) for i in range(9)}
    refuse_content(tmp_path / "a.pt", deeper, r"Only the encoder differs: use the `encoder`")
    other = part | {"head.weight": state["head.weight"], "head.bias": state["head.bias"], "decoder.up": torch.ones(1)}
    refuse_content(tmp_path / "a.pt", other, r"Only the decoder differs: use the `architecture` and `settings`")
    refuse_content(tmp_path / "a.pt", {"a.b": torch.ones(1)}, r"12 missing|No name agrees: it is another network")


def test_a_file_without_any_tensor_names_what_it_holds(tmp_path: Path) -> None:
    refuse_content(
        tmp_path / "a.pt", OrderedDict(epoch=1, lr=0.1), r"expected a state dict, got keys \['epoch', 'lr'\]"
    )


@pytest.mark.parametrize("first", [0, 1])
def test_two_tensors_of_one_name_are_refused_unless_equal(tmp_path: Path, first: int) -> None:
    pairs = [("_orig_mod.head.weight", tensors(1)["head.weight"]), ("head.weight", tensors(2)["head.weight"])]
    pairs = pairs[::-1] if first else pairs
    rest = {name: tensor for name, tensor in tensors().items() if name != "head.weight"}
    match = rf"got two that differ: '{pairs[0][0]}' and '{pairs[1][0]}'\. Save"
    refuse_content(tmp_path / "a.pt", dict(pairs) | rest, match.replace("_orig_mod.", r"_orig_mod\."))
    load(tmp_path / "b.pt", tensors() | {"_orig_mod.head.weight": tensors()["head.weight"]})


@pytest.mark.parametrize("front", ["", "model."])
@pytest.mark.parametrize("kept", [0, 1])
def test_a_tied_weight_may_have_one_of_its_names(tmp_path: Path, front: str, kept: int) -> None:
    model = make(99)
    model.net.decoder[1].weight = model.net.decoder[0].weight
    state = tensors(front=front)
    del state[f"{front}decoder.{1 - kept}.weight"]
    (tmp_path / "a.safetensors").write_bytes(safetensors.torch.save(state))
    load_weights(tmp_path / "a.safetensors", model)
    assert torch.equal(model.net.decoder[1].weight, tensors()[f"decoder.{kept}.weight"])
    (tmp_path / "b.safetensors").write_bytes(safetensors.torch.save(tensors(front=front)))
    with pytest.raises(SpecError, match=r"got two that differ: 'decoder\.0\.weight' and 'decoder\.1\.weight'"):
        load_weights(tmp_path / "b.safetensors", model)


# Folders


@pytest.mark.parametrize("name", ["models/model.pt", "model.safetensors", "pytorch_model.bin", "last.ckpt"])
def test_a_folder_gives_its_only_checkpoint(tmp_path: Path, name: str) -> None:
    (tmp_path / "models").mkdir()
    if name.endswith("safetensors"):
        (tmp_path / name).write_bytes(safetensors.torch.save(tensors()))
    else:
        torch.save(tensors(), tmp_path / name)
    model = make(99)
    load_weights(tmp_path, model)
    assert torch.equal(model.net.head.weight, tensors()["head.weight"])


def test_a_folder_with_several_checkpoints_lists_them(tmp_path: Path) -> None:
    for name in ("best.ckpt", "last.ckpt"):
        torch.save(tensors(), tmp_path / name)
    refuse(tmp_path, r"got \['best\.ckpt', 'last\.ckpt'\]\. Name the file as `weights`")
