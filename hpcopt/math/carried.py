"""The largest entries round after round: the last round's threshold says where to look in this one.

What reaches the k-th magnitude that a row had last time, or nearly so, are its candidates; wherever there are
k of them, the k largest are those of the row. Where there are fewer, the search begins anew. So what is
carried along costs or saves time, never changes the result, and belongs into no checkpoint.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hpcopt.math.rows_together import together
from hpcopt.math.topk import STACKED, largest, magnitudes, places_above

SLACK = 0.8
"""of the last k-th magnitude: by how much it may fall until the search begins anew"""
SHORT, LONG = 1 << 11, 1 << 17
"""between these d it pays on a CPU: shorter rows are sorted, of longer ones a sample costs next to nothing"""


class CarriedLargest:
    """`hpcopt.math.topk.largest`, called again and again on rows that change little."""

    def __init__(self) -> None:
        self._reach = torch.empty(0)

    def __call__(self, X: Tensor, k: int) -> Tensor:
        """The same as ``largest(X, k)``, for X (n, d)."""
        n, d = X.shape
        on_host = X.device.type == "cpu"
        if not 0 < k < d or not (SHORT <= d <= LONG if on_host else d > STACKED):
            return largest(X, k)
        reach = self._reach
        known = reach.shape == (n, 1) and reach.dtype == X.dtype and reach.device == X.device
        chosen, least = (in_turn if on_host else together)(X, k, reach if known else None)
        self._reach = least * SLACK
        return chosen


def in_turn(X: Tensor, k: int, reach: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """As `hpcopt.math.rows_together.together`, one row after the other, in pieces that stay in the cache."""
    if reach is None:
        chosen = largest(X, k)
    else:
        starts = reach[:, 0].tolist()
        chosen = torch.stack([_row(x, k, start) for x, start in zip(X, starts, strict=True)])
    return chosen, magnitudes(X.gather(1, chosen)).amin(1, keepdim=True)


def _row(x: Tensor, k: int, reach: float) -> Tensor:
    found = places_above(x, reach)
    return found[largest(x[found][None], k)[0]] if len(found) >= k else largest(x[None], k)[0]
