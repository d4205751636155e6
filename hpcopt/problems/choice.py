"""Whether workers are computed in groups: what to time, once both ways were seen to give the same."""

from __future__ import annotations

import timeit
from typing import TYPE_CHECKING

import torch

from hpcopt.problems.trial import ROUNDING

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from hpcopt.problems.base import Way
    from hpcopt.problems.groups import Group

    Work = Callable[[Group], Tensor]

IN_TURN, TOGETHER = "in turn", "together"
KINDS = ("gradients", "total_gradient", "losses")
"""of work, each chosen by itself: at models of the workers' own, at one model for all, without gradients"""
LONG = 0.005
"""seconds of a worker's gradient that gains nothing by being computed with others'"""
TIMED = 0.04
"""about how many seconds of workers in turn are timed"""

IMPOSSIBLE: dict[str, Way | None] = {IN_TURN: lambda: None, TOGETHER: None}
"""on this rank, to compute them together"""


def ways_of(group: Group | None, in_turn: Work, together: Work, buffers: Tensor) -> dict[str, Way | None]:
    """Both ways of computing a group, to be timed; on a rank without a large one there is nothing to time.

    Args:
        group: the largest here.
        in_turn, together: what a group computes.
        buffers: of the workers here, which both may change, and which stay as they are.
    """
    if group is None or len(group.workers) == 1:
        return {IN_TURN: lambda: None, TOGETHER: lambda: None}
    before = buffers.clone()
    two = group.first(2)
    seconds = _seconds(lambda: float(in_turn(two).sum())) / 2
    buffers.copy_(before)
    same = seconds <= LONG and _same(two, in_turn, together, buffers)
    buffers.copy_(before)
    if not same:
        return IMPOSSIBLE
    some = group.first(int(TIMED / seconds))
    # a number waits for the device
    return {IN_TURN: lambda: float(in_turn(some).sum()), TOGETHER: lambda: float(together(some).sum())}


def _seconds(call: Callable[[], object]) -> float:
    """The shortest time of three; of one, where that is far too long already."""
    first = timeit.timeit(call, number=1)
    return first if first > 10 * LONG else min(timeit.repeat(call, number=1, repeat=2))


def _same(group: Group, in_turn: Work, together: Work, buffers: Tensor) -> bool:
    """Whether both ways come out the same, buffers as well, which they change."""
    before = buffers.clone()
    alone = torch.cat([in_turn(group).ravel(), group.of(buffers).ravel()])
    buffers.copy_(before)
    try:
        both = torch.cat([together(group).ravel(), group.of(buffers).ravel()])
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError):
        return False  # torch.vmap cannot see through everything that people write
    largest = float(alone.abs().nan_to_num().max())
    rounding = ROUNDING.get(alone.dtype, 1e-3)
    return torch.allclose(alone, both, rtol=rounding, atol=rounding * largest, equal_nan=True)
