"""How fast a sequence of sparse mixing matrices makes workers agree: its second largest eigenvalue."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import TYPE_CHECKING

import numpy as np

from hpcopt.math.streams import stream

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from scipy.sparse import csr_array

    Floats = NDArray[np.float64]

DENSE = 512
"""up to this N spectra are those of dense matrices, exact"""
ROUNDING = 1e-12
"""a λ₂ this close to 0 or 1 is 0 or 1"""
KRYLOV = 64
RESTARTS = 30
"""vectors kept and restarts allowed in ARPACK's iteration"""
SHIFT = 1e-6


def is_symmetric(W: csr_array) -> bool:
    """Whether W = Wᵀ, to rounding."""
    return bool(abs(W - W.T).max() <= ROUNDING)


def second_largest(matrices: tuple[csr_array, ...], counts: Floats | None = None) -> float:
    """|λ₂| per round.

    Args:
        matrices: W_0 … W_{τ-1}, (N, N), with rows that sum to 1.
        counts: c > 0 of the only matrix, if c_i W_ij = c_j W_ji; None where nobody knows such.

    Returns:
        Of one matrix the second largest modulus of an eigenvalue; of several ‖P − J‖₂^(1/τ), P their product.
    """
    value = _modulus(matrices[0], counts) if len(matrices) == 1 else _norm(matrices)
    if value < ROUNDING:  # before the root, which would make a number of it
        return 0.0
    return 1.0 if value > 1 - ROUNDING else float(value ** (1 / len(matrices)))


def _modulus(W: csr_array, counts: Floats | None) -> float:
    """The second largest modulus of an eigenvalue.

    Subtracting uuᵀ turns the eigenvalue 1 into 0 and leaves the others, because S u = u and ‖u‖ = 1.
    """
    S, u = _similar(W, counts)
    symmetric = is_symmetric(S)
    if len(u) > DENSE:
        value = _largest(lambda x: S @ x - u * (u @ x), len(u), symmetric)
        if value is None and symmetric:
            value = _nearest_to_one(S, u)
            # slow convergence mostly means a λ₂ near 1, and by Gershgorin's theorem none is below this bound
            if value is not None and value < 1 - 2 * W.diagonal().min():
                value = None
        if value is not None:
            return abs(value)
    dense = S.toarray() - np.outer(u, u)
    return float(np.abs(np.linalg.eigvalsh(dense) if symmetric else np.linalg.eigvals(dense)).max())


def _similar(W: csr_array, counts: Floats | None) -> tuple[csr_array, Floats]:
    """A matrix with W's eigenvalues, and its unit eigenvector of eigenvalue 1.

    A symmetric one is D W D⁻¹ with D = diag(c^½), for uniform weights c = 1/W_ii; where that does not help it
    is W.
    """
    if not is_symmetric(W) and (counts is not None or W.diagonal().all()):
        scale = W.diagonal() ** -0.5 if counts is None else counts**0.5
        S = W.multiply(scale[:, None]).multiply(1 / scale).tocsr()
        if is_symmetric(S):
            return S, scale / np.linalg.norm(scale)
    return W, np.full(W.shape[0], W.shape[0] ** -0.5)


def _norm(matrices: tuple[csr_array, ...]) -> float:
    """‖P - JP‖₂ for P = W_{τ-1}…W_0: how much of a disagreement is left after a period."""

    def forward(X: Floats) -> Floats:
        X = reduce(lambda X, W: W @ X, matrices, X)
        return X - X.mean(axis=0)

    def squared(x: Floats) -> Floats:
        y = forward(x)
        return reduce(lambda y, W: W.T @ y, matrices[::-1], y)

    N = matrices[0].shape[0]
    value = _largest(squared, N, symmetric=True) if N > DENSE else None
    return abs(value) ** 0.5 if value is not None else float(np.linalg.norm(forward(np.eye(N)), 2))


def _largest(apply: Callable[[Floats], Floats], N: int, symmetric: bool) -> complex | None:
    """The eigenvalue of largest modulus of a linear map of (N,), by ARPACK; None if it does not converge."""
    from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigs, eigsh

    start = stream(0, "spectrum").standard_normal(N)
    if np.linalg.norm(apply(start)) < ROUNDING * np.linalg.norm(start):
        return 0.0
    try:
        values = (eigsh if symmetric else eigs)(
            LinearOperator((N, N), matvec=apply, dtype=np.float64),
            k=1,
            v0=start,
            ncv=KRYLOV,
            maxiter=RESTARTS,
            tol=1e-10,
            return_eigenvectors=False,
        )
    except ArpackNoConvergence:
        return None
    return complex(values[0])


def _nearest_to_one(S: csr_array, u: Floats) -> float | None:
    """The eigenvalue of a symmetric matrix that is nearest to 1 beside that of u: shift and invert."""
    from scipy.sparse import eye_array
    from scipy.sparse.linalg import splu

    shift = 1 + SHIFT
    factors = splu((S - shift * eye_array(len(u))).tocsc())
    value = _largest(lambda x: factors.solve(x) - u * (u @ x) / (1 - shift), len(u), symmetric=True)
    return None if value is None else shift + 1 / value.real
