"""The steps that workers make on their own between two exchanges.

One worker makes all its steps before the next one begins: its parameters stay in the processor's cache, no
more than one gradient is in memory, and workers need not make equally many steps. Or, where all make the same
steps and it was measured to be faster (small models on a GPU), all make a step before the next one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from hpcopt.comm.ports import Ports, Way
from hpcopt.config.methods.gossip import DEFAULT_STEPS, OwnStepsTable
from hpcopt.math.optimizers import FirstOrderUpdate, learning_rate
from hpcopt.problems.base import Draw, Part, Problem

ONE_BY_ONE, STACKED = "one by one", "stacked"
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

    def assign(self, plan: Callable[[int], list[Stage]], X: Tensor, ports: Ports) -> None:
        """Takes what each worker here does in a round, for `make_all`. Collective.

        Args:
            plan: the stages of worker i (from 0 here).
            X: (n, d), points to time the steps at; not changed.
            ports: remember what was fastest.
        """
        self._stages = stages = [plan(i) for i in range(len(X))]
        ways: dict[str, Way | None] = {ONE_BY_ONE: lambda: self._try_one_by_one(X), STACKED: None}
        if self._problem.stackable() and all(p == stages[0] for p in stages):
            ways[STACKED] = lambda: self._try_stacked(X)
        samples = self._problem.samples
        self._stacked = ports.fastest("own_steps", ways) == STACKED
        self._problem.samples = samples

    def make_all(self, X: Tensor, M: Tensor, V: Tensor, round: int) -> None:
        """Makes the steps of all workers here, in place.

        Args:
            X: their points, (n, d).
            M, V: their first and second moments, (n, d), or (n, 0) if there are none.
            round: counted from 0.
        """
        if self._stacked:
            for stage in self._stages[0]:
                self._steps(X, M, V, stage, round, partial(self._problem.stacked_gradient, X))
            return
        for i, stages in enumerate(self._stages):
            for stage in stages:
                self.make(i, X[i], M[i], V[i], stage, round)

    def make(self, i: int, x: Tensor, m: Tensor, v: Tensor, stage: Stage, round: int) -> None:
        """Makes the steps of worker i (from 0 here), in place.

        Args:
            i: the worker.
            x: its point, (d,).
            m, v: its first and second moments, (d,), or empty if there are none.
            stage: which steps.
            round: counted from 0.
        """
        self._steps(x, m, v, stage, round, partial(self._problem.gradient, i, x))

    def _steps(self, x: Tensor, m: Tensor, v: Tensor, stage: Stage, round: int, gradient: Gradient) -> None:
        """At one point (d,) or at several (n, d)."""
        layout = self._problem.layout
        moved = [
            (
                [layout.tensors(of, part) if of.shape[-1] else [] for of in (x, m, v)],
                learning_rate(self._settings, round, lr),
            )
            for part, lr in stage.rates.items()
        ]
        before = 0 if self._anew else round * len(stage.steps)
        for t, step in enumerate(stage.steps, before + 1):
            g = gradient(Draw(round, step, stage.of), stage.part)
            for (xs, ms, vs), eta in moved:
                self._update.step(xs, g[: len(xs)], ms, vs, t, eta, rows=x.ndim == 2)
                g = g[len(xs) :]

    def _try_one_by_one(self, X: Tensor) -> float:
        return float(sum(self._problem.gradient(i, x, Draw(0))[0].sum() for i, x in enumerate(X)))

    def _try_stacked(self, X: Tensor) -> float:
        return float(self._problem.stacked_gradient(X, Draw(0))[0].sum())
