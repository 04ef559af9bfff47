"""Prepared copies of models: what may be asked for, what is left alone, and what is accepted."""

import copy
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from prepared_networks import build, differentiate, draw, images, make
from torch import Tensor, nn

from advseg_bench.errors import IncompatibleError, SpecError
from advseg_bench.instruments.guard import ModelGuard
from advseg_bench.models import lean
from advseg_bench.models.prepare import prepare, prepare_checked
from advseg_bench.registry.preparation import read_steps

WORTH_IT = lean.SMALL


@pytest.fixture(autouse=True)
def every_call_is_lean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lean, "SMALL", 0)


@pytest.mark.parametrize("steps", [["fold", "lean", "channels_last"], ["bfloat16", "lean"]])
def test_the_users_model_is_left_as_it_was(steps: list[str]) -> None:
    net, x = build("resnet18"), images("resnet18")
    net.train()
    net.decoder.requires_grad_(True)
    net.register_forward_hook(lambda module, args, out: out)
    before, guard = copy.deepcopy(net.state_dict()), ModelGuard(net)
    strides = {name: tensor.stride() for name, tensor in net.named_parameters()}
    prepared = prepare(net, x, steps)
    differentiate(prepared, x)
    assert guard.find_changes() == []
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert {name: tensor.stride() for name, tensor in net.named_parameters()} == strides
    assert not any(module.training for module in prepared.modules())
    assert not any(parameter.requires_grad for parameter in prepared.parameters())
    assert not {id(p) for p in net.parameters()} & {id(p) for p in prepared.parameters()}


def test_a_model_in_training_mode_is_prepared_as_it_predicts() -> None:
    net = make(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.9), nn.Conv2d(4, 1, 1)))
    x = draw(2, 3, 8, 8)
    prepared = prepare(net, x, ["fold", "lean"])
    torch.testing.assert_close(prepared(x), net.eval()(x))


def test_a_prepared_model_has_each_weight_once() -> None:
    net = build("resnet18")
    assert [*prepare(net, images("resnet18"), ["lean"]).state_dict()] == [f"net.{name}" for name in net.state_dict()]


def test_a_copy_of_a_prepared_model_runs_its_own_net():
    x = draw(2, 3, 32, 32)
    prepared = prepare(build("resnet18"), x, ["lean"])
    differentiate(prepared, x)
    for other in (copy.deepcopy(prepared), pickle.loads(pickle.dumps(prepared))):
        assert torch.equal(other(x), prepared(x))
        for parameter in other.parameters():
            parameter.data.zero_()
        assert not torch.equal(other(x), prepared(x))


def test_a_low_precision_does_not_agree_and_the_reason_is_kept() -> None:
    net, x = build("resnet18"), images("resnet18")
    choice = prepare_checked(net, x, ["fold", "bfloat16"])
    assert choice.model is net
    assert choice.steps == ()
    assert "more than 2 times" in choice.rejected["fold+bfloat16"]
    taken = prepare_checked(net, x, ["lean", "fold"])
    assert taken.steps == ("fold", "lean")
    assert taken.rejected == {}
    assert 0 < taken.error <= 2 * taken.raw_error


def lose_gradient(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    out = F.batch_norm(input, *args, **kwargs)
    return out.detach() + 0 * out


def test_what_would_be_wrong_on_whole_batches_is_found_on_few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """On two images of 32 pixels all calls are PyTorch's; on more they are not."""
    monkeypatch.setattr(lean, "SMALL", WORTH_IT)
    with monkeypatch.context() as patch:
        patch.setitem(lean.LEAN, F.batch_norm, lose_gradient)
        choice = prepare_checked(build("resnet18"), draw(2, 3, 32, 32), ["lean"])
    assert choice.steps == ()
    assert "gradient error" in choice.rejected["lean"]
    assert prepare_checked(build("resnet18"), draw(2, 3, 32, 32), ["lean"]).steps == ("lean",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fold+leen", r"prepare: unknown step 'leen'. Did you mean 'lean'\?"),
        ("lean+lean", "prepare: expected each step once, got 'lean[+]lean'"),
        ("bfloat16+float16", "prepare: expected 'bfloat16' or 'float16', got"),
        ("lean+compile", "prepare: expected 'lean' or 'compile', got"),
    ],
)
def test_steps_that_cannot_be_done_are_refused(text: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        read_steps(text)


def test_steps_are_read_in_the_order_in_which_they_are_done() -> None:
    assert read_steps("lean+fold") == ("fold", "lean")
    assert read_steps("raw") == ()


def test_a_step_that_this_machine_cannot_do_is_refused() -> None:
    net, x = build("monai-prelu"), draw(1, 3, 32, 32)
    with pytest.raises(SpecError, match="expected a CUDA device for 'cuda_graph', got 'cpu'"):
        prepare(net, x, ["cuda_graph"])
    with pytest.raises(SpecError, match="images with 2 or 3 space axes for 'channels_last', got 1"):
        prepare(net, draw(1, 3, 32), ["channels_last"])


def test_a_model_that_cannot_be_copied_is_attacked_as_it_is() -> None:
    net = make(lambda: nn.Conv2d(1, 1, 1))
    net.extra = net.weight * 2
    with pytest.raises(IncompatibleError, match="prepare: expected a model that can be copied"):
        prepare(net, draw(1, 1, 4, 4), ["lean"])
