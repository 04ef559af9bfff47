"""Exact optima of linear functions over the intersection of a ball and a box, by sorting; float64, row by row.

A linear function changes by `slope[i] >= 0` per unit of move i, and move i is limited to `room[i] >= 0`. Both problems
below have solutions of the form move_i = min(t * slope_i, room_i) with one number t >= 0 per row. This follows from the
Karush-Kuhn-Tucker conditions: a move below its limit is proportional to its slope. The constraint is a continuous,
increasing function of t with kinks at t = room_i / slope_i, where move i reaches its limit. Between two kinks it is
a + b t or a + b t^2, so sorting the kinks gives t exactly.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def largest_rise(slope: Tensor, room: Tensor, radius: float) -> Tensor:
    """Return max sum_i slope_i move_i subject to ||move||_2 <= radius and 0 <= move_i <= room_i.

    At the optimum sum_i min(t slope_i, room_i)^2 = radius^2, or every move is at its limit.

    Args:
        slope: Increase per unit of each move, float64 (R, P), at least 0.
        room: Limit of each move, float64 (R, P), at least 0.
        radius: Radius of the ball, in units of the moves.

    Returns:
        The largest increase, float64 (R,).

    Cost:
        Sorts P numbers per row.
    """
    slope, room = _in_order_of_stopping(slope, room)
    free = _from_here_on(slope**2)
    stopped = _up_to_here(room**2)
    target = torch.full((len(slope), 1), radius**2, dtype=slope.dtype, device=slope.device)
    return (slope * _moves(slope, room, stopped, free, target, power=2)).sum(1)


def shortest_move(slope: Tensor, room: Tensor, rise: Tensor) -> Tensor:
    """Return min ||move||_2 subject to `sum_i slope_i move_i >= rise` and 0 <= move_i <= room_i.

    At the optimum `sum_i slope_i min(t slope_i, room_i) = rise`.

    Args:
        slope: Increase per unit of each move, float64 (R, P), at least 0.
        room: Limit of each move, float64 (R, P), at least 0.
        rise: Required increase of the linear function, float64 (R,).

    Returns:
        The L2 norm, float64 (R,); 0 where `rise` is not positive, infinity where it cannot be reached.

    Cost:
        Sorts P numbers per row.
    """
    possible = rise <= (slope * room).sum(1)
    slope, room = _in_order_of_stopping(slope, room)
    free = _from_here_on(slope**2)
    stopped = _up_to_here(slope * room)
    length = _moves(slope, room, stopped, free, rise.unsqueeze(1), power=1).norm(dim=1)
    return torch.where(possible, length, torch.inf)


def _in_order_of_stopping(slope: Tensor, room: Tensor) -> tuple[Tensor, Tensor]:
    """Return slopes and limits in the order in which the moves reach their limits as t increases."""
    kinks = _kinks(slope, room)
    order = kinks.argsort(1)
    return slope.gather(1, order), torch.where(slope > 0, room, 0).gather(1, order)


def _kinks(slope: Tensor, room: Tensor) -> Tensor:
    """Return the t at which each move reaches its limit; 0 for a move without slope."""
    return torch.where(slope > 0, room / torch.where(slope > 0, slope, 1), 0)


def _up_to_here(term: Tensor) -> Tensor:
    """Return the sums of the first 0, 1, ..., P terms, (R, P + 1)."""
    return F.pad(term.cumsum(1), (1, 0))


def _from_here_on(term: Tensor) -> Tensor:
    """Return the sums of all terms but the first 0, 1, ..., P, (R, P + 1)."""
    return F.pad(term.flip(1).cumsum(1).flip(1), (0, 1))


def _moves(slope: Tensor, room: Tensor, stopped: Tensor, free: Tensor, target: Tensor, *, power: int) -> Tensor:
    """Solve stopped_k + free_k t^power = target, with k moves at their limit, and return the moves, (R, P)."""
    kinks = F.pad(_kinks(slope, room), (1, 0))
    k = ((stopped + free * kinks**power < target).sum(1, keepdim=True) - 1).clamp(min=0)
    rest, still = (target - stopped.gather(1, k)).clamp(min=0), free.gather(1, k)
    t = torch.where(still > 0, rest / torch.where(still > 0, still, 1), torch.inf) ** (1 / power)
    return torch.where(slope > 0, torch.minimum(t * slope, room), 0)
