"""A user's problem that gets into trouble: kind = "trouble:factory", run from this directory."""

import time
from typing import Any

from hpcopt.problems.objective_problem import ObjectiveProblem
from hpcopt.problems.quadratic import Quadratic


class Trouble(Quadratic):
    """The quadratic, except for what one worker does in one round."""

    what: str
    worker: int
    round: int
    pause: float

    def bind(self, share: Any) -> "TroubleProblem":
        """This process's part."""
        return TroubleProblem(self, share)


class TroubleProblem(ObjectiveProblem):
    """The workers here; every gradient takes ``pause`` seconds."""

    def _add_gradient(self, i: int, x: Any, draw: Any, *rest: Any) -> None:
        trouble = self.objective
        time.sleep(trouble.pause)
        if (self.share.workers[i], draw.round + 1) == (trouble.worker, trouble.round):
            if trouble.what == "raise":
                raise ArithmeticError(f"worker {trouble.worker} does not like round {draw.round + 1}")
            if trouble.what == "stall":
                time.sleep(10_000)
        super()._add_gradient(i, x, draw, *rest)


def factory(
    workers: int, what: str = "nothing", worker: int = 1, round: int = 5, pause: float = 0.0
) -> Trouble:
    """The recipe."""
    keys = {"what": what, "worker": worker, "round": round, "pause": pause}
    return Trouble(workers, eigenvalues="power", dim=10, **keys)
