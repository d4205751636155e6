"""A problem that takes its time: kind = "tests.slurm.slow:factory", run from the repository's root."""

import os
import time
from typing import Any

from hpcopt.problems.linear_regression import LinearRegression
from hpcopt.problems.objective_problem import ObjectiveProblem

# a job that has been disturbed has nothing more to wait for: it only has to come to its end
HASTE = 5 if int(os.environ.get("SLURM_RESTART_COUNT") or 0) else 1


class Slow(LinearRegression):
    """Linear regression, except that every round takes ``pause`` seconds, on any number of ranks.

    After Slurm has started its job again, a fifth of that.
    """

    fixed = LinearRegression.fixed
    pause: float

    def bind(self, share: Any) -> "SlowProblem":
        """This process's part."""
        return SlowProblem(self, share)


class SlowProblem(ObjectiveProblem):
    """The workers here."""

    def _add_gradient(self, i: int, *rest: Any) -> None:
        if i == 0:
            time.sleep(self.objective.pause / HASTE)
        super()._add_gradient(i, *rest)


def factory(workers: int, pause: float = 0.1) -> Slow:
    """The recipe."""
    return Slow(workers, dim=20, rows_per_worker=30, pause=pause)
