"""A problem that takes its time: kind = "tests.slurm.slow:factory", run from the repository's root."""

import time
from typing import Any

from hpcopt.problems.linear_regression import LinearRegression, LinearRegressionProblem


class Slow(LinearRegression):
    """Linear regression, except that every round takes ``pause`` seconds, on any number of ranks."""

    def __init__(self, workers: int, pause: float) -> None:
        super().__init__(workers, dim=20, rows_per_worker=30)
        self.pause = pause

    def bind(self, share: Any) -> "SlowProblem":
        """This process's part."""
        problem = SlowProblem(self.table, share)
        problem.pause = self.pause
        return problem


class SlowProblem(LinearRegressionProblem):
    """The workers here."""

    pause = 0.0

    def _add_gradient(self, i: int, *rest: Any) -> None:
        if i == 0:
            time.sleep(self.pause)
        super()._add_gradient(i, *rest)


def factory(workers: int, pause: float = 0.1) -> Slow:
    """The recipe."""
    return Slow(workers, pause)
