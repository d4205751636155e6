"""Whose gradients are made when, of which model, and when they are applied: the face of all ways to be late.

`hpcopt.methods.parts.late_sums`, `owners`, `async_mixing`, and of traces `replay` and `mixing_replay`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpcopt.math.optimizers import shorten
from hpcopt.methods.base import StepInfo
from hpcopt.problems.base import Problem
from hpcopt.state import State, per_worker, replicated


@dataclass(kw_only=True)
class DelayedSGDState(State):
    """The model or models with moments, models before it, and what was counted."""

    x: Tensor = replicated()
    past: Tensor = replicated()
    waiting: Tensor = replicated()
    m: Tensor = replicated()
    v: Tensor = replicated()
    updates: Tensor = replicated()
    X: Tensor = per_worker()
    M: Tensor = per_worker()
    V: Tensor = per_worker()
    made: Tensor = per_worker()
    counts: Tensor = replicated()
    L: Tensor = replicated()


class Due(NamedTuple):
    """A gradient that a worker here makes now.

    Attributes:
        i: the worker, from 0 here.
        x: the model that it is of, (d,).
        draw: its mini-batch.
        event: what the clock knows it by.
    """

    i: int
    x: Tensor
    draw: int
    event: Any = None


class Sizes(NamedTuple):
    """Rows of the state's ``past`` and ``waiting``, columns of its ``counts``."""

    past: int
    waiting: int
    bins: int


class Clock(ABC):
    """What `hpcopt.methods.delayed_sgd.DelayedSGD` holds. What is collective depends on the clock.

    Attributes:
        sizes: of the state.
        info: on the last round.
    """

    sizes: Sizes
    info = StepInfo()

    @abstractmethod
    def turns(self, state: DelayedSGDState) -> Iterator[Iterable[Due]]:
        """What there is to make here until a round is over; each turn ends with `apply`."""

    @abstractmethod
    def put(self, state: DelayedSGDState, due: Due, gradient: Sequence[Tensor]) -> None:
        """A gradient is there, a tensor for each parameter."""

    @abstractmethod
    def apply(self, state: DelayedSGDState) -> None:
        """x ← x − η g for what has arrived."""

    def settle(self, state: DelayedSGDState) -> None:  # noqa: B027  (optional)
        """Whatever is in flight is applied. Collective."""

    def trace(self) -> dict[str, NDArray[np.int64]]:
        """See `hpcopt.methods.base.Method`."""
        return {}


class Flat:
    """A gradient as one vector.

    Args:
        problem: the workers here.
        clip: its largest norm; 0: none.
    """

    def __init__(self, problem: Problem, clip: float) -> None:
        self._problem, self._clip = problem, clip
        self._g = torch.empty_like(problem.initial())

    def of(self, gradient: Sequence[Tensor]) -> Tensor:
        """∇f_n, (d,), shortened, until the next call."""
        for part, piece in zip(self._problem.layout.tensors(self._g), gradient, strict=True):
            part.copy_(piece)
        if self._clip:
            shorten([self._g], self._clip)
        return self._g

    def scaled(self, i: int, gradient: Sequence[Tensor]) -> Tensor:
        """N ω_n ∇f_n of worker i here, (d,), shortened before, until the next call."""
        return self.of(gradient).mul_(self._problem.share.total * float(self._problem.weights[i]))
