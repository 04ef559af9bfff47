import os
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from advseg_bench.errors import DataError, RecordError, SpecError
from advseg_bench.models.module import SegmentationModule
from advseg_bench.models.weights import count_parameters, load_weights, save_weights


def conv(channels: int = 1) -> nn.Conv2d:
    with torch.random.fork_rng(devices=()):
        return nn.Conv2d(channels, channels, 3)


class Net(nn.Module):
    def __init__(self, channels: int = 1, *, depth: int = 1) -> None:
        super().__init__()
        self.model = nn.ModuleList(conv(channels) for _ in range(depth))
        self.norm = nn.BatchNorm2d(channels)


class Trap:
    """Leaves a mark if it is ever unpickled."""

    mark = "ADVSEG_BENCH_TRAP"

    def __reduce__(self) -> tuple[Any, ...]:
        return _spring, ()


def _spring() -> None:
    os.environ[Trap.mark] = "sprung"


def wrap(channels: int = 1, *, depth: int = 1, seed: int = 0) -> SegmentationModule:
    module = SegmentationModule(Net(channels, depth=depth))
    generator = torch.Generator().manual_seed(seed)
    for tensor in module.net.state_dict().values():
        tensor.copy_(torch.randint(100, tensor.shape, generator=generator) + 0.1)
    return module


def equal(a: SegmentationModule, b: SegmentationModule) -> bool:
    first, second = a.net.state_dict(), b.net.state_dict()
    return first.keys() == second.keys() and all(
        torch.equal(first[key], second[key]) and first[key].dtype == second[key].dtype for key in first
    )


def refuse(
    path: Path,
    error: type[Exception] | tuple[type[Exception], ...],
    match: str,
    module: SegmentationModule | None = None,
) -> None:
    """Loading must fail with one line, and leave the network as it was."""
    target = module or wrap(seed=7)
    before = {key: tensor.clone() for key, tensor in target.net.state_dict().items()}
    with pytest.raises(error, match=match) as caught:
        load_weights(path, target)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(tensor, before[key]) for key, tensor in target.net.state_dict().items())


def test_round_trip_is_bit_identical(tmp_path: Path) -> None:
    saved, loaded = wrap(seed=1), wrap(seed=2)
    assert not equal(saved, loaded)
    save_weights(tmp_path / "a.safetensors", saved)
    load_weights(tmp_path / "a.safetensors", loaded)
    assert equal(saved, loaded)
    save_weights(tmp_path / "b.safetensors", loaded)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_tied_weights_can_be_saved(tmp_path: Path) -> None:
    saved, loaded = wrap(depth=2), wrap(depth=2, seed=3)
    saved.net.model[1].weight = saved.net.model[0].weight
    save_weights(tmp_path / "a.safetensors", saved)
    load_weights(tmp_path / "a.safetensors", loaded)
    assert equal(saved, loaded)


def test_unwritable_place_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="could not be written"):
        save_weights(tmp_path / "missing" / "a.safetensors", wrap())


@pytest.mark.parametrize("suffix", [".pt", ".pth"])
@pytest.mark.parametrize("container", [None, "state_dict", "model_state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module.", "net.", "model.", "module.model."])
def test_checkpoints_of_torch_are_read(tmp_path: Path, suffix: str, container: str | None, prefix: str) -> None:
    saved, loaded = wrap(seed=1), wrap(seed=2)
    state: Any = {prefix + key: tensor for key, tensor in saved.net.state_dict().items()}
    path = tmp_path / f"a{suffix}"
    torch.save(state if container is None else {"epoch": 3, container: state}, path)
    load_weights(path, loaded)
    assert equal(saved, loaded)


def test_checkpoint_in_the_format_before_zip_is_read(tmp_path: Path) -> None:
    saved, loaded = wrap(seed=1), wrap(seed=2)
    torch.save(saved.net.state_dict(), tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    load_weights(tmp_path / "a.pt", loaded)
    assert equal(saved, loaded)


def test_missing_file_and_empty_folder_are_refused(tmp_path: Path) -> None:
    refuse(tmp_path / "a.pt", SpecError, r"a\.pt: expected .*, got 'No such file or directory'")
    (tmp_path / "b.pt").mkdir()
    refuse(tmp_path / "b.pt", SpecError, "expected a folder with one checkpoint, .* got 'none'")


def _pickle_in_zip(path: Path) -> None:
    torch.save({"state_dict": wrap().net.state_dict(), "extra": Trap()}, path)


def _pickle_bare(path: Path) -> None:
    path.write_bytes(pickle.dumps(Trap()))


def _whole_network(path: Path) -> None:
    torch.save(conv(), path)


def _torchscript(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated in newer versions of torch, but such files exist
        torch.jit.script(conv()).save(str(path))


@pytest.mark.parametrize("write", [_pickle_in_zip, _pickle_bare, _whole_network, _torchscript])
def test_a_file_that_could_run_code_is_refused_and_not_run(tmp_path: Path, write: Callable[[Path], None]) -> None:
    write(tmp_path / "a.pt")
    refuse(tmp_path / "a.pt", SpecError, r"refused because it could execute code\. .*save net\.state_dict\(\)")
    assert Trap.mark not in os.environ


def test_the_trap_of_the_test_above_springs_when_unpickled() -> None:
    try:
        pickle.loads(pickle.dumps(Trap()))
        assert os.environ[Trap.mark] == "sprung"
    finally:
        os.environ.pop(Trap.mark, None)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", "legacy.pt"])
@pytest.mark.parametrize("keep", [0.0, 0.02, 0.5, 0.95, 0.999])
def test_a_file_cut_short_is_refused(tmp_path: Path, suffix: str, keep: float) -> None:
    path = tmp_path / f"a{suffix}"
    if suffix == ".safetensors":
        save_weights(path, wrap())
    else:
        torch.save(wrap().net.state_dict(), path, _use_new_zipfile_serialization=suffix == ".pt")
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data))])
    refuse(path, DataError, r"expected .* checkpoint, got a damaged file: .* save it again\.")


def test_a_flipped_bit_among_the_weights_is_found(tmp_path: Path) -> None:
    saved = wrap()
    torch.save(saved.net.state_dict(), tmp_path / "a.pt")
    data = bytearray((tmp_path / "a.pt").read_bytes())
    at = data.find(saved.net.state_dict()["model.0.weight"].numpy().tobytes())
    data[at] ^= 1
    (tmp_path / "a.pt").write_bytes(data)
    refuse(tmp_path / "a.pt", DataError, "fails its checksum")


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("content", [b"version https://git-lfs.github.com/spec/v1\n", bytes(range(256)), b"PK\3\4"])
def test_garbage_is_refused(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    refuse(path, DataError, "damaged file")


@pytest.mark.parametrize("content", [{}, {"epoch": 3, "state_dict": {"a": 1}}, [torch.zeros(1)], torch.zeros(1)])
def test_a_checkpoint_without_a_state_dict_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "a.pt")
    refuse(tmp_path / "a.pt", SpecError, "expected a state dict, got ")


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_weights(path, wrap(channels=2, depth=1))
    match = (
        r"expected the 7 tensors of this Net, got those of another network: 0 missing, 0 unexpected, "
        r"6 of another shape \(first 'model\.0\.weight': \(2, 2, 3, 3\) in the file, \(1, 1, 3, 3\) in the network\)"
    )
    refuse(path, SpecError, match)
    save_weights(path, wrap(depth=3))
    refuse(path, SpecError, r"0 missing, 4 unexpected \(first 'model\.1\.bias'\)")
    save_weights(path, wrap(depth=1))
    refuse(path, SpecError, r"2 missing \(first 'model\.1\.weight'\), 0 unexpected\.", wrap(depth=2))


def test_prefixes_are_kept_where_they_are_the_networks_own(tmp_path: Path) -> None:
    saved = SegmentationModule(nn.ModuleDict({"model": conv()}))
    loaded = SegmentationModule(nn.ModuleDict({"model": conv()}))
    torch.save({f"model.{key}": tensor for key, tensor in saved.net.state_dict().items()}, tmp_path / "a.pt")
    load_weights(tmp_path / "a.pt", loaded)
    assert equal(saved, loaded)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    state: dict[str, Tensor] = {key: tensor.clone() for key, tensor in wrap().net.state_dict().items()}
    state["norm.running_var"][0] = value
    (tmp_path / "a.safetensors").write_bytes(safetensors.torch.save(state))
    refuse(tmp_path / "a.safetensors", DataError, "expected finite weights, got NaN or infinity in 'norm.running_var'")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda w: w.double() * 0 + 1e300, "values of float64 beyond the range of float32 in 'model.0.weight'"),
        (
            lambda w: w.to(torch.int8),
            "dense values of float32 for 'model.0.weight', got a dense tensor of int8",
        ),
        (lambda w: w > 0, "got a dense tensor of bool"),
        (lambda w: w.to(torch.complex64), "got a dense tensor of complex64"),
        (lambda w: w.to_sparse(), "got a sparse_coo tensor of float32"),
        (lambda w: w.to("meta"), "got a tensor without values"),
    ],
    ids=["overflow", "quantised", "bool", "complex", "sparse", "meta"],
)
@pytest.mark.filterwarnings("ignore:.*[Ss]parse")
def test_weights_that_the_type_of_the_network_cannot_hold_are_refused(
    tmp_path: Path, change: Callable[[Tensor], Tensor], match: str
) -> None:
    state = dict(wrap().net.state_dict())
    state["model.0.weight"] = change(state["model.0.weight"])
    torch.save(state, tmp_path / "a.pt")
    refuse(tmp_path / "a.pt", (DataError, SpecError), match)


def test_parameters_are_counted_without_buffers() -> None:
    module = wrap()
    assert count_parameters(module) == 9 + 1 + 2
    module.requires_grad_(False)
    assert count_parameters(module) == 12
