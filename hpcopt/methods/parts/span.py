"""Directions that are kept with their margins, and over whose span f is minimised: what two methods hold.

symbol    name    shape        meaning
w         w       (d here,)    parameters: of every worker here its block of them
z = X w   z       (r,)         margins of the rows here
V         V       (d here, m)  kept directions: the oldest make room
E = X V   E       (r, m)       their margins
D         D       (d,)         diagonal of the Hessian of f as it was some passes ago, replicated
          spent   (3,)         passes, passes when D was computed (0: not yet), directions that were ever kept

Vectors of V, and w, are spread over the *workers*: worker p of N has coordinates `block(d, N, p)`, whose dot
products are sums over workers like all others. So they have the same bits on any number of ranks where sums
are ordered, and a rank needs memory for (m + 4) d/P numbers. Whole are only D, and g and −g/D, for margins
need all of them, and w where it is evaluated or z is computed anew.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hpcopt.ground.placement import block
from hpcopt.methods.parts.linear import add_squares
from hpcopt.methods.parts.subspace import Found, Subspace
from hpcopt.state import State, per_worker, replicated

if TYPE_CHECKING:
    from hpcopt.comm.ports import Reducer
    from hpcopt.config.methods.linear import SpanTable
    from hpcopt.problems.linear_problem import LinearProblem

FEWEST, MOST = 8, 40
"""directions that "auto" keeps"""
STEEPEST, SCALED, ITSELF, ANOTHER = range(4)
"""directions of a round: −g, −g/D, w, and one that a method adds"""
FIRST_DIAGONAL = 4
"""passes before D is computed for the first time"""


@dataclass(kw_only=True)
class SpanState(State):
    """Parameters, margins, kept directions with theirs, D, and counts."""

    w: Tensor = per_worker()
    z: Tensor = per_worker()
    V: Tensor = per_worker()
    E: Tensor = per_worker()
    D: Tensor = replicated()
    spent: Tensor = replicated()


class Span:
    """Directions of the workers here, kept ones and those of this round.

    Args:
        settings: how many are kept, and how often D and z are computed.
        problem: the workers here.
        reduce: sums over all workers.
        another: whether there is a fourth direction of this round.
    """

    def __init__(self, settings: SpanTable, problem: LinearProblem, reduce: Reducer, another: bool) -> None:
        self._settings, self._problem, self._reduce = settings, problem, reduce
        self.keep = kept(problem.dim) if settings.keep == "auto" else settings.keep
        self._part = reduce.contribution(problem.dim)
        share, w = problem.share, problem.initial()
        self._blocks = [block(problem.dim, share.total, worker) for worker in share.workers]
        ends = accumulate((len(coordinates) for coordinates in self._blocks), initial=0)
        self._own = [slice(*ends) for ends in pairwise(ends)]
        q, here = self.keep + 3 + another, sum(len(coordinates) for coordinates in self._blocks)
        self._V, self._E = w.new_zeros(here, q), w.new_zeros(len(problem.y), q)
        self._new = w.new_zeros(problem.dim, 2)
        self._subspace = Subspace(
            problem, reduce, self._V, self._E, self._own, self.keep + STEEPEST, self.keep + ITSELF
        )

    def begin(self) -> dict[str, Any]:
        """The tensors of a `SpanState` of round 0, at w = 0."""
        w = self._problem.initial()
        V, E = self._V[:, : self.keep], self._E[:, : self.keep]
        spent = torch.zeros(3, dtype=torch.int64)
        return {
            "w": w.new_zeros(len(V)),
            "z": w.new_zeros(len(E)),
            "V": V,
            "E": E,
            "D": torch.zeros_like(w),
            "spent": spent,
        }

    # --- directions -------------------------------------------------------------------------------------

    def gradient(self, state: SpanState) -> Tensor:
        """g = λ w + Σ X_pᵀ l'(z_p), (d,), the same bits on every rank. One pass."""
        problem = self._problem
        self._part.add_transposed(problem, problem.of_rows(problem.loss.slope, state.z))
        for i, coordinates in enumerate(self._blocks):
            mine = self._part.of(i)[coordinates.start : coordinates.stop]
            mine.add_(state.w[self._own[i]], alpha=problem.regularisation)
        state.spent[0] += 1
        return self._part.sum().clone()

    def refresh_diagonal(self, state: SpanState) -> None:
        """D = λ + Σ (X_p∘X_p)ᵀ l''(z_p), if it is time to. One pass."""
        passes, last, _ = state.spent.tolist()
        if passes < (last + self._settings.diagonal_every if last else FIRST_DIAGONAL):
            return
        problem = self._problem
        problem.products += 1
        add_squares(self._part, problem, problem.of_rows(problem.loss.curvature, state.z))
        torch.add(self._part.sum(), problem.regularisation, out=state.D)
        state.spent[0] += 1
        state.spent[1] = state.spent[0]

    def take_gradient(self, state: SpanState, g: Tensor) -> None:
        """−g, −g/D and w are directions of this round, the second one once there is a D. One product."""
        self._new[:, 0] = -_unit(g)
        self._new[:, 1] = -_unit(g / state.D) if state.spent[1] else 0.0
        self._take(STEEPEST, self._new)
        self._V[:, self.keep + ITSELF], self._E[:, self.keep + ITSELF] = state.w, state.z

    def take_another(self, state: SpanState, d: Tensor | None) -> None:
        """So is d (d,), the same on every rank, which took a pass. One product. None: there is none."""
        if d is None:
            self._V[:, self.keep + ANOTHER], self._E[:, self.keep + ANOTHER] = 0, 0
        else:
            self._take(ANOTHER, _unit(d)[:, None])
            state.spent[0] += 1

    def _take(self, first: int, columns: Tensor) -> None:
        where = slice(self.keep + first, self.keep + first + columns.shape[1])
        self._E[:, where] = self._problem.margins(columns)
        for own, coordinates in zip(self._own, self._blocks, strict=True):
            self._V[own, where] = columns[coordinates.start : coordinates.stop]

    # --- the minimum ------------------------------------------------------------------------------------

    def minimise(self, state: SpanState) -> Found:
        """The minimum of f over w + span V. f never rises: a = 0 may remain."""
        return self._subspace.minimise(state.z)

    def move(self, state: SpanState, found: Found, another: bool = False) -> None:
        """w += V a, z += E a; what is kept: −g/D, the other one if there is one, and the step."""
        if found.length == 0:
            return
        s, e = self._subspace.vector(found.a), self._subspace.margins(found.a)
        state.w += s
        state.z.copy_(found.z)
        for new in [SCALED] * bool(state.spent[1]) + [ANOTHER] * another:
            self._keep(state, self._V[:, self.keep + new], self._E[:, self.keep + new])
        self._keep(state, s / found.length, e / found.length)
        if (state.round + 1) % self._settings.margins_every == 0:
            state.z.copy_(self._problem.margins(self.whole(state)))

    def whole(self, state: SpanState) -> Tensor:
        """w, (d,), from the workers' blocks of it. Half a pass."""
        return self._reduce.allgather(state.w, self._problem.dim, by_worker=True)

    def _keep(self, state: SpanState, v: Tensor, e: Tensor) -> None:
        """In place of the oldest."""
        slot = int(state.spent[2]) % self.keep
        state.V[:, slot], state.E[:, slot] = v, e
        state.spent[2] += 1


def kept(d: int) -> int:
    """Directions for which m²/2 numbers are at most a tenth of d; at least 8, at most 40."""
    return min(max(int((d / 5) ** 0.5), FEWEST), MOST)


def _unit(v: Tensor) -> Tensor:
    """v/‖v‖, or 0."""
    length = torch.linalg.vector_norm(v)
    return v / length if length > 0 else torch.zeros_like(v)
