"""The rows of a trace.h5: appended, and cut off after a round. See `hpcopt.storage.trace`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import h5py
import numpy as np

from hpcopt.ground import inside
from hpcopt.storage.journal import Entry, Rows

CHUNK_BYTES = 64 << 10
BATCH_BYTES = 8 << 20
"""of rows that are appended at once"""


def append(file: h5py.File, entries: Iterable[Entry]) -> None:
    """Appends what happened until one round after the other, but for those that the file has."""
    rounds = dataset(file, "segments/round", ())
    before = int(rounds[-1]) if len(rounds) else 0
    for batch in _batches(entry for entry in entries if entry[0] > before):
        for name in batch[0][1]:
            rows = np.concatenate([arrays[name] for _, arrays in batch])
            data = dataset(file, name, rows.shape[1:])
            ends = len(data) + np.cumsum([len(arrays[name]) for _, arrays in batch])
            _extend(data, rows)
            _extend(dataset(file, f"segments/{name}", ()), ends)
        _extend(rounds, np.array([round for round, _ in batch]))


def _batches(entries: Iterable[Entry]) -> Iterator[list[Entry]]:
    """Several at a time, for a dataset takes its time to grow; not all, for there may be many."""
    batch, nbytes = [], 0
    for entry in entries:
        batch.append(entry)
        nbytes += sum(array.nbytes for array in entry[1].values())
        if nbytes > BATCH_BYTES:
            yield batch
            batch, nbytes = [], 0
    if batch:
        yield batch


def cut(file: h5py.File, round: int) -> None:
    """Cuts off what was after a round."""
    keep = int(np.searchsorted(dataset(file, "segments/round", ())[...], round, side="right"))
    for name in file["segments"]:
        ends = dataset(file, f"segments/{name}", ())
        if name != "round":
            dataset(file, name, ()).resize(int(ends[keep - 1]) if keep else 0, 0)
        ends.resize(keep, 0)


def dataset(file: h5py.File, name: str, row: tuple[int, ...]) -> h5py.Dataset:
    """The dataset of this name, made if it is not there; its small numbers are packed."""
    if name in file:
        return inside.dataset(file, name, "iu")
    chunk = max(1, CHUNK_BYTES // (8 * int(np.prod(row))))
    how: dict[str, Any] = {"chunks": (chunk, *row), "shuffle": True, "compression": "gzip"}
    return file.create_dataset(name, (0, *row), np.int64, maxshape=(None, *row), **how)


def _extend(data: h5py.Dataset, rows: Rows) -> None:
    before = len(data)
    data.resize(before + len(rows), 0)
    data[before:] = rows
