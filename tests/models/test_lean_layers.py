"""Each lean layer has every bit of PyTorch's output and gradient."""

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from prepared_networks import differentiate, draw, make
from torch import Tensor, nn

from advseg_bench.models import lean
from advseg_bench.models.lean import Lean
from advseg_bench.models.prepare import prepare


@pytest.fixture(autouse=True)
def every_call_is_lean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lean, "SMALL", 0)


def compare(net: Callable[[Tensor], Tensor], x: Tensor, gradient: Tensor) -> None:
    """The lean gradient of `x` has the bits and the layout of PyTorch's own."""
    with Lean():
        out = net(x)
    assert "_LeanLayer" in out.grad_fn.name()
    found, wanted = (torch.autograd.grad(each, x, gradient)[0] for each in (out, net(x)))
    torch.testing.assert_close(found, wanted, rtol=0, atol=0, equal_nan=True)
    assert found.stride() == wanted.stride()


ACTIVATIONS = [
    *(nn.ReLU(inplace) for inplace in (False, True)),
    *(nn.LeakyReLU(0.1, inplace) for inplace in (False, True)),
    *(nn.ReLU6(inplace) for inplace in (False, True)),
    nn.Hardtanh(),
    nn.PReLU(3),
    nn.SiLU(),
    nn.MaxPool2d(3, 2, 1),
    nn.MaxPool2d(2, ceil_mode=True),
]


@pytest.mark.parametrize("layer", ACTIVATIONS, ids=str)
def test_each_layer_has_the_gradient_of_pytorch(layer: nn.Module) -> None:
    x = draw(2, 3, 7, 9) * 16 - 8
    x[0, 0, 0] = torch.tensor([0, -0.0, 6, 1, -1, 0, 7, -7, 0.5])  # the kinks
    results = []
    for prepared in (layer.requires_grad_(False), prepare(layer, x, ["lean"])):
        leaf = x.clone().requires_grad_()
        out = prepared(leaf * 1)
        results.append((out.detach(), torch.autograd.grad((out * draw(*out.shape)).sum(), leaf)[0]))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*results, strict=True))


@pytest.mark.parametrize("steps", [["lean"], ["lean", "channels_last"], ["lean", "bfloat16"]])
@pytest.mark.parametrize("net", [nn.ReLU(), nn.ReLU(inplace=True), nn.LeakyReLU(), nn.ReLU6(), nn.PReLU()], ids=repr)
def test_masks_pass_what_the_activation_passes(net: nn.Module, steps: list[str]) -> None:
    x = 8 * draw(2, 3, 17, 19) - 1
    model = make(lambda: nn.Sequential(nn.Conv2d(3, 4, 1), net, nn.Conv2d(4, 2, 1))).requires_grad_(False)
    raw = differentiate(prepare(model, x, [step for step in steps if step != "lean"]), x)
    for ours, theirs in zip(differentiate(prepare(model, x, steps), x), raw, strict=True):
        assert torch.equal(ours, theirs)


LAYOUTS = {
    "plain": lambda t: t,
    "channels last": lambda t: t.contiguous(memory_format=torch.channels_last),
    "sliced": lambda t: torch.cat([t, t], 1)[:, : t.shape[1]],
    "expanded": lambda t: t[:, :1, :, :1].expand(t.shape),
    "one value": lambda t: t.flatten()[:1].expand(t.shape),
}


@pytest.mark.parametrize("net", [nn.ReLU(), nn.LeakyReLU(0.5), nn.ReLU6(), nn.PReLU(3), nn.MaxPool2d(1)], ids=repr)
@pytest.mark.parametrize("given", LAYOUTS)
@pytest.mark.parametrize("layout", list(LAYOUTS)[:3])
def test_inputs_and_gradients_may_lie_in_memory_in_any_way(net: nn.Module, given: str, layout: str) -> None:
    x = LAYOUTS[layout](draw(2, 3, 4, 5) - 0.5).requires_grad_()
    compare(net.requires_grad_(False), x, LAYOUTS[given](draw(2, 3, 4, 5)))


SHAPES = [(5, 4), (2, 4, 7), (3, 4, 5, 3), (1, 4, 2, 3, 2), (4, 32, 17, 19), (2, 1, 4, 4), (1, 2048, 2)]


@pytest.mark.parametrize(("images", "gradients"), [*product(["plain", "swapped"], repeat=2), ("plain", "one value")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("affine", [True, False])
def test_batch_norms_have_every_bit(
    shape: tuple[int, ...], dtype: torch.dtype, images: str, gradients: str, affine: bool
) -> None:
    layer = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}[len(shape)]
    net = make(lambda: layer(shape[1], eps=1e-3, affine=affine)).eval().requires_grad_(False)
    net.to(torch.float32 if dtype == torch.bfloat16 else dtype)
    net.running_var.copy_(10 ** (4 * draw(shape[1]) - 3))
    if affine:
        net.weight.copy_(draw(shape[1]) - 0.5)
    x = (draw(*shape) - 0.5).to(dtype)
    gradient = (draw(*shape).sub(0.5) * 10 ** (9 * draw(*shape) - 6)).to(dtype)
    swap = {"plain": lambda t: t, "swapped": lambda t: t.movedim(1, -1).contiguous().movedim(-1, 1)}
    x = swap[images](x).requires_grad_()
    gradient = swap[gradients](gradient) if gradients in swap else gradient.flatten()[:1].expand(shape)
    compare(net, x, gradient)


STATISTICS = {
    "strided": (draw(4, 2) + 1)[:, 0],
    "expanded": (draw(1) + 1).expand(4),
    "spoilt": torch.tensor([0, -1, torch.nan, torch.inf]),
}


@pytest.mark.parametrize("var", STATISTICS.values(), ids=STATISTICS)
def test_statistics_may_be_anything(var: Tensor) -> None:
    x = (draw(2, 4, 5, 3) - 0.5).requires_grad_()
    compare(lambda x: F.batch_norm(x, draw(4), var, eps=0.0), x, draw(2, 4, 5, 3) - 0.5)


@pytest.mark.parametrize("order", [(3, 0, 1, 2), (0, 1, 2, 3), (1, 0, 2, 3)])
def test_the_gradient_of_a_batch_norm_of_one_image_lies_in_memory_as_it_should(order: tuple[int, ...]) -> None:
    net = make(lambda: nn.BatchNorm2d(4)).eval().requires_grad_(False)
    shape, back = (1, 4, 5, 6), tuple(map(order.index, range(4)))
    odd = draw(*(shape[axis] for axis in back)).permute(order)
    assert odd.shape == shape
    for x, gradient in product([draw(*shape), odd], repeat=2):
        compare(net, x.detach().requires_grad_(), gradient)


def test_a_batch_norm_may_get_inputs_with_other_axes() -> None:
    net = make(lambda: nn.BatchNorm1d(4)).eval().requires_grad_(False)
    for shape in ((5, 4), (5, 4, 3), (5, 4)):
        compare(net, draw(*shape).requires_grad_(), draw(*shape))


def test_a_batch_norm_without_channels_is_refused_as_by_pytorch() -> None:
    x, ones = draw(4).requires_grad_(), torch.ones(4)
    with pytest.raises(RuntimeError) as theirs:
        F.batch_norm(x, ones, ones)
    with Lean(), pytest.raises(RuntimeError) as ours:
        F.batch_norm(x, ones, ones)
    assert str(ours.value) == str(theirs.value)


LEVELS = torch.tensor([0, -0.0, 1, -1, 2, torch.nan, torch.inf, -torch.inf])

"""Few values, so that windows have ties."""


POOLS = [
    ((2, 5, 17, 19), (3, 2, 1), torch.float32),
    ((2, 5, 17, 19), (3, 2, 1, 2), torch.float32),
    ((2, 5, 17, 19), (3, 2, 1, 2, True), torch.float32),  # windows beyond the edge, with gaps
    ((1, 40, 9, 8), ((2, 5), (1, 3), (1, 2)), torch.float32),
    ((1, 40, 9, 8), ((2, 5), (3, 1)), torch.float32),
    ((2, 4, 9, 9), (3, 2), torch.float64),
    ((2, 1400, 8, 128), (2,), torch.float32),
    ((2, 20, 30, 100), (3, 1), torch.float32),
    ((2, 4, 3, 3), (3,), torch.float32),  # one value per image and channel is left
    ((0, 4, 9, 9), (3,), torch.float32),
    ((2, 4, 9, 9), (2,), torch.float32),
    ((2, 3, 9, 9), (3,), torch.float32),
    ((2, 4, 9, 9), (3,), torch.bfloat16),
    ((2, 4, 1, 1), (3, 1, 1), torch.float32),
]


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 2, 3, 1), (1, 0, 2, 3)], ids=str)
@pytest.mark.parametrize(("shape", "settings", "dtype"), POOLS, ids=str)
@pytest.mark.parametrize("levels", [LEVELS[:5], LEVELS], ids=["finite", "all"])
def test_maxima_and_their_places_are_those_of_pytorch(
    shape: tuple[int, ...], settings: tuple[object, ...], dtype: torch.dtype, order: tuple[int, ...], levels: Tensor
) -> None:
    back = tuple(map(order.index, range(4)))
    x = levels[(draw(*shape) * len(levels)).long()].to(dtype)
    x = x.permute(order).contiguous().permute(back).requires_grad_()
    results = []
    for mode in (Lean(), nullcontext()):
        with mode:
            out = F.max_pool2d(x, *settings)
        assert ("_LeanLayer" in out.grad_fn.name()) == isinstance(mode, Lean)
        (gradient,) = torch.autograd.grad(out, x, draw(*out.shape).to(dtype))
        results.append((out, out.signbit(), gradient))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)
        assert ours.stride() == theirs.stride()


SETTINGS = [
    {"stride": [2, 1]},
    {"stride": [2], "padding": [1, 0], "dilation": 2},
    {"padding": "same"},
    {"padding": "same", "dilation": 2},
    {"padding": "valid"},
    {"stride": torch.tensor(2)},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_convolutions_take_settings_in_any_form(settings: dict[str, object]) -> None:
    x, weight = draw(2, 3, 9, 8).requires_grad_(), draw(4, 3, 3, 3)
    with Lean():
        out = F.conv2d(x, weight, **settings)
    wanted = F.conv2d(x, weight, **settings)
    assert torch.equal(out, wanted)
    assert ("_LeanLayer" in out.grad_fn.name()) == (settings != {"padding": "same", "dilation": 2})
    assert torch.equal(*(torch.autograd.grad(each.square().sum(), x)[0] for each in (out, wanted)))


WRONG = [{"stride": (1.0, 1.0)}, {"groups": 1.0}, {"padding": "round"}, {"stride": ["1", "1"]}]


@pytest.mark.parametrize("wrong", WRONG, ids=str)
def test_wrong_settings_are_refused_as_by_pytorch(wrong: dict[str, object]) -> None:
    x, weight = draw(2, 3, 9, 8).requires_grad_(), draw(4, 3, 3, 3)
    with pytest.raises(Exception) as theirs:  # noqa: PT011 - of whatever kind it is
        F.conv2d(x, weight, **wrong)
    with Lean(), pytest.raises(theirs.type) as ours:
        F.conv2d(x, weight, **wrong)
    assert str(ours.value) == str(theirs.value)


@pytest.mark.parametrize("wrong", [2.5, "2", torch.tensor(2.0), torch.tensor([2, 2])], ids=repr)
@pytest.mark.parametrize("call", [F.max_pool2d, partial(F.conv2d, weight=draw(4, 3, 3, 3), bias=None)])
def test_no_number_is_rounded_to_a_setting(call: Callable[..., Tensor], wrong: object) -> None:
    with Lean(), pytest.raises(TypeError):
        call(draw(2, 3, 9, 8).requires_grad_(), **{"kernel_size" if call is F.max_pool2d else "stride": wrong})


def norm(x: Tensor) -> Tensor:
    return F.batch_norm(x, torch.zeros(4), torch.full((4,), 2.0))


def steep(x: Tensor) -> Tensor:
    return F.prelu(x, torch.tensor([0.123456, torch.inf, -1.5, 0.0])[: x.shape[1]])


@pytest.mark.parametrize(
    ("function", "x", "low"),
    [
        (norm, torch.zeros(0, 4, 6, 6), False),
        (partial(F.max_pool3d, kernel_size=2), draw(1, 2, 4, 4, 4).bfloat16(), True),
        (partial(F.max_pool2d, kernel_size=2), draw(1, 2, 4, 4).bfloat16(), True),
        (steep, 1 - 2 * draw(2, 4, 3, 3), False),
        (steep, 1 - 2 * draw(2, 4, 3, 3), True),
        (partial(F.hardtanh, min_val=-0.1, max_val=0.1), torch.full((1, 4, 2, 2), 0.1).half(), False),
    ],
)
def test_corners_of_single_functions(function: Callable[[Tensor], Tensor], x: Tensor, low: bool) -> None:
    found = []
    for mode in (Lean(), nullcontext()):
        leaf = x.clone().requires_grad_()
        with mode, torch.autocast("cpu", torch.bfloat16, enabled=low):
            out = function(leaf)
        found.append((out.detach(), torch.autograd.grad(out, leaf, torch.ones_like(out))[0]))
    for ours, theirs in zip(*found, strict=True):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)
