"""What all workers' models have in common: their mean, and how far they are from it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from hpcopt.comm.ports import Ports
    from hpcopt.problems.base import Part, Problem


class Consensus:
    """Of models X (n, d) of the workers' own; every worker counts the same.

    Args:
        problem, ports: of the run.
        part: of the parameters, on which workers are to agree.
    """

    def __init__(self, problem: Problem, ports: Ports, part: Part = "all") -> None:
        self._reduce, self._workers = ports.reduce, problem.share.total
        self._part = problem.layout.part(part)

    def mean(self, X: Tensor) -> Tensor:
        """The mean of one row (m,) per worker over all N workers, from the (n, m) here. Collective."""
        return self._reduce.sum(X) / self._workers

    def distance(self, X: Tensor) -> float:
        """The mean over the workers of ‖φ_i − φ̄‖², φ the part. Collective."""
        phi = X[:, self._part]
        mean = self.mean(phi)
        squares = phi.new_zeros(len(phi), 1, dtype=torch.float64)
        for square, phi_i in zip(squares, phi, strict=True):
            square[0] = (phi_i - mean).square_().sum(dtype=torch.float64)
        return float(self._reduce.scalars(squares) / self._workers)
