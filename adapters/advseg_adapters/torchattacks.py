"""torchattacks: its attack classes on segmentation models, through the image-level views.

The classes see a view and never the model, so that their changes of training flags, normalisation or parameters do not
affect it. They support only images in [0, 1] with two spatial axes. Other bounds are mapped to [0, 1]. Volumes are
reshaped to one tall slice for classes that treat all pixels alike. A single channel is repeated where a class convolves
three channels.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torchattacks
from torch import Tensor, nn

from advseg_adapters.foreign import ForeignAttack, Route
from advseg_adapters.loading import check_settings, find_route, is_batched
from advseg_bench.batches import Batch
from advseg_bench.errors import IncompatibleError, SpecError, expected
from advseg_bench.geometry import project
from advseg_bench.losses import Loss
from advseg_bench.protocols import Attack, Model
from advseg_bench.types import Budget, Task

__all__ = ["CLASSES", "ROUTES", "TorchattacksAttack", "load"]

CLASSES: dict[str, type] = {name: getattr(torchattacks, name) for name in torchattacks.__all__}
"""Every attack class that the installed package exports, by name."""

NORMS = {"linf": "Linf", "l2": "L2"}
THREE_CHANNELS = ("TIFGSM", "PIFGSM", "PIFGSMPP")
FIXED = {
    "model": "set by the harness",
    "norm": "set by the key `norm` of a suite",
    "verbose": "off: a run shows its own progress",
    "n_classes": "set by the view, which has two classes",
    "multi_targeted": "off: the view has only one other class",
}
"""Parameters that are not settings -> why."""
CHOICES = {"UPGD": ("ce",), "APGD": ("ce",), "Square": ("margin", "ce")}
"""Values of the setting `loss` for two classes; DLR needs three, and UPGD's margin is flat in a `LossView`."""

STEP = {"alpha": "0.25*eps"}
STARTED = {"random_start": True}
SEARCH = {"binary_search_steps": 5, "max_iterations": 50, "initial_const": 0.1}
_SHIFTED = "Shifts the image but not its mask. Images must be square."
_BOTH_WAYS = "Increases the divergence from the clean view in either direction: it may improve a segmentation."
_ZERO_PIXELS = "A pixel at a bound cannot change: its inverse tanh is infinite."

ROUTES: dict[str, Route] = {
    "VANILA": Route(reason="it returns the clean image", eps=None),
    "GN": Route(gradient=False, view="none", objective="none", norms=("linf", "l2"), eps=None, random=True),
    "FGSM": Route(),
    "BIM": Route(settings=STEP),
    "RFGSM": Route(settings=STEP, random=True),
    "PGD": Route(settings=STEP | STARTED, random=True, random_by=("random_start",)),
    "EOTPGD": Route(settings=STEP, random=True),
    "FFGSM": Route(settings={"alpha": "1.25*eps"}, random=True),
    "TPGD": Route(objective="own loss", settings=STEP, random=True, note=_BOTH_WAYS),
    "MIFGSM": Route(settings=STEP),
    "UPGD": Route(settings=STEP, random=True, random_by=("random_start",)),
    "APGD": Route(norms=("linf", "l2"), random=True, note="Its mode `best_loss` does not stop at success."),
    "APGDT": Route(view="margin", reason="its targeted DLR loss needs four classes; a view has two"),
    "DIFGSM": Route(settings=STEP, random=True, dims=(2,), square=True, note=_SHIFTED),
    "TIFGSM": Route(
        settings=STEP, random=True, dims=(2,), square=True, note=f"{_SHIFTED} Images have 1 or 3 channels."
    ),
    "Jitter": Route(reason="it divides the logits by the largest, which leaves no loss to increase with two classes"),
    "NIFGSM": Route(settings=STEP),
    "PGDRS": Route(settings=STEP | {"noise_sd": "1*eps"}, random=True),
    "SINIFGSM": Route(settings=STEP),
    "VMIFGSM": Route(settings=STEP, random=True),
    "VNIFGSM": Route(settings=STEP, random=True),
    "SPSA": Route(
        gradient=False, settings={"delta": "0.5*eps", "lr": "0.25*eps", "nb_iter": 10, "nb_sample": 32}, random=True
    ),
    "JSMA": Route(
        view="margin",
        objective="success-gated",
        eps="theta",
        settings={"gamma": 0.01},
        note="Memory grows with the square of the number of pixels: 64 x 64 pixels take 0.5 GB.",
    ),
    "EADL1": Route(view="margin", objective="success-gated", norms=("l2",), eps=None, settings=SEARCH, single=True),
    "EADEN": Route(view="margin", objective="success-gated", norms=("l2",), eps=None, settings=SEARCH, single=True),
    "PIFGSM": Route(eps="max_epsilon", dims=(2,), note="Images have 1 or 3 channels."),
    "PIFGSMPP": Route(eps="max_epsilon", dims=(2,), note="Images have 1 or 3 channels."),
    "CW": Route(view="margin", objective="success-gated", norms=("l2",), eps=None, note=_ZERO_PIXELS, single=True),
    "PGDL2": Route(norms=("l2",), settings={"alpha": "0.2*eps"} | STARTED, random=True, random_by=("random_start",)),
    "DeepFool": Route(view="margin", objective="success-gated", norms=("l2",), eps=None, settings={"overshoot": 0.1}),
    "PGDRSL2": Route(norms=("l2",), settings={"alpha": "0.2*eps", "noise_sd": 0.02}, random=True),
    "SparseFool": Route(view="margin", objective="success-gated", norms=("l2",), eps=None),
    "OnePixel": Route(gradient=False, view="margin", objective="success-gated", norms=("l2",), eps=None, random=True),
    "Pixle": Route(
        view="margin",
        objective="success-gated",
        norms=("l2",),
        eps=None,
        gradient=False,
        random=True,
        dims=(2,),
        square=True,
        note="Images must be square.",
    ),
    "FAB": Route(
        view="margin", objective="success-gated", norms=("linf", "l2"), settings={"n_classes": 2}, random=True
    ),
    "AutoAttack": Route(
        view="margin",
        reason="where its first APGD fails it continues with DLR losses, which need three classes; a view has two",
    ),
    "Square": Route(
        view="margin",
        objective="success-gated",
        norms=("linf", "l2"),
        settings={"n_queries": 500},
        gradient=False,
        random=True,
        dims=(2,),
        square=True,
        note="Images must be square.",
    ),
    "MultiAttack": Route(eps=None, reason="it takes attack objects; name each of its attacks in the suite instead"),
    "LGV": Route(eps=None, reason="it trains copies of the classifier that it attacks, and a view has no weights"),
}
"""How each class attacks a segmentation model, or why it cannot; by name of the class."""


def load(class_name: str, settings: dict[str, Any], loss: Loss | None, task: Task) -> Attack:
    """Build an attack of torchattacks from the name of its class.

    Args:
        class_name: Name of a class of the package, such as "PGD".
        settings: Parameters of the class, and `threshold` or `rise` for success-gated classes.
        loss: (logits, y, valid, task) -> one value per image, (N,); None for classes that ignore the model.
        task: Unused, since the views support every task type.

    Returns:
        The attack; call it with a model and a batch, see `BaseAttack`.

    Raises:
        PluginError: The class is unknown.
        IncompatibleError: The class cannot attack a segmentation model.
        SpecError: The class does not accept the settings, or the loss is missing.

    Source:
        Torchattacks, arXiv:2010.01950.

    Example:
        >>> import torch
        >>> import advseg_bench as ab
        >>> from advseg_adapters import torchattacks
        >>> attack = torchattacks.load("FGSM", {}, ab.losses.bce, ab.Task("binary", ("lesion",)))
        >>> batch = ab.Batch.of(torch.full((1, 1, 8, 8), 0.5), torch.ones(1, 1, 8, 8), task="binary")
        >>> x_adv = attack(torch.nn.Conv2d(1, 1, 1), batch, eps=0.1)
        >>> round(float((x_adv - batch.x).abs().max()), 3)
        0.1
    """
    name = f"torchattacks.{class_name}"
    route = find_route("torchattacks", class_name, ROUTES, CLASSES)
    attack = TorchattacksAttack(
        name=name, route=route, loss=loss, settings=settings, batched=is_batched("torchattacks", class_name)
    )
    eps = {route.eps: "set by the key `eps` of a suite"} if route.eps else {}
    check_settings(f"attack {name}", CLASSES[class_name], settings, fixed=FIXED | eps, gated=route.view == "margin")
    allowed = CHOICES.get(class_name)
    if allowed and settings.get("loss", allowed[0]) not in allowed:
        choices = " or ".join(map(repr, allowed))
        raise SpecError(
            expected(f"attack {name}: setting 'loss'", f"{choices} with a view's two classes", settings["loss"])
        )
    attack.build(nn.Identity(), Budget(route.norms[0], 1 / 255))
    return attack


@dataclass(frozen=True, kw_only=True)
class TorchattacksAttack(ForeignAttack):
    """An attack class of torchattacks as an attack of this package; built by `load`.

    Images whose bounds are not [0, 1] are mapped to [0, 1] for the class, and back.

    Attributes:
        name: "torchattacks.<Class>".
        route: How the class attacks a segmentation model.
        loss: (logits, y, valid, task) -> one value per image, (N,).
        settings: Parameters of the class, and `threshold` or `rise`; see `ForeignAttack`.
        batched: Whether images may share a call.

    Cost:
        That of the class; `docs/support.md` lists the measured passes per image.

    Example:
        >>> import advseg_bench as ab
        >>> from advseg_adapters.torchattacks import ROUTES, TorchattacksAttack
        >>> attack = TorchattacksAttack(name="torchattacks.APGD", route=ROUTES["APGD"], loss=ab.losses.dice)
        >>> attack.class_name, attack.traits.norms, attack.is_random()
        ('APGD', ('linf', 'l2'), True)
    """

    unit: ClassVar[bool] = True

    def build(self, target: nn.Module, budget: Budget) -> torchattacks.attack.Attack:
        """Construct the class for a classifier and a budget.

        Args:
            target: Images (N, C, *S) -> logits (N, 2).
            budget: Norm and radius.

        Returns:
            An object of the class.

        Raises:
            SpecError: The class does not accept its settings.
        """
        kind = CLASSES[self.class_name]
        arguments = self.parameters(budget)
        takes = inspect.signature(kind).parameters
        if "norm" in takes:
            arguments["norm"] = NORMS[budget.norm]
        if "seed" in takes and "seed" not in self.settings:
            arguments["seed"] = int(torch.initial_seed() % 2**31)
        try:
            with _quiet():
                return kind(target, **arguments)
        except (TypeError, ValueError, NotImplementedError) as error:
            raise SpecError(f"attack {self.name}: does not take these settings: {error}") from None

    def attack(self, target: Model, batch: Batch, budget: Budget) -> Tensor:
        """Run the class on images of the view; see `ForeignAttack.attack`."""
        assert isinstance(target, nn.Module)
        x = batch.x
        laid = self._lay_out(x)
        view = target if laid.shape == x.shape else _LaidOut(target, x.shape[1:])
        attack = self.build(view, budget)
        run = RUNS.get(self.class_name, _call)
        with _quiet():
            found = run(attack, laid, torch.zeros(len(x), dtype=torch.int64, device=x.device))
        found = found[:, : x.shape[1]].reshape(x.shape)
        return project(found, x, budget, batch.bounds) if self.class_name in RUNS else found

    def _lay_out(self, x: Tensor) -> Tensor:
        """Reshape images to two spatial axes, and to three channels where the class convolves three."""
        if x.dim() > 4:
            x = x.flatten(2, -2)
        if self.class_name not in THREE_CHANNELS or x.shape[1] == 3:
            return x
        if x.shape[1] == 1:
            return x.expand(-1, 3, *x.shape[2:])
        raise IncompatibleError(
            expected(f"attack {self.name}", "images with 1 or 3 channels", x.shape[1], "Use another attack.")
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the output of torchattacks and its internal deprecation warnings."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning, module="torchattacks")
        yield


class _LaidOut(nn.Module):
    """A view for reshaped images: it restores their shape and keeps only their original channels.

    Classes that convolve three equal channels separately treat the first one like a single channel.
    """

    def __init__(self, view: nn.Module, shape: torch.Size) -> None:
        super().__init__()
        self.view, self.shape = view, shape
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """Map reshaped images to logits (N, 2)."""
        logits: Tensor = self.view(x[:, : self.shape[0]].reshape(-1, *self.shape))
        return logits


def _call(attack: torchattacks.attack.Attack, x: Tensor, y: Tensor) -> Tensor:
    """Run a class by its public call."""
    found: Tensor = attack(x, y)
    return found


def _climb(attack: torchattacks.attack.Attack, x: Tensor, y: Tensor) -> Tensor:
    """Run APGD for the largest loss; its public call returns the clean image unless the class changes."""
    found: Tensor = attack.perturb(x, y, best_loss=True)[1]
    return found


def _remember(attack: torchattacks.attack.Attack, x: Tensor, y: Tensor) -> Tensor:
    """Run a class that returns the clean image unless the class changes; return its last iterate instead."""
    single, ends = attack.attack_single_run, [x]

    def recorded(*args: Any, **settings: Any) -> Any:
        found = single(*args, **settings)
        ends.append(found[-1] if isinstance(found, tuple) else found)
        return found

    attack.__dict__["attack_single_run"] = recorded
    found: Tensor = attack(x, y)
    return ends[-1] if torch.equal(found, x) else found


RUNS: dict[str, Callable[[torchattacks.attack.Attack, Tensor, Tensor], Tensor]] = {
    "APGD": _climb,
    "FAB": _remember,
    "SPSA": _call,
    "Square": _remember,
}
"""Classes whose result is projected, with the function that runs them. (SPSA exceeds the bounds by rounding.)"""
