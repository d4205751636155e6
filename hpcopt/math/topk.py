"""Selection of the largest entries of long vectors, and what sparsification with error feedback needs.

The largest k of d entries are found exactly, in little more than one pass over the vector: a strided sample
gives a threshold that surely k entries reach, one pass collects what exceeds it, and only that is compared.
A poor threshold costs time, never the result.

Symbols: n workers, d entries, k of them chosen.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from hpcopt.math.rows_together import together

SAMPLE = 1 << 16
"""entries that are looked at for a threshold"""
CHUNK = 1 << 18
"""entries per piece of the collecting pass: its scratch stays in the cache"""
STACKED = 1 << 14
"""up to this d all rows are sorted at once"""
UNSENT = 1e8
"""Q: the Δ of an entry that was not sent last round (Bereyhi et al., 2025)"""


def largest(X: Tensor, k: int) -> Tensor:
    """Where each row's k largest magnitudes are; of equal ones those of the lowest index.

    A nan counts as infinite, so that it does not hide in the entries that stay behind.

    Args:
        X: (n, d).
        k: 0 to d.

    Returns:
        (n, k) int64, ascending in each row.
    """
    n, d = X.shape
    if not 0 < k < d:
        return torch.arange(k, device=X.device).expand(n, k)
    if d <= STACKED:
        order = torch.sort(magnitudes(X), dim=1, descending=True, stable=True).indices
        return order[:, :k].sort(dim=1).values
    if X.device.type != "cpu":
        return together(X, k)[0]
    return torch.stack([_largest(x, k) for x in X])


def survival(sent: Tensor, aggregate: Tensor, mu: float, denominator: Tensor | None = None) -> Tensor:
    """How much of what was sent survived aggregation: tanh(|1 + Δ|/μ) / tanh(Q/μ), entry by entry.

    With Δ = (aggregate − sent) / sent; where nothing was sent (0), Δ = Q and the factor is 1. A score is
    |a| times this: Bereyhi et al., arXiv 2501.05633, with scores divided by tanh(Q/μ), which ranks the same.

    Args:
        sent: ω_n â, any shape.
        aggregate: what came back for the same entries, same shape.
        mu: μ > 0.
        denominator: of Δ, in place of ``sent``, same shape.
    """
    if denominator is None:
        ratio = torch.where(sent == 0, UNSENT, (aggregate / sent).abs())
    else:
        unknown = (sent == 0) | (denominator == 0)
        ratio = torch.where(unknown, UNSENT, (1 + (aggregate - sent) / denominator).abs())
    return torch.tanh(ratio / mu) / math.tanh(UNSENT / mu)


def take(E: Tensor, indices: Tensor) -> Tensor:
    """Takes entries out of error memories: their values, (n, k); zero is left behind.

    Args:
        E: (n, d); changed.
        indices: (n, k), different ones in each row.
    """
    values = E.gather(1, indices)
    E.scatter_(1, indices, 0.0)
    return values


def union(indices: Tensor) -> Tensor:
    """The different numbers in an int64 tensor of any shape, ascending, (u,)."""
    if indices.device.type != "cpu":
        return torch.unique(indices)
    # a stable sort merges the ascending runs that workers' indices are; torch.unique does not know of them
    ordered = np.sort(indices.numpy(), axis=None, kind="stable")
    first = np.ones(len(ordered), dtype=bool)
    np.not_equal(ordered[1:], ordered[:-1], out=first[1:])
    return torch.from_numpy(ordered[first])


def places_above(x: Tensor, threshold: float) -> Tensor:
    """Where the magnitudes of a vector (d,) on the CPU are above a threshold, ascending; a nan is."""
    return _where(x, threshold, above=True, enough=len(x))


def magnitudes(values: Tensor) -> Tensor:
    """|x|, a nan as infinity."""
    return values.abs().nan_to_num_(nan=math.inf, posinf=math.inf)


def _largest(x: Tensor, k: int) -> Tensor:
    """`largest` of one long vector (d,) on the CPU."""
    sample = magnitudes(x[:: max(1, len(x) // SAMPLE)])
    expected = k * len(sample) / len(x)
    wanted = math.ceil(expected + 4 * math.sqrt(expected) + 8)  # surely enough: four standard deviations
    while wanted < len(sample) // 4:
        threshold = float(torch.topk(sample, wanted, sorted=False).values.min())
        larger = places_above(x, threshold)
        if len(larger) >= k:
            return larger[_exactly(x[larger], k)]
        equal = _where(x, threshold, above=False, enough=k - len(larger))
        if len(larger) + len(equal) == k:  # many entries are the same, zeros for example
            return torch.cat([larger, equal]).sort().values
        wanted *= 4  # the sample was not like the rest
    return _exactly(x, k)


def _where(x: Tensor, threshold: float, above: bool, enough: int) -> Tensor:
    """Where |x| is above, or else equal to, a threshold: the first ``enough`` places, ascending."""
    values = x.numpy()
    scratch = np.empty(min(CHUNK, len(values)), values.dtype)
    chosen = np.empty(len(scratch), dtype=bool)
    found, missing = [], enough
    for start in range(0, len(values), CHUNK):
        piece = values[start : start + CHUNK]
        at = slice(0, len(piece))
        np.abs(piece, out=scratch[at])
        if above:  # a nan is: it is not less or equal
            np.less_equal(scratch[at], threshold, out=chosen[at])
            np.logical_not(chosen[at], out=chosen[at])
        else:
            np.equal(scratch[at], threshold, out=chosen[at])
        found.append(np.flatnonzero(chosen[at])[:missing] + start)
        missing -= len(found[-1])
        if not missing:
            break
    return torch.from_numpy(np.concatenate(found))


def _exactly(x: Tensor, k: int) -> Tensor:
    """`largest` of one vector without a threshold."""
    magnitude = magnitudes(x)
    least = torch.topk(magnitude, k, sorted=False).values.min()
    chosen = magnitude > least
    missing = k - int(chosen.sum())
    chosen[torch.nonzero(magnitude == least)[:missing, 0]] = True
    return torch.nonzero(chosen)[:, 0]
