"""What a worker knows of the whole objective f near w: its own losses, their number scaled up, and ∇f(w).

Mahajan, Agrawal, Keerthi, Sellamanickam & Bottou, "An efficient distributed learning algorithm based on
effective local functional approximations", JMLR 19(74), 2018.

symbol    name          shape     meaning
z, s      z, s          (r_p,)    margins X_p w of the worker's rows, and X_p v of a step v from w
λ         regularisation
c                                 rows of all workers over those of this one

All approximations are one formula with two numbers a and b:

    f̂_p(w + v) = f(w) + g·v + λ/2 ‖v‖² + Σ_i β_i(s_i)
    β(s) = a [l(z + s) − l(z) − l'(z) s] + b/2 l''(z) s²

    linear a = 1, b = 0;  hybrid 1, c − 1;  quadratic 0, c;  nonlinear c, 0

β and its derivative are 0 at s = 0, so ∇f̂_p(w) = g whatever a and b are. The additive constant is left out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hpcopt.math.flat import aligned
from hpcopt.math.losses import MarginLoss
from hpcopt.math.matrix import Matrix

EXACT = 1e-6
"""of ‖g‖²: below this, ‖g_off‖² is a sum of squares and no difference of two"""


def factors(approximation: str, c: float) -> tuple[float, float]:
    """a and b of an approximation."""
    return {"linear": (1.0, 0.0), "hybrid": (1.0, c - 1), "nonlinear": (c, 0.0)}.get(approximation, (0.0, c))


class Support:
    """A worker's rows on their own columns S, and vectors of the whole as |S| + 1 numbers.

    Off S every vector of an inner solver that starts at w is a multiple of g_off: gradients of f̂_p are
    g + λv + X_pᵀ(…), and columns of X_p outside of S are empty. So v_S and u = ±‖v_off‖, the coordinate along
    g_off/‖g_off‖, say all of v, dot products stay what they are, and iterates are those in d dimensions.

    Where rows are dense, S is everything and there is no coordinate u.

    Args:
        rows: X_p.

    Attributes:
        columns: S, (s,) int64; None: everything.
        matrix: the rows on S.
    """

    def __init__(self, rows: Matrix) -> None:
        found = rows.compressed()
        self.columns: Tensor | None = None
        self.matrix = rows
        if found is not None:
            self.columns, self.matrix = found
        self._dim = rows.shape[1]

    def take(self, g: Tensor, square: float) -> Tensor:
        """g, (d,), in these coordinates; ``square``: ‖g‖²."""
        if self.columns is None:
            return g
        q = g.new_empty(len(self.columns) + 1)
        torch.index_select(g, 0, self.columns, out=q[:-1])
        q[-1] = self._length_off(g, q[:-1], square)
        return q

    def times(self, q: Tensor) -> Tensor:
        """X_p v of v in these coordinates."""
        return self.matrix.times(q if self.columns is None else q[:-1])

    def transposed_times(self, c: Tensor) -> Tensor:
        """X_pᵀ c in these coordinates; new memory."""
        inside = self.matrix.transposed_times(c)
        return inside if self.columns is None else torch.cat([inside, inside.new_zeros(1)])

    def add_to(self, out: Tensor, q: Tensor, q_g: Tensor, weight: float) -> float:
        """Adds to out (d,) what ``weight`` times v is beside α g, and gives ``weight`` times α.

        α is v's multiple of g off S, so that out is touched on S alone.

        Args:
            out: (d,).
            q, q_g: v and g in these coordinates.
            weight: of v.
        """
        if self.columns is None:
            out.add_(q, alpha=weight)
            return 0.0
        length = float(q_g[-1])
        alpha = float(q[-1]) / length if length > 0 else 0.0
        out.index_add_(0, self.columns, torch.add(q, q_g, alpha=-alpha)[:-1], alpha=weight)
        return weight * alpha

    def _length_off(self, g: Tensor, inside: Tensor, square: float) -> float:
        """‖g_off‖, by as many numbers as there are in S where that is accurate."""
        if len(inside) == self._dim:
            return 0.0
        rest = square - float(torch.dot(inside, inside))
        if rest > EXACT * square:
            return rest**0.5
        assert self.columns is not None
        return float(g.index_fill(0, self.columns, 0).norm())


@dataclass(frozen=True)
class LocalModel:
    """f̂_p in the coordinates of a `Support`; v is a step from w and s = X_p v.

    Attributes:
        support, loss, y, regularisation: of the worker and the problem.
        z: margins at w, (r_p,).
        slope, curvature: l'(z), l''(z).
        g: ∇f(w) in these coordinates.
        factors: a and b, which say which approximation.
    """

    support: Support
    loss: MarginLoss
    y: Tensor
    z: Tensor
    slope: Tensor
    curvature: Tensor
    g: Tensor
    regularisation: float
    factors: tuple[float, float]

    def value(self, v: Tensor, s: Tensor) -> float:
        """f̂_p(w + v) − f(w)."""
        a, b = self.factors
        beta = b / 2 * self.curvature * s * s
        if a:
            risen = self.loss.value(self.z + s, self.y) - self.loss.value(self.z, self.y)
            beta += a * (risen - self.slope * s)
        penalty = self.regularisation / 2 * torch.dot(v, v)
        return float(torch.dot(self.g, v) + penalty + beta.sum())

    def gradient(self, v: Tensor, s: Tensor) -> Tensor:
        """∇f̂_p(w + v)."""
        a, b = self.factors
        slope = b * self.curvature * s
        if a:
            slope += a * (self.loss.slope(self.z + s, self.y) - self.slope)
        return self.support.transposed_times(slope).add_(v, alpha=self.regularisation).add_(self.g)

    def hessian(self, s: Tensor) -> Callable[[Tensor], Tensor]:
        """p -> ∇²f̂_p(w + v) p."""
        a, b = self.factors
        c = b * self.curvature
        if a:
            c += a * self.loss.curvature(self.z + s, self.y)
        support, strength = self.support, self.regularisation

        def product(p: Tensor) -> Tensor:
            Xp = support.times(aligned(p))
            return support.transposed_times(c * Xp).add_(p, alpha=strength)

        return product
