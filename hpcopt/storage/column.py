"""One column of a run.h5, read when and as far as it is asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcopt.storage.place import Place

Read = Callable[[int, int], NDArray[np.generic]]


@dataclass(frozen=True)
class Column:
    """The valid rows of a column.

    Attributes:
        dims: its dimensions, the leading one first.
        units: of its numbers.
        place: of all its rows.
        length: how many are valid.
        read: gives rows [start, stop).
    """

    dims: tuple[str, ...]
    units: str
    place: Place
    length: int
    read: Read

    def __len__(self) -> int:
        return self.length

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the valid rows."""
        return (self.length, *self.place.shape[1:])

    def __getitem__(self, key: Any) -> NDArray[np.generic]:
        """What an array gives for integers and slices; rows pass through memory block by block."""
        first, *others = key if isinstance(key, tuple) else (key,)
        rows: Any = range(self.length)[first]
        if not isinstance(rows, range):
            return np.asarray(self.read(rows, rows + 1)[(0, *others)])
        within = (slice(None), *others)
        row = np.empty((0, *self.shape[1:]), self.place.dtype)[within].shape[1:]
        found = np.empty((len(rows), *row), self.place.dtype)
        step = self.place.step(abs(rows.step))
        for at in range(0, len(rows), step):
            some = rows[at : at + step]
            low, high = min(some[0], some[-1]), max(some[0], some[-1])
            found[at : at + step] = self.read(low, high + 1)[:: rows.step][within]
        return found
