from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from advseg_bench.errors import IncompatibleError
from advseg_bench.models.build import build_model, set_head_bias
from advseg_bench.models.module import SegmentationModule
from advseg_bench.suite.specs import ModelSpec
from advseg_bench.types import Task

TASK = Task("multilabel", ("gm", "wm", "csf"))


def build_own(name: str, *, task: Task = TASK, size: int = 16, seed: int = 0, **keys: Any) -> SegmentationModule:
    """A network of `networks.py`."""
    spec = ModelSpec(name="it", architecture=f"networks:{name}", **keys)
    return build_model(spec, channels=1, task=task, size=size, seed=seed)


def test_check_leaves_buffers_and_training_flags_alone() -> None:
    model = build_own("make_with_frozen_norm")
    assert [model.net.training, model.net.first.training, model.net.norm.training] == [True, True, False]
    assert int(model.net.norm.num_batches_tracked) == 0
    assert float(model.net.norm.running_mean.abs().max()) == 0
    assert all(not module._forward_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_check_leaves_the_callers_randomness_alone() -> None:
    state = torch.random.get_rng_state()
    with pytest.raises(IncompatibleError, match="random numbers"):
        build_own("Plain", settings={"finish": "noisy"})
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("finish", ["sigmoid", "module", "formula", "clamp", "resized"])
def test_probabilities_are_refused(finish: str, classes: int) -> None:
    task = Task("multilabel", ("a", "b", "c")[:classes])
    with pytest.raises(
        IncompatibleError, match=r"model 'it': expected raw logits, .*'last'.* Remove the final sigmoid"
    ):
        build_own("Plain", task=task, settings={"finish": finish})


@pytest.mark.parametrize("start", [{}, {"level": 0.0}], ids=["random", "equal"])
def test_softmax_is_refused(start: dict[str, float]) -> None:
    with pytest.raises(IncompatibleError, match="Remove the final sigmoid or softmax"):
        build_own("Plain", settings={"finish": "softmax"} | start, task=Task("multiclass", ("a", "b", "c")))


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
        ("dict", r"tensor of logits or one of out, logits, pred, got dict with mask\. Set `output`"),
        ("labels", r"float32 tensor of logits, got 'torch\.bool'\. Return raw logits"),
        ("many", r"expected 3 logit channels \(gm, wm, csf\), got 6\."),
        ("small", r"logits of shape \(2, K, 16, 16\), got \(2, 3, 6, 6\)\. Logits must have the size"),
        ("flat", r"logits of shape \(2, K, 16, 16\), got \(2, 768\)"),
        ("nan", "expected finite logits, got NaN or infinity"),
    ],
)
def test_anything_but_logits_is_refused(finish: str, match: str) -> None:
    for stride in (1, 16):
        with pytest.raises(IncompatibleError, match=match):
            build_own("Plain", settings={"finish": finish}, stride=stride)


def test_head_without_bias_or_no_head_is_refused() -> None:
    with pytest.raises(IncompatibleError, match=r"head_bias: expected .* got Plain\. Give its last convolution a bias"):
        set_head_bias(build_own("Plain", settings={"bias": False}), 1.0)
    with pytest.raises(IncompatibleError, match="got Formula"):
        set_head_bias(build_own("Formula"), 1.0)


def test_linear_layer_can_be_the_head() -> None:
    model = build_own("PixelLinear")
    set_head_bias(model, 4.0)
    assert model.net.layer.bias.tolist() == [4.0] * 3
