"""Writes checkpoints and metrics with ever less room on a small file system; prints what came of it.

Every rank runs it. The file system is filled up to a few KiB, so that it runs out at every step: reserving,
filling, adding digests, cutting the metrics. Run by test_endings, which sees a crash by its signal.
"""

import os
import sys
from pathlib import Path

import numpy as np
from mpi4py import MPI

from hpcopt.errors import HpcoptError
from hpcopt.storage import format
from hpcopt.storage.checkpoint import Checkpoints, Piece
from hpcopt.storage.metrics import RunFile, Schema, read_records

KIB = 1 << 10
SCHEMA = Schema(
    {"metrics/round": ("record",), "metrics/loss": ("record",), "workers/loss": ("record", "worker")},
    {"record": 500},
    {"worker": [0, 1]},
)


def fill(directory: Path, free: int) -> None:
    """Leaves ``free`` bytes, by a file of exactly the rest. Rank 0."""
    status = os.statvfs(directory)
    with (directory / "filler").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, status.f_bavail * status.f_frsize - free)


def try_checkpoint(comm: MPI.Comm, directory: Path, free: int) -> str:
    """A second checkpoint with ``free`` bytes left: "written", or the error's text."""
    rows = np.arange(4000.0).reshape(2, 2000)[comm.rank :: comm.size]
    pieces = [Piece("x", (2, 2000), comm.rank, rows), Piece("m", (2, 2000), comm.rank, rows + 1)]
    checkpoints = Checkpoints(comm, directory / f"checkpoints-{free}", 2)
    first = checkpoints.write(10, pieces, {})
    if comm.rank == 0:
        fill(directory, free)
    comm.Barrier()
    try:
        end = checkpoints.write(20, pieces, {}) and "written"
    except HpcoptError as error:
        end = str(error)
    found = checkpoints.newest()
    assert found is not None
    assert found[0] == (first if end != "written" else first.with_name("round-00000020.h5")), found
    assert not list(first.parent.glob("*.partial"))
    format.check(first, format.extents(first, format.read_meta(first)))
    return end


def try_metrics(directory: Path, free: int) -> str:
    """A run of three records with ``free`` bytes left. Rank 0."""
    path = directory / f"run-{free}.h5"
    fill(directory, free)
    done = 0
    try:
        file = RunFile.create(path, SCHEMA, {"a": 1}, 0.0)
        for round in range(3):
            file.append({"metrics/round": round, "metrics/loss": 0.5, "workers/loss": [1.0, 2.0]})
            done += 1
        (directory / "filler").unlink()
        fill(directory, free)  # the first file did not use it up
        file.finish({"end": "now"})
        end = "written"
    except HpcoptError as error:
        end = str(error)
    assert not list(directory.glob("*.partial"))
    assert done == 0 or len(read_records(path)["metrics/round"]) == done == 3
    return end


def main(directory: Path) -> None:
    """One line per try."""
    comm = MPI.COMM_WORLD
    for free in range(0, 2900 * KIB, 150 * KIB):
        end = try_checkpoint(comm, directory, free)
        comm.Barrier()
        if comm.rank == 0:
            report("checkpoint", free, end, directory)
        comm.Barrier()
    for free in range(0, 60 * KIB, 4 * KIB) if comm.rank == 0 else ():
        report("metrics", free, try_metrics(directory, free), directory)


def report(what: str, free: int, end: str, directory: Path) -> None:
    """Prints a result and makes room again. Rank 0."""
    print(f"{what}\t{free}\t{end}", flush=True)
    (directory / "filler").unlink()
    for path in [*directory.glob("checkpoints-*/*"), *directory.glob("run-*.h5")]:
        path.unlink()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
