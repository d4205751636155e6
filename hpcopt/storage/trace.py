"""Traces, to replay a run: trace.h5, with what no setting tells of it, or a CSV file like it.

    /NAME             (k, w) int64: the rows of a method's `trace`, those of the ranks one after the other
    /segments/round   (s,) where the run was at rest
    /segments/NAME    (s,) how many rows of /NAME there were then

NAME is gradients and applied where free workers own slices (`hpcopt.methods.parts.owners.Owners.trace`),
gradients and averaged where they average with their neighbours
(`hpcopt.methods.parts.async_mixing.AsyncMixing.trace`).
`hpcopt.storage.trace_file` writes it.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
from numpy.typing import NDArray

from hpcopt.errors import UserError
from hpcopt.ground import files, inside
from hpcopt.storage import journal
from hpcopt.storage.image import LIBVER
from hpcopt.storage.trace_rows import append

SCHEMA, SCHEMA_VERSION = "hpcopt-trace", 1
COLUMNS = (["worker", "read"], ["worker", "read", "round"])
"""of a CSV file"""
Layout = Literal["owners", "neighbours"]
LIMIT = 1 << 31
"""of its numbers"""
NAMES: Mapping[Layout, tuple[str, str]] = {
    "owners": ("gradients", "applied"),
    "neighbours": ("gradients", "averaged"),
}

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Segment:
    """What happened until a run was at rest.

    Attributes:
        end: the round before which that was.
        gradients: (k, 2 + S) of owners, (k, 3 + R) of neighbours.
        applied: (k, 4) of owners; of neighbours the models that were averaged, (k, 5).
        first: the numbers of the first row of either in the file.
    """

    end: int
    gradients: Rows
    applied: Rows
    first: tuple[int, int]


@dataclass(frozen=True)
class Trace:
    """A trace of free workers.

    Attributes:
        path: where it was.
        segments: between two rests, in order.
        slices: S, of the model; 0 where every worker has a model of its own.
        made_for: (N, d) of the run; None: nobody knows.
        window: whether a row has no round: then the method's `window` of them make one.
        lines: of a CSV file, those in which its rows end.
    """

    path: str
    segments: tuple[Segment, ...]
    slices: int
    made_for: tuple[int, int] | None = None
    window: bool = False
    lines: tuple[int, ...] = ()

    @property
    def layout(self) -> Layout:
        """Of the workers."""
        return "owners" if self.slices else "neighbours"

    def digest(self) -> str:
        """Of all rows: the same where they are."""
        parts = (part for segment in self.segments for part in (segment.gradients, segment.applied))
        ends = np.array([segment.end for segment in self.segments])
        return hashlib.sha256(b"".join(part.tobytes() for part in (*parts, ends))).hexdigest()

    def row(self, kind: int, segment: Segment, number: int) -> str:
        """A row of a segment in words: of gradients (0), or of what was applied or averaged (1)."""
        if self.lines:
            return f"{self.path}, line {self.lines[number]}"
        rows, at = (segment.gradients, segment.applied)[kind], segment.first[kind] + number
        return f"{self.path}: row {at} of /{NAMES[self.layout][kind]}, {rows[number].tolist()}"


def read(path: str | Path) -> Trace:
    """A trace of free workers: the trace.h5 of a run, or a CSV file.

    The latter has the columns ``worker,read`` or ``worker,read,round``: row k is the k-th gradient that was
    applied to the model, as a whole, of which worker, of the model to which ``read`` of them had been
    applied, and in which round.

    Raises:
        UserError: there is no such file, or it is no trace; names the row.
    """
    path = files.home(path)
    if not os.path.isfile(path):  # unlike Path.is_file, it takes any name
        raise UserError(f"{path}: there is no such file; a trace is the trace.h5 of a run, or a CSV file")
    with path.open("rb") as stream:
        packed = stream.read(8) == b"\x89HDF\r\n\x1a\n"
    return _from_hdf5(path) if packed else _from_csv(path)


def _from_hdf5(path: Path) -> Trace:
    with readable(path) as file:
        layout = next((layout for layout, names in NAMES.items() if {*names} <= file.keys()), None)
        if layout is None:
            what = ", ".join(f"/{name}" for name in file if name != "segments")
            raise UserError(
                f"{path}: has {what or 'no rows'}; free workers that own slices have /gradients, /applied, "
                "those that average with their neighbours /gradients, /averaged"
            )
        names = NAMES[layout]
        gradients, applied = (_numbers(file, name, 2) for name in names)
        ends = _numbers(file, "segments/round", 1)
        cuts = [[0, *_numbers(file, f"segments/{name}", 1).tolist()] for name in names]
        if {len(cut) for cut in cuts} != {len(ends) + 1}:
            raise ValueError("segments of different numbers")
        made_for = int(file.attrs["workers"]), int(file.attrs["dim"])
    slices, width = (min(made_for), 4) if layout == "owners" else (0, 5)
    fits = gradients.shape[1] == 2 + slices if slices else gradients.shape[1] >= 3
    if not fits or applied.shape[1] != width or (np.diff(ends, prepend=0) < 1).any():
        raise UserError(f"{path}: damaged: its arrays do not belong together")
    if not len(ends):
        raise UserError(f"{path}: has no rows")
    segments = []
    for s, end in enumerate(ends.tolist()):
        (a, b), (c, d) = (cut[s : s + 2] for cut in cuts)
        segments.append(Segment(end, gradients[a:b], applied[c:d], (a, c)))
    return Trace(str(path), tuple(segments), slices, made_for)


def _numbers(file: h5py.File, name: str, ndim: int) -> Rows:
    data = inside.dataset(file, name, "iu")
    if data.ndim != ndim:
        raise ValueError(f"{data.name} has no whole numbers of {ndim} dimension(s)")
    rows: Rows = data[...].astype(np.int64)
    return rows


def _from_csv(path: Path) -> Trace:
    rows: list[tuple[int, int, int]] = []
    numbers: list[int] = []
    with path.open(newline="", encoding="utf-8-sig", errors="replace") as stream:
        lines = _lines(path, stream)
        _, header = next(lines, (0, []))
        header = [name.strip() for name in header]
        if header not in COLUMNS:
            raise UserError(
                f"{path}: begins with {','.join(header)[:80]!r}; a trace is the trace.h5 of a run, or "
                'a CSV file whose first line is "worker,read" or "worker,read,round"'
            )
        for number, line in lines:
            rows.append(_row(f"{path}, line {number}", line, header, rows))
            numbers.append(number)
    if not rows:
        raise UserError(f"{path}: has no rows")
    worker, read, round = np.array(rows, np.int64).T
    draw = np.zeros_like(worker)
    for n in np.unique(worker):
        draw[worker == n] = np.arange((worker == n).sum())
    applied = np.stack([0 * worker, worker, 0 * worker + 1, round], 1)
    segment = Segment(int(round[-1]) + 1, np.stack([worker, draw, read], 1), applied, (0, 0))
    return Trace(str(path), (segment,), 1, window=len(header) == 2, lines=tuple(numbers))


def _lines(path: Path, stream: Iterable[str]) -> Iterator[tuple[int, list[str]]]:
    """Those that are not empty, with their numbers."""
    lines = csv.reader(stream)
    try:
        yield from ((lines.line_num, line) for line in lines if line)
    except csv.Error as error:
        raise UserError(f"{path}: not a readable CSV file ({error})") from None


def _row(
    where: str, line: list[str], header: list[str], before: list[tuple[int, int, int]]
) -> tuple[int, int, int]:
    """Worker, read and round of a line that follows others; -1 where it has no round."""
    k = len(before)
    try:
        numbers = dict(zip(header, map(int, line), strict=True))
        if max(numbers.values()) >= LIMIT:
            raise ValueError
    except ValueError:
        raise UserError(
            f"{where}: {','.join(line)[:80]!r}: must be {len(header)} whole numbers below 2^31"
        ) from None
    worker, read, round = numbers["worker"], numbers["read"], numbers.get("round", -1)
    if min(numbers.values()) < 0:
        raise UserError(f"{where}: {','.join(line)}: must not be negative")
    if read > k:
        raise UserError(
            f"{where}: read = {read} refers to the future: before this row {k} gradients were applied"
        )
    if before and round < before[-1][2]:
        raise UserError(f"{where}: round = {round} comes after round {before[-1][2]}; rows are in order")
    return worker, read, round


class readable:
    """Opens a trace.h5, with its journal's rows; whatever it lacks becomes a `UserError` that names it."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> h5py.File:
        try:
            self._file = h5py.File(self._whole(), "r")
            schema, version = self._file.attrs.get("schema"), self._file.attrs.get("schema_version", 0)
            ours = bool(schema == SCHEMA and int(version) <= SCHEMA_VERSION)
        except inside.FAULTS as error:
            raise UserError(f"{self._path}: not a readable trace ({error})") from None
        if not ours:
            self._file.close()
            raise UserError(f"{self._path}: not a trace of hpcopt, or of a newer one")
        return self._file

    def _whole(self) -> Path | io.BytesIO:
        """The file; with a journal a copy of it, in memory, that has all."""
        waiting = list(journal.entries(journal.beside(self._path)))  # first: a writer empties it last
        if not waiting:
            return self._path
        content = io.BytesIO(self._path.read_bytes())
        with h5py.File(content, "r+", libver=LIBVER) as file:
            append(file, waiting)
        return content

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        self._file.close()
        if isinstance(error, inside.FAULTS):
            raise UserError(f"{self._path}: not a readable trace ({error})") from None
