"""The largest entries of several rows at once, as a GPU wants it: few steps, and few waits of the host.

The host waits once for how many candidates there are and, where there are several rows, once for the fewest
and the most of a row.

Symbols: n rows, d entries, k of them chosen, M the most candidates of a row.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def together(X: Tensor, k: int, reach: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Where the k largest magnitudes of each row are; of equal ones those of the lowest index.

    Args:
        X: (n, d); a nan counts as infinite.
        k: 1 to d − 1.
        reach: (n, 1), what the candidates of each row have to reach; where it is too high, and if None, the
            search begins with all entries.

    Returns:
        (n, k) int64, ascending in each row, and the k-th magnitudes, (n, 1).
    """
    magnitude = X.abs()
    found = None if reach is None else _among(magnitude, reach, k)
    if found is None:
        exact = magnitude.nan_to_num(nan=math.inf, posinf=math.inf).topk(k, sorted=False).values
        found = _among(magnitude, exact.amin(1, keepdim=True), k)
    assert found is not None  # k entries of each row reach its k-th largest
    return found


def _among(magnitude: Tensor, reach: Tensor, k: int) -> tuple[Tensor, Tensor] | None:
    """`together`, if at least k entries of each row reach the threshold; a nan does."""
    n, d = magnitude.shape
    flat = magnitude.reshape(-1)
    places = (magnitude < reach).logical_not_().reshape(-1).nonzero()[:, 0]  # the host waits for their number
    if n == 1:
        if len(places) < k:
            return None
        candidates, values = places[None], flat[places][None]
    else:
        starts = torch.searchsorted(places, torch.arange(0, n * d + 1, d, device=places.device))
        counts = starts.diff()
        fewest, most = torch.stack(torch.aminmax(counts)).tolist()  # and for these
        if fewest < k:
            return None
        within = torch.arange(most, device=places.device)
        candidates = places[(starts[:-1, None] + within).clamp_(max=len(places) - 1)]
        values = flat[candidates].masked_fill_(within >= counts[:, None], -1)  # shorter rows end with nothing
    chosen, least = _exactly(values.nan_to_num_(nan=math.inf, posinf=math.inf), k)
    return candidates.gather(1, chosen) % d, least


def _exactly(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Where the k largest of each row are, (n, k) ascending, of equal ones the first; and the k-th, (n, 1).

    Args:
        values: (n, M), at least 0, or less where there is none.
    """
    least = values.topk(k, sorted=False).values.amin(1, keepdim=True)
    more, equal = values > least, values == least
    kept = more | (equal & (equal.cumsum(1) <= k - more.sum(1, keepdim=True)))
    # those that are kept to the front, the others behind them: every place once
    place, at = kept.cumsum(1), torch.arange(values.shape[1], device=values.device)
    slots = torch.where(kept, place - 1, k + at - place)
    order = torch.empty_like(slots).scatter_(1, slots, at.expand_as(slots))
    return order[:, :k], least
