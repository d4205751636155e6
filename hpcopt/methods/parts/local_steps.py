"""The SGD steps that workers make on their own between two exchanges.

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
from hpcopt.math.optimizers import learning_rate, sgd
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

    def assign(self, plan: Callable[[int], list[Stage]], X: Tensor, ports: Ports) -> None:
        """Takes what each worker here does in a round, for `make_all`. Collective.

        Args:
            plan: the stages of worker i (from 0 here).
            X: (n, d), points to time the steps at; not changed.
            ports: remember what was fastest.
        """
        self._stages = stages = [plan(i) for i in range(len(X))]
        ways: dict[str, Way | None] = {ONE_BY_ONE: lambda: self._try_one_by_one(X), STACKED: None}
        if not self._settings.clip and self._problem.stackable() and all(p == stages[0] for p in stages):
            ways[STACKED] = lambda: self._try_stacked(X)
        samples = self._problem.samples
        self._stacked = ports.fastest("own_steps", ways) == STACKED
        self._problem.samples = samples

    def make_all(self, X: Tensor, M: Tensor, round: int) -> None:
        """Makes the steps of all workers here, in place.

        Args:
            X: their points, (n, d).
            M: their momentum, (n, d), or (n, 0) if there is none.
            round: counted from 0.
        """
        if self._stacked:
            for stage in self._stages[0]:
                self._steps(X, M, stage, round, partial(self._problem.stacked_gradient, X))
            return
        for i, stages in enumerate(self._stages):
            for stage in stages:
                self.make(i, X[i], M[i], stage, round)

    def make(self, i: int, x: Tensor, m: Tensor, stage: Stage, round: int) -> None:
        """Makes the steps of worker i (from 0 here), in place.

        Args:
            i: the worker.
            x: its point, (d,).
            m: its momentum, (d,), or empty if there is none.
            stage: which steps.
            round: counted from 0.
        """
        self._steps(x, m, stage, round, partial(self._problem.gradient, i, x))

    def _steps(self, x: Tensor, m: Tensor, stage: Stage, round: int, gradient: Gradient) -> None:
        """At one point (d,) or at several (n, d)."""
        layout, settings = self._problem.layout, self._settings
        moved = []
        for part, lr in stage.rates.items():
            momentum = layout.tensors(m, part) if m.shape[-1] else []
            moved.append((layout.tensors(x, part), momentum, learning_rate(settings, round, lr)))
        for step in stage.steps:
            g = gradient(Draw(round, step, stage.of), stage.part)
            for xs, ms, eta in moved:
                sgd(settings, xs, g[: len(xs)], ms, eta)
                g = g[len(xs) :]

    def _try_one_by_one(self, X: Tensor) -> float:
        return float(sum(self._problem.gradient(i, x, Draw(0))[0].sum() for i, x in enumerate(X)))

    def _try_stacked(self, X: Tensor) -> float:
        return float(self._problem.stacked_gradient(X, Draw(0))[0].sum())
