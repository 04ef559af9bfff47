"""One network in every form in which users bring it: its outputs and its wrappers. All yield the same logits."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations


class Body(nn.Module):
    """The network: two convolutions with batch norm and dropout between them."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)
        self.last = nn.Conv2d(4, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.drop(self.norm(self.first(x)).relu()))  # type: ignore[no-any-return]


class Float32(Body):
    """Casts to float32 inside, has a float32 constant, and runs its last layer out of autocast."""

    def forward(self, x: Tensor) -> Tensor:
        grid = torch.zeros(x.shape[-1], dtype=torch.float32)
        with torch.autocast("cpu", enabled=False):
            return super().forward(x.float() + grid).float()


class Inplace(Body):
    """Its first layers write to their input."""

    def __init__(self) -> None:
        super().__init__()
        self.clip = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.clip(x.sub_(0.25)) + 0.25)


class LowRank(nn.Module):
    """A layer with a low-rank update, as LoRA has; the update is zero."""

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        self.layer = layer
        self.down = nn.Conv2d(layer.in_channels, 1, 1, bias=False)
        self.up = nn.Conv2d(1, layer.out_channels, 1, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + self.up(self.down(x))  # type: ignore[no-any-return]


class Hooked(Body):
    """Registers a hook in its first forward, and needs it in every forward."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[str, Tensor] = {}
        self.is_hooked = False

    def forward(self, x: Tensor) -> Tensor:
        if not self.is_hooked:
            self.is_hooked = True
            self.norm.register_forward_hook(lambda module, args, out: self.kept.update(features=out))
        self.kept.clear()
        self.norm(self.first(x))
        return self.last(self.kept["features"].relu())  # type: ignore[no-any-return]


class Stale(Hooked):
    """Like `Hooked`, but keeps old features: a copy reads those, since the hook writes to the original."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.is_hooked:
            self.is_hooked = True
            self.norm.register_forward_hook(lambda module, args, out: self.kept.update(features=out))
        self.norm(self.first(x))
        return self.last(self.kept["features"].relu())  # type: ignore[no-any-return]


class Keeping(Body):
    """Keeps a tensor of its last graph, so that it cannot be copied."""

    def forward(self, x: Tensor) -> Tensor:
        self.features = self.norm(self.first(x)).relu()
        return self.last(self.features)  # type: ignore[no-any-return]


@dataclass
class Output:
    logits: Tensor
    features: Tensor


class ReturnsDict(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"features": x, "out": self.body(x)}


class ReturnsList(ReturnsDict):
    def forward(self, x: Tensor) -> list[Tensor]:  # type: ignore[override]
        logits = self.body(x)
        return [logits, F.avg_pool2d(logits, 2)]


class ReturnsObject(ReturnsDict):
    def forward(self, x: Tensor) -> Output:  # type: ignore[override]
        return Output(self.body(x), x)


class ReturnsQuarter(ReturnsDict):
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return F.avg_pool2d(self.body(x), 4)


OUTPUTS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "tensor": lambda body: body,
    "dict": ReturnsDict,
    "dataclass": ReturnsObject,
    "list": ReturnsList,
    "quarter": ReturnsQuarter,
}
BODIES: dict[str, type[Body]] = {
    "fp32": Float32,
    "hooks": Hooked,
    "stale": Stale,
    "keeping": Keeping,
    "inplace": Inplace,
}
WRAPPERS = (
    "plain",
    "parallel",
    "compiled",
    "traced",
    "scripted",
    "frozen",
    "lora",
    "patched",
    "weight_norm",
    "old_weight_norm",
    *BODIES,
)
IMPOSSIBLE = {(output, wrapper) for output in ("dataclass",) for wrapper in ("traced", "scripted", "frozen")}
"""What TorchScript itself cannot hold."""


def make(output: str = "tensor", wrapper: str = "plain", edge: int = 16) -> nn.Module:
    """Build the network in one form, in eval mode, with the same weights in each."""
    with torch.random.fork_rng(devices=()):
        torch.default_generator.manual_seed(0)
        weights = Body().state_dict()
        body = BODIES.get(wrapper, Body)()
        body.load_state_dict(weights)
        _change_layer(body, wrapper)
        return _wrap(OUTPUTS[output](body).eval(), wrapper, torch.rand(2, 1, edge, edge))


def _change_layer(body: Body, wrapper: str) -> None:
    if wrapper == "weight_norm":
        parametrizations.weight_norm(body.last)
    elif wrapper == "old_weight_norm":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            nn.utils.weight_norm(body.last)
    elif wrapper == "lora":
        body.last = LowRank(body.last)  # type: ignore[assignment]
    elif wrapper == "patched":
        old = body.last.forward
        body.last.forward = lambda x: old(x) + 0.0  # type: ignore[method-assign]


def _wrap(net: nn.Module, wrapper: str, x: Tensor) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated
        if wrapper == "parallel":
            return nn.DataParallel(net)
        if wrapper == "compiled":
            return torch.compile(net, backend="eager")
        if wrapper == "traced":
            return torch.jit.trace(net, x, strict=False)
        if wrapper in ("scripted", "frozen"):
            script = torch.jit.script(net)
            return torch.jit.freeze(script) if wrapper == "frozen" else script
    return net


def refer(output: str, x: Tensor) -> Tensor:
    """The logits that every form must yield, with a graph."""
    net = make().requires_grad_(False)
    logits: Tensor = net(x)
    if output != "quarter":
        return logits
    return F.interpolate(F.avg_pool2d(logits, 4), scale_factor=4, mode="bilinear", align_corners=False)
