"""Products with the Hessian of Σ ω_n f_n, vectors in slices."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hpcopt.errors import UserError

if TYPE_CHECKING:
    from hpcopt.comm.ports import Contribution, Reducer
    from hpcopt.problems.base import Draw, Problem


def hessian_products(
    problem: Problem, reduce: Reducer, part: Contribution, x: Tensor, draw: Draw | None
) -> Callable[[Tensor], Tensor]:
    """v -> Σ ω_n ∇²f_n(x) v, own slices of both; one pass. Collective.

    Args:
        problem: the workers here.
        reduce: sums over all workers.
        part: a contribution of d numbers, which is used.
        x: (d,).
        draw: the mini-batch; None for all rows.
    """

    def product(v: Tensor) -> Tensor:
        return part.add_hvps(problem, x, reduce.allgather(v, problem.dim), draw).scatter()

    return product


def check_hessian(problem: Problem, draw: Draw | None) -> None:
    """Tries one product; raises `UserError` where the problem has none. Local, and not counted."""
    x, samples = problem.initial(), problem.samples
    try:
        problem.total_hvp(x, torch.zeros_like(x), draw)
    except torch.OutOfMemoryError:
        raise
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:
        # of which NotImplementedError is a kind
        raise UserError(f"this problem has no Hessian-vector products: give it an `hvp` ({error})") from error
    problem.samples = samples
