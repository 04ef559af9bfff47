"""An attack that is a plain function."""

import torch

from advseg_bench import attack


@attack
def sign_walk(model, x, y, eps, loss, valid, task, bounds, steps=2):
    """Take `steps` signed gradient steps that add up to eps."""
    for _ in range(steps):
        x.requires_grad_()
        (gradient,) = torch.autograd.grad(loss(model(x), y, valid, task).sum(), x)
        x = (x + eps / steps * gradient.sign()).detach().clamp(bounds.lower, bounds.upper)
    return x
