"""Other implementations of the reference attacks, sound and broken, written without the project's own parts."""

from __future__ import annotations

import torch


def gradient(model, batch, loss, x):
    leaf = x.clone().requires_grad_()
    value = loss(model(leaf), batch.y, batch.valid, batch.task).sum()
    return torch.autograd.grad(value, leaf)[0]


class Signed:
    """FGSM; subclasses change the gradient."""

    def __init__(self, loss):
        self.loss = loss

    def change(self, g):
        return g

    def __call__(self, model, batch, *, budget, generators):
        g = self.change(gradient(model, batch, self.loss, batch.x))
        return (batch.x + budget.eps * g.sign()).clamp(batch.bounds.lower, batch.bounds.upper)


class OneByOne(Signed):
    """Sound: image by image, in float64 between the gradients, with the loss scaled."""

    def __call__(self, model, batch, *, budget, generators):
        results = []
        for i in range(len(batch.x)):
            x = batch.x[i : i + 1].clone().requires_grad_()
            value = self.loss(model(x), batch.y[i : i + 1], batch.valid[i : i + 1], batch.task)
            (g,) = torch.autograd.grad(1e3 * value.sum(), x)
            results.append((x.detach().double() + budget.eps * g.sign()).clamp(0, 1).float())
        return torch.cat(results)


class Percent(Signed):
    """The gradient has the wrong sign on 1 % of the pixels."""

    def change(self, g):
        wrong = torch.rand(g.shape, generator=torch.Generator().manual_seed(3)) < 0.01
        return torch.where(wrong, -g, g)


class Band(Signed):
    """A factor is lost in two rows, where the sign flips."""

    def change(self, g):
        g = g.clone()
        g[:, :, 10:12] *= -1
        return g


class EverySecond(Signed):
    """Every second row has no gradient."""

    def change(self, g):
        g = g.clone()
        g[:, :, ::2] = 0
        return g


class LeftFlipped(Signed):
    """The gradient has the wrong sign in the left half."""

    def change(self, g):
        return torch.cat([-g[..., : g.shape[-1] // 2], g[..., g.shape[-1] // 2 :]], -1)


class RightFlipped(LeftFlipped):
    """The gradient has the wrong sign in the right half."""

    def change(self, g):
        return -super().change(g)


class Reversed(Signed):
    def change(self, g):
        return -g


class GreyLevels(Signed):
    """Takes eps for grey levels."""

    def __call__(self, model, batch, *, budget, generators):
        g = gradient(model, batch, self.loss, batch.x)
        return (batch.x + budget.eps / 255 * g.sign()).clamp(0, 1)


class Dead(Signed):
    """Moves values without a gradient."""

    def change(self, g):
        return torch.where(g == 0, torch.ones_like(g), g)


class Half(Signed):
    """Rounds the gradient to float16 before its sign is taken, which puts small ones to zero."""

    def change(self, g):
        return g.half().float()


class TooFar(Signed):
    def __call__(self, model, batch, *, budget, generators):
        g = gradient(model, batch, self.loss, batch.x)
        return (batch.x + 1.01 * budget.eps * g.sign()).clamp(0, 1)


class Outside(Signed):
    def __call__(self, model, batch, *, budget, generators):
        return batch.x + budget.eps * gradient(model, batch, self.loss, batch.x).sign()


class Twice(Signed):
    """Sound, and computes its gradient twice."""

    def __call__(self, model, batch, *, budget, generators):
        gradient(model, batch, self.loss, batch.x)
        return super().__call__(model, batch, budget=budget, generators=generators)


class Nothing(Signed):
    def __call__(self, model, batch, *, budget, generators):
        return batch.x.clone()


class Raises(Signed):
    def __call__(self, model, batch, *, budget, generators):
        raise RuntimeError("no\nkernel")


class Predicted(Signed):
    """Sound, by another convention: the model's own prediction is the label."""

    def __call__(self, model, batch, *, budget, generators):
        with torch.no_grad():
            logits = model(batch.x)
        y = logits.argmax(1) if batch.task.kind == "multiclass" else logits > 0
        x = batch.x.clone().requires_grad_()
        value = self.loss(model(x), y, batch.valid, batch.task).sum()
        return (batch.x + budget.eps * torch.autograd.grad(value, x)[0].sign()).clamp(0, 1)


class Loop:
    """BIM written out; subclasses change the rule."""

    steps, size, momentum, norm, random = 4, 0.25, None, True, False

    def __init__(self, loss):
        self.loss = loss

    def step_of(self, t, eps):
        return self.size * eps

    def point_of(self, x, x_adv):
        return x_adv

    def change(self, t, g):
        return g

    def __call__(self, model, batch, *, budget, generators):
        x, memory = batch.x.clone(), 0
        if self.random:
            x = torch.stack(
                [
                    one + (torch.rand(one.shape, generator=g) * 2 - 1) * budget.eps / 2
                    for one, g in zip(x, generators, strict=True)
                ]
            )
            x = x.clamp(0, 1)
        for t in range(self.steps):
            g = gradient(model, batch, self.loss, self.point_of(batch.x, x))
            if self.momentum is not None:
                g = g.sign() if self.norm is None else g / g.abs().sum((1, 2, 3), keepdim=True) if self.norm else g
                g = memory = self.momentum * memory + g
            g = self.change(t, g)
            delta = (x + self.step_of(t, budget.eps) * g.sign() - batch.x).clamp(-budget.eps, budget.eps)
            x = (batch.x + delta).clamp(0, 1)
        return x


class LoopFromBounds(Loop):
    """Sound: clips the image to x +- eps instead of the perturbation."""

    def __call__(self, model, batch, *, budget, generators):
        x = batch.x.clone()
        for t in range(self.steps):
            g = gradient(model, batch, self.loss, x)
            x = x + self.step_of(t, budget.eps) * g.sign()
            x = torch.minimum(torch.maximum(x, batch.x - budget.eps), batch.x + budget.eps).clamp(0, 1)
        return x


class EarlyBand(Loop):
    """Only the second step has the wrong sign in two rows."""

    def change(self, t, g):
        g = g.clone()
        g[:, :, 10:12] *= -1 if t == 1 else 1
        return g


class FiveSteps(Loop):
    steps = 5


class SmallSteps(Loop):
    """The step rule is off by one: eps / (steps + 1)."""

    size = 1 / 5


class LateSchedule(Loop):
    """Steps shrink from the second on."""

    def step_of(self, t, eps):
        return eps * 0.25 / (1 + t)


class Stale(Loop):
    """Every gradient is taken at the clean image."""

    def point_of(self, x, x_adv):
        return x


class EverySecondStep(Loop):
    """A new gradient is taken only at every second step, and once more at the same image for the step after it."""

    def __call__(self, model, batch, *, budget, generators):
        x = point = batch.x.clone()
        for t in range(self.steps):
            point = x if t % 2 == 0 else point
            g = gradient(model, batch, self.loss, point)
            delta = (x + self.step_of(t, budget.eps) * g.sign() - batch.x).clamp(-budget.eps, budget.eps)
            x = (batch.x + delta).clamp(0, 1)
        return x


class RandomStart(Loop):
    random = True


class Momentum(Loop):
    momentum = 1.0


class PlainMomentum(Momentum):
    norm = False


class SignMomentum(Momentum):
    """Accumulates signs."""

    norm = None


class ForgetfulMomentum(Momentum):
    momentum = 0.5


class EachFromBounds(LoopFromBounds):
    """Sound: the same, image after image."""

    def __call__(self, model, batch, *, budget, generators):
        from advseg_bench.batches import select_images

        parts = [select_images(batch, [i]) for i in range(len(batch.x))]
        call = super().__call__
        return torch.cat([call(model, part, budget=budget, generators=generators) for part in parts])


class OneByOneEachStep(LoopFromBounds):
    """Sound: step after step, in each of them image after image."""

    def __call__(self, model, batch, *, budget, generators):
        from advseg_bench.batches import select_images

        x = batch.x.clone()
        for t in range(self.steps):
            parts = [select_images(batch, [i]) for i in range(len(x))]
            g = torch.cat([gradient(model, part, self.loss, x[i : i + 1]) for i, part in enumerate(parts)])
            x = x + self.step_of(t, budget.eps) * g.sign()
            x = torch.minimum(torch.maximum(x, batch.x - budget.eps), batch.x + budget.eps).clamp(0, 1)
        return x


class BoundsFirst(Loop):
    """L2 steps of eps / 2, clipped to the bounds before they are brought into the ball."""

    def __call__(self, model, batch, *, budget, generators):
        x = batch.x.clone()
        for _ in range(self.steps):
            g = gradient(model, batch, self.loss, x)
            step = (x + budget.eps / 2 * g / length(g)).clamp(0, 1) - batch.x
            x = batch.x + step * (budget.eps / length(step)).clamp(max=1)
        return x


def length(t):
    return t.flatten(1).norm(dim=1).view(-1, *[1] * (t.dim() - 1))


class NanToZero(Signed):
    """Sound in L2, by another convention."""

    def __call__(self, model, batch, *, budget, generators):
        g = gradient(model, batch, self.loss, batch.x).nan_to_num(0.0)
        return (batch.x + budget.eps * g / length(g)).clamp(0, 1)


class Trains(Signed):
    """Leaves the model in training mode."""

    def __call__(self, model, batch, *, budget, generators):
        result = super().__call__(model, batch, budget=budget, generators=generators)
        model.train()
        return result


class HalfModel(Signed):
    """Computes its gradients with the network and the images in bfloat16, as automatic mixed precision does."""

    def __call__(self, model, batch, *, budget, generators):
        x = batch.x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(x)
        value = self.loss(logits.float(), batch.y, batch.valid, batch.task).sum()
        (g,) = torch.autograd.grad(value, x)
        return (batch.x + budget.eps * g.sign()).clamp(0, 1)


class HalfLoop(Loop):
    """Every gradient is rounded to float16."""

    def change(self, t, g):
        return g.half().float()


class LastEvaluated(Loop):
    """Returns the iterate at which the last gradient was computed."""

    def __call__(self, model, batch, *, budget, generators):
        x = last = batch.x.clone()
        for t in range(self.steps):
            last = x
            g = gradient(model, batch, self.loss, x)
            delta = (x + self.step_of(t, budget.eps) * g.sign() - batch.x).clamp(-budget.eps, budget.eps)
            x = (batch.x + delta).clamp(0, 1)
        return last


class ThreeSteps(Loop):
    """Loses a step."""

    steps = 3


class Restarts(Loop):
    """Two random starts; keeps for each image the result that `better` prefers."""

    random, rounds = True, 2

    def better(self, new, old):
        return new > old

    def __call__(self, model, batch, *, budget, generators):
        best = value = None
        for _ in range(self.rounds):
            x = super().__call__(model, batch, budget=budget, generators=generators)
            with torch.no_grad():
                now = self.loss(model(x), batch.y, batch.valid, batch.task)
            if best is None:
                best, value = x, now
            take = self.better(now, value)
            best = torch.where(take.view(-1, 1, 1, 1), x, best)
            value = torch.where(take, now, value)
        return best


class WorstRestart(Restarts):
    def better(self, new, old):
        return new < old


class LateStale(Loop):
    """Uses the gradient of the step before."""

    def __call__(self, model, batch, *, budget, generators):
        x = before = batch.x.clone()
        for t in range(self.steps):
            g = gradient(model, batch, self.loss, before)
            before = x
            delta = (x + self.step_of(t, budget.eps) * g.sign() - batch.x).clamp(-budget.eps, budget.eps)
            x = (batch.x + delta).clamp(0, 1)
        return x


class OneMore(LastEvaluated):
    """Evaluates the result once more, with a gradient that it does not use."""

    steps = 5


class HalfClip(Loop):
    """Confines the perturbation of the upper half of the image to half of the budget."""

    def __call__(self, model, batch, *, budget, generators):
        x = batch.x.clone()
        reach = torch.full_like(x, budget.eps)
        reach[:, :, : x.shape[2] // 2] /= 2
        for t in range(self.steps):
            step = self.step_of(t, budget.eps) * gradient(model, batch, self.loss, x).sign()
            x = (batch.x + (x + step - batch.x).clamp(-reach, reach)).clamp(0, 1)
        return x
