"""Extreme eigenpairs of the Hessian, owned in slices and computed anew now and then; and who decides when.

symbol  name          shape        meaning
V       V             (d here, q)  eigenvectors, a column each; q = k + l
λ       eigenvalues   (q,)         the l smallest, then the k largest, ascending
        eigenvalue    (r, q)       λ of the last refreshes, the last one at their end
        residual      (r, q)       ‖H v − λ v‖ of each

H is that of Σ ω_n f_n on a mini-batch of its own, fixed during a refresh: number i has draw i. A product with
it is the workers' products, a reduce-scatter and an allgather. No rank ever has a whole eigenvector.
"""

from __future__ import annotations

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
ITERATIONS = 4
"""per pair: FOSI's number"""
SCALES = {"sgd": 3.0, "momentum": 3.0, "adam": 1.0}
"""by how much the base's step may be longer than by itself: FOSI's numbers"""


@dataclass(kw_only=True)
class CurvatureState(State):
    """Eigenvectors, what is known of the eigenvalues, how often and when they were last computed."""

    V: Tensor = sliced()
    eigenvalue: Tensor = replicated()
    residual: Tensor = replicated()
    refreshes: Tensor = replicated()
    refreshed: Tensor = replicated()


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
        self._iterations = settings.lanczos_iterations or ITERATIONS * settings.pairs

    def begin(self, x: Tensor) -> dict[str, Any]:
        """The tensors of a `CurvatureState` before the first refresh.

        Args:
            x: this rank's slice of the parameters.
        """
        history = torch.zeros(KEPT, self._settings.pairs, dtype=torch.float64)
        never = torch.zeros(1, dtype=torch.int64)
        return {
            "V": x.new_zeros(len(x), self._settings.pairs),
            "eigenvalue": history,
            "residual": history.clone(),
            "refreshes": never,
            "refreshed": never.clone(),
        }

    def refresh(self, state: CurvatureState, x: Tensor) -> None:
        """V, λ ← those at x, (d,), whole; begins with the last V. Collective."""
        found = self.pairs(state, x)
        state.V.copy_(found.vectors)
        for history, new in ((state.eigenvalue, found.values), (state.residual, found.residuals)):
            history.copy_(torch.cat([history[1:], new[None].to(history)]))
        state.refreshes += 1
        state.refreshed.fill_(state.round)

    def pairs(self, state: CurvatureState, x: Tensor) -> Eigenpairs:
        """The pairs of the next refresh, at x; the state stays as it is. Collective."""
        settings, problem, reduce = self._settings, self._problem, self._reduce
        number, d, own = int(state.refreshes), problem.dim, reduce.own(problem.dim)
        draw = Draw(number, rows=settings.curvature_batch)
        seed = problem.share.seed
        # a Krylov space that begins with the sum of the last eigenvectors has most of them
        start = state.V.sum(1) if number else random_start(own, seed, x.dtype, x.device)
        return lanczos(
            hessian_products(problem, reduce, self._part, x, draw),
            reduce.slices,
            start[:, None],
            d,
            own,
            largest=settings.largest,
            smallest=settings.smallest,
            iterations=self._iterations,
            seed=seed,
        )

    def along(self, state: CurvatureState, v: Tensor) -> Tensor:
        """Vᵀ v of own slices, summed, (q,), the same bits on every rank. Collective."""
        return self._reduce.slices(state.V.T @ v)

    def groups(self, state: CurvatureState) -> dict[str, Group]:
        """The group /spectrum."""
        kept = min(KEPT, int(state.refreshes))
        columns = {
            name: tensor[KEPT - kept :].numpy()
            for name, tensor in (("eigenvalue", state.eigenvalue), ("residual", state.residual))
        }
        return {"spectrum": Group(("refresh", "pair"), columns, KEPT)} if self._settings.pairs else {}


def check(settings: DHO2Table, problem: Problem) -> None:
    """Raises `UserError` where a problem has fewer parameters than pairs, or no Hessian. Local."""
    if settings.pairs > problem.dim:
        raise UserError(
            f"largest + smallest = {settings.pairs}: more eigenpairs than the {problem.dim} parameters"
        )
    if settings.pairs:
        check_hessian(problem, Draw(0, rows=settings.curvature_batch))


class FixedRule:
    """Decides when the pairs are computed, and how long both parts of a step are: as the settings say.

    Its answers depend on the state alone, and on nothing that was measured.
    """

    def __init__(self, settings: DHO2Table) -> None:
        self._settings = settings

    def refresh(self, state: CurvatureState) -> bool:
        """Whether this round begins with new pairs."""
        settings, last = self._settings, int(state.refreshed)
        if not settings.pairs or state.round < settings.warmup:
            return False
        return int(state.refreshes) == 0 or state.round - last >= settings.refresh_every

    def alpha(self, state: CurvatureState) -> float:
        """α, of Newton's step."""
        return self._settings.alpha

    def scale(self, state: CurvatureState) -> float:
        """s = clip(λ_1/λ_k, 1, c), of the base's step: how far apart are the k largest eigenvalues."""
        largest = state.eigenvalue[-1, self._settings.smallest :].tolist()
        if len(largest) < 2 or largest[0] <= 0:
            return 1.0
        return max(1.0, min(largest[-1] / largest[0], SCALES[self._settings.base]))
