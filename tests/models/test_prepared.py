import copy
import pickle
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from itertools import product

import monai.networks.nets as nets
import pytest
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import Tensor, nn

from advseg_bench.errors import IncompatibleError, SpecError
from advseg_bench.instruments import meter
from advseg_bench.instruments.guard import ModelGuard
from advseg_bench.models import lean as lean_calls
from advseg_bench.models import prepare as preparation
from advseg_bench.models.fold import fold_batch_norms
from advseg_bench.models.lean import Lean
from advseg_bench.models.prepare import (
    Prepared,
    gradient_error,
    prepare,
    prepare_auto,
    prepare_checked,
    reference_gradient,
)
from advseg_bench.registry.catalogue import read_steps

NETWORKS = {
    "monai-prelu": lambda: nets.UNet(2, 3, 2, (8, 16, 32), (2, 2), num_res_units=2, norm="batch"),
    "monai-instance": lambda: nets.UNet(2, 3, 2, (8, 16, 32), (2, 2), num_res_units=2),
    "monai-3d": lambda: nets.UNet(3, 3, 2, (8, 16), (2,), num_res_units=1, norm="batch", act="relu"),
    "attention": lambda: nets.AttentionUnet(2, 3, 2, (8, 16, 32), (2, 2)),
    "resnet18": lambda: smp.Unet("resnet18", encoder_weights=None, classes=2),
    "timm": lambda: smp.Unet("tu-resnet10t", encoder_weights=None, classes=2),
    "timm-act": lambda: smp.Unet("tu-mobilenetv3_small_050", encoder_weights=None, classes=2),
    "mobilenet": lambda: smp.Unet("mobilenet_v2", encoder_weights=None, classes=2),
}
WORTH_IT = lean_calls.SMALL
BATCH_NORMS = {"monai-instance": 0}  # all others have some, all of which can be folded


@pytest.fixture(autouse=True)
def every_call_is_lean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lean_calls, "SMALL", 0)


def draw(*size: int) -> Tensor:
    return torch.rand(size, generator=torch.Generator().manual_seed(0))


def build(name: str) -> nn.Module:
    """A network whose batch norms have seen something."""
    with torch.random.fork_rng(devices=()):
        torch.default_generator.manual_seed(0)
        net = NETWORKS[name]().eval().requires_grad_(False)
        for norm in list_norms(net):
            norm.running_mean.normal_(0, 0.2)
            norm.running_var.uniform_(0.5, 2)
            norm.weight.uniform_(0.5, 2)
            norm.bias.normal_(0, 0.2)
    return net


def make(build: Callable[[], nn.Module]) -> nn.Module:
    """Build a network without moving the global generator."""
    with torch.random.fork_rng(devices=()):
        torch.default_generator.manual_seed(0)
        return build()


def list_norms(net: nn.Module) -> list[nn.Module]:
    return [module for module in net.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


def images(name: str) -> Tensor:
    return draw(2, 3, 16, 16, 16) if name == "monai-3d" else draw(2, 3, 64, 64)


def differentiate(net: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    leaf = x.clone().requires_grad_()
    logits = net(leaf)
    (gradient,) = torch.autograd.grad(F.binary_cross_entropy_with_logits(logits, torch.ones_like(logits)), leaf)
    return logits.detach(), gradient


@pytest.mark.parametrize("name", NETWORKS)
def test_lean_keeps_every_bit_and_less_memory(name: str) -> None:
    net, x = build(name), images(name)
    lean = prepare(net, x, ["lean"])
    assert lean.exact
    for ours, theirs in zip(differentiate(lean, x), differentiate(net, x), strict=True):
        assert torch.equal(ours, theirs)
    peaks = [meter.peak_bytes(lambda each=each: differentiate(each, x), "cpu") for each in (lean, net)]
    assert peaks[0] < 0.85 * peaks[1]


@pytest.mark.parametrize("net", [nn.ReLU(), nn.LeakyReLU(0.5)], ids=repr)
@pytest.mark.parametrize("given", ["plain", "channels last", "expanded", "one value"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_gradient_may_lie_in_memory_in_another_way(net: nn.Module, given: str, layout: torch.memory_format) -> None:
    x = (draw(2, 3, 4, 5) - 0.5).contiguous(memory_format=layout).requires_grad_()
    gradient = {
        "plain": draw(2, 3, 4, 5),
        "channels last": draw(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
        "expanded": draw(2, 1, 4, 1).expand(2, 3, 4, 5),
        "one value": draw(1, 1, 1, 1).expand(2, 3, 4, 5),
    }[given]
    with Lean():
        out = net(x)
    (found,) = torch.autograd.grad(out, x, gradient)
    (wanted,) = torch.autograd.grad(net(x), x, gradient)
    assert torch.equal(found, wanted)
    assert found.stride() == wanted.stride()


SHAPES = [(5, 4), (2, 4, 7), (3, 4, 5, 3), (1, 4, 2, 3, 2), (4, 32, 17, 19), (2, 1, 4, 4), (1, 2048, 2)]


@pytest.mark.parametrize(("images", "gradients"), [*product(["plain", "swapped"], repeat=2), ("plain", "one value")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("affine", [True, False])
def test_batch_norms_have_every_bit(
    shape: tuple[int, ...], dtype: torch.dtype, images: str, gradients: str, affine: bool
) -> None:
    """Where all is contiguous the gradient is two products; PyTorch's kernel is asked for their factor once."""
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
    (wanted,) = torch.autograd.grad(net(x), x, gradient)
    for asked in (1, 0):
        with Lean():
            out = net(x)
        with torch.profiler.profile() as profile:
            (found,) = torch.autograd.grad(out, x, gradient)
        assert torch.equal(found, wanted)
        assert found.stride() == wanted.stride()
        calls = sum(event.name == "aten::native_batch_norm_backward" for event in profile.events())
        plain = x.is_contiguous() and gradient.is_contiguous() and 1 not in shape[1:]
        assert calls == (asked if plain and dtype != torch.bfloat16 else 1)


def change_nothing(net: nn.BatchNorm2d) -> None:
    """Leave it."""


def change_var_in_place(net: nn.BatchNorm2d) -> None:
    net.running_var.mul_(3)


def change_var_behind_autograd(net: nn.BatchNorm2d) -> None:
    net.running_var.data[0] = 7


def change_weight_behind_autograd(net: nn.BatchNorm2d) -> None:
    net.weight.data[1] = -2


def give_other_values(net: nn.BatchNorm2d) -> None:
    net.weight.data = net.weight.data + 1
    net.running_var.data = net.running_var.data + 1


def load_a_state(net: nn.BatchNorm2d) -> None:
    net.load_state_dict({name: value + 1 for name, value in net.state_dict().items()})


def change_eps(net: nn.BatchNorm2d) -> None:
    net.eps = 0.1


def drop_weight(net: nn.BatchNorm2d) -> None:
    net.weight = net.bias = None


def spoil_var(net: nn.BatchNorm2d) -> None:
    net.running_var.copy_(torch.tensor([0, -1, float("nan"), float("inf")]))
    net.eps = 0.0


def widen(net: nn.BatchNorm2d) -> None:
    """Other dtypes in the same tensors."""
    for each in (*net.parameters(), net.running_mean, net.running_var):
        each.data = each.data.double()


def stride_var(net: nn.BatchNorm2d) -> None:
    net.running_var = (draw(4, 2) + 1)[:, 0]


def expand_var(net: nn.BatchNorm2d) -> None:
    net.running_var = (draw(1) + 1).expand(4)


CHANGES = [
    change_nothing,
    change_var_in_place,
    change_var_behind_autograd,
    change_weight_behind_autograd,
    give_other_values,
    load_a_state,
    change_eps,
    drop_weight,
    spoil_var,
    widen,
    stride_var,
    expand_var,
]


@pytest.mark.parametrize("copied", [False, True])
@pytest.mark.parametrize("change", CHANGES)
def test_factors_kept_with_a_batch_norm_are_never_old(change: Callable[[nn.BatchNorm2d], None], copied: bool) -> None:
    net = make(lambda: nn.BatchNorm2d(4)).eval().requires_grad_(False)
    net.running_var.copy_(draw(4) + 0.5)
    net.weight.copy_(draw(4) - 0.5)

    def find(context: Lean | nullcontext[None]) -> Tensor:
        x = (draw(2, 4, 5, 3) - 0.5).to(net.running_var.dtype).requires_grad_()
        with context:
            out = net(x)
        return torch.autograd.grad(out, x, draw(2, 4, 5, 3).sub(0.5).to(x.dtype))[0]

    find(Lean())
    if copied:
        net = copy.deepcopy(net)
    change(net)
    found, wanted = find(Lean()), find(nullcontext())
    torch.testing.assert_close(found, wanted, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("order", [(3, 0, 1, 2), (0, 1, 2, 3), (1, 0, 2, 3)])
def test_the_gradient_of_a_batch_norm_of_one_image_lies_in_memory_as_it_should(order: tuple[int, ...]) -> None:
    net = make(lambda: nn.BatchNorm2d(4)).eval().requires_grad_(False)
    shape, back = (1, 4, 5, 6), tuple(map(order.index, range(4)))
    odd = draw(*(shape[axis] for axis in back)).permute(order)
    assert odd.shape == shape
    for x, gradient in product([draw(*shape), odd], repeat=2):
        leaf = x.detach().requires_grad_()
        with Lean():
            out = net(leaf)
        found, wanted = (torch.autograd.grad(each, leaf, gradient)[0] for each in (out, net(leaf)))
        assert torch.equal(found, wanted)
        assert found.stride() == wanted.stride()


LEVELS = torch.tensor([0, -0.0, 1, -1, 2, torch.nan, torch.inf, -torch.inf])
"""Few values, so that windows have ties."""

POOLS = [
    ((2, 5, 17, 19), (3, 2, 1), torch.float32, True),
    ((2, 5, 17, 19), (3, 2, 1, 2, True), torch.float32, True),
    ((1, 40, 9, 8), ((2, 5), (1, 3), (1, 2)), torch.float32, True),
    ((1, 40, 9, 8), ((2, 5), (3, 1)), torch.float32, False),
    ((2, 4, 9, 9), (3, 2), torch.float64, False),
    ((2, 1400, 8, 128), (2,), torch.float32, True),  # rows are laid out one by one
    ((2, 20, 30, 100), (3, 1), torch.float32, True),
    ((2, 4, 3, 3), (3,), torch.float32, True),  # one value per image and channel is left
    ((0, 4, 9, 9), (3,), torch.float32, True),
    ((2, 4, 9, 9), (2,), torch.float32, True),
    ((2, 3, 9, 9), (3,), torch.float32, False),
    ((2, 4, 9, 9), (3,), torch.bfloat16, False),
    ((2, 4, 1, 1), (3, 1, 1), torch.float32, False),
]


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 2, 3, 1), (1, 0, 2, 3)], ids=str)
@pytest.mark.parametrize(("shape", "settings", "dtype", "copied"), POOLS, ids=str)
@pytest.mark.parametrize("levels", [LEVELS[:5], LEVELS], ids=["finite", "all"])
def test_maxima_and_their_places_are_those_of_pytorch(
    shape: tuple[int, ...],
    settings: tuple[object, ...],
    dtype: torch.dtype,
    copied: bool,
    order: tuple[int, ...],
    levels: Tensor,
) -> None:
    """Also where they are found in a copy that has the channels last, as those of contiguous images are."""
    back = tuple(map(order.index, range(4)))
    x = levels[(draw(*shape) * len(levels)).long()].to(dtype)
    x = x.permute(order).contiguous().permute(back).requires_grad_()
    results, clones = [], []
    for mode in (Lean(), nullcontext()):
        with mode, torch.profiler.profile() as profile:
            out = F.max_pool2d(x, *settings)
        clones.append(sum(event.name == "aten::clone" for event in profile.events()))
        (gradient,) = torch.autograd.grad(out, x, draw(*out.shape).to(dtype))
        results.append((out, out.signbit(), gradient))
    assert clones[0] - clones[1] == (copied and x.is_contiguous() and lean_calls._HAS_VECTORS)
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
    assert ("_Convolve" in out.grad_fn.name()) == (settings != {"padding": "same", "dilation": 2})
    assert torch.equal(*(torch.autograd.grad(each.square().sum(), x)[0] for each in (out, wanted)))


WRONG = [{"stride": (1.0, 1.0)}, {"groups": 1.0}, {"padding": "round"}, {"stride": ["1", "1"]}]


@pytest.mark.parametrize("wrong", WRONG, ids=str)
def test_wrong_settings_are_refused_as_by_pytorch_and_spoil_nothing(wrong: dict[str, object]) -> None:
    x, weight = draw(2, 3, 9, 8).requires_grad_(), draw(4, 3, 3, 3)
    with pytest.raises(Exception) as theirs:  # noqa: PT011 - of whatever kind it is
        F.conv2d(x, weight, **wrong)
    with Lean():
        with pytest.raises(theirs.type) as ours:
            F.conv2d(x, weight, **wrong)
        assert str(ours.value) == str(theirs.value)
        right = {name: {"stride": (1, 1), "groups": 1, "padding": 0}[name] for name in wrong}
        assert F.conv2d(x, weight, **right).requires_grad


@pytest.mark.parametrize("wrong", [2.5, "2", torch.tensor(2.0), torch.tensor([2, 2])], ids=repr)
@pytest.mark.parametrize("call", [F.max_pool2d, partial(F.conv2d, weight=draw(4, 3, 3, 3), bias=None)])
def test_no_number_is_rounded_to_a_setting(call: Callable[..., Tensor], wrong: object) -> None:
    with Lean(), pytest.raises(TypeError):
        call(draw(2, 3, 9, 8).requires_grad_(), **{"kernel_size" if call is F.max_pool2d else "stride": wrong})


def test_a_batch_norm_without_channels_is_refused_as_by_pytorch() -> None:
    x, ones = draw(4).requires_grad_(), torch.ones(4)
    with pytest.raises(RuntimeError) as theirs:
        F.batch_norm(x, ones, ones)
    with Lean(), pytest.raises(RuntimeError) as ours:
        F.batch_norm(x, ones, ones)
    assert str(ours.value) == str(theirs.value)


def test_a_batch_norm_may_get_inputs_with_other_axes() -> None:
    net = make(lambda: nn.BatchNorm1d(4)).eval().requires_grad_(False)
    for shape in ((5, 4), (5, 4, 3), (5, 4)):
        x = draw(*shape).requires_grad_()
        with Lean():
            out = net(x)
        found, wanted = (torch.autograd.grad(each, x, draw(*shape))[0] for each in (out, net(x)))
        assert torch.equal(found, wanted)


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


@pytest.mark.parametrize("steps", [["lean"], ["lean", "channels_last"], ["lean", "bfloat16"]])
@pytest.mark.parametrize("net", [nn.ReLU(), nn.ReLU(inplace=True), nn.LeakyReLU(), nn.ReLU6(), nn.PReLU()], ids=repr)
def test_masks_pass_what_the_activation_passes(net: nn.Module, steps: list[str]) -> None:
    x = 8 * draw(2, 3, 17, 19) - 1
    model = make(lambda: nn.Sequential(nn.Conv2d(3, 4, 1), net, nn.Conv2d(4, 2, 1))).requires_grad_(False)
    raw = differentiate(prepare(model, x, [step for step in steps if step != "lean"]), x)
    for ours, theirs in zip(differentiate(prepare(model, x, steps), x), raw, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", NETWORKS)
def test_folding_changes_gradients_by_rounding_alone(name: str) -> None:
    """In float64: in float32 the raw gradient, too, is off by 1e-3 where rounding moves a ReLU over 0."""
    net, x = build(name).double(), images(name).double()
    folded = prepare(net, x, ["fold", "lean"])
    wanted = BATCH_NORMS.get(name, len(list_norms(net)))
    assert len(list_norms(net)) - len(list_norms(folded)) == wanted
    reference = reference_gradient(net, x)
    assert gradient_error(folded, x, reference) < 1e-10
    assert (folded(x) - net(x)).abs().max() < 1e-12 * net(x).abs().max()
    net, x = net.float(), x.float()
    folded = prepare(net, x, ["fold", "lean"])
    assert gradient_error(folded, x, reference) <= max(1.5 * gradient_error(net, x, reference), 5e-3)
    assert (folded(x) - net(x)).abs().max() < 1e-4 * net(x).abs().max()


def test_folding_is_the_closed_form() -> None:
    net = make(lambda: nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1))).eval()
    with torch.no_grad():
        net[0].weight.fill_(3)
        net[0].bias.fill_(1)
        net[1].running_mean.fill_(0.5)
        net[1].running_var.fill_(4 - net[1].eps)
        net[1].weight.fill_(6)
        net[1].bias.fill_(-1)
    assert fold_batch_norms(net, draw(1, 1, 4, 4)) == 1
    assert net[0].weight.item() == pytest.approx(9)  # 3 * 6 / 2
    assert net[0].bias.item() == pytest.approx(0.5)  # (1 - 0.5) * 6 / 2 - 1
    assert isinstance(net[1], nn.Identity)


class Twice(nn.Module):
    """A convolution whose output, or whose layers, serve twice."""

    def __init__(self, how: str) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=()):
            self.conv, self.norm = nn.Conv2d(1, 1, 3, padding=1), nn.BatchNorm2d(1)
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        z = self.conv(x)
        if self.how == "skip":
            return z + self.norm(z)
        if self.how == "conv":
            return self.norm(z) + self.conv(x)
        if self.how == "norm":
            return self.norm(z) + self.norm(2 * z)
        if self.how == "weight":
            return self.norm(F.conv2d(x, 2 * self.conv.weight))
        return self.norm(z)


@pytest.mark.parametrize(("how", "folds"), [("skip", 0), ("conv", 0), ("norm", 0), ("weight", 0), ("once", 1)])
def test_only_what_feeds_the_norm_alone_is_folded(how: str, folds: int) -> None:
    assert fold_batch_norms(Twice(how).eval(), draw(1, 1, 8, 8)) == folds


def test_calls_that_depend_on_values_are_refused() -> None:
    class Fickle(Twice):
        def forward(self, x: Tensor) -> Tensor:
            z = self.conv(x)
            return self.norm(z) if isinstance(self.norm, nn.BatchNorm2d) else 5 + z

    with pytest.raises(IncompatibleError, match=r'prepare "fold": expected logits that change by at most 0\.001'):
        prepare(Fickle("once").eval(), draw(1, 1, 8, 8), ["fold"])


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


def test_a_second_derivative_is_refused() -> None:
    net, x = prepare(build("resnet18"), images("resnet18"), ["lean"]), images("resnet18").requires_grad_()
    (gradient,) = torch.autograd.grad(net(x).square().sum(), x, create_graph=True)
    with pytest.raises(IncompatibleError, match="expected to be differentiated once, got a second derivative"):
        gradient.sum().backward()


def name_nodes(out: Tensor) -> list[str]:
    """The nodes of a graph that is a chain, without those that only pick up a leaf."""
    node, names = out.grad_fn, []
    while node is not None and node.name() != "torch::autograd::AccumulateGrad":
        names.append(node.name())
        node = next((child for child, _ in node.next_functions if child is not None), None)
    return names


def test_calls_on_few_values_are_left_to_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    """One value under the bound and right on it; the rest of a network goes on as it did."""
    monkeypatch.setattr(lean_calls, "SMALL", 2 * 4 * 8 * 8)
    net = make(lambda: nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 1, 3), nn.ReLU()))
    x = draw(2, 3, 8, 8)
    prepared = prepare(net, x, ["lean"])
    assert name_nodes(prepared(x.requires_grad_())) == [
        "ReluBackward0",  # 2 x 1 x 6 x 6
        "_ConvolveBackward",  # its input is 2 x 4 x 8 x 8
        "_GateBackward",
        "ConvolutionBackward0",  # 2 x 3 x 8 x 8
    ]
    for ours, theirs in zip(differentiate(prepared, x.detach()), differentiate(net, x.detach()), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("n", "lean"), [(8, False), (9, True)])
def test_a_batch_of_few_pixels_is_run_as_it_is(
    monkeypatch: pytest.MonkeyPatch, n: int, lean: bool, channels: int
) -> None:
    """Calls on it could be lean here; each function that a network calls would go through Python to find out."""
    monkeypatch.setattr(lean_calls, "SMALL", WORTH_IT)
    net = make(lambda: nn.Sequential(nn.Conv2d(channels, 64, 3, padding=1), nn.ReLU()))
    x = draw(n, channels, 64, 64).requires_grad_()
    assert name_nodes(prepare(net, x, ["lean"])(x))[0] == ("_GateBackward" if lean else "ReluBackward0")


@pytest.mark.parametrize("small", [512, 10**9])
def test_second_derivatives_are_right_or_refused(monkeypatch: pytest.MonkeyPatch, small: int) -> None:
    """Where some calls are lean and others not, none may be lost; where none is lean there is nothing to refuse."""
    monkeypatch.setattr(lean_calls, "SMALL", small)
    net = make(lambda: nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 1, 3), nn.Softplus()))
    x = draw(2, 3, 8, 8)
    found = []
    for each in (net.requires_grad_(False), prepare(net, x, ["lean"])):
        leaf = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(each(leaf).square().sum(), leaf, create_graph=True)
        with pytest.raises(IncompatibleError) if small == 512 and each is not net else nullcontext():
            found.append(torch.autograd.grad(gradient.square().sum(), leaf)[0])
    assert len(found) == (1 if small == 512 else 2)
    assert all(torch.equal(found[0], other) for other in found)


def test_a_call_that_stays_as_it_is_costs_no_mask() -> None:
    """MONAI's instance norms return views, which are not written into here."""
    net = make(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4), nn.LeakyReLU(0.1, inplace=True)))
    x = draw(2, 3, 8, 8)
    prepared = prepare(net, x, ["lean"])
    with torch.profiler.profile() as profile:
        differentiate(prepared, x)
    assert not {event.key for event in profile.key_averages()} & {"aten::gt", "_Gate"}


def test_two_losses_of_one_forward() -> None:
    net, x = build("resnet18"), images("resnet18")
    found = []
    for each in (net, prepare(net, x, ["lean"])):
        leaf = x.clone().requires_grad_()
        logits = each(leaf)
        first = torch.autograd.grad(logits.sum(), leaf, retain_graph=True)[0]
        found.append((first, torch.autograd.grad(logits.square().sum(), leaf)[0]))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*found, strict=True))


def test_weights_that_are_not_frozen_get_their_gradient() -> None:
    net, x = build("resnet18"), images("resnet18").requires_grad_()
    lean = prepare(net, x, ["lean"])
    lean.net.requires_grad_(True)
    net.requires_grad_(True)
    for each in (net, lean.net):
        with preparation.Lean():
            each(x).sum().backward()
    assert all(torch.equal(p.grad, q.grad) for p, q in zip(net.parameters(), lean.net.parameters(), strict=True))


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


def test_a_prepared_model_has_each_weight_once() -> None:
    net = build("resnet18")
    assert [*prepare(net, images("resnet18"), ["lean"]).state_dict()] == [f"net.{name}" for name in net.state_dict()]


def test_a_low_precision_does_not_agree_and_the_reason_is_kept() -> None:
    net, x = build("resnet18"), images("resnet18")
    choice = prepare_checked(net, x, ["fold", "bfloat16"])
    assert choice.model is net
    assert choice.steps == ()
    assert "times the model's own" in choice.rejected["fold+bfloat16"]
    taken = prepare_checked(net, x, ["lean", "fold"])
    assert taken.steps == ("fold", "lean")
    assert taken.rejected == {}
    assert 0 < taken.error <= 2 * taken.raw_error


def test_what_would_be_wrong_on_whole_batches_is_found_on_few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """On two images of 32 pixels all calls are PyTorch's; on more they are not."""
    monkeypatch.setattr(lean_calls, "SMALL", WORTH_IT)
    monkeypatch.setattr(
        lean_calls._Normalise, "backward", staticmethod(lambda ctx, gradient: (0 * gradient,) + 5 * (None,))
    )
    choice = prepare_checked(build("resnet18"), draw(2, 3, 32, 32), ["lean"])
    assert choice.steps == ()
    assert "gradient error" in choice.rejected["lean"]
    monkeypatch.undo()
    assert prepare_checked(build("resnet18"), draw(2, 3, 32, 32), ["lean"]).steps == ("lean",)


def test_auto_keeps_the_fastest_that_agrees() -> None:
    net, x = build("resnet18"), images("resnet18")
    choice = prepare_auto(net, x, [["lean"], ["fold", "lean"], ["bfloat16"]], rounds=3)
    assert set(choice.seconds) == {"raw", "lean", "fold+lean"}
    assert set(choice.rejected) == {"bfloat16"}
    assert choice.seconds["+".join(choice.steps) or "raw"] == min(choice.seconds.values())
    assert isinstance(choice.model, Prepared) or choice.model is net
    assert choice.error <= 2 * choice.raw_error


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


@pytest.mark.parametrize("steps", [["lean"], ["fold", "lean"]])
def test_the_peak_of_one_gradient_at_224_pixels(steps: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The model as it is takes what torchattacks' FGSM takes, see benchmarks/targets.py."""
    monkeypatch.setattr(lean_calls, "SMALL", WORTH_IT)
    net, x = build("resnet18"), draw(4, 3, 224, 224)
    prepared = prepare(net, x[:1], steps)
    ours, raw = (meter.peak_bytes(lambda each=each: differentiate(each, x), "cpu") for each in (prepared, net))
    assert ours <= 0.45 * raw


def test_a_gradient_penalty_is_refused_where_the_raw_path_would_be_pruned():
    x = draw(2, 3, 32, 32)
    prepared = prepare(build("resnet18"), x, ["lean"])
    leaf = x.clone().requires_grad_()
    loss = prepared(leaf).square().mean()
    (gradient,) = torch.autograd.grad(loss, leaf, create_graph=True)
    with pytest.raises(IncompatibleError, match="differentiated once"):
        torch.autograd.grad(loss + gradient.square().sum(), leaf)


def test_a_copy_of_a_prepared_model_runs_its_own_net():
    x = draw(2, 3, 32, 32)
    prepared = prepare(build("resnet18"), x, ["lean"])
    differentiate(prepared, x)
    for other in (copy.deepcopy(prepared), pickle.loads(pickle.dumps(prepared))):
        assert torch.equal(other(x), prepared(x))
        for parameter in other.parameters():
            parameter.data.zero_()
        assert not torch.equal(other(x), prepared(x))


class Checkpointed(nn.Module):
    """A convolution whose input has its weight's shape, so that nothing but order tells what was saved."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1, bias=False)

    def forward(self, x):
        return torch.utils.checkpoint.checkpoint(lambda v: self.conv(v).relu(), x, use_reentrant=False)


def test_checkpointed_parts_stay_as_they_are():
    model, x = make(Checkpointed).eval().requires_grad_(False), draw(8, 8, 3, 3)
    found = []
    for net in (model, prepare(model, x, ["lean"])):
        leaf = x.clone().requires_grad_()
        found.append(torch.autograd.grad(net(leaf).square().sum(), leaf)[0])
    assert torch.equal(*found)


class Branches(nn.Module):
    """Uses its convolution a second time where an image is bright."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.norm.running_mean.fill_(0.3)

    def forward(self, x):
        out = self.norm(self.conv(x))
        return out + self.conv(x) if x.mean() > 0.5 else out


def test_calls_that_depend_on_values_are_not_folded():
    model, x = make(Branches).eval().requires_grad_(False), 0.4 * draw(2, 3, 8, 8)
    with pytest.raises(IncompatibleError, match="logits that change"):
        prepare(model, x, ["fold"])
