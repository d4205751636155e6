"""Conjugate gradients, truncated: where the residual is small, or at the radius of a trust region.

Steihaug, SIAM J. Numer. Anal. 20(3), 1983.

Where the matrix has a few large eigenvalues, as data with a mean have, the recurrence multiplies a rounding
error of its right-hand side by 10¹² within ten iterations: the iterates are as good as others, but they are
others on another number of processes. Residuals that are kept, and made orthogonal to each other again, stay
within some roundings of what exact arithmetic gives (full reorthogonalisation: Golub & Van Loan, "Matrix
Computations", section 10.3). It costs memory for as many vectors as iterations, and twice their dot products;
so it is for systems that one process solves on its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Step:
    """The end of conjugate gradients on min g·s + ½ sᵀHs, √(sᵀMs) ≤ radius.

    Attributes:
        s: the step, (d,); nan where the first product with H overflowed.
        residual: −g − H s, (d,).
        products: with H.
        boundary: whether it ended at the radius.
        length: √(sᵀMs).
    """

    s: Tensor
    residual: Tensor
    products: int
    boundary: bool
    length: float

    def predicted(self, g: Tensor) -> float:
        """By how much the quadratic model falls, −g·s − ½ sᵀHs."""
        return -0.5 * (_dot(g, self.s) - _dot(self.s, self.residual))


def conjugate_gradients(
    hv: Callable[[Tensor], Tensor],
    g: Tensor,
    most: int,
    radius: float = math.inf,
    tolerance: float = 0.0,
    precondition: Tensor | None = None,
    stable: bool = False,
) -> Step:
    """Iterations from 0 until √(rᵀM⁻¹r) ≤ tolerance √(gᵀM⁻¹g), ``most`` products, or the radius.

    Args:
        hv: v -> H v, positive definite; may be collective, and what it gives is not kept.
        g: (d,).
        most: products, at most d where residuals are kept.
        radius: ∞ for none.
        tolerance: of the residual; at least half a rounding.
        precondition: the diagonal of M, (d,); M = I if None.
        stable: keep residuals, so that the step is a stable function of g. Not with a preconditioner.
    """
    M = precondition
    most = min(most, len(g)) if stable else most
    kept = g.new_empty(most if stable else 0, len(g))
    s, r, p, before, length, enough = torch.zeros_like(g), -g, torch.zeros_like(g), 1.0, 0.0, 0.0
    for product in range(most):
        z = r if M is None else r / M
        zr = _dot(z, r)
        if product == 0:
            enough = max(torch.finfo(g.dtype).eps / 2, tolerance) ** 2 * zr
        if not zr > enough:
            return Step(s, r, product, False, length)
        p = torch.add(z, p, alpha=zr / before)
        Hp = hv(p)
        curvature = _dot(p, Hp)
        if not 0 < curvature < math.inf:  # it has under- or overflowed
            if product == 0 and not curvature < math.inf:
                s.fill_(math.nan)
            return Step(s, r, product + 1, False, length)
        alpha = zr / curvature
        ahead = torch.add(s, p, alpha=alpha)
        length = _norm(ahead, M)
        if length > radius:
            alpha = _to_boundary(s, p, M, radius)
            return Step(s + alpha * p, r - alpha * Hp, product + 1, True, radius)
        if stable:
            torch.mul(r, 1 / math.sqrt(zr), out=kept[product])
        s, before = ahead, zr
        r = torch.sub(r, Hp, alpha=alpha)
        if stable:
            earlier = kept[: product + 1]
            r -= earlier.T @ (earlier @ r)
    return Step(s, r, most, False, length)


def _to_boundary(s: Tensor, p: Tensor, M: Tensor | None, radius: float) -> float:
    """α > 0 with ‖s + α p‖ = radius in M's norm."""
    Mp = p if M is None else M * p
    sp, pp = _dot(s, Mp), _dot(p, Mp)
    inside = radius * radius - _norm(s, M) ** 2
    root = math.sqrt(max(0.0, sp * sp + pp * inside))
    return inside / (sp + root) if sp >= 0 else (root - sp) / pp


def _norm(v: Tensor, M: Tensor | None) -> float:
    return math.sqrt(_dot(v, v if M is None else M * v))


def _dot(a: Tensor, b: Tensor) -> float:
    return float(torch.dot(a, b))
