"""f over w + span V as a function of a few numbers, and its minimum by Newton's method.

symbol    shape        meaning
z = X w   (r,)         margins of the rows here
V         (d here, q)  directions; those of no interest are 0
E = X V   (r, q)       their margins
a         (q,)         how far along each direction
G         (q, q)       VᵀV
h, K      (q,), (q, q) gradient and Hessian of f(w + V a) in a
δ                      decrement hᵀK⁻¹h of a step, twice the fall that it promises

    f(w + V a) = Σ l(z + E a) + λ/2 ‖w + V a‖²

needs E, G and Vᵀw, but no row of the data and no vector: a Newton step costs a sum of q(q + 3)/2 numbers, a
trial one number. Lengths of directions are of no importance.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

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

if TYPE_CHECKING:
    from hpcopt.comm.ports import Reducer
    from hpcopt.problems.linear_problem import LinearProblem

ARMIJO, HALVINGS, NEWTON_STEPS, WORTH = 1e-4, 30, 8, 0.1
"""of a step: the part of the promised fall that must be there, how often it is halved; how many there are,
and which part of what the round has gained one must gain for another to follow"""
ROUNDING = 1e-15
"""of f: a decrement below that is none, for f itself is not known any better"""


@dataclass(frozen=True)
class Small:
    """Gradient and Hessian at a = 0: what the first Newton step is made of."""

    h: Tensor
    K: Tensor


@dataclass(frozen=True)
class Found:
    """The minimum: a, its margins z, by how much f fell, ‖V a‖; and where it began."""

    a: Tensor
    z: Tensor
    gain: float
    length: float
    small: Small


class Subspace:
    """The directions of the workers here, and f over their span.

    Args:
        problem: the workers here.
        reduce: sums over all workers.
        V, E: directions and their margins, changed by others from round to round.
        own: which rows of V are those of each worker here.
        gradient, itself: which columns are along −g and are w.
    """

    def __init__(
        self,
        problem: LinearProblem,
        reduce: Reducer,
        V: Tensor,
        E: Tensor,
        own: list[slice],
        gradient: int,
        itself: int,
    ) -> None:
        self._problem, self._reduce = problem, reduce
        self._V, self._E, self._own = V, E, own
        self._rows = [problem.span(i) for i in range(problem.share.n)]
        self._gradient, self._itself = gradient, itself

    def minimise(self, z: Tensor) -> Found:
        """Newton's method in a, from a = 0, on the true f. It never rises: a = 0 may remain.

        Should the first decrement be below ‖g‖⁴/gᵀHg, what −g alone promises, the step is along −g: the cut
        of small eigenvalues may have taken a part of it.
        """
        weight = self._problem.regularisation
        loss, h_l, K_l, G = self._first(z)
        Vw = G[:, self._itself]
        a, gained = torch.zeros_like(h_l), 0.0
        least = ROUNDING * (loss + weight / 2 * float(Vw[self._itself]))
        small = Small(h_l + weight * Vw, K_l + weight * G)
        h, K = small.h, small.K
        for made in range(NEWTON_STEPS):
            # p = −K⁺h, or along −g if that promises more
            step = newton_step(h, K)
            if made == 0:
                step = max(step, steepest_step(h, K, self._gradient), key=lambda step: step.decrement)
            if not step.decrement > least:
                break
            # a += t p, z += t E p
            slope, curvature = float(step.p @ (Vw + G @ a)), float(step.p @ G @ step.p)
            t, fall = self._search(step, z, loss, weight * slope, weight * curvature)
            if t == 0:
                break
            a, z = a + t * step.p, torch.add(z, self.margins(step.p), alpha=t)
            # until a step gains less than a tenth of what all have gained
            gained += fall
            if fall < WORTH * gained or made == NEWTON_STEPS - 1:
                break
            loss, h_l, K_l = self._again(z)
            h, K = h_l + weight * (Vw + G @ a), K_l + weight * G
        return Found(a, z, gained, float((a @ G @ a).clamp(min=0).sqrt()), small)

    def _search(
        self, step: NewtonStep, z: Tensor, loss: float, slope: float, curvature: float
    ) -> tuple[float, float]:
        """The first of t = 1, ½, ¼, … from which f falls by at least 1e-4 t δ, and the fall; 0, 0 if none.

        Args:
            step: p and δ.
            z, loss: margins at a, and Σ l there.
            slope, curvature: of λ/2 ‖w + V (a + t p)‖² in t at 0.
        """
        e, t = self.margins(step.p), 1.0
        for _ in range(HALVINGS):
            trial = self._loss(torch.add(z, e, alpha=t))
            fall = loss - trial - t * slope - t * t / 2 * curvature
            if fall >= ARMIJO * t * step.decrement:
                return t, fall
            t /= 2
        return 0.0, 0.0

    def margins(self, a: Tensor) -> Tensor:
        """E a, (r,)."""
        return _times(self._E, self._rows, a)

    def vector(self, a: Tensor) -> Tensor:
        """V a, (d here,)."""
        return _times(self._V, self._own, a)

    # --- sums over all workers ----------------------------------------------------------------------------

    def _first(self, z: Tensor) -> tuple[float, Tensor, Tensor, Tensor]:
        """Σ l, Eᵀ l', Eᵀ l'' E and G, in one sum."""
        q = self._E.shape[1]
        grams = [pack(gram(self._V[own])) for own in self._own]
        triangle = q * (q + 1) // 2
        total = self._sum([self._losses(z), self._derivatives(z), self._stack(grams, triangle)])
        loss, h, K, G = total.split([1, q, triangle, triangle])
        return float(loss), h.clone(), unpack(K, q), unpack(G, q)

    def _again(self, z: Tensor) -> tuple[float, Tensor, Tensor]:
        """Σ l, Eᵀ l' and Eᵀ l'' E."""
        q = self._E.shape[1]
        total = self._sum([self._losses(z), self._derivatives(z)])
        loss, h, K = total.split([1, q, q * (q + 1) // 2])
        return float(loss), h.clone(), unpack(K, q)

    def _loss(self, z: Tensor) -> float:
        """Σ l."""
        return float(self._sum([self._losses(z)]))

    def _losses(self, z: Tensor) -> Tensor:
        """Of every worker here, (n, 1)."""
        return self._problem.sums(self._problem.of_rows(self._problem.loss.value, z))[:, None]

    def _derivatives(self, z: Tensor) -> Tensor:
        """Of every worker here E_pᵀ l' and E_pᵀ l'' E_p, (n, q(q + 3)/2)."""
        loss, q = self._problem.loss, self._E.shape[1]
        slope, curvature = (self._problem.of_rows(of, z) for of in (loss.slope, loss.curvature))
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


def _times(A: Tensor, spans: list[slice], a: Tensor) -> Tensor:
    """A a, worker by worker."""
    product = A.new_empty(len(A))
    for span in spans:
        product[span] = thin_times(A[span], a)
    return product
