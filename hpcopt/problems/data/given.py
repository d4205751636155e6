"""Which worker gets which rows, given by hand: as lists, or in an HDF5 file.

/train/0, /train/1, …   row numbers of worker 0, 1, … in the training rows, 1-D, of an integer type; at
                        least one of each, in any order; workers may share rows
/test/0, /test/1, …     the same in the test rows, also none, shape (0,); the group may be absent: then
                        worker i has the i-th of N even, contiguous parts of all test rows

with h5py.File("split.h5", "w") as file:
    for worker, (train, test) in enumerate(split):
        file[f"train/{worker}"], file[f"test/{worker}"] = train, test
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hpcopt.errors import UserError
from hpcopt.problems.data.partition import Partition

if TYPE_CHECKING:
    from collections.abc import Sequence

    import h5py
    from numpy.typing import NDArray

    Rows = NDArray[np.int64]

SPLITS = ("train", "test")


def given_rows(
    rows: Sequence[Any] | str | Path,
    test_rows: Sequence[Any] | None,
    totals: tuple[int, int | None],
    workers: int,
    least: int = 1,
) -> Partition:
    """The rows of each worker as they were given.

    Args:
        rows: training rows of each worker, as numbers or as a mask; or a file's path.
        test_rows: the same for test rows; None: even parts of them.
        totals: how many training and test rows there are; None of these if there are no test rows at all.
        workers: N.
        least: how many training rows a worker has at least.

    Raises:
        UserError: rows that there are not, of another number of workers, or the file is not as it should be.
    """
    names = "rows", "test_rows"
    if isinstance(rows, str | Path):
        if test_rows is not None:
            raise UserError("test_rows: the file that rows names has the test rows, too")
        names = f'problem.rows = "{rows}", /train', f'problem.rows = "{rows}", /test'
        rows, test_rows = _read(Path(rows), totals)
    train = _numbers(names[0], rows, totals[0], workers, least)
    if totals[1] is None:
        if test_rows is not None:
            raise UserError(f"{names[1]}: there are no test rows at all")
        return Partition(train, None)
    if test_rows is None:
        return Partition(train, np.array_split(np.arange(totals[1]), workers))
    return Partition(train, _numbers(names[1], test_rows, totals[1], workers, 0))


def _numbers(name: str, rows: Sequence[Any], total: int, workers: int, least: int) -> list[Rows]:
    """The rows of each worker, from numbers or masks."""
    if len(rows) != workers:
        raise UserError(f"{name}: of {len(rows)} workers, but there are workers = {workers}")
    found = []
    for worker, given in enumerate(rows):
        mine = np.asarray(given)
        if mine.dtype == bool and mine.shape == (total,):
            mine = np.flatnonzero(mine)
        whole = mine.size == 0 or (mine.dtype.kind in "iu" and mine.min() >= 0 and mine.max() < total)
        if mine.ndim != 1 or not whole:
            raise UserError(
                f"{name}: rows of worker {worker}: {given!r:.60}; allowed are numbers from 0 to "
                f"{total - 1}, or a mask of {total} rows"
            )
        if len(mine) < least:
            raise UserError(f"{name}: worker {worker} has no training row; every worker needs one")
        found.append(mine.astype(np.int64))
    return found


def _read(path: Path, totals: tuple[int, int | None]) -> tuple[list[Any], list[Any] | None]:
    import h5py  # with a parallel HDF5, importing it starts MPI: not before it is needed

    if not path.is_file():
        raise UserError(f'problem.rows = "{path}": there is no such file')
    try:
        with h5py.File(path, "r", driver="sec2", locking=False) as file:
            unknown = [name for name in file if name not in SPLITS]
            if unknown or file.get("train", getlink=True) is None:
                raise UserError(
                    f'problem.rows = "{path}": has {", ".join(f"/{name}" for name in file) or "nothing"}; it '
                    "needs /train, and may have /test, with a dataset of row numbers for each worker: "
                    "/train/0, /train/1, …"
                )
            train, test = (_group(path, file, *pair) for pair in zip(SPLITS, totals, strict=True))
            return train or [], test
    # h5py tells damage in many ways
    except (OSError, KeyError, RuntimeError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f'problem.rows = "{path}": not readable: damaged or no HDF5? ({error})') from None


def _group(path: Path, file: h5py.File, split: str, total: int | None) -> list[Any] | None:
    """The rows of workers 0, 1, … in a group; None where there is none. Nothing is read from elsewhere."""
    import h5py

    link = file.get(split, getlink=True)  # of what is there, also where it leads nowhere
    if link is None:
        return None
    if not isinstance(link, h5py.HardLink):
        raise UserError(f'problem.rows = "{path}": /{split} is a link')
    group, found = file[split], []
    for worker in range(len(group)):
        name = f"{split}/{worker}"
        inside = isinstance(group.get(str(worker), getlink=True), h5py.HardLink)
        rows = group[str(worker)] if inside else None
        if not isinstance(rows, h5py.Dataset) or rows.external or rows.is_virtual:
            raise UserError(f'problem.rows = "{path}": /{name} is no dataset; there are {len(group)} workers')
        if rows.ndim != 1 or rows.dtype.kind not in "iu" or rows.size > (total or 0):
            raise UserError(
                f'problem.rows = "{path}": /{name} is {rows.dtype} of shape {rows.shape}; it has to hold '
                f"numbers of rows, at most as many as there are, {total or 0}"
            )
        found.append(rows[()])
    return found
