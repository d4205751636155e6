"""How the workers of a group are computed: what to time, once all ways were seen to give the same."""

from __future__ import annotations

import timeit
from functools import partial
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
"""about how many seconds of workers in turn are compared, and timed"""
REFUSED = (RuntimeError, ValueError, TypeError, IndexError, AttributeError)
"""torch.vmap cannot see through everything that people write"""


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
    each = seconds(partial(_number, works[IN_TURN], two)) / 2
    buffers.copy_(before)
    if each > LONG:
        return only_in_turn(works)
    some = group.first(max(2, int(TIMED / each)))
    same = alike(works, some, buffers)
    return {way: partial(_number, work, some) if way in same else None for way, work in works.items()}


def _number(work: Work, group: Group) -> float:
    """Some work, for which the device is waited."""
    return float(work(group).detach().sum())


def seconds(call: Callable[[], object]) -> float:
    """The shortest time of three; of one, where that is long already."""
    first = timeit.timeit(call, number=1)
    return first if first > 10 * LONG else min(timeit.repeat(call, number=1, repeat=2))


def alike(works: Mapping[str, Work], group: Group, buffers: Tensor) -> set[str]:
    """The ways that come out as in turn, buffers as well, which all may change and which stay as they are."""

    def outcome(way: str) -> Tensor:
        try:
            return torch.cat([works[way](group).detach().ravel(), group.of(buffers).ravel()])
        finally:
            buffers.copy_(before)

    before = buffers.clone()
    alone = outcome(IN_TURN)
    largest = float(alone.abs().nan_to_num().max())
    rounding = ROUNDING.get(alone.dtype, 1e-3)
    same = {IN_TURN}
    for way in works.keys() - same:
        try:
            other = outcome(way)
        except REFUSED:
            continue
        if torch.allclose(alone, other, rtol=rounding, atol=rounding * largest, equal_nan=True):
            same.add(way)
    return same
