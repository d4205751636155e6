"""The SGD steps that workers make on their own between two exchanges.

One worker makes all its steps before the next one begins: its parameters stay in the processor's cache, no
more than one gradient is in memory, and workers need not make equally many steps. Or, where the problem's
gradients were measured to be faster together, a group of workers that make equally many does so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from hpcopt.config.methods.gossip import OwnStepsTable
from hpcopt.math.optimizers import learning_rate, sgd
from hpcopt.problems.base import Draw, Part, Problem
from hpcopt.problems.groups import Group

DEFAULT_STEPS = 5
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
    """

    def __init__(self, problem: Problem, settings: OwnStepsTable) -> None:
        self._problem, self._settings = problem, settings

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

    def make_all(self, X: Tensor, M: Tensor, round: int) -> None:
        """Makes the steps of all workers here, in place.

        Args:
            X: their points, (n, d).
            M: their momentum, (n, d), or (n, 0) if there is none.
            round: counted from 0.
        """
        for group in self._groups:
            x, m = group.of(X), group.of(M)
            self.make(group, x, m, round)
            group.put(X, x)
            group.put(M, m)

    def make(self, group: Group, X: Tensor, M: Tensor, round: int) -> None:
        """Makes the steps of a group, in place.

        Args:
            group: one of those that `assign` gave.
            X: the points of its workers, (g, d).
            M: their momentum, (g, d), or (g, 0) if there is none.
            round: counted from 0.
        """
        several = len(group.workers) > 1
        i = group.workers[0]
        gradient: Gradient = partial(self._problem.gradient, i, X[0])
        if several:
            gradient = partial(self._problem.stacked_gradient, group, X)
        for k, stage in enumerate(self._stages[i]):
            rates = [self._stages[j][k].rates for j in group.workers]
            self._steps(X if several else X[0], M if several else M[0], stage, rates, round, gradient)

    def _steps(
        self,
        x: Tensor,
        m: Tensor,
        stage: Stage,
        rates: list[Mapping[Part, float]],
        round: int,
        gradient: Gradient,
    ) -> None:
        """At one point (d,) or at several (g, d), each with rates of its own."""
        layout, settings = self._problem.layout, self._settings
        moved = []
        for part in stage.rates:
            momentum = layout.tensors(m, part) if m.shape[-1] else []
            etas = [learning_rate(settings, round, of[part]) for of in rates]
            eta = etas[0] if len({*etas}) == 1 else x.new_tensor(etas)
            moved.append((layout.tensors(x, part), momentum, eta))
        for step in stage.steps:
            g = gradient(Draw(round, step, stage.of), stage.part)
            for xs, ms, eta in moved:
                sgd(settings, xs, g[: len(xs)], ms, eta, several=x.ndim > 1)
                g = g[len(xs) :]
