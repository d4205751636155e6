"""The steps that workers make on their own between two exchanges.

One worker makes all its steps before the next one begins: its parameters stay in the processor's cache, no
more than one gradient is in memory, and workers need not make equally many steps. Or, where the problem's
gradients were measured to be faster together, a group of workers that make equally many does so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from hpcopt.config.methods.gossip import DEFAULT_STEPS, OwnStepsTable
from hpcopt.math.optimizers import FirstOrderUpdate, learning_rate
from hpcopt.problems.base import Draw, Part, Problem
from hpcopt.problems.groups import Group

Gradient = Callable[[Draw, Part], list[Tensor]]


@dataclass(frozen=True)
class Stage:
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


class LocalSteps:
    """The steps of the workers here.

    Args:
        problem: whose gradients.
        settings: of the steps.
        anew: whether the moments begin at 0 in every round.
    """

    def __init__(self, problem: Problem, settings: OwnStepsTable, anew: bool = False) -> None:
        self._problem, self._settings, self._anew = problem, settings, anew
        self._update = FirstOrderUpdate(settings)

    def moments(self) -> tuple[Tensor, Tensor]:
        """First and second moments of the workers here to begin with, (n, d), or (n, 0) if there are none."""
        first, second = self._update.sizes(self._problem.dim)
        return self._problem.rows_of(first).zero_(), self._problem.rows_of(second).zero_()

    def stage(self, i: int, steps: int | None, epochs: int | None, longer: float = 1.0) -> Stage:
        """The steps of worker i (from 0 here) that move everything, as many as `count` says; longer ones."""
        count = self.count(i, steps, epochs)
        return Stage({"all": self._settings.lr * longer}, range(count), count)

    def count(self, i: int, steps: int | None, epochs: int | None) -> int:
        """How many steps worker i (from 0 here) makes: of the two settings, at most one is not None."""
        return (steps or DEFAULT_STEPS) if epochs is None else epochs * self._problem.batches_per_epoch(i)

    def assign(self, plan: Callable[[int], list[Stage]]) -> list[Group]:
        """Takes what each worker here does in a round, and gives who makes these steps together.

        Args:
            plan: the stages of worker i (from 0 here).
        """
        self._stages = stages = [plan(i) for i in range(self._problem.share.n)]
        shapes = [tuple((tuple(s.rates), s.steps, s.of) for s in of) for of in stages]
        self._groups = self._problem.groups(shapes)
        return self._groups

    def make_all(self, X: Tensor, M: Tensor, V: Tensor, round: int) -> None:
        """Makes the steps of all workers here, in place.

        Args:
            X: their points, (n, d).
            M, V: their first and second moments, (n, d), or (n, 0) if there are none.
            round: counted from 0.
        """
        for group in self._groups:
            x, m, v = (group.of(rows) for rows in (X, M, V))
            self.make(group, x, m, v, round)
            for rows, changed in ((X, x), (M, m), (V, v)):
                group.put(rows, changed)

    def make(self, group: Group, X: Tensor, M: Tensor, V: Tensor, round: int) -> None:
        """Makes the steps of a group, in place.

        Args:
            group: one of those that `assign` gave.
            X: the points of its workers, (g, d).
            M, V: their first and second moments, (g, d), or (g, 0) if there are none.
            round: counted from 0.
        """
        several = len(group.workers) > 1
        i = group.workers[0]
        gradient: Gradient = partial(self._problem.gradient, i, X[0])
        if several:
            gradient = partial(self._problem.stacked_gradient, group, X)
        for k, stage in enumerate(self._stages[i]):
            rates = [self._stages[j][k].rates for j in group.workers]
            at = (X, M, V) if several else (X[0], M[0], V[0])
            self._steps(*at, stage, rates, round, gradient)

    def _steps(
        self,
        x: Tensor,
        m: Tensor,
        v: Tensor,
        stage: Stage,
        rates: list[Mapping[Part, float]],
        round: int,
        gradient: Gradient,
    ) -> None:
        """At one point (d,) or at several (g, d), each with rates of its own."""
        layout = self._problem.layout
        moved = []
        for part in stage.rates:
            etas = [learning_rate(self._settings, round, of[part]) for of in rates]
            eta = etas[0] if len({*etas}) == 1 else x.new_tensor(etas)
            moved.append(([layout.tensors(of, part) if of.shape[-1] else [] for of in (x, m, v)], eta))
        before = 0 if self._anew else round * len(stage.steps)
        for t, step in enumerate(stage.steps, before + 1):
            g = gradient(Draw(round, step, stage.of), stage.part)
            for (xs, ms, vs), eta in moved:
                self._update.step(xs, g[: len(xs)], ms, vs, t, eta, rows=x.ndim > 1)
                g = g[len(xs) :]
