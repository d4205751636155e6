"""The arithmetic of partitions: whole numbers from proportions, and rows sorted by label or by worker."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Rows = NDArray[np.int64]


def dirichlet(alpha: float, k: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """One draw from the symmetric Dir(α), (k,); its limits where α is beyond what floating point can do."""
    p = rng.dirichlet(np.full(k, alpha))
    if np.isfinite(p).all() and abs(p.sum() - 1) < 1e-6:
        return p
    return np.full(k, 1 / k) if alpha > 1 else np.eye(k)[rng.integers(k)]


def apportion(total: int, weights: NDArray[Any], rng: np.random.Generator) -> Rows:
    """Whole numbers ∝ weights that add up to ``total``: largest remainders, ties drawn, 0 for weight 0."""
    share = total * (weights / weights.sum())
    counts = np.floor(share).astype(np.int64)
    remainder = np.where(weights > 0, share - counts, -1.0)
    order = np.lexsort((rng.random(len(weights)), -remainder))
    missing = total - int(counts.sum())
    if missing < 0:  # the floor of a share that was rounded up to a whole number
        counts[np.argmax(counts)] += missing
    counts[order[: max(0, missing)]] += 1
    return counts


def counts_within(total: int, p: NDArray[np.float64], room: Rows, rng: np.random.Generator) -> Rows:
    """Counts per class that add up to ``total``, as close to p as ``room`` (Σ room ≥ total) allows."""
    counts = np.zeros_like(room)
    while (missing := total - int(counts.sum())) > 0:
        open_p = np.where(counts < room, p, 0.0)
        # Where p has run out (small α underflows), what is left decides.
        weights = open_p if open_p.sum() > 0 else room - counts
        counts = np.minimum(counts + apportion(missing, weights, rng), room)
    return counts


def counts_like(quota: int, counts: Rows, room: Rows, rng: np.random.Generator) -> Rows:
    """Test rows per class in proportion to training ``counts``: fewer than ``quota`` rather than skewed."""
    weights = np.where(room > 0, counts, 0)
    if not weights.any():
        return np.zeros_like(room)
    held = weights > 0
    fits = int(np.min(room[held] * weights.sum() // weights[held]))
    return np.minimum(apportion(min(quota, max(1, fits)), weights, rng), room)


def rows_by_class(labels: NDArray[Any]) -> dict[int, Rows]:
    """The ascending rows of every label that occurs, labels ascending."""
    order = np.argsort(labels, kind="stable")
    values, starts = np.unique(labels[order], return_index=True)
    return dict(zip(values.tolist(), np.split(order, starts[1:]), strict=True)) if len(labels) else {}


def rows_by_owner(owner: Rows, workers: int) -> list[Rows]:
    """The ascending rows of every worker."""
    order = np.argsort(owner, kind="stable")
    ends = np.searchsorted(owner[order], np.arange(workers + 1))
    return [order[start:stop] for start, stop in pairwise(ends.tolist())]
