"""Broken attacks, each with one planted fault, the rule of the contract that must catch it, and what it must say.

`FAULTS` holds them all; `SOUND` holds attacks written in other ways than the package's, which no rule may refuse. Both
take a loss: `FAULTS["wrong_sign"].attack(loss=losses.bce)`.

Not here, because the closed form and the tiny network of the contract cannot tell them from sound ones: a gradient
wrong on 1 % of the pixels, signs flipped in a thin band, one step too few, one gradient whose step is repeated,
a gradient that is renewed only every second step, another momentum normalisation, a start that is not uniform. They
are for cross-validation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advseg_bench import geometry
from advseg_bench.batches import Batch, select_images
from advseg_bench.losses import Loss, one_hot, probabilities
from advseg_bench.metrics import predict
from advseg_bench.testing.segmenters import margins
from advseg_bench.types import Budget, Traits

LINF = Traits(norms=("linf",))
BOTH = Traits()


@dataclass(frozen=True)
class Fault:
    """A broken attack.

    Attributes:
        attack: Takes the keyword `loss`.
        rule: The first rule of the contract that it breaks.
        says: Part of the message, a regular expression.
    """

    attack: type[Planted]
    rule: str
    says: str


@dataclass(kw_only=True)
class Planted:
    """An attack whose call is a function (loss, model, batch, budget, generators)."""

    loss: Loss
    traits: ClassVar[Traits] = BOTH
    function: ClassVar[Callable[..., Any]]

    def __call__(self, model: nn.Module, batch: Batch, *, budget: Budget, generators: Sequence[torch.Generator]) -> Any:
        return type(self).function(self.loss, model, batch, budget, generators)


FAULTS: dict[str, Fault] = {}
SOUND: dict[str, type[Planted]] = {}


def _attack_of(function: Callable[..., Any], traits: Traits) -> type[Planted]:
    return type(function.__name__, (Planted,), {"function": staticmethod(function), "traits": traits})


def fault(rule: str, says: str, traits: Traits = LINF) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def plant(function: Callable[..., Any]) -> Callable[..., Any]:
        FAULTS[function.__name__] = Fault(_attack_of(function, traits), rule, says)
        return function

    return plant


def sound(traits: Traits = BOTH) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def keep(function: Callable[..., Any]) -> Callable[..., Any]:
        SOUND[function.__name__] = _attack_of(function, traits)
        return function

    return keep


# What the attacks are made of: all of it right.


def gradient(loss: Loss, model: Callable[[Tensor], Tensor], x: Tensor, batch: Batch) -> Tensor:
    leaf = x.detach().clone().requires_grad_()
    value = loss(model(leaf), batch.y, batch.valid, batch.task).sum()
    return torch.autograd.grad(value, leaf)[0]


def clip(x: Tensor, batch: Batch) -> Tensor:
    return x.clamp(batch.bounds.lower, batch.bounds.upper)


def confine(x: Tensor, batch: Batch, budget: Budget) -> Tensor:
    return clip(batch.x + (x - batch.x).clamp(-budget.eps, budget.eps), batch)


def per_image(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *[1] * (like.dim() - 1))


def length(x: Tensor) -> Tensor:
    return per_image(x.flatten(1).norm(dim=1), x)


def fgsm(loss: Loss, model: nn.Module, batch: Batch, budget: Budget) -> Tensor:
    return clip(batch.x + budget.eps * gradient(loss, model, batch.x, batch).sign(), batch)


# Where it runs at all.


@fault("runs", r"not enough values|too many values.*with images with 3 spatial axes and only there.*dims=\(2,\)")
def needs_four_axes(loss, model, batch, budget, generators):
    _, _, _, _ = batch.x.shape
    return fgsm(loss, model, batch, budget)


@fault("runs", r"with images that are not square and only there", Traits(norms=("linf",), dims=(2,)))
def needs_square_images(loss, model, batch, budget, generators):
    step = gradient(loss, model, batch.x, batch).sign()
    side = batch.x.shape[2]
    return clip(batch.x + budget.eps * step.reshape(*batch.x.shape[:2], side, side), batch)


@fault("runs", r"with multiclass tasks and only there.*kinds=\('binary', 'multilabel'\)")
def knows_no_classes(loss, model, batch, budget, generators):
    leaf = batch.x.clone().requires_grad_()
    value = F.binary_cross_entropy_with_logits(model(leaf), batch.y.float(), reduction="none")
    (g,) = torch.autograd.grad((value * batch.valid.unsqueeze(1)).sum(), leaf)
    return clip(batch.x + budget.eps * g.sign(), batch)


@fault("runs", r"NotImplementedError.*with l2 budgets and only there.*norms=\('linf',\)", BOTH)
def claims_a_norm_too_many(loss, model, batch, budget, generators):
    if budget.norm == "l2":
        raise NotImplementedError("only linf")
    return fgsm(loss, model, batch, budget)


@fault("runs", r"IndexError.*with one image and only there")
def needs_two_images(loss, model, batch, budget, generators):
    assert batch.x[1] is not None
    return fgsm(loss, model, batch, budget)


@fault("runs", r"ValueError: out of luck.*everywhere")
def raises_always(loss, model, batch, budget, generators):
    raise ValueError("out of\nluck")


# What it returns.


@fault("output", r"dtype torch.float32, got torch.float64")
def returns_float64(loss, model, batch, budget, generators):
    return fgsm(loss, model, batch, budget).double()


@fault("output", r"expected images of shape \(1, 1, 11, 8\), got \(1, 11, 8\)")
def squeezes_one_image(loss, model, batch, budget, generators):
    return fgsm(loss, model, batch, budget).squeeze(0)


@fault("output", r"got tuple .*Return the images")
def returns_a_pair(loss, model, batch, budget, generators):
    return fgsm(loss, model, batch, budget), True


@fault("output", r"got a tensor that requires grad.*detach")
def keeps_the_graph(loss, model, batch, budget, generators):
    leaf = batch.x.clone().requires_grad_()
    (g,) = torch.autograd.grad(loss(model(leaf), batch.y, batch.valid, batch.task).sum(), leaf)
    return clip(leaf + budget.eps * g.sign(), batch)


@fault("output", r"got NaN or infinity in image 0, which has no valid pixel", Traits(norms=("l2",)))
def divides_by_a_zero_gradient(loss, model, batch, budget, generators):
    g = gradient(loss, model, batch.x, batch)
    return clip(batch.x + budget.eps * g / length(g), batch)


@fault("output", r"expected images of shape .*, got")
def returns_a_lower_resolution(loss, model, batch, budget, generators):
    return fgsm(loss, model, batch, budget)[..., ::2]


# What it leaves behind.


@fault("batch", r"batch.x unchanged.*clone\(\)")
def writes_into_the_images(loss, model, batch, budget, generators):
    g = gradient(loss, model, batch.x, batch)
    return batch.x.add_(budget.eps * g.sign()).clamp_(batch.bounds.lower, batch.bounds.upper)


@fault("batch", r"batch.y unchanged")
def writes_into_the_labels(loss, model, batch, budget, generators):
    result = fgsm(loss, model, batch, budget)
    batch.y.zero_()
    return result


@fault("batch", r"batch.valid unchanged")
def writes_into_the_valid_pixels(loss, model, batch, budget, generators):
    batch.valid[..., 0] = False
    return fgsm(loss, model, batch, budget)


@fault("batch", r"batch.x without a gradient")
def differentiates_the_images_themselves(loss, model, batch, budget, generators):
    batch.x.requires_grad_()
    (g,) = torch.autograd.grad(loss(model(batch.x), batch.y, batch.valid, batch.task).sum(), batch.x)
    return clip(batch.x.detach() + budget.eps * g.sign(), batch)


@fault(
    "model",
    r"in eval mode; changed: value of body.1.running_mean.*, training flags.*in training mode batch norms update",
)
def leaves_training_mode(loss, model, batch, budget, generators):
    model.train()
    return fgsm(loss, model, batch, budget)


@fault("model", r"in eval mode; changed: value of body.1.running_mean .and 2 more. ")
def updates_batch_norm(loss, model, batch, budget, generators):
    model.train()
    result = fgsm(loss, model, batch, budget)
    model.eval()
    return result


@fault("model", r"in training mode with its batch norm.*changed: training flags.*unfreezes")
def unfreezes_what_was_frozen(loss, model, batch, budget, generators):
    was_training = model.training
    model.eval()
    result = fgsm(loss, model, batch, budget)
    model.train(was_training)
    return result


@fault("model", r"changed: gradient of body.0.weight.*autograd.grad")
def leaves_gradients(loss, model, batch, budget, generators):
    leaf = batch.x.clone().requires_grad_()
    loss(model(leaf), batch.y, batch.valid, batch.task).sum().backward()
    return clip(batch.x + budget.eps * leaf.grad.sign(), batch)


@fault("model", r"changed: gradient of body.0.weight")
def clears_gradients(loss, model, batch, budget, generators):
    model.zero_grad()
    return fgsm(loss, model, batch, budget)


@fault("model", r"changed: requires_grad of body.0.weight.*finally")
def leaves_the_model_frozen(loss, model, batch, budget, generators):
    model.requires_grad_(False)
    return fgsm(loss, model, batch, budget)


@fault("model", r"changed: hooks.*handle.remove")
def leaves_hooks(loss, model, batch, budget, generators):
    next(m for m in model.modules() if not list(m.children())).register_forward_hook(lambda *_: None)
    return fgsm(loss, model, batch, budget)


@fault("globals", r"random numbers of torch unchanged.*seed nothing")
def seeds_torch(loss, model, batch, budget, generators):
    torch.manual_seed(0)
    return fgsm(loss, model, batch, budget)


@fault("globals", r"random numbers of NumPy unchanged")
def draws_from_numpy(loss, model, batch, budget, generators):
    start = torch.from_numpy(np.random.uniform(-1, 1, batch.x.shape)).to(batch.x)  # noqa: NPY002
    x = confine(batch.x + budget.eps * start, batch, budget)
    return confine(x + 2 * budget.eps * gradient(loss, model, x, batch).sign(), batch, budget)


@fault("globals", r"gradient mode unchanged.*context manager")
def turns_gradients_off(loss, model, batch, budget, generators):
    result = fgsm(loss, model, batch, budget)
    torch.set_grad_enabled(False)
    return result


@fault("globals", r"default dtype unchanged")
def changes_the_default_dtype(loss, model, batch, budget, generators):
    torch.set_default_dtype(torch.float64)
    return fgsm(loss, model, batch, budget)


# Bounds and budget.


@fault("bounds", r"expected intensities in \[0, 1\], got -0.29.. to 1.299.*Clip last")
def does_not_clip(loss, model, batch, budget, generators):
    return batch.x + budget.eps * gradient(loss, model, batch.x, batch).sign()


@fault("bounds", r"expected intensities in \[0, 1\]", Traits(norms=("l2",)))
def projects_after_the_clip_to_full_length(loss, model, batch, budget, generators):
    g = gradient(loss, model, batch.x, batch)
    delta = clip(batch.x + budget.eps * geometry.steepest(g, "l2"), batch) - batch.x
    return batch.x + budget.eps * geometry.steepest(delta, "l2")


@fault("bounds", r"expected intensities in \[0, 1\], got -0.0")
def clips_before_the_last_step(loss, model, batch, budget, generators):
    x = batch.x
    for _ in range(4):
        x = clip(x, batch) + budget.eps / 4 * gradient(loss, model, x, batch).sign()
    return x


@fault("bounds", r"expected intensities in \[0, 1\], got -")
def returns_the_perturbation(loss, model, batch, budget, generators):
    return fgsm(loss, model, batch, budget) - batch.x


@fault("bounds", r"expected intensities in \[0.25, 3\], got 0 to 1")
def normalises_the_result(loss, model, batch, budget, generators):
    x = fgsm(loss, model, batch, budget)
    return x if batch.bounds.upper <= 1 else (x - x.amin()) / (x.amax() - x.amin())


@fault("budget", r"further than linf eps 0.1, got 1, 10 times as far.*grey levels out of 255")
def takes_eps_times_255(loss, model, batch, budget, generators):
    return fgsm(loss, model, batch, Budget(budget.norm, budget.eps * 255))


@fault("budget", r"got 0.25, 2.5 times as far.*Project last")
def does_not_project(loss, model, batch, budget, generators):
    x = batch.x
    for _ in range(10):
        x = clip(x + 0.25 * budget.eps * gradient(loss, model, x, batch).sign(), batch)
    return x


@fault("budget", r"got 0.2, 2 times as far")
def steps_twice(loss, model, batch, budget, generators):
    return fgsm(loss, model, batch, Budget(budget.norm, 2 * budget.eps))


@fault("budget", r"bounds \[-1, 1\].*for bounds \[0, 1\]. Clamp to batch.bounds")
def clamps_to_zero_and_one(loss, model, batch, budget, generators):
    x = batch.x + budget.eps * gradient(loss, model, batch.x, batch).sign()
    return clip(x.clamp(0, 1), batch)


@fault("budget", r"further than linf eps 0.1, got 0.1002, 1 times as far")
def rounds_to_float16(loss, model, batch, budget, generators):
    return fgsm(loss, model, batch, budget).half().float()


@fault("budget", r"further than linf eps 0.1, got 0.103")
def truncates_to_grey_levels(loss, model, batch, budget, generators):
    x = fgsm(loss, model, batch, budget)
    return x if batch.bounds.lower < 0 else clip((x * 255).to(torch.uint8).float() / 255, batch)


@fault("budget", r"eps 0.0001, got 0.00392.*It respects a larger eps")
def has_a_smallest_step(loss, model, batch, budget, generators):
    return fgsm(loss, model, batch, Budget(budget.norm, budget.eps and max(budget.eps, 1 / 255)))


@fault("budget", r"further than l2 eps 1, got .*Is it the step of an L_inf budget", BOTH)
def takes_l2_for_linf(loss, model, batch, budget, generators):
    return fgsm(loss, model, batch, budget)


@fault("budget", r"further than linf eps 0.1, got")
def projects_around_the_last_iterate(loss, model, batch, budget, generators):
    x = batch.x
    for _ in range(4):
        step = 2 * budget.eps * gradient(loss, model, x, batch).sign()
        x = clip(x + step.clamp(-budget.eps, budget.eps), batch)
    return x


@fault("zero_eps", r"expected the clean images for eps 0.*convert the images back and forth")
def normalises_to_and_fro(loss, model, batch, budget, generators):
    inside = (batch.x - 0.43) / 0.27
    step = gradient(lambda *a: loss(*a), lambda z: model(z * 0.27 + 0.43), inside, batch).sign()
    return clip((inside + budget.eps * 0.99999 / 0.27 * step) * 0.27 + 0.43, batch)


# What a result may depend on.


@fault("repeatable", r"declares random=True, got the same", Traits(norms=("linf",), random=True))
def ignores_the_generators(loss, model, batch, budget, generators):
    start = torch.rand(batch.x.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    x = confine(batch.x + budget.eps * start, batch, budget)
    return confine(x + 2 * budget.eps * gradient(loss, model, x, batch).sign(), batch, budget)


@fault("repeatable", r"got others in a second call")
def draws_without_a_seed(loss, model, batch, budget, generators):
    start = torch.from_numpy(np.random.default_rng().uniform(-1, 1, batch.x.shape)).to(batch.x)
    x = confine(batch.x + budget.eps * start, batch, budget)
    return confine(x + 2 * budget.eps * gradient(loss, model, x, batch).sign(), batch, budget)


@fault("repeatable", r"with other seeds of the global generators")
def draws_from_a_fork_of_the_global_generator(loss, model, batch, budget, generators):
    with torch.random.fork_rng(devices=[]):
        start = torch.rand_like(batch.x) * 2 - 1
    x = confine(batch.x + budget.eps * start, batch, budget)
    return confine(x + 2 * budget.eps * gradient(loss, model, x, batch).sign(), batch, budget)


_memory: dict[str, Tensor] = {}


@fault("repeatable", r"got others in a second call.*keep no state between calls")
def keeps_momentum_between_calls(loss, model, batch, budget, generators):
    g = gradient(loss, model, batch.x, batch)
    g = g / g.abs().flatten(1).sum(1).clamp(min=1e-12).view(-1, *[1] * (g.dim() - 1))
    last = _memory.get("g")
    if last is not None and last.shape[1:] == g.shape[1:]:
        g = g + 3 * last[:1]
    _memory["g"] = g
    return clip(batch.x + budget.eps * g.sign(), batch)


@fault("repeatable", r"declares random=False, got others", Traits(norms=("linf",), random=False))
def is_random_unawares(loss, model, batch, budget, generators):
    x = confine(batch.x + budget.eps * geometry.random_uniform(batch.x, generators), batch, budget)
    return confine(x + 2 * budget.eps * gradient(loss, model, x, batch).sign(), batch, budget)


@fault("neighbours", r"on a small network.*no pooled Dice")
def pools_dice_over_the_batch(loss, model, batch, budget, generators):
    def pooled(logits: Tensor, y: Tensor, valid: Tensor, task: Any) -> Tensor:
        p, t = probabilities(logits, task), one_hot(y, task, logits)
        weight = valid.unsqueeze(1)
        return 1 - 2 * (p * t * weight).sum() / ((p + t) * weight).sum().clamp(min=1e-5)

    return fgsm(pooled, model, batch, budget)


@fault("neighbours", r"Sum one loss value per image \(no mean over the batch")
def averages_the_loss_over_the_batch(loss, model, batch, budget, generators):
    def mean(*arguments: Any) -> Tensor:
        return loss(*arguments).mean()

    step = 20 * budget.eps * batch.x[0].numel() * gradient(mean, model, batch.x, batch)
    return confine(batch.x + step, batch, budget)


@fault("neighbours", r"use image, label and generator i together")
def follows_the_first_image(loss, model, batch, budget, generators):
    g = gradient(loss, model, batch.x, batch)
    return clip(batch.x + budget.eps * g[:1].sign(), batch)


@fault("neighbours", r"expected image . to have one result")
def takes_the_neighbours_label(loss, model, batch, budget, generators):
    rolled = replace(batch, y=batch.y.roll(1, 0))
    return clip(batch.x + budget.eps * gradient(loss, model, batch.x, rolled).sign(), batch)


@fault("neighbours", r"expected image . to have one result", Traits(norms=("linf",), random=True))
def draws_everything_from_one_generator(loss, model, batch, budget, generators):
    start = torch.rand(batch.x.shape, generator=generators[0]) * 2 - 1
    x = confine(batch.x + budget.eps * start, batch, budget)
    return confine(x + 0.5 * budget.eps * gradient(loss, model, x, batch).sign(), batch, budget)


@fault("neighbours", r"expected image . to have one result", Traits(norms=("l2",)))
def takes_the_length_of_the_batch(loss, model, batch, budget, generators):
    g = gradient(loss, model, batch.x, batch)
    return clip(batch.x + budget.eps * g / g.norm().clamp(min=1e-20), batch)


@fault("neighbours", r"expected image . to have one result")
def stops_when_the_batch_is_broken(loss, model, batch, budget, generators):
    x, clean = batch.x, None
    for _ in range(10):
        with torch.no_grad():
            value = loss(model(x), batch.y, batch.valid, batch.task).mean()
        clean = value if clean is None else clean
        if value > 1.15 * clean:
            break
        x = confine(x + budget.eps / 10 * gradient(loss, model, x, batch).sign(), batch, budget)
    return x


@fault("void", r"with other labels there.*Pass `batch.valid` to the loss")
def counts_pixels_that_are_not_valid(loss, model, batch, budget, generators):
    def everywhere(logits: Tensor, y: Tensor, valid: Tensor, task: Any) -> Tensor:
        return loss(logits, y, torch.ones_like(valid), task)

    return fgsm(everywhere, model, batch, budget)


@fault("void", r"with another model, with no valid pixel")
def takes_void_for_background(loss, model, batch, budget, generators):
    valid = batch.valid if batch.task.kind == "multiclass" else batch.valid.unsqueeze(1)

    def everywhere(logits: Tensor, y: Tensor, _: Tensor, task: Any) -> Tensor:
        return loss(logits, torch.where(valid, y, 0).to(y.dtype), torch.ones_like(batch.valid), task)

    return fgsm(everywhere, model, batch, budget)


@fault("void", r"expected unchanged images without a valid pixel.*The sign of 0 is 0")
def takes_the_sign_of_zero_for_one(loss, model, batch, budget, generators):
    g = gradient(loss, model, batch.x, batch)
    return clip(batch.x + budget.eps * torch.where(g >= 0, 1.0, -1.0), batch)


# Strength and cost.


@fault("noise", r"It decreases the loss: is a sign wrong")
def goes_the_wrong_way(loss, model, batch, budget, generators):
    return clip(batch.x - budget.eps * gradient(loss, model, batch.x, batch).sign(), batch)


@fault("noise", r"got the clean images")
def returns_the_clean_images(loss, model, batch, budget, generators):
    fgsm(loss, model, batch, budget)
    return batch.x.clone()


@fault("noise", r"got the clean images.*Is the gradient zero")
def takes_cross_entropy_of_one_channel(loss, model, batch, budget, generators):
    def of_classes(logits: Tensor, y: Tensor, valid: Tensor, task: Any) -> Tensor:
        label = y if task.kind == "multiclass" else y[:, 0].long() * 0
        return F.cross_entropy(logits, label, reduction="none").flatten(1).mean(1)

    if batch.task.kind == "binary":
        return fgsm(of_classes, model, batch, budget)
    return fgsm(loss, model, batch, budget)


@fault("noise", r"does not increase the loss")
def mixes_up_the_axes(loss, model, batch, budget, generators):
    return clip(batch.x + budget.eps * gradient(loss, model, batch.x, batch).flip(2, 3).sign(), batch)


@fault("noise", r"It does not increase the loss.*control=True")
def is_noise(loss, model, batch, budget, generators):
    fgsm(loss, model, batch, budget)
    noise = torch.rand(batch.x.shape[1:], generator=torch.Generator().manual_seed(3)) - 0.5
    return clip(
        batch.x + budget.eps * (noise * batch.valid.any() * gradient(loss, model, batch.x, batch).ne(0)).sign(), batch
    )


@fault(
    "optimum",
    r"Pixels with label 0 hardly change. Are prediction and target of the loss swapped",
    Traits(norms=("linf",), kinds=("binary", "multilabel")),
)
def swaps_the_arguments_of_the_loss(loss, model, batch, budget, generators):
    def swapped(logits: Tensor, y: Tensor, valid: Tensor, task: Any) -> Tensor:
        value = F.binary_cross_entropy_with_logits(y.float(), logits.sigmoid(), reduction="none")
        return (value * valid.unsqueeze(1)).flatten(1).mean(1)

    return fgsm(swapped, model, batch, budget)


@fault("optimum", r"It uses 0.0039 of the budget")
def divides_eps_by_255(loss, model, batch, budget, generators):
    g = gradient(loss, model, batch.x, batch)
    return clip(batch.x + budget.eps / 255 * g.sign(), batch)


@fault("optimum", r"It uses 0.5 of the budget")
def uses_half_of_eps(loss, model, batch, budget, generators):
    return fgsm(loss, model, batch, Budget(budget.norm, budget.eps / 2))


@fault("optimum", r"exact optimum, got 3.% .multilabel")
def attacks_the_first_channel(loss, model, batch, budget, generators):
    g = gradient(loss, model, batch.x, batch)
    g[:, 1:] = 0
    return clip(batch.x + budget.eps * g.sign(), batch)


@fault("optimum", r"Does every step follow the gradient of the loss")
def attacks_the_models_own_labels(loss, model, batch, budget, generators):
    with torch.no_grad():
        own = predict(model(batch.x), batch.task)
    return clip(batch.x + budget.eps * gradient(loss, model, batch.x, replace(batch, y=own)).sign(), batch)


@fault("optimum", r"It uses 0.58 of the budget")
def takes_the_root_mean_square_for_the_step(loss, model, batch, budget, generators):
    return fgsm(loss, model, batch, Budget("linf", budget.eps / 3**0.5))


@fault("more_budget", r"expected linf eps 0.2 to be no weaker than 0.1.*units of the images")
def guesses_the_unit_of_eps(loss, model, batch, budget, generators):
    unit = 255 if 0.15 < budget.eps < 0.25 else 1
    return fgsm(loss, model, batch, Budget(budget.norm, budget.eps / unit))


@fault("cost", r"expected 1 forwards per image, .*got 2", Traits(norms=("linf",), forwards=1, backwards=1))
def looks_twice(loss, model, batch, budget, generators):
    with torch.no_grad():
        model(batch.x)
    return fgsm(loss, model, batch, budget)


@fault("cost", r"expected 5 backwards per image, .*got 1", Traits(norms=("linf",), backwards=5))
def takes_fewer_steps_than_it_states(loss, model, batch, budget, generators):
    return fgsm(loss, model, batch, budget)


@fault("cost", r"expected 0 forwards per image.*A noise baseline has cost 0", Traits(control=True))
def is_no_control(loss, model, batch, budget, generators):
    with torch.no_grad():
        model(batch.x)
    return geometry.project(batch.x + budget.eps / 2, batch.x, budget, batch.bounds)


@fault("cost", r"expected a backward pass .*, got none.*gradient=False")
def needs_no_gradient_unawares(loss, model, batch, budget, generators):
    return searches_by_finite_differences(loss, model, batch, budget, generators)


def span(x: Tensor, end: str) -> Tensor:
    """The smallest or the largest value of each image."""
    return per_image(getattr(x.flatten(1), end)(1), x)


@fault("dim", r"Changes are 0\.3 times as large: eps is in the units")
def scales_eps_by_the_largest_value(loss, model, batch, budget, generators):
    step = budget.eps * span(batch.x, "amax") / batch.bounds.upper
    return clip(batch.x + step * gradient(loss, model, batch.x, batch).sign(), batch)


@fault("dim", r"Changes are 0\.3 times as large", Traits(norms=("l2",)))
def scales_an_l2_eps_by_the_largest_value(loss, model, batch, budget, generators):
    step = budget.eps * span(batch.x, "amax") / batch.bounds.upper
    return clip(batch.x + step * geometry.steepest(gradient(loss, model, batch.x, batch), "l2"), batch)


@fault("dim", r"Changes are 0\.05 times as large")
def scales_eps_by_the_range_of_the_image(loss, model, batch, budget, generators):
    step = budget.eps * (span(batch.x, "amax") - span(batch.x, "amin"))
    return confine(batch.x + step * gradient(loss, model, batch.x, batch).sign(), batch, budget)


@fault("dim", r"Images do not leave their own range: clip to `batch.bounds`")
def clips_to_the_range_of_the_image(loss, model, batch, budget, generators):
    x = batch.x + budget.eps * gradient(loss, model, batch.x, batch).sign()
    return torch.minimum(torch.maximum(x, span(batch.x, "amin")), span(batch.x, "amax"))


@fault("dim", r"Images do not leave their own range", BOTH)
def clips_to_the_range_of_the_batch(loss, model, batch, budget, generators):
    x = batch.x + budget.eps * geometry.steepest(gradient(loss, model, batch.x, batch), budget.norm)
    return x.clamp(float(batch.x.min()), float(batch.x.max()))


def ascend(
    loss: Loss, model: nn.Module, batch: Batch, budget: Budget, look: Callable[[list[Tensor]], Tensor], steps: int = 10
) -> Tensor:
    """Steps of eps / 4 from a point chosen among the iterates so far."""
    iterates = [batch.x]
    for _ in range(steps):
        step = budget.eps / 4 * geometry.steepest(gradient(loss, model, look(iterates), batch), budget.norm)
        iterates.append(geometry.project(iterates[-1] + step, batch.x, budget, batch.bounds))
    return iterates[-1]


@fault("path", r"all 10 at the same images.*Every step follows the gradient at the current images", BOTH)
def freezes_the_gradient(loss, model, batch, budget, generators):
    return ascend(loss, model, batch, budget, lambda iterates: iterates[0])


@fault("path", r"the first 2 of 10 at the same images", BOTH)
def uses_the_gradient_of_the_step_before(loss, model, batch, budget, generators):
    return ascend(loss, model, batch, budget, lambda iterates: iterates[max(0, len(iterates) - 2)])


@fault("path", r"the first 3 of 10 at the same images")
def renews_the_gradient_from_the_third_step(loss, model, batch, budget, generators):
    return ascend(loss, model, batch, budget, lambda iterates: iterates[max(0, len(iterates) - 3)])


@fault("path", r"all 4 at the same images", Traits(norms=("linf",), random=True))
def freezes_the_gradient_of_a_random_start(loss, model, batch, budget, generators):
    start = batch.x + budget.eps * geometry.random_uniform(batch.x, generators)
    x = start = confine(start, batch, budget)
    for _ in range(4):
        x = confine(x + budget.eps / 2 * gradient(loss, model, start, batch).sign(), batch, budget)
    return x


@fault("path", r"the last 3 of 4 at the same images")
def freezes_after_the_first_step(loss, model, batch, budget, generators):
    return ascend(loss, model, batch, budget, lambda iterates: iterates[min(1, len(iterates) - 1)], steps=4)


@fault("path", r"all 6 at the same images", BOTH)
def freezes_the_gradient_of_a_momentum(loss, model, batch, budget, generators):
    x, memory = batch.x, torch.zeros_like(batch.x)
    for _ in range(6):
        g = gradient(loss, model, batch.x, batch)
        memory = memory + g / g.abs().flatten(1).mean(1).clamp(min=1e-12).view(-1, *[1] * (g.dim() - 1))
        x = geometry.project(x + budget.eps / 3 * geometry.steepest(memory, budget.norm), batch.x, budget, batch.bounds)
    return x


@fault("path", r"all 10 at the same images", BOTH)
def freezes_the_gradient_of_steps_that_add_up_to_eps(loss, model, batch, budget, generators):
    x = batch.x
    for _ in range(10):
        step = budget.eps / 10 * geometry.steepest(gradient(loss, model, batch.x, batch), budget.norm)
        x = geometry.project(x + step, batch.x, budget, batch.bounds)
    return x


@fault("budget", r"got 0\.2, 2 times as far .*bounds \[-1, 1\].*eps multiplied by the range of the bounds")
def multiplies_eps_by_the_range_of_the_bounds(loss, model, batch, budget, generators):
    size = batch.bounds.upper - batch.bounds.lower
    return fgsm(loss, model, batch, Budget(budget.norm, budget.eps * size))


# Sound ones, written otherwise than the package's.


@sound(Traits(norms=("linf",), gradient=False))
def searches_by_finite_differences(loss, model, batch, budget, generators):
    """Every pixel at once: right where pixels share nothing."""
    with torch.no_grad():
        step = torch.zeros_like(batch.x)
        for c in range(batch.x.shape[1]):
            shift = torch.zeros_like(batch.x)
            shift[:, c] = 0.01
            step[:, c] = pixel_loss(model(batch.x + shift), batch) - pixel_loss(model(batch.x - shift), batch)
        return clip(batch.x + budget.eps * step.sign(), batch)


def pixel_loss(logits: Tensor, batch: Batch) -> Tensor:
    """Cross-entropy of each pixel, 0 where it is not valid."""
    if batch.task.kind == "multiclass":
        value = F.cross_entropy(logits.double(), batch.y, reduction="none")
    else:
        value = F.binary_cross_entropy_with_logits(logits.double(), batch.y.double(), reduction="none").sum(1)
    return value * batch.valid


@sound(Traits(norms=("linf",), gradient=False, random=True))
def searches_at_random(loss, model, batch, budget, generators):
    """Signs of some values are drawn again, and kept where the image's loss grows."""
    with torch.no_grad():
        delta = torch.zeros_like(batch.x)
        best = loss(model(batch.x), batch.y, batch.valid, batch.task)
        for _ in range(60):
            pick = geometry.random_uniform(batch.x, generators) > 0.8
            new = torch.where(pick, budget.eps * geometry.random_sign(batch.x, generators), delta)
            value = loss(model(confine(batch.x + new, batch, budget)), batch.y, batch.valid, batch.task)
            kept = value > best
            delta = torch.where(per_image(kept, delta), new, delta)
            best = torch.where(kept, value, best)
        return confine(batch.x + delta, batch, budget)


@sound(Traits(norms=("linf",), forwards=1, backwards=1, random=False))
def takes_images_one_by_one(loss, model, batch, budget, generators):
    return torch.cat([fgsm(loss, model, select_images(batch, [i]), budget) for i in range(len(batch.x))])


@sound(Traits(norms=("linf",)))
def freezes_and_thaws(loss, model, batch, budget, generators):
    flags = [(p, p.requires_grad) for p in model.parameters()]
    try:
        model.requires_grad_(False)
        leaf = batch.x.clone().requires_grad_()
        loss(model(leaf), batch.y, batch.valid, batch.task).mean().backward()
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
    return clip(batch.x + budget.eps * leaf.grad.sign(), batch)


@sound(Traits(norms=("linf",), random=False))
def computes_in_numpy(loss, model, batch, budget, generators):
    step = np.sign(gradient(loss, model, batch.x, batch).numpy().astype(np.float64))
    x = np.clip(batch.x.numpy() + np.float32(budget.eps) * step, batch.bounds.lower, batch.bounds.upper)
    return torch.from_numpy(x).to(batch.x.dtype)


@sound(Traits(random=True))
def starts_at_random_and_keeps_the_best(loss, model, batch, budget, generators):
    """Two starts of three steps, in float64; per image the result of larger loss."""
    results, values = [], []
    for _ in range(2):
        start = budget.eps * geometry.random_in_ball(batch.x, budget.norm, generators)
        x = geometry.project(batch.x + start, batch.x, budget, batch.bounds)
        for _ in range(3):
            step = budget.eps * geometry.steepest(gradient(loss, model, x, batch), budget.norm)
            x = geometry.project((x.double() + step).float(), batch.x, budget, batch.bounds)
        with torch.no_grad():
            values.append(loss(model(x), batch.y, batch.valid, batch.task))
        results.append(x)
    return torch.where(per_image(values[0] >= values[1], batch.x), *results)


@sound(Traits(norms=("linf",)))
def attacks_what_is_still_right(loss, model, batch, budget, generators):
    """The loss of pixels that are right, then ever more of the others (as SegPGD weighs them)."""
    x, steps = batch.x, 5
    for t in range(steps):
        leaf = x.clone().requires_grad_()
        logits = model(leaf)
        wrong = predict(logits.detach(), batch.task) != batch.y
        wrong = wrong if batch.task.kind == "multiclass" else wrong.any(1)
        share = t / (2 * steps)
        value = pixel_loss(logits, batch) * torch.where(wrong, share, 1 - share)
        (g,) = torch.autograd.grad(value.sum(), leaf)
        x = confine(x + budget.eps / 3 * g.sign(), batch, budget)
    return x


@sound(Traits(norms=("linf",)))
def pushes_margins_until_they_break(loss, model, batch, budget, generators):
    """A loss without a gradient where a pixel is well broken, as of Carlini and Wagner."""
    x = batch.x
    for _ in range(6):
        leaf = x.clone().requires_grad_()
        margin = margins(model(leaf), batch.y, batch.task)
        value = -(margin.clamp(min=-0.05) * batch.valid.unsqueeze(1)).sum()
        (g,) = torch.autograd.grad(value, leaf)
        x = confine(x + budget.eps / 4 * g.sign(), batch, budget)
    return x


@sound(Traits(norms=("linf",), minimal_norm=True, random=False))
def seeks_the_smallest_radius(loss, model, batch, budget, generators):
    """Bisects, image by image, the radius at which the loss has grown by a fifth."""
    step = gradient(loss, model, batch.x, batch).sign()
    with torch.no_grad():
        aim = 1.2 * loss(model(batch.x), batch.y, batch.valid, batch.task)
        low, high = torch.zeros(len(batch.x)), torch.full((len(batch.x),), budget.eps)
        for _ in range(8):
            middle = (low + high) / 2
            x = clip(batch.x + per_image(middle, step) * step, batch)
            enough = loss(model(x), batch.y, batch.valid, batch.task) >= aim
            low, high = torch.where(enough, low, middle), torch.where(enough, middle, high)
    return clip(batch.x + per_image(high, step) * step, batch)


@sound(Traits(control=True, random=False))
def brightens(loss, model, batch, budget, generators):
    return geometry.project(batch.x + budget.eps / 2, batch.x, budget, batch.bounds)


@sound()
def averages_gradients_at_each_image(loss, model, batch, budget, generators):
    """Three gradients at every iterate, as of an expectation over transformations."""
    x = batch.x
    for _ in range(6):
        g = sum(gradient(loss, model, x, batch) for _ in range(3))
        x = geometry.project(x + budget.eps / 3 * geometry.steepest(g, budget.norm), batch.x, budget, batch.bounds)
    return x


def ascend_on(loss, model, batch, budget, x, steps=6, share=1 / 3):
    """Steps of a share of eps from an image, each along the gradient at the current one."""
    for _ in range(steps):
        step = share * budget.eps * geometry.steepest(gradient(loss, model, x, batch), budget.norm)
        x = geometry.project(x + step, batch.x, budget, batch.bounds)
    return x


@sound()
def averages_two_gradients_at_each_image(loss, model, batch, budget, generators):
    x = batch.x
    for _ in range(6):
        g = gradient(loss, model, x, batch) + gradient(loss, model, x, batch)
        x = geometry.project(x + budget.eps / 3 * geometry.steepest(g, budget.norm), batch.x, budget, batch.bounds)
    return x


@sound(Traits(random=False, backwards=10))
def averages_the_gradients_of_a_single_step(loss, model, batch, budget, generators):
    g = sum(gradient(loss, model, batch.x, batch) for _ in range(10))
    return geometry.project(batch.x + budget.eps * geometry.steepest(g, budget.norm), batch.x, budget, batch.bounds)


@sound(Traits(norms=("linf",), random=False))
def averages_the_signs_of_the_first_gradients(loss, model, batch, budget, generators):
    g = sum(gradient(loss, model, batch.x, batch).sign() for _ in range(3))
    x = confine(batch.x + budget.eps / 3 * g.sign(), batch, budget)
    return ascend_on(loss, model, batch, budget, x)


@sound()
def warms_up_with_a_gradient(loss, model, batch, budget, generators):
    """One gradient at the start that is used for nothing, as for a map of saliency; then gradients as usual."""
    gradient(loss, model, batch.x, batch)
    return ascend_on(loss, model, batch, budget, batch.x)


@sound()
def warms_up_a_momentum(loss, model, batch, budget, generators):
    """Two gradients at the start fill the memory before the first step."""
    memory = gradient(loss, model, batch.x, batch) + gradient(loss, model, batch.x, batch)
    x = batch.x
    for _ in range(6):
        memory = 0.5 * memory + gradient(loss, model, x, batch)
        x = geometry.project(x + budget.eps / 3 * geometry.steepest(memory, budget.norm), batch.x, budget, batch.bounds)
    return x


@sound(Traits(norms=("linf",), random=False))
def repeats_the_gradient_of_a_single_step(loss, model, batch, budget, generators):
    gradient(loss, model, batch.x, batch)
    return fgsm(loss, model, batch, budget)


@sound(Traits(random=True))
def restarts_from_the_clean_image_and_at_random(loss, model, batch, budget, generators):
    """One step of full size, steps from the clean image, and steps from a random start; the best of the three."""
    start = batch.x + budget.eps * geometry.random_in_ball(batch.x, budget.norm, generators)
    start = geometry.project(start, batch.x, budget, batch.bounds)
    results = [
        ascend_on(loss, model, batch, budget, batch.x, steps=1, share=1),
        ascend_on(loss, model, batch, budget, batch.x),
        ascend_on(loss, model, batch, budget, start),
    ]
    with torch.no_grad():
        values = torch.stack([loss(model(x), batch.y, batch.valid, batch.task) for x in results])
    best = values.argmax(0)
    return torch.stack([results[int(k)][i] for i, k in enumerate(best)])


@sound(Traits(random=False))
def returns_to_the_best_and_halves_its_step(loss, model, batch, budget, generators):
    """Steps of twice eps; where three in a row reach no larger loss, from the best image with half the step."""
    x = best = batch.x
    share = torch.full((len(x),), 2.0)
    with torch.no_grad():
        top = loss(model(x), batch.y, batch.valid, batch.task)
    waited = torch.zeros(len(x))
    for _ in range(12):
        step = budget.eps * geometry.steepest(gradient(loss, model, x, batch), budget.norm)
        x = geometry.project(x + per_image(share, step) * step, batch.x, budget, batch.bounds)
        with torch.no_grad():
            value = loss(model(x), batch.y, batch.valid, batch.task)
        better = value > top
        best, top = torch.where(per_image(better, x), x, best), torch.where(better, value, top)
        waited = torch.where(better, 0, waited + 1)
        stuck = waited >= 3
        x, share = torch.where(per_image(stuck, x), best, x), torch.where(stuck, share / 2, share)
        waited = torch.where(stuck, 0, waited)
    return best


@sound(Traits(norms=("linf",), random=False))
def follows_two_losses_in_turn(loss, model, batch, budget, generators):
    """Two paths from the clean image, one step of each after the other; the result of larger loss."""
    paths = [batch.x, batch.x]
    for _ in range(5):
        leaves = [x.clone().requires_grad_() for x in paths]
        values = [
            loss(model(leaves[0]), batch.y, batch.valid, batch.task).sum(),
            pixel_loss(model(leaves[1]), batch).sum(),
        ]
        gradients = [torch.autograd.grad(value, leaf)[0] for value, leaf in zip(values, leaves, strict=True)]
        paths = [confine(x + budget.eps / 3 * g.sign(), batch, budget) for x, g in zip(paths, gradients, strict=True)]
    with torch.no_grad():
        first, second = (loss(model(x), batch.y, batch.valid, batch.task) for x in paths)
    return torch.where(per_image(first >= second, batch.x), *paths)


@sound(Traits(norms=("linf",), random=True))
def restarts_from_the_border_and_keeps_the_first(loss, model, batch, budget, generators):
    """Two runs from random corners that end where no step moves them; the second is kept where its loss is larger."""
    results, values = [], []
    for _ in range(2):
        x = confine(batch.x + budget.eps * geometry.random_sign(batch.x, generators), batch, budget)
        for _ in range(8):
            x = confine(x + budget.eps * gradient(loss, model, x, batch).sign(), batch, budget)
        with torch.no_grad():
            values.append(loss(model(x), batch.y, batch.valid, batch.task))
        results.append(x)
    return torch.where(per_image(values[1] > values[0], batch.x), *reversed(results))


@sound(Traits(random=False, share=0.3))
def looks_ahead(loss, model, batch, budget, generators):
    """Gradients at a point ahead of the iterate, as of Nesterov, of which the first is the clean image."""
    x, memory = batch.x, torch.zeros_like(batch.x)
    for _ in range(5):
        g = gradient(loss, model, x + budget.eps / 5 * memory, batch)
        memory = 0.5 * memory + g / g.abs().flatten(1).mean(1).clamp(min=1e-12).view(-1, *[1] * (g.dim() - 1))
        x = geometry.project(x + budget.eps / 3 * geometry.steepest(memory, budget.norm), batch.x, budget, batch.bounds)
    return x


@sound(Traits(random=False))
def differentiates_each_class_of_one_forward(loss, model, batch, budget, generators):
    """Two gradients of one forward pass, of the loss and of a part of it, are added."""
    leaf = batch.x.clone().requires_grad_()
    value = loss(model(leaf), batch.y, batch.valid, batch.task).sum()
    g = sum(torch.autograd.grad(scale * value, leaf, retain_graph=True)[0] for scale in (1.0, 2.0))
    x = batch.x + budget.eps * geometry.steepest(g, budget.norm)
    return geometry.project(x, batch.x, budget, batch.bounds)


@sound(Traits(norms=("l2",), random=False))
def normalises_with_care(loss, model, batch, budget, generators):
    x, memory = batch.x, torch.zeros_like(batch.x)
    for _ in range(4):
        g = gradient(loss, model, x, batch)
        memory = 0.5 * memory + g / length(g).clamp(min=1e-12)
        x = x + budget.eps / 2 * memory / length(memory).clamp(min=1e-12)
        delta = x - batch.x
        x = clip(batch.x + delta * (budget.eps / length(delta).clamp(min=1e-12)).clamp(max=1), batch)
    return x
