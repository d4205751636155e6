"""A user's problem that gets into trouble: kind = "trouble:factory", run from this directory."""

import time
from typing import Any

from hpcopt.problems.quadratic import Quadratic, QuadraticProblem


class Trouble(Quadratic):
    """The quadratic, except for what one worker does in one round."""

    def __init__(self, workers: int, what: str, worker: int, round: int, pause: float) -> None:
        super().__init__(workers, "power", 10)
        self.what, self.worker, self.round, self.pause = what, worker, round, pause

    def bind(self, share: Any) -> "TroubleProblem":
        """This process's part."""
        problem = TroubleProblem(self.eigenvalues, share)
        problem.recipe = self
        return problem


class TroubleProblem(QuadraticProblem):
    """The workers here; every gradient takes ``pause`` seconds."""

    recipe: Trouble

    def _add_gradient(self, i: int, x: Any, draw: Any, *rest: Any) -> None:
        time.sleep(self.recipe.pause)
        if (self.share.workers[i], draw.round + 1) == (self.recipe.worker, self.recipe.round):
            if self.recipe.what == "raise":
                raise ArithmeticError(f"worker {self.recipe.worker} does not like round {draw.round + 1}")
            if self.recipe.what == "stall":
                time.sleep(10_000)
        super()._add_gradient(i, x, draw, *rest)


def factory(
    workers: int, what: str = "nothing", worker: int = 1, round: int = 5, pause: float = 0.0
) -> Trouble:
    """The recipe."""
    return Trouble(workers, what, worker, round, pause)
