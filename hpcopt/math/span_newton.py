"""Newton's method in a few unknowns: tall, thin matrices, and one step on a small one.

Tall matrices A (rows, q) are worked through in pieces, so that nothing as large as they are is made beside
them, and each piece is copied to aligned memory where it is not: a worker's numbers are the same in any
process.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hpcopt.math.flat import aligned

PIECE = 1024
"""rows at a time"""
CUT = 1e-9
"""eigenvalues below this part of the largest are taken for 0"""


def gram(A: Tensor, c: Tensor | None = None) -> Tensor:
    """Aᵀ diag(c) A, (q, q) float64, of c ≥ 0 (rows,); ones if there is none."""
    total = A.new_zeros(A.shape[1], A.shape[1], dtype=torch.float64)
    for start in range(0, len(A), PIECE):
        piece = slice(start, start + PIECE)
        part = aligned(A[piece]) if c is None else A[piece] * c[piece].sqrt()[:, None]
        total += part.T @ part
    return total


def thin_times(A: Tensor, a: Tensor) -> Tensor:
    """A a, (rows,), of a (q,)."""
    product, a = A.new_empty(len(A)), a.to(A)
    for start in range(0, len(A), PIECE):
        piece = slice(start, start + PIECE)
        product[piece] = aligned(A[piece]) @ a
    return product


def thin_transposed_times(A: Tensor, c: Tensor) -> Tensor:
    """Aᵀ c, (q,) float64, of c (rows,)."""
    total = A.new_zeros(A.shape[1], dtype=torch.float64)
    for start in range(0, len(A), PIECE):
        piece = slice(start, start + PIECE)
        total += aligned(A[piece]).T @ aligned(c[piece])
    return total


@dataclass(frozen=True)
class NewtonStep:
    """p (q,) that minimises h·p + ½ pᵀK p, and the decrement δ = −h·p: half of it is what p promises."""

    p: Tensor
    decrement: float


def newton_step(h: Tensor, K: Tensor) -> NewtonStep:
    """p = −K⁺h where K (q, q) is scaled to a unit diagonal and its small eigenvalues count as 0.

    The scaling makes p independent of the lengths of the directions; one of length 0 (a row and a column of
    zeros) takes no part.
    """
    diagonal = K.diagonal()
    scale = torch.where(diagonal > 0, diagonal, torch.inf).rsqrt()
    values, U = torch.linalg.eigh(K * scale[:, None] * scale)
    large = values > CUT * values[-1].clamp(min=0)
    along = torch.where(large, U.T @ (scale * h), 0)
    solved = along / torch.where(large, values, 1)
    return NewtonStep(-scale * (U @ solved), float(along @ solved))


def steepest_step(h: Tensor, K: Tensor, j: int) -> NewtonStep:
    """The same along direction j alone: δ = h_j²/K_jj."""
    p = torch.zeros_like(h)
    if K[j, j] > 0:
        p[j] = -h[j] / K[j, j]
    return NewtonStep(p, float(-h[j] * p[j]))


def without(h: Tensor, K: Tensor, j: int) -> NewtonStep:
    """The step in all directions but j."""
    kept = [i for i in range(len(h)) if i != j]
    step = newton_step(h[kept], K[kept][:, kept])
    p = torch.zeros_like(h)
    p[kept] = step.p
    return NewtonStep(p, step.decrement)


def pack(K: Tensor) -> Tensor:
    """The upper triangle of symmetric matrices (..., q, q), (..., q(q + 1)/2)."""
    rows, columns = torch.triu_indices(K.shape[-1], K.shape[-1])
    return K[..., rows, columns]


def unpack(triangle: Tensor, q: int) -> Tensor:
    """The symmetric matrix (q, q) of an upper triangle."""
    K = triangle.new_empty(q, q)
    rows, columns = torch.triu_indices(q, q)
    K[rows, columns] = triangle
    K[columns, rows] = triangle
    return K
