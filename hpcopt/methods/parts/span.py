"""The minimum of f over w + span V, where the margins E = X V are kept: what two methods hold.

symbol    name    shape        meaning
w                 (d here,)    parameters: of every worker here its block of them (see below)
z = X w           (r,)         margins of the rows here
V                 (d here, q)  directions: m that are kept, then those of this round
E = X V           (r, q)       their margins
s         s       (n, k)       sums of each worker here, one row for each
a                 (q,)         how far along each direction
G                 (q, q)       VᵀV
h, K              (q,), (q, q) gradient and Hessian of f(w + V a) in a
D                 (d,)         diagonal of the Hessian of f, not of today, replicated

f(w + V a) = Σ l(z + E a) + λ/2 ‖w + V a‖² needs E, G and Vᵀw, but no row of the data and no vector: a Newton
step costs a sum of q(q + 3)/2 numbers, a trial one number. Lengths of directions are of no importance.

Vectors of V, and w, are spread over the *workers*: worker p of N has coordinates `block(d, N, p)`, whose dot
products are sums over workers like all others. So they have the same bits on any number of ranks where sums
are ordered, and a rank needs memory for (m + 4) d/P numbers. Whole are only D, and g and −g/D, for margins
need all of them, and w where it is evaluated or z is computed anew.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hpcopt.ground.placement import block
from hpcopt.math.span_newton import (
    NewtonStep,
    gram,
    newton_step,
    pack,
    steepest_step,
    thin_times,
    thin_transposed_times,
    unpack,
)
from hpcopt.state import State, per_worker, replicated

if TYPE_CHECKING:
    from hpcopt.comm.ports import Reducer
    from hpcopt.config.methods import SpanTable
    from hpcopt.problems.linear_problem import LinearProblem

FEWEST, MOST = 8, 40
"""directions that "auto" keeps"""
STEEPEST, SCALED, ITSELF, ANOTHER = range(4)
"""directions of a round: −g, −g/D, w, and one that a method adds"""
ARMIJO, HALVINGS, NEWTON_STEPS, WORTH = 1e-4, 30, 8, 0.1
"""of a step: the part of the promised fall that must be there, how often it is halved; how many there are,
and which part of what the round has gained one must gain for another to follow"""
FIRST_DIAGONAL = 4
"""passes before D is computed for the first time"""
ROUNDING = 1e-16
"""of Σ l: a decrement below that is none"""


@dataclass(kw_only=True)
class SpanState(State):
    """Parameters, margins, kept directions with theirs, and D.

    Attributes:
        spent: passes, passes when D was computed (0: not yet), and directions that were ever kept.
    """

    w: Tensor = per_worker()
    z: Tensor = per_worker()
    V: Tensor = per_worker()
    E: Tensor = per_worker()
    D: Tensor = replicated()
    spent: Tensor = replicated()


@dataclass(frozen=True)
class Small:
    """The problem in a, at a = 0: what the first Newton step is made of."""

    h: Tensor
    K: Tensor


@dataclass(frozen=True)
class Found:
    """The minimum over the span: a, its margins z, by how much f fell, ‖V a‖; and where it began."""

    a: Tensor
    z: Tensor
    gain: float
    length: float
    small: Small


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
        self._rows = [problem.span(i) for i in range(share.n)]
        q, here = self.keep + 3 + another, sum(len(coordinates) for coordinates in self._blocks)
        self._V, self._E = w.new_zeros(here, q), w.new_zeros(len(problem.y), q)
        self._new = w.new_zeros(problem.dim, 2)

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
        self._part.add_transposed(problem, of_rows(problem, problem.loss.slope, state.z))
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
        c = of_rows(problem, problem.loss.curvature, state.z)
        problem.products += 1
        for i, rows in enumerate(self._rows):
            self._part.add(i, problem.rows_of_worker(i).squared_transposed_times(c[rows]))
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
        """Newton's method in a, from a = 0, on the true f. It never rises: a = 0 may remain.

        Should the first decrement be below ‖g‖⁴/gᵀHg, what −g alone promises, the step is along −g: the cut
        of small eigenvalues may have taken a part of it.
        """
        weight = self._problem.regularisation
        loss, h_l, K_l, G = self._first(state.z)
        Vw = G[:, self.keep + ITSELF]
        a, z, gained = torch.zeros_like(h_l), state.z, 0.0
        small = Small(h_l + weight * Vw, K_l + weight * G)
        h, K = small.h, small.K
        for made in range(NEWTON_STEPS):
            step = newton_step(h, K)
            if made == 0:
                step = max(step, steepest_step(h, K, self.keep + STEEPEST), key=_decrement)
            if not step.decrement > ROUNDING * abs(loss):
                break
            # t = 1, ½, ¼, …, until f has fallen by 1e-4 t δ
            e = self._each_row(self._E, step.p)
            slope, curvature = float(step.p @ (Vw + G @ a)), float(step.p @ G @ step.p)
            t, fall, trial = 1.0, 0.0, loss
            for _ in range(HALVINGS):
                trial = self._loss(torch.add(z, e, alpha=t))
                fall = loss - trial - weight * (t * slope + t * t / 2 * curvature)
                if fall >= ARMIJO * t * step.decrement:
                    break
                t /= 2
            else:
                break
            a, z, loss, gained = a + t * step.p, torch.add(z, e, alpha=t), trial, gained + fall
            if fall < WORTH * gained or made == NEWTON_STEPS - 1:
                break
            h_l, K_l = self._again(z)
            h, K = h_l + weight * (Vw + G @ a), K_l + weight * G
        return Found(a, z, gained, float((a @ G @ a).clamp(min=0).sqrt()), small)

    def move(self, state: SpanState, found: Found, another: bool = False) -> None:
        """w += V a, z += E a; what is kept: −g/D, the other one if there is one, and the step."""
        if found.length == 0:
            return
        s, e = self._each(self._V, self._own, found.a), self._each_row(self._E, found.a)
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

    # --- sums over all workers ----------------------------------------------------------------------------

    def _first(self, z: Tensor) -> tuple[float, Tensor, Tensor, Tensor]:
        """Σ l, Eᵀ l', Eᵀ l'' E and G, in one sum."""
        q = self._E.shape[1]
        grams = [pack(gram(self._V[own])) for own in self._own]
        triangle = q * (q + 1) // 2
        total = self._sum([self._losses(z), self._derivatives(z), self._stack(grams, triangle)])
        loss, h, K, G = total.split([1, q, triangle, triangle])
        return float(loss), h.clone(), unpack(K, q), unpack(G, q)

    def _again(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Eᵀ l' and Eᵀ l'' E."""
        q = self._E.shape[1]
        h, K = self._sum([self._derivatives(z)]).split([q, q * (q + 1) // 2])
        return h.clone(), unpack(K, q)

    def _loss(self, z: Tensor) -> float:
        """Σ l."""
        return float(self._sum([self._losses(z)]))

    def _losses(self, z: Tensor) -> Tensor:
        """Of every worker here, (n, 1)."""
        return self._problem.sums(of_rows(self._problem, self._problem.loss.value, z))[:, None]

    def _derivatives(self, z: Tensor) -> Tensor:
        """Of every worker here E_pᵀ l' and E_pᵀ l'' E_p, (n, q(q + 3)/2)."""
        loss, q = self._problem.loss, self._E.shape[1]
        slope, curvature = (of_rows(self._problem, of, z) for of in (loss.slope, loss.curvature))
        found = [
            torch.cat(
                [
                    thin_transposed_times(self._E[rows], slope[rows]),
                    pack(gram(self._E[rows], curvature[rows])),
                ]
            )
            for rows in self._rows
        ]
        return self._stack(found, q * (q + 3) // 2)

    def _sum(self, columns: list[Tensor]) -> Tensor:
        return self._reduce.scalars(torch.cat(columns, 1)).cpu()

    def _stack(self, rows: list[Tensor], width: int) -> Tensor:
        return torch.stack(rows) if rows else self._E.new_zeros(0, width, dtype=torch.float64)

    def _each_row(self, A: Tensor, a: Tensor) -> Tensor:
        return self._each(A, self._rows, a)

    def _each(self, A: Tensor, spans: list[slice], a: Tensor) -> Tensor:
        """A a, worker by worker."""
        product = A.new_empty(len(A))
        for span in spans:
            product[span] = thin_times(A[span], a)
        return product


def of_rows(problem: LinearProblem, of: Callable[[Tensor, Tensor], Tensor], z: Tensor) -> Tensor:
    """l, l' or l'' of margins z and the targets, (r,), worker by worker.

    torch computes exponentials of the last few numbers of a vector in another way than those before them: of
    all rows at once, a worker's numbers would depend on who else lives here.
    """
    values = torch.empty_like(z)
    for i in range(problem.share.n):
        rows = problem.span(i)
        values[rows] = of(z[rows], problem.y[rows])
    return values


def kept(d: int) -> int:
    """Directions for which m²/2 numbers are at most a tenth of d; at least 8, at most 40."""
    return min(max(int((d / 5) ** 0.5), FEWEST), MOST)


def _unit(v: Tensor) -> Tensor:
    """v/‖v‖, or 0."""
    length = torch.linalg.vector_norm(v)
    return v / length if length > 0 else torch.zeros_like(v)


def _decrement(step: NewtonStep) -> float:
    return step.decrement
