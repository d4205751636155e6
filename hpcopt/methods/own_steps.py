"""The SGD steps that workers make on their own between two exchanges.

One worker makes all its steps before the next one begins: its parameters stay in the processor's cache, no
more than one gradient is in memory, and workers need not make equally many steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from hpcopt.config.methods import OwnStepsTable
from hpcopt.math.optimizers import learning_rate, sgd
from hpcopt.problems.base import Draw, Part, Problem

DEFAULT_STEPS = 5


@dataclass(frozen=True)
class Phase:
    """Successive steps of one worker that move the same parameters.

    Attributes:
        rates: the parts that each step moves at once, in the order of the layout, with their learning rates
            before the schedule; a gradient is clipped in each of them separately.
        steps: which of the worker's steps in a round these are.
        of: how many steps the worker makes in a round.
    """

    rates: Mapping[Part, float]
    steps: range
    of: int

    @property
    def part(self) -> Part:
        """What gradients are needed of."""
        return next(iter(self.rates)) if len(self.rates) == 1 else "all"


class OwnSteps:
    """The steps of the workers here.

    Args:
        problem: whose gradients.
        settings: of the steps.
    """

    def __init__(self, problem: Problem, settings: OwnStepsTable) -> None:
        self._problem, self._settings = problem, settings

    def count(self, i: int, steps: int | None, epochs: int | None) -> int:
        """How many steps worker i (from 0 here) makes: of the two settings, at most one is not None."""
        return (steps or DEFAULT_STEPS) if epochs is None else epochs * self._problem.batches_per_epoch(i)

    def make(self, i: int, x: Tensor, m: Tensor, phase: Phase, round: int) -> None:
        """Makes the steps of worker i (from 0 here), in place.

        Args:
            i: the worker.
            x: its point, (d,).
            m: its momentum, (d,), or empty if there is none.
            phase: which steps.
            round: counted from 0.
        """
        layout, settings = self._problem.layout, self._settings
        moved = []
        for part, lr in phase.rates.items():
            momentum = layout.tensors(m, part) if len(m) else []
            moved.append((layout.tensors(x, part), momentum, learning_rate(settings, round, lr)))
        for step in phase.steps:
            g = self._problem.gradient(i, x, Draw(round, step, phase.of), phase.part)
            for xs, ms, eta in moved:
                sgd(settings, xs, g[: len(xs)], ms, eta)
                g = g[len(xs) :]
