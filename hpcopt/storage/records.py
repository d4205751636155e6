"""Reading a run.h5: what is valid in it, column by column, while it is being written or long after."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from hpcopt.errors import UserError
from hpcopt.ground import inside
from hpcopt.storage.column import Column, Read
from hpcopt.storage.digests import names, of_arrays, of_rows, seed, step
from hpcopt.storage.file_like import Opened
from hpcopt.storage.image import COPIES
from hpcopt.storage.place import Place
from hpcopt.storage.schema import ARRAYS, LAST_WRITTEN, RECORD, ROW, Schema, group_of
from hpcopt.storage.structure import Structure, header


class Records(Mapping[str, NDArray[np.generic]]):
    """The columns of a run.h5, cut to what is valid and read when they are asked for. Local.

    What it found when it was made stays readable until it is closed, whatever happens to the file's name.

    Args:
        path: the file.
        up_to: only the records up to and including this round.
        at_once: compare all digests now; else, of a run that has ended, before the first numbers are given.
        structure: of the file where it is known already; read again if another file has its name now.

    Attributes:
        columns: name -> the column, not read yet.
        labels: the coordinate of every dimension that does not lead.
        attributes: of the root.
        count: how many records there are.

    Raises:
        UserError: the file is not a readable run.h5.
    """

    def __init__(
        self,
        path: Path,
        up_to: int | None = None,
        *,
        at_once: bool = True,
        structure: Structure | None = None,
    ) -> None:
        self._path = path
        with readable(path):
            self._file = Opened(path)
            if structure is None or structure.identity != self._file.identity:
                structure = Structure.read(self._file, path)
            self.attributes, self.labels = structure.attributes, structure.labels
            self._places, self._dims, self._units = structure.places, structure.dims, structure.units
            self.count, arrays = self._settled()
            later = not at_once and up_to is None and bool(self.attributes.get("stopped_by"))
            self._unchecked = partial(self._intact, self.count, arrays, up_to) if later else None
            if not later:
                self.count, arrays = self._intact(self.count, arrays, up_to)
        if up_to is not None:
            self.count = _first_gap(self._all(LAST_WRITTEN)[: self.count] <= up_to)
        self.columns = self._rows() | arrays

    def __getitem__(self, name: str) -> NDArray[np.generic]:
        return self.columns[name][:]

    def __iter__(self) -> Iterator[str]:
        return iter(self.columns)

    def __len__(self) -> int:
        return len(self.columns)

    def __enter__(self) -> Records:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file; what was not read is out of reach."""
        self._file.close()

    def schema(self) -> Schema:
        """The schema of a file that has room for just what is valid here."""
        capacity: dict[str, int] = {}
        for name, column in self.columns.items():
            lead = self._dims[name][0]
            capacity[lead] = max(len(column), capacity.get(lead, 0))
        return Schema(self._dims, capacity, self.labels)

    def _settled(self) -> tuple[int, dict[str, Column]]:
        """How many records are complete, and the arrays as they were then.

        Arrays of the next record go into the other copy, those of the one after it into the copy that is
        read here; so that is whole if no record was completed meanwhile.
        """
        count = 0
        while True:
            while more := self._following(count):
                count += more
            arrays = self._arrays(COPIES[count % 2])
            if not self._following(count):
                return count, arrays

    def _intact(
        self, complete: int, arrays: dict[str, Column], up_to: int | None
    ) -> tuple[int, dict[str, Column]]:
        """How many records match their digests, and the arrays as they were then.

        A node's crash may leave the last ones of a job torn, which then do not count. Any others are damaged.

        Raises:
            ValueError: there are such, or those up to a round are torn.
        """
        if "digests" not in self.attributes:  # an older file
            return complete, arrays
        rounds: Any = self._all(LAST_WRITTEN)
        written = int(np.flatnonzero(rounds >= 0)[-1:].sum()) + bool((rounds >= 0).any())
        fine = self._matching(written) & (rounds[:written] >= 0)
        first = _first_gap(fine)
        if first < written:
            finished = self.attributes.get("stopped_by") or len(rounds) == complete
            if finished or fine[first:].any() or (up_to is not None and rounds[first] <= up_to):
                raise ValueError(f"record {first}, of round {rounds[first]}, does not match its digest")
        elif self.attributes.get("stopped_by") and written < len(rounds):
            raise ValueError(f"record {written} is not complete")
        count = min(complete, first)
        if count < complete:
            arrays = self._arrays(COPIES[count % 2])
        if count and ARRAYS in self._places:
            digest: Any = self._places[ARRAYS].get(self._file, count - 1, count)[0]
            if of_arrays({name: column[:] for name, column in arrays.items()}) != digest:
                if count == complete:
                    raise ValueError("arrays do not match their digest")
                arrays = {name: replace(column, length=0) for name, column in arrays.items()}
        return count, arrays

    def _matching(self, count: int) -> NDArray[np.bool_]:
        """Which of the first records match their digests; rows pass through memory block by block."""
        places, begin = [self._places[name] for name in names(self._dims)], seed(self._dims)
        block = step(sum(place.row_bytes for place in places))
        fine = np.zeros(count, bool)
        for start in range(0, count, block):
            stop = min(start + block, count)
            rows = [place.get(self._file, start, stop) for place in places]
            fine[start:stop] = of_rows(rows, begin) == self._places[ROW].get(self._file, start, stop)
        return fine

    def _following(self, count: int) -> int:
        """How many complete records there are after the first ``count``, or some of them; 0: none."""
        place = self._places[LAST_WRITTEN]
        rounds: Any = place.get(self._file, count, min(count + 4096, place.shape[0]))
        return _first_gap(rounds >= 0)

    def _arrays(self, copy: str) -> dict[str, Column]:
        found = {}
        for name, dims in self._dims.items():
            if dims[0] != RECORD:
                here = copy if copy + name in self._places else ""
                length = _first_gap(self._all(f"{here}{group_of(name)}/{dims[0]}") >= 0)
                found[name] = self._column(name, length, partial(_part, self._all(here + name)))
        return found

    def _rows(self) -> dict[str, Column]:
        return {
            name: self._column(name, self.count, partial(self._get, self._places[name]))
            for name, dims in self._dims.items()
            if dims[0] == RECORD and name not in (ROW, ARRAYS)
        }

    def _get(self, place: Place, start: int, stop: int) -> NDArray[np.generic]:
        """Rows of a column; raises `UserError` where the file turns out to be damaged."""
        if self._unchecked is not None:
            with readable(self._path):
                self._unchecked()
            self._unchecked = None
        return place.get(self._file, start, stop)

    def _column(self, name: str, length: int, read: Read) -> Column:
        return Column(self._dims[name], self._units[name], self._places[name], length, read)

    def _all(self, name: str) -> Any:
        place = self._places[name]
        return place.get(self._file, 0, place.shape[0])


def read_records(path: Path, up_to: int | None = None) -> Records:
    """All columns, cut to what is valid (up to and including a round); see `Records`.

    Raises:
        UserError: the file is not a readable run.h5.
    """
    return Records(path, up_to)


def read_header(path: Path) -> dict[str, Any]:
    """The root attributes; empty where there is no run.h5.

    Raises:
        UserError: the file is not a readable run.h5.
    """
    if not os.path.exists(path):
        return {}
    with readable(path), h5py.File(path, "r") as file:
        return header(file, path)


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Whatever a file lacks becomes a `UserError` that names it."""
    try:
        yield
    except inside.FAULTS as error:
        raise UserError(f"{path}: not a readable run.h5 ({error})") from None


def _first_gap(valid: NDArray[np.bool_]) -> int:
    """How many are valid: rows are written one after the other, so the first gap is the end."""
    return int(np.argmin(np.append(valid, False)))


def _part(rows: NDArray[np.generic], start: int, stop: int) -> NDArray[np.generic]:
    return rows[start:stop]
