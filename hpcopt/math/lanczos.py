"""Extreme eigenpairs of a symmetric matrix that is known by its products, vectors in slices.

Lanczos' method with full orthogonalisation (classical Gram-Schmidt, twice), thick restarts and, for multiple
eigenvalues, further sweeps; what it works on is `hpcopt.math.ritz.Basis`. A product costs two sums of at most
as many numbers as the basis has vectors, and the basis is nowhere whole: a process has its slice of each.

Two uses:

- *cheap*, ``tolerance=None``: exactly ``iterations`` products, whatever they give. With the residuals.
- *converged*: restarts until all residuals are at most ``tolerance`` times the largest |θ|. A Krylov space
  has one vector of each eigenspace; so with ``copies`` a random vector joins the pairs that were found, and
  all goes on until the next eigenvalue at each end has converged too; if the pairs are then others, again.

References: Wu, Simon, "Thick-restart Lanczos method for large symmetric eigenvalue problems", SIAM J. Matrix
Anal. Appl. 22, 2000; Stathopoulos, Saad, Wu, "Dynamic thick restarting of the Davidson, and the implicitly
restarted Arnoldi methods", SIAM J. Sci. Comput. 19, 1998.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count

import torch
from torch import Tensor

from hpcopt.math.ritz import NOTHING, Basis, Ritz
from hpcopt.math.streams import stream

BLOCK = 1 << 12
"""numbers of a random vector that come from one stream"""


@dataclass(frozen=True)
class Eigenpairs:
    """The l smallest and then the k largest eigenvalues, ascending, with what belongs to them.

    Attributes:
        values: (l + k,) float64 on the CPU, the same bits on every rank; NaN where H is not finite.
        residuals: ‖H v − λ v‖ of each, as the recurrence has it, (l + k,), likewise.
        vectors: this rank's slice of unit eigenvectors, (d here, l + k), in the basis's dtype.
        beyond: the largest |θ| of the Ritz values that are not among them; 0 where there are none.
        products: with H that were made.
    """

    values: Tensor
    residuals: Tensor
    vectors: Tensor
    beyond: float
    products: int


def lanczos(
    matvec: Callable[[Tensor], Tensor],
    sums: Callable[[Tensor], Tensor],
    start: Tensor,
    size: int,
    own: range,
    *,
    largest: int,
    smallest: int = 0,
    iterations: int,
    tolerance: float | None = None,
    copies: bool = False,
    restarts: int = 1000,
    seed: int = 0,
) -> Eigenpairs:
    """The k largest and l smallest eigenpairs (with their signs) of a symmetric H. Collective.

    Args:
        matvec: slice (d here,) of v -> slice of H v; collective. v must not be changed.
        sums: (j,) float64 partial dot products, on the vectors' device -> their sums over all slices, the
            same bits on every rank; collective: `Reducer.slices`.
        start: slices of b starting vectors, (d here, b), of the dtype (float32 or float64) and on the device
            of the basis; they need not be orthogonal, nor independent. One is a Krylov space: a
            `random_start`, or the sum of the eigenvectors of a matrix that is nearly this one, which leaves
            smaller errors after as many products (apart, as b vectors, they leave larger ones than a random
            vector). b vectors find up to b copies of a multiple eigenvalue.
        size: d.
        own: which slice is here.
        largest, smallest: k and l, together at most d.
        iterations: vectors that the basis may have beside those that wait; the products of the cheap use. At
            least k + l; k + l + 2 where there are restarts, and one more for each end with ``copies``;
            d is always enough.
        tolerance: None for the cheap use; below 100 roundings of the dtype, these.
        copies: find all copies of multiple eigenvalues.
        restarts: at most so many, sweeps included; residuals then tell what is left.
        seed: of the random vectors that go on where a space that H leaves invariant is exhausted.

    Raises:
        ValueError: k + l or the iterations are out of range.
    """
    ends, most = _Ends(largest, smallest), min(iterations, size)
    least = ends.count if tolerance is None else (ends.next() if copies else ends).count + 2
    if not 0 < ends.count <= size or most < min(size, least):
        raise ValueError(f"{ends.count} of {size} eigenpairs need {least} iterations or d, not {iterations}")
    basis = Basis(matvec, sums, most + max(start.shape[1], 1), start[:, 0])
    fresh = (random_start(own, seed, start.dtype, start.device, i) for i in count(1))
    for column in start.T:
        basis.append(column)
    if tolerance is not None:
        tolerance = max(tolerance, NOTHING * torch.finfo(start.dtype).eps)
    before: Tensor | None = None  # the values of the sweep before
    while basis.finite:
        basis.expand(fresh)
        full = basis.expanded == most
        if not basis.finite or (full and (tolerance is None or most == size)):
            break
        if tolerance is None or basis.expanded < ends.count:
            continue
        pairs = basis.ritz()
        limit = tolerance * float(pairs.values.abs().max())
        watched = ends if before is None else ends.next()
        done = watched.converged(pairs, limit)
        if not (done or full):
            continue
        values = pairs.values[ends.wanted(basis.expanded)]
        settled = before is not None and float((values - before).abs().max()) <= 2 * limit
        if restarts == 0 or (done and (settled or not copies)):
            break
        restarts -= 1
        if done:
            before = values
            basis.restart(pairs, ends.wanted(basis.expanded), waiting=False)
        else:
            basis.restart(pairs, watched.kept(most))
    return _result(basis, ends, start)


def random_start(own: range, seed: int, dtype: torch.dtype, device: torch.device, index: int = 0) -> Tensor:
    """A slice of a vector of normal numbers, (len(own),): the same numbers however the vector is cut. Local.

    Args:
        own: which slice.
        seed, index: which vector.
        dtype, device: of the result.
    """
    first = own.start // BLOCK
    blocks = [
        torch.from_numpy(stream(seed, "lanczos", index, block).standard_normal(BLOCK))
        for block in range(first, -(-own.stop // BLOCK))
    ]
    whole = torch.cat(blocks) if blocks else torch.empty(0, dtype=torch.float64)
    at = own.start - first * BLOCK
    return whole[at : at + len(own)].to(device, dtype)


@dataclass(frozen=True)
class _Ends:
    """Which of n ascending Ritz values count, k at the upper and l at the lower end."""

    largest: int
    smallest: int

    @property
    def count(self) -> int:
        """How many they are."""
        return self.largest + self.smallest

    def next(self) -> _Ends:
        """With the next one at each end that counts."""
        return _Ends(self.largest + (self.largest > 0), self.smallest + (self.smallest > 0))

    def wanted(self, n: int) -> list[int]:
        """Their numbers."""
        return [*range(self.smallest), *range(n - self.largest, n)]

    def kept(self, n: int) -> list[int]:
        """Those that a restart keeps: half of the room that the wanted ones leave is for the next ones."""
        more = (n - self.count) // 2
        above = more * self.largest // self.count
        return _Ends(self.largest + above, self.smallest + more - above).wanted(n)

    def converged(self, pairs: Ritz, limit: float) -> bool:
        """Whether their residuals are within a limit."""
        n = len(pairs.values)
        return n >= self.count and bool((pairs.residuals[self.wanted(n)] <= limit).all())


def _result(basis: Basis, ends: _Ends, like: Tensor) -> Eigenpairs:
    if not basis.finite:
        k = ends.count
        unknown = torch.full((k,), torch.nan, dtype=torch.float64)
        vectors = like.new_full((len(like), k), torch.nan)
        return Eigenpairs(unknown, unknown.clone(), vectors, math.nan, basis.products)
    pairs = basis.ritz()
    which = ends.wanted(len(pairs.values))
    others = pairs.values[ends.smallest : len(pairs.values) - ends.largest]
    beyond = float(others.abs().max()) if len(others) else 0.0
    vectors = basis.vectors(pairs, which)
    return Eigenpairs(pairs.values[which], pairs.residuals[which], vectors, beyond, basis.products)
