"""The spectral density of a symmetric matrix that is known by its products: stochastic Lanczos quadrature.

For a random v of length 1, m steps of Lanczos' method from v give nodes θ_i and weights w_i = (e_1·s_i)², of
sum 1, with Σ w_i p(θ_i) = vᵀ p(H) v for every polynomial p of degree below 2m. The mean over v is tr p(H)/d:
nodes and weights of a few random vectors stand for the distribution of all d eigenvalues.

Reference: Ghorbani, Krishnan, Xiao, "An investigation into neural net optimization via Hessian eigenvalue
density", ICML 2019, algorithm 2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from hpcopt.math.ritz import Basis


def quadrature(
    matvec: Callable[[Tensor], Tensor],
    sums: Callable[[Tensor], Tensor],
    size: int,
    fresh: Iterator[Tensor],
    like: Tensor,
    probes: int,
    nodes: int,
) -> tuple[Tensor, Tensor]:
    """Nodes and weights of some random vectors, (probes, m) float64 each, m = min(nodes, d). Collective.

    Args:
        matvec, sums: see `hpcopt.math.lanczos.lanczos`.
        size: d.
        fresh: random vectors of normal numbers, slices (d here,).
        like: a vector (d here,) of the basis's dtype.
        probes: how many random vectors.
        nodes: products with H for each of them.
    """
    m = min(nodes, size)
    values, weights = torch.full((2, probes, m), torch.nan, dtype=torch.float64)
    for value, weight in zip(values, weights, strict=True):
        basis = Basis(matvec, sums, m + 1, like)
        while basis.finite and basis.expanded < m:
            basis.expand(fresh)
        if basis.finite:
            pairs = basis.ritz()
            value.copy_(pairs.values)
            weight.copy_(pairs.vectors[0].square())
    return values, weights
