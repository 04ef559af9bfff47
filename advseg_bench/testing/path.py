"""The rule about the images at which an attack asks for gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from torch import Tensor, nn

from advseg_bench.batches import Batch, copy_batch, select_images
from advseg_bench.instruments.counter import Counter
from advseg_bench.testing.case import Case, check_form, show
from advseg_bench.testing.process import isolated
from advseg_bench.testing.rules import usual_budgets
from advseg_bench.testing.scenes import Scene, make_batch, make_coupled
from advseg_bench.testing.violations import ContractViolation, NotApplicable
from advseg_bench.types import Budget

UNMOVED = 1e-5
"""Two images are the same up to rounding if no value differs by more than this share of eps."""

FEWEST = 3
"""The fewest gradients at one image that can be shown to move it one by one; of two, one may be unused."""

REVERSAL = -4.0
"""Factor of a reversed gradient, large enough to outweigh an equal gradient that is added to it."""

Ask = Callable[[Sequence[int]], list[Tensor]]
"""Positions of the gradients to reverse -> the images at which an attack asks for gradients, and its result last."""


def check_path(case: Case) -> None:
    """It uses no gradient of an image that it has left."""
    if case.traits.control or not case.traits.gradient:
        raise NotApplicable(f"it declares `{'control=True' if case.traits.control else 'gradient=False'}`")
    for scene, budget in usual_budgets(case):
        whole = make_batch(scene, case.device)
        reason = ""
        for image in range(scene.n):
            ask = partial(_follow, case, scene, budget, select_images(whole, (image,)))
            found = find_stale(ask, UNMOVED * budget.eps)
            reason = reason or found
            if not found:
                break
        else:
            raise ContractViolation(
                f"expected later gradients at moved images, got {reason} [{scene}, {show(budget)}]. Every step "
                "follows the gradient at the current images: evaluate it after each step, and use it for the next."
            )


def find_stale(ask: Ask, tolerance: float) -> str:
    """Describe gradients that move an image after the attack has left the image at which it asked for them.

    Repeated gradients at one image are only a reason to test further, since a mean over transformations and a first
    gradient that sets a scale have them as well. The test repeats the attack with some gradients reversed:

    - A repeated first gradient is stale if its reversal leaves the next image as it is, and reverses a later step.
    - Gradients at one and the same image each move it if the result depends on how many of them are reversed. Of a
      single step along their mean there are at most three results: its own, the opposite one, and the image itself.

    Args:
        ask: Runs the attack on one image, with some gradients reversed.
        tolerance: Largest difference of two images that count as the same, in input units.

    Returns:
        A clause for a message; "" if no gradient is shown to be stale.

    Cost:
        That of the attack, and of one to eleven more calls if it repeats gradients at one image.
    """
    images = ask(())
    asked, x_adv = images[:-1], images[-1]
    if not asked or _same(asked[0], x_adv, tolerance):
        return ""
    starts = [i for i, x in enumerate(asked) if not i or not _same(asked[i - 1], x, tolerance)]
    lengths = [end - start for start, end in zip(starts, [*starts[1:], len(asked)], strict=True)]
    if len(lengths) == 1:
        stale = len(asked) >= FEWEST and _move_one_by_one(ask, images, 0, tolerance)
        return f"all {len(asked)} at the same images" if stale else ""
    if lengths[0] > min(lengths[1:]) and _moves_another(ask, images, lengths[0] - 1, tolerance):
        return f"the first {lengths[0]} of {len(asked)} at the same images"
    stays = lengths[-1] >= FEWEST and lengths[-1] > max(lengths[:-1])
    stays = stays and not any(_same(x, x_adv, tolerance) for x in asked)
    if stays and _move_one_by_one(ask, images, starts[-1], tolerance):
        return f"the last {lengths[-1]} of {len(asked)} at the same images"
    return ""


def _moves_another(ask: Ask, images: Sequence[Tensor], place: int, tolerance: float) -> bool:
    """Return whether the reversal of a gradient leaves the next image as it is, and reverses a later step."""
    changed = ask((place,))
    pairs = list(zip(images, changed, strict=False))
    first = next((i for i, pair in enumerate(pairs) if i > place and not _same(*pair, tolerance)), None)
    if first is None or first == place + 1:
        return False
    step, other = images[first] - images[first - 1], changed[first] - images[first - 1]
    return bool((step * other).sum() < -0.25 * (step * step).sum())


def _move_one_by_one(ask: Ask, images: Sequence[Tensor], start: int, tolerance: float) -> bool:
    """Return whether each gradient from a position on moves the result, although all are asked for at one image."""
    end, results = len(images) - 1, [images[-1]]
    size = end - start
    for count in sorted({1, 2, 3, *(size * i // 8 for i in range(1, 9))} - {0}):
        changed = ask(range(end - count, end))
        if len(changed) != len(images):
            return False
        if not all(_same(*pair, tolerance) for pair in zip(images[:-1], changed[:-1], strict=True)):
            return False  # it follows its gradients
        if not any(_same(known, changed[-1], tolerance) for known in results):
            results.append(changed[-1])
        if len(results) > 3:
            return True
    return False


def _follow(case: Case, scene: Scene, budget: Budget, batch: Batch, reverse: Sequence[int]) -> list[Tensor]:
    """Return the images at which an attack asks for gradients, in order, and its result; one image, (1, C, *S) each."""
    model = _Reversing(make_coupled(batch), frozenset(reverse))
    with isolated(), Counter(model).count(1, points=True) as tally:
        result = case.call(model, copy_batch(batch), budget, scene)
    x_adv = check_form(result, batch, scene).detach()
    forwards = {id(point): point[:1] for point in tally.points or []}  # several gradients of one forward are one
    return [*forwards.values(), x_adv]


class _Reversing(nn.Module):
    """A model of which some gradients are reversed; the logits are those of the model.

    Args:
        model: Images -> logits.
        reverse: Positions of the forwards whose gradients are reversed, in the order in which gradients are asked for.
    """

    def __init__(self, model: nn.Module, reverse: frozenset[int]) -> None:
        super().__init__()
        self.model, self.order = model, _Order(reverse)
        self.train(model.training)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, C, *S) -> logits (N, K, *S)."""
        logits: Tensor = self.model(x)
        if logits.requires_grad:
            logits.register_hook(partial(self.order.pass_on, object()))  # type: ignore[no-untyped-call]
        return logits


@dataclass(slots=True)
class _Order:
    """The order in which forwards are differentiated, shared by all copies of a model."""

    reverse: frozenset[int]
    places: dict[object, int] = field(default_factory=dict)

    def __deepcopy__(self, memo: object) -> _Order:
        """A copied model continues the same order."""
        return self

    def pass_on(self, forward: object, gradient: Tensor) -> Tensor:
        """Return the gradient of a forward's logits, reversed if its position is among those to reverse."""
        place = self.places.setdefault(forward, len(self.places))
        return REVERSAL * gradient if place in self.reverse else gradient


def _same(one: Tensor, other: Tensor, tolerance: float) -> bool:
    """Return whether two inputs are equal up to a tolerance."""
    return one.shape == other.shape and float((one - other).abs().max()) <= tolerance
