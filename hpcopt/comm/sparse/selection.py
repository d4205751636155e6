"""The k largest of numbers that are spread over ranks, without sending the numbers anywhere."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from hpcopt.costs.volumes import BINS, BITS


def keep_largest(
    values: NDArray[np.floating],
    k: int,
    total: Callable[[NDArray[np.int64]], NDArray[np.int64]],
    before: Callable[[int], int],
) -> tuple[NDArray[np.bool_], int]:
    """Which of this rank's values are among the k largest magnitudes of all ranks; of equal ones the first.

    A radix selection: magnitudes are ordered like their bits, so that histograms of a few bits at a time,
    from the highest on, find the k-th largest exactly. Collective if ``total`` and ``before`` are.

    Args:
        values: this rank's, (m,), float32 or float64; a nan counts as larger than infinity.
        k: at least 1; everything is kept if there are no more.
        total: sums an int64 array over all ranks.
        before: sums a number over the ranks before this one.

    Returns:
        The mask, (m,), and how many histograms were summed.
    """
    unsigned = {4: np.uint32, 8: np.uint64}[values.dtype.itemsize]
    bits = np.abs(values).view(unsigned)
    kept = np.zeros(len(bits), dtype=bool)
    open_ = np.ones(len(bits), dtype=bool)  # may be the k-th largest, as far as is known
    shift, steps = 8 * bits.itemsize, 0
    while shift > 0:
        shift = max(0, shift - BITS)
        digit = (bits >> unsigned(shift)).astype(np.int64) & (BINS - 1)
        counts = total(np.bincount(digit[open_], minlength=BINS))
        steps += 1
        if k >= counts.sum():
            return kept | open_, steps
        from_top = np.cumsum(counts[::-1])
        place = int(np.searchsorted(from_top, k))
        pivot = BINS - 1 - place
        kept |= open_ & (digit > pivot)
        k -= int(from_top[place] - counts[pivot])
        open_ &= digit == pivot
    mine = np.flatnonzero(open_)
    kept[mine[: max(0, k - before(len(mine)))]] = True
    return kept, steps
