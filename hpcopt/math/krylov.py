"""Conjugate gradients whose result is a stable function of what they are given.

Where the matrix has a few large eigenvalues, as data with a mean have, the plain recurrence multiplies a
rounding error of its right-hand side by 10¹² within ten iterations: the iterates are as good as others, but
they are others on another number of processes. Residuals that are kept, and made orthogonal to each other
again, stay within some roundings of what exact arithmetic gives (full reorthogonalisation: Golub & Van Loan,
"Matrix Computations", section 10.3). It costs memory for as many vectors as iterations, and twice their dot
products; so it is for systems that one process solves on its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from hpcopt.math.trust_region import Step


def conjugate_gradients(
    hv: Callable[[Tensor], Tensor],
    g: Tensor,
    most: int,
    radius: float = math.inf,
    tolerance: float = 0.0,
) -> Step:
    """``most`` iterations from 0 on min g·s + ½ sᵀHs, ‖s‖ ≤ radius; fewer at the radius or where Hs = −g.

    Args:
        hv: v -> H v, positive definite; what it gives is not kept.
        g: (m,).
        most: iterations, each a product with H.
        radius: ∞ for none.
        tolerance: of ‖g + Hs‖, relative to ‖g‖; at least what rounding allows.
    """
    s, r, p = torch.zeros_like(g), -g, torch.zeros_like(g)
    kept = g.new_empty(min(most, len(g)), len(g))
    first = before = _dot(r, r)
    enough = max(torch.finfo(g.dtype).eps / 2, tolerance) ** 2 * first
    for product in range(len(kept)):
        rr = _dot(r, r)
        if not rr > enough:
            return Step(s, r, product, False, math.sqrt(_dot(s, s)))
        torch.mul(r, 1 / math.sqrt(rr), out=kept[product])
        p = torch.add(r, p, alpha=rr / before)
        Hp = hv(p)
        alpha = rr / _dot(p, Hp)
        ahead = torch.add(s, p, alpha=alpha)
        if _dot(ahead, ahead) > radius * radius:
            alpha = _to_boundary(s, p, radius)
            return Step(s + alpha * p, r - alpha * Hp, product + 1, True, radius)
        s, before = ahead, rr
        r = torch.sub(r, Hp, alpha=alpha)
        earlier = kept[: product + 1]
        r -= earlier.T @ (earlier @ r)
    return Step(s, r, len(kept), False, math.sqrt(_dot(s, s)))


def _to_boundary(s: Tensor, p: Tensor, radius: float) -> float:
    """α > 0 with ‖s + α p‖ = radius."""
    sp, pp = _dot(s, p), _dot(p, p)
    inside = radius * radius - _dot(s, s)
    root = math.sqrt(max(0.0, sp * sp + pp * inside))
    return inside / (sp + root) if sp >= 0 else (root - sp) / pp


def _dot(a: Tensor, b: Tensor) -> float:
    return float(torch.dot(a, b))
