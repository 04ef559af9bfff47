"""Networks of Transformers, whose package renames the tensors of older files; a small class stands for one."""

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from advseg_bench.errors import SpecError
from advseg_bench.models.module import SegmentationModule
from advseg_bench.models.weights import load_weights


class Renaming(nn.Module):
    """Loads as Transformers does: old names are translated, and what it has no place for is only reported."""

    __module__ = "transformers.stand_in"

    def __init__(self, config: int) -> None:
        super().__init__()
        self.config = config
        with torch.random.fork_rng(devices=()):
            self.blocks = nn.ModuleList(nn.Linear(2, 2) for _ in range(config))

    @classmethod
    def from_pretrained(
        cls, name: Path | None, *, config: int, state_dict: dict[str, Tensor] | None = None, **_: Any
    ) -> tuple[nn.Module, dict[str, Any]]:
        if state_dict is None:
            assert name is not None
            state_dict = safetensors.torch.load_file(name / "model.safetensors")
        renamed = {key.replace("layer.", "blocks."): tensor for key, tensor in state_dict.items()}
        network = cls(config)
        missing, unexpected = network.load_state_dict(renamed, strict=False)
        return network, {"missing_keys": missing, "unexpected_keys": set(unexpected), "mismatched_keys": set()}


def old_state(depth: int, value: float) -> dict[str, Tensor]:
    state = Renaming(depth).state_dict()
    return {name.replace("blocks.", "layer."): torch.full_like(tensor, value) for name, tensor in state.items()}


def test_a_deeper_network_of_transformers_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    torch.save(old_state(2, 1.0), path)
    with pytest.raises(SpecError, match=r"0 missing, 2 unexpected \(first 'blocks\.1\.bias'\)"):
        load_weights(path, SegmentationModule(Renaming(1)))
    torch.save(old_state(1, 1.0) | {"aux_head.weight": torch.ones(1)}, path)
    assert load_weights(path, SegmentationModule(Renaming(1))).left_out == ("aux_head.weight",)


def test_the_file_that_is_named_is_renamed_and_not_its_neighbour(tmp_path: Path) -> None:
    torch.save(old_state(1, 1.0), tmp_path / "pytorch_model.bin")
    safetensors.torch.save_file(old_state(1, 2.0), tmp_path / "model.safetensors")
    model = SegmentationModule(nn.ModuleDict({"inner": Renaming(1)}))
    for name, value in (("pytorch_model.bin", 1.0), ("model.safetensors", 2.0)):
        load_weights(tmp_path / name, model)
        assert all(bool((tensor == value).all()) for tensor in model.net.state_dict().values())
