"""A user's problem that gets into trouble: kind = "trouble:factory", run from this directory."""

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch

from hpcopt.errors import UserError
from hpcopt.problems.objective_problem import ObjectiveProblem
from hpcopt.problems.quadratic import Quadratic


class Trouble(Quadratic):
    """The quadratic, except for what one worker does in one round; its Hessian changes with x if asked for.

    f gets ``fourth`` · ¼ Σ x⁴ on top; ``tally``: a folder where each worker's gradients are counted.
    """

    fixed = Quadratic.fixed | {"fourth"}
    what: str
    worker: int
    round: int
    pause: float
    fourth: float
    tally: str

    def loss(self, x: Any, H: Any) -> Any:
        """See `Objective`."""
        return super().loss(x, H) + self.fourth / 4 * x.pow(4).sum()

    def gradient(self, x: Any, H: Any) -> Any:
        """See `Objective`."""
        return super().gradient(x, H) + self.fourth * x**3

    def hvp(self, x: Any, v: Any, H: Any) -> Any:
        """See `Objective`."""
        return super().hvp(x, v, H) + 3 * self.fourth * x**2 * v

    def bind(self, share: Any) -> "TroubleProblem":
        """This process's part."""
        return TroubleProblem(self, share)


class TroubleProblem(ObjectiveProblem):
    """The workers here; every gradient takes ``pause`` seconds."""

    products = 0

    def _add_gradient(self, i: int, x: Any, draw: Any, *rest: Any) -> None:
        trouble = self.objective
        time.sleep(trouble.pause)
        if trouble.tally:
            with (Path(trouble.tally) / str(self.share.workers[i])).open("a") as file:
                file.write(".")
        if self._is_time(i, draw):
            if trouble.what.startswith("raise"):
                raise ArithmeticError(f"worker {trouble.worker} does not like round {draw.round + 1}")
            if trouble.what.startswith("user error"):
                raise UserError(f"worker {trouble.worker} does not like its rows")
            if trouble.what == "exit":
                sys.exit(7)
            if trouble.what == "stall":
                time.sleep(10_000)
        super()._add_gradient(i, x, draw, *rest)

    def _hvp(self, i: int, x: Any, v: Any, draw: Any) -> Any:
        if self.objective.what.endswith("in a refresh") and self._is_time(i, draw):
            self.products += 1
            if self.products == 3:
                os.kill(os.getpid(), signal.SIGKILL if "kill" in self.objective.what else signal.SIGSTOP)
        return super()._hvp(i, x, v, draw)

    def _is_time(self, i: int, draw: Any) -> bool:
        """For the trouble: a refresh counts as a round, for its products have a draw of their own."""
        worker = i if self.objective.what.endswith("everywhere") else self.share.workers[i]
        return (worker, draw.round + 1) == (self.objective.worker, self.objective.round)


def factory(
    workers: int,
    what: str = "nothing",
    worker: int = 1,
    round: int = 5,
    pause: float = 0.0,
    fourth: float = 0.0,
    tally: str = "",
) -> Trouble:
    """The recipe; where it is "rounded", by the precision that a process begins with."""
    if what == "no recipe":
        raise ArithmeticError("there is no such problem")
    if what == "rounded":
        fourth = float(torch.tensor(0.1))
        torch.set_default_dtype(torch.float64)
    keys = {"what": what, "worker": worker, "round": round, "pause": pause, "fourth": fourth}
    keys |= {"tally": tally}
    return Trouble(workers, eigenvalues="power", dim=10, **keys)
