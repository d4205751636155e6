"""How the workers of a group are computed: what to time, once all ways were seen to give the same."""

from __future__ import annotations

import timeit
from typing import TYPE_CHECKING

import torch

from hpcopt.problems.trial import ROUNDING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from torch import Tensor

    from hpcopt.problems.base import Way
    from hpcopt.problems.groups import Group

    Work = Callable[[Group], Tensor]

IN_TURN, TOGETHER, MAPPED = "in turn", "together", "mapped"
"""one worker after the other, one backward pass through all, or a gradient of each in one call"""
KINDS = ("gradients", "total_gradient", "losses")
"""of work, each chosen by itself: at models of the workers' own, at one model for all, without gradients"""
LONG = 0.005
"""seconds of a worker's gradient that gains nothing by being computed with others'"""
TIMED = 0.04
"""about how many seconds of workers in turn are timed"""


def only_in_turn(works: Iterable[str]) -> dict[str, Way | None]:
    """Of these ways, on this rank: nothing is to be timed."""
    return {way: (lambda: None) if way == IN_TURN else None for way in works}


def ways_of(group: Group | None, works: Mapping[str, Work], buffers: Tensor) -> dict[str, Way | None]:
    """Ways of computing a group, to be timed; on a rank without a large one there is nothing to time.

    Args:
        group: the largest here.
        works: what a group computes in turn, and in other ways.
        buffers: of the workers here, which all may change, and which stay as they are.
    """
    if group is None or len(group.workers) == 1:
        return dict.fromkeys(works, lambda: None)
    before = buffers.clone()
    two = group.first(2)
    each = seconds(lambda: float(works[IN_TURN](two).sum())) / 2
    if each > LONG:
        buffers.copy_(before)
        return only_in_turn(works)
    found = {}
    for way, work in works.items():
        buffers.copy_(before)
        found[way] = _outcome(work, two, buffers)
    buffers.copy_(before)
    some = group.first(int(TIMED / each))
    # a number waits for the device
    timed: dict[str, Way] = {way: lambda work=work: float(work(some).sum()) for way, work in works.items()}  # type: ignore[misc]
    return {way: call if _same(found[IN_TURN], found[way]) else None for way, call in timed.items()}


def seconds(call: Callable[[], object]) -> float:
    """The shortest time of three; of one, where that is long already."""
    first = timeit.timeit(call, number=1)
    return first if first > 10 * LONG else min(timeit.repeat(call, number=1, repeat=2))


def _outcome(work: Work, group: Group, buffers: Tensor) -> Tensor | None:
    """What comes out, with the buffers; None where it cannot be computed so."""
    try:
        return torch.cat([work(group).ravel(), group.of(buffers).ravel()])
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError):
        return None  # torch.vmap cannot see through everything that people write


def _same(alone: Tensor | None, other: Tensor | None) -> bool:
    if alone is None or other is None:
        return False
    largest = float(alone.abs().nan_to_num().max())
    rounding = ROUNDING.get(alone.dtype, 1e-3)
    return torch.allclose(alone, other, rtol=rounding, atol=rounding * largest, equal_nan=True)
