"""Trust regions: the step within one, and its next radius.

Steihaug, SIAM J. Numer. Anal. 20(3), 1983; Lin & Moré, SIAM J. Optim. 9(4), 1999; with the constants and the
preconditioning of LIBLINEAR 2.3 (Hsia, Chiang & Lin, ACML 2018).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

ENOUGH, POOR, GOOD = 1e-4, 0.25, 0.75
"""actual over predicted fall: above which a step is made, below which the radius shrinks, and may grow"""
LEAST, HALF, MOST = 0.25, 0.5, 4.0
"""factors of the radius"""


@dataclass(frozen=True)
class Step:
    """The end of truncated conjugate gradients on min g·s + ½ sᵀHs, √(sᵀMs) ≤ radius.

    Attributes:
        s: the step, (d,).
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


def steihaug(
    hv: Callable[[Tensor], Tensor],
    g: Tensor,
    radius: float,
    tolerance: float,
    most: int,
    precondition: Tensor | None = None,
) -> Step:
    """Conjugate gradients from 0 until √(rᵀM⁻¹r) ≤ tolerance √(gᵀM⁻¹g), ``most`` products, or the radius.

    Args:
        hv: v -> H v, positive definite; may be collective, and what it gives is not kept.
        g: (d,).
        radius: ∞ for none.
        tolerance: of the residual.
        most: products.
        precondition: the diagonal of M, (d,); M = I if None.
    """
    M = precondition
    s, r = torch.zeros_like(g), -g
    z = r if M is None else r / M
    p, zr = z.clone(), _dot(z, r)
    enough, products, length = tolerance**2 * zr, 0, 0.0
    while products < most and zr > enough:
        products += 1
        Hp = hv(p)
        alpha = zr / _dot(p, Hp)
        ahead = s + alpha * p
        length = _norm(ahead, M)
        if length > radius:
            alpha = _to_boundary(s, p, M, radius)
            return Step(s + alpha * p, r - alpha * Hp, products, True, radius)
        s, r = ahead, r - alpha * Hp
        z = r if M is None else r / M
        before, zr = zr, _dot(z, r)
        p = z + (zr / before) * p
    return Step(s, r, products, False, length)


def next_radius(
    radius: float, step: Step, slope: float, change: float, predicted: float, first: bool = False
) -> float:
    """The radius after a step was tried, as in LIBLINEAR.

    Args:
        radius: it had.
        step: what was tried.
        slope: g·s.
        change: f(w + s) − f(w).
        predicted: `Step.predicted`.
        first: of the run, whose radius is a guess.
    """
    length = step.length
    if first:
        radius = min(radius, length)
    curved = change - slope
    reach = MOST * length if curved <= 0 else max(LEAST, -0.5 * slope / curved) * length
    if -change < ENOUGH * predicted:
        return min(reach, HALF * radius)
    if -change < POOR * predicted:
        return max(LEAST * radius, min(reach, HALF * radius))
    if -change < GOOD * predicted:
        return max(LEAST * radius, min(reach, MOST * radius))
    return MOST * radius if step.boundary else max(radius, min(reach, MOST * radius))


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
