"""What happens where workers run freely, row by row, until it is asked for."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class Log:
    """Rows of whole numbers, of several kinds.

    Args:
        kept: whether any is kept.
        widths: name -> numbers in a row.
    """

    def __init__(self, kept: bool, **widths: int) -> None:
        self._kept, self._widths = kept, widths
        self._rows: dict[str, list[tuple[int, ...]]] = {name: [] for name in widths}

    def add(self, name: str, *row: int) -> None:
        """One more row."""
        if self._kept:
            self._rows[name].append(row)

    def take(self) -> dict[str, NDArray[np.int64]]:
        """Those since the last call, (k, width); nothing where none is kept."""
        if not self._kept:
            return {}
        rows, self._rows = self._rows, {name: [] for name in self._widths}
        return {
            name: np.array(rows[name], np.int64).reshape(-1, width) for name, width in self._widths.items()
        }
