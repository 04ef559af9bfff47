"""Other implementations of APGD, NI-FGSM, SegPGD and CosPGD, sound and broken, without the project's own parts."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from implementations import Loop, gradient


def wide(values):
    return values.view(-1, 1, 1, 1)


class Adaptive:
    """APGD for L_inf written out; subclasses change a rule."""

    steps, best = 12, True

    def __init__(self, loss):
        self.loss = loss

    def ask(self, model, batch, x):
        leaf = x.clone().requires_grad_()
        value = self.loss(model(leaf), batch.y, batch.valid, batch.task)
        return torch.autograd.grad(value.sum(), leaf)[0], value.detach()

    def is_check(self, since, interval):
        return since == interval

    def is_few(self, rises, interval):
        return rises <= 0.75 * interval

    def share(self, halved):
        return halved

    def rise(self, value, last, best):
        return value > last

    def __call__(self, model, batch, *, budget, generators):
        eps, n, count = budget.eps, self.steps, len(batch.x)
        low, high = (batch.x - eps).clamp(min=0), (batch.x + eps).clamp(max=1)
        x = before = best_x = batch.x.clone()
        g, value = self.ask(model, batch, x)
        best_g, best, noted = g, value, value
        size, halved, rises = torch.full((count,), 2 * eps), torch.ones(count, dtype=torch.bool), torch.zeros(count)
        interval, since = max(int(0.22 * n), 1), 0
        for t in range(n):
            z = torch.min(torch.max(x + wide(size) * g.sign(), low), high)
            if t:
                z = torch.min(torch.max(x + 0.75 * (z - x) + 0.25 * (x - before), low), high)
            before, x, self.first = x, z, self.first if t else z
            g, new = self.ask(model, batch, x)
            rises, value = rises + self.rise(new, value, best), new
            up = value > best
            best_x, best_g = torch.where(wide(up), x, best_x), torch.where(wide(up), g, best_g)
            best, since = torch.where(up, value, best), since + 1
            if self.is_check(since, interval):
                halved = self.share(self.is_few(rises, interval) | (~halved & (noted >= best)))
                size = torch.where(halved, size / 2, size)
                x, g = torch.where(wide(halved), best_x, x), torch.where(wide(halved), best_g, g)
                noted, rises, since = best, torch.zeros(count), 0
                interval = max(interval - max(int(0.03 * n), 1), max(int(0.06 * n), 1))
        return best_x if self.best else z


class AdaptiveLast(Adaptive):
    best = False


class AdaptiveBelow(Adaptive):
    """By the paper's text; the first interval of 20 steps has 4, so that 75 % are a whole number."""

    steps = 20

    def is_few(self, rises, interval):
        return rises < 0.75 * interval


class AdaptiveOverBest(Adaptive):
    def rise(self, value, last, best):
        return value > best


class AdaptiveLate(Adaptive):
    """Every checkpoint is a step late."""

    def is_check(self, since, interval):
        return since == interval + 1


class AdaptiveTogether(Adaptive):
    """One image that makes no progress takes the batch back with it."""

    def share(self, halved):
        return halved.any().expand_as(halved)


class AdaptiveFaster(Adaptive):
    """Checks after every second step."""

    def is_check(self, since, interval):
        return since == 2


class AdaptiveNever(Adaptive):
    """The step size stays."""

    def is_check(self, since, interval):
        return False


class AdaptiveFirst(Adaptive):
    """Returns the iterate after the first step, which is neither the best nor the last one."""

    def __call__(self, model, batch, *, budget, generators):
        super().__call__(model, batch, budget=budget, generators=generators)
        return self.first


class Ahead(Loop):
    """NI-FGSM with the L1 norm."""

    momentum = 1.0

    def ahead(self, x, memory, alpha):
        return x + alpha * self.momentum * memory

    def measure(self, g):
        return g.abs().sum((1, 2, 3), keepdim=True)

    def __call__(self, model, batch, *, budget, generators):
        x, memory = batch.x.clone(), torch.zeros_like(batch.x)
        for _ in range(self.steps):
            alpha = self.size * budget.eps
            g = gradient(model, batch, self.loss, self.ahead(x, memory, alpha))
            memory = self.momentum * memory + g / self.measure(g)
            delta = (x + alpha * memory.sign() - batch.x).clamp(-budget.eps, budget.eps)
            x = (batch.x + delta).clamp(0, 1)
        return x


class AheadByMean(Ahead):
    def measure(self, g):
        return g.abs().mean((1, 2, 3), keepdim=True)


class NotAhead(AheadByMean):
    """Asks at the iterates, as MI-FGSM does."""

    def ahead(self, x, memory, alpha):
        return x


class AheadOfBatch(AheadByMean):
    """The momentum is divided by one norm for the batch, so that images with small gradients forget faster."""

    def measure(self, g):
        return g.abs().mean()


class Weighted(Loop):
    """PGD on a cross-entropy with a weight for each pixel of a multiclass task."""

    size = 2.5 / 4

    def weigh(self, logits, y, t):
        raise NotImplementedError

    def __call__(self, model, batch, *, budget, generators):
        x = batch.x.clone()
        for t in range(self.steps):
            leaf = x.clone().requires_grad_()
            logits = model(leaf)
            value = F.cross_entropy(logits, batch.y, reduction="none") * self.weigh(logits.detach(), batch.y, t)
            (g,) = torch.autograd.grad(value.sum(), leaf)
            delta = (x + self.size * budget.eps * g.sign() - batch.x).clamp(-budget.eps, budget.eps)
            x = (batch.x + delta).clamp(0, 1)
        return x


class TwoPart(Weighted):
    """SegPGD."""

    def share(self, t):
        return t / (2 * self.steps)

    def weigh(self, logits, y, t):
        return torch.where(logits.argmax(1) == y, 1 - self.share(t), self.share(t))


class TwoPartLate(TwoPart):
    def share(self, t):
        return (t + 1) / (2 * self.steps)


class TwoPartReversed(TwoPart):
    def share(self, t):
        return (self.steps - 1 - t) / (2 * self.steps)


class TwoPartFull(TwoPart):
    def share(self, t):
        return t / self.steps


class Cosine(Weighted):
    """CosPGD."""

    def probabilities(self, logits):
        return logits.softmax(1)

    def weigh(self, logits, y, t):
        p = self.probabilities(logits)
        return p.gather(1, y[:, None])[:, 0] / p.norm(dim=1)


class CosineOfSigmoids(Cosine):
    def probabilities(self, logits):
        return logits.sigmoid()


class CosineSquared(Cosine):
    """Forgets the root of the norm."""

    def weigh(self, logits, y, t):
        return super().weigh(logits, y, t) ** 2
