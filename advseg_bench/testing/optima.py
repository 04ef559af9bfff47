"""Exact optima of linear functions over a ball and a box, by sorting. Everything is float64, row by row.

Throughout, moving value i by at most `room[i] >= 0` in its good direction changes a linear function by `slope[i] >= 0`
per unit. Both problems below have solutions of one form, move_i = min(t * slope_i, room_i), for one number t >= 0 per
row (the condition of Karush, Kuhn and Tucker: a value that is not stopped by its room moves in proportion to its
slope). The quantity that has to reach its target is continuous and increasing in t, with kinks where a value is
stopped, t = room_i / slope_i; between two kinks it is a + b t or a + b t^2, so sorting the kinks finds t exactly.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def largest_rise(slope: Tensor, room: Tensor, radius: float) -> Tensor:
    """Return max sum_i slope_i move_i subject to ||move||_2 <= radius and 0 <= move_i <= room_i.

    At the optimum sum_i min(t slope_i, room_i)^2 = radius^2, or every value has used up its room.

    Args:
        slope: float64 (R, P), at least 0.
        room: float64 (R, P), at least 0.
        radius: In units of the moves.

    Returns:
        float64 (R,).

    Cost:
        A sort of P numbers a row.
    """
    slope, room = _in_order_of_stopping(slope, room)
    free = _from_here_on(slope**2)
    stopped = _up_to_here(room**2)
    target = torch.full((len(slope), 1), radius**2, dtype=slope.dtype, device=slope.device)
    return (slope * _moves(slope, room, stopped, free, target, power=2)).sum(1)


def shortest_move(slope: Tensor, room: Tensor, rise: Tensor) -> Tensor:
    """Return min ||move||_2 subject to sum_i slope_i move_i >= rise and 0 <= move_i <= room_i.

    At the optimum sum_i slope_i min(t slope_i, room_i) = rise.

    Args:
        slope: float64 (R, P), at least 0.
        room: float64 (R, P), at least 0.
        rise: float64 (R,).

    Returns:
        float64 (R,); 0 where the rise is not positive, infinity where it is out of reach.

    Cost:
        As above.
    """
    possible = rise <= (slope * room).sum(1)
    slope, room = _in_order_of_stopping(slope, room)
    free = _from_here_on(slope**2)
    stopped = _up_to_here(slope * room)
    length = _moves(slope, room, stopped, free, rise.unsqueeze(1), power=1).norm(dim=1)
    return torch.where(possible, length, torch.inf)


def _in_order_of_stopping(slope: Tensor, room: Tensor) -> tuple[Tensor, Tensor]:
    """Slopes and rooms in the order in which growing t stops the values."""
    kinks = _kinks(slope, room)
    order = kinks.argsort(1)
    return slope.gather(1, order), torch.where(slope > 0, room, 0).gather(1, order)


def _kinks(slope: Tensor, room: Tensor) -> Tensor:
    """The t at which each value is stopped; a value without slope never moves, and is stopped at 0."""
    return torch.where(slope > 0, room / torch.where(slope > 0, slope, 1), 0)


def _up_to_here(term: Tensor) -> Tensor:
    """Sums of the first 0, 1, ..., P terms, (R, P + 1)."""
    return F.pad(term.cumsum(1), (1, 0))


def _from_here_on(term: Tensor) -> Tensor:
    """Sums of all terms but the first 0, 1, ..., P, (R, P + 1)."""
    return F.pad(term.flip(1).cumsum(1).flip(1), (0, 1))


def _moves(slope: Tensor, room: Tensor, stopped: Tensor, free: Tensor, target: Tensor, *, power: int) -> Tensor:
    """Solve stopped_k + free_k t^power = target for the k values that t stops, and return the moves, (R, P)."""
    kinks = F.pad(_kinks(slope, room), (1, 0))
    k = ((stopped + free * kinks**power < target).sum(1, keepdim=True) - 1).clamp(min=0)
    rest, still = (target - stopped.gather(1, k)).clamp(min=0), free.gather(1, k)
    t = torch.where(still > 0, rest / torch.where(still > 0, still, 1), torch.inf) ** (1 / power)
    return torch.where(slope > 0, torch.minimum(t * slope, room), 0)
