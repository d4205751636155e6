"""Columns on other coordinates: the same numbers at the same labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcopt.storage.column import Column
from hpcopt.storage.schema import missing


class Relabelled:
    """The rows of a column on other labels, made block by block as they are read.

    Labels that the column lacks get "missing"; those that are not asked for are left out.

    Args:
        column: (rows, ...).
        before: the labels along each of its dimensions but the first.
        after: the labels wanted.
    """

    def __init__(self, column: Column, before: Sequence[list[Any]], after: Sequence[list[Any]]) -> None:
        self._column = column
        self._row = tuple(map(len, after))
        common = [[label for label in new if label in old] for old, new in zip(before, after, strict=True)]
        self._source = [[old.index(label) for label in s] for old, s in zip(before, common, strict=True)]
        self._target = [[new.index(label) for label in s] for new, s in zip(after, common, strict=True)]

    def __len__(self) -> int:
        return len(self._column)

    def __getitem__(self, key: slice) -> NDArray[np.generic]:
        """Some rows."""
        old = self._column[key]
        new = np.full((len(old), *self._row), missing(old.dtype), dtype=old.dtype)
        every = range(len(old))
        new[_at(every, self._target)] = old[_at(every, self._source)]
        return new


def _at(rows: range, places: list[list[int]]) -> tuple[NDArray[np.intp], ...]:
    return np.ix_(*(np.asarray(axis, dtype=np.intp) for axis in (rows, *places)))
