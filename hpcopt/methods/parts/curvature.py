"""Extreme eigenpairs of the Hessian, owned in slices and computed anew now and then; and who decides when.

symbol  name          shape        meaning
V       V             (d here, q)  eigenvectors, a column each and columns one after the other; q = k + l
λ       eigenvalues   (q,)         the l smallest, then the k largest, ascending
        eigenvalue    (r, q)       λ of the last refreshes, the last one at their end
        residual      (r, q)       ‖H v − λ v‖ of each
        beyond        (1,)         the largest |θ| of the other Ritz values of the last refresh
        snapshot      (d here,)    x, of which pairs are computed beside the rounds (else empty)
        asked         (1,)         the round in which it was taken; -1: none is under way (likewise)

H is that of Σ ω_n f_n on a mini-batch of its own, fixed during a refresh: number i has draw i. A product with
it is the workers' products, a reduce-scatter and an allgather. No rank ever has a whole eigenvector.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hpcopt.errors import UserError
from hpcopt.math.lanczos import Eigenpairs, lanczos, random_start
from hpcopt.methods.parts.hessian import check_hessian, hessian_products
from hpcopt.problems.base import Draw
from hpcopt.state import Group, State, replicated, sliced

if TYPE_CHECKING:
    from hpcopt.comm.ports import Contribution, Reducer
    from hpcopt.config.methods.hybrid import DHO2Table
    from hpcopt.problems.base import Problem

KEPT = 256
"""refreshes whose eigenvalues are recorded, the last ones: a state's shapes may not depend on run.rounds"""
PART = 0.25
"""of a mini-batch, from which curvature is computed where it has to pay: as good as all of it"""
ROWS = 2
"""of all workers, for each pair, at least: of fewer the Hessian has less rank than there are pairs"""


@dataclass(kw_only=True)
class CurvatureState(State):
    """Eigenvectors, what is known of the eigenvalues, how often and when they were last computed."""

    V: Tensor = sliced()
    eigenvalue: Tensor = replicated()
    residual: Tensor = replicated()
    beyond: Tensor = replicated()
    refreshes: Tensor = replicated()
    refreshed: Tensor = replicated()
    snapshot: Tensor = sliced()
    asked: Tensor = replicated()


class Curvature:
    """The eigenpairs.

    Args:
        settings: how many, and what they may cost.
        problem: the workers here.
        reduce: sums over all workers.
        part: a contribution of d numbers, between whose uses a refresh may take place.
    """

    def __init__(self, settings: DHO2Table, problem: Problem, reduce: Reducer, part: Contribution) -> None:
        self._settings, self._problem, self._reduce, self._part = settings, problem, reduce, part
        self._rows = settings.curvature_batch
        self.cost = math.nan
        """of a refresh, in gradients of all workers on a mini-batch; known where it matters"""
        self.whole = False
        """whether a mini-batch is all rows; likewise"""
        if "auto" in (settings.refresh_every, settings.alpha):
            batch, N = self._used(Draw(0)), problem.share.total
            self.whole = batch >= problem.total_rows
            if settings.refresh_every == "auto" and self._rows is None:
                self._rows = math.ceil(max(PART * batch, ROWS * settings.pairs) / N)
            products = min(settings.products, problem.dim)
            self.cost = 2 * products * self._used(Draw(0, rows=self._rows)) / batch

    def begin(self, x: Tensor) -> dict[str, Any]:
        """The tensors of a `CurvatureState` before the first refresh.

        Args:
            x: this rank's slice of the parameters.
        """
        history = torch.zeros(KEPT, self._settings.pairs, dtype=torch.float64)
        never = torch.zeros(1, dtype=torch.int64)
        taken = int(self._settings.beside)
        return {
            "V": x.new_zeros(self._settings.pairs, len(x)).T,
            "eigenvalue": history,
            "residual": history.clone(),
            "beyond": history.new_zeros(1),
            "refreshes": never,
            "refreshed": never.clone(),
            "snapshot": torch.zeros_like(x[: taken * len(x)]),
            "asked": never[:taken] - 1,
        }

    def keep(self, state: CurvatureState, found: Eigenpairs, round: int) -> None:
        """V, λ ← those that were found at the x of a round."""
        state.V.copy_(found.vectors)
        for history, new in ((state.eigenvalue, found.values), (state.residual, found.residuals)):
            history.copy_(torch.cat([history[1:], new[None].to(history)]))
        state.beyond.fill_(found.beyond)
        state.refreshes += 1
        state.refreshed.fill_(round)

    def pairs(
        self, x: Tensor, last: Tensor, number: int, going: Callable[[], None] = lambda: None
    ) -> Eigenpairs:
        """The pairs of a refresh. Collective.

        Args:
            x: (d,).
            last: this rank's slice of the sum of the last eigenvectors.
            number: of refreshes before; if 0, there are none of these.
            going: called before each product.
        """
        settings, problem, reduce = self._settings, self._problem, self._reduce
        d, own, seed = problem.dim, reduce.own(problem.dim), problem.share.seed
        times_hessian = hessian_products(problem, reduce, self._part, x, Draw(number, rows=self._rows))

        def product(v: Tensor) -> Tensor:
            going()
            return times_hessian(v)

        # a Krylov space that begins with the sum of the last eigenvectors has most of them
        start = last if number else random_start(own, seed, x.dtype, x.device)
        return lanczos(
            product,
            reduce.slices,
            start[:, None],
            d,
            own,
            largest=settings.largest,
            smallest=settings.smallest,
            iterations=settings.products,
            seed=seed,
        )

    def along(self, state: CurvatureState, v: Tensor) -> Tensor:
        """Vᵀ v of own slices, summed, (q,), the same bits on every rank. Collective."""
        return self._reduce.slices(along(state.V, v))

    def _used(self, draw: Draw) -> float:
        """Rows that all workers use in a draw. Collective."""
        here = range(self._problem.share.n)
        rows = [[float(self._problem.batch_rows(i, draw))] for i in here]
        return float(self._reduce.scalars(torch.tensor(rows, dtype=torch.float64).reshape(len(here), 1)))

    def groups(self, state: CurvatureState) -> dict[str, Group]:
        """The group /spectrum."""
        kept = min(KEPT, int(state.refreshes))
        columns = {
            name: tensor[KEPT - kept :].numpy()
            for name, tensor in (("eigenvalue", state.eigenvalue), ("residual", state.residual))
        }
        return {"spectrum": Group(("refresh", "pair"), columns, KEPT)} if self._settings.pairs else {}


def along(V: Tensor, v: Tensor) -> Tensor:
    """Vᵀv of own slices, (q,), not summed: as a product of matrices, the fastest way."""
    return (V.T @ v[:, None])[:, 0]


def check(settings: DHO2Table, problem: Problem) -> None:
    """Raises `UserError` where a problem has fewer parameters than pairs, or no Hessian. Local."""
    if settings.pairs > problem.dim:
        raise UserError(
            f"largest + smallest = {settings.pairs}: more eigenpairs than the {problem.dim} parameters"
        )
    if settings.pairs:
        check_hessian(problem, Draw(0, rows=settings.curvature_batch))
