"""`tools/bench storage`: a checkpoint against a plain parallel POSIX write of the same bytes."""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from mpi4py import MPI

from hpcopt.ground import files
from hpcopt.ground.placement import block
from hpcopt.storage.checkpoint import Checkpoints, Piece

REPEATS = 7
ELEMENTS = 1 << 27  # float32: 512 MiB


def posix(comm: MPI.Comm, path: Path, start: int, rows: np.ndarray) -> None:
    """Every rank writes its part of one file at its offset."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
    view = memoryview(np.ascontiguousarray(rows).data).cast("B")
    done = 0
    while done < len(view):
        done += os.pwrite(descriptor, view[done : done + (1 << 30)], start * rows.itemsize + done)
    os.fsync(descriptor)
    os.close(descriptor)


def seconds(comm: MPI.Comm, path: Path, work: Callable[[], object]) -> float:
    """The slowest rank's time for work that makes ``path`` anew."""
    if comm.rank == 0:
        files.discard(path)
        os.sync()
    comm.Barrier()
    start = time.perf_counter()
    work()
    return float(comm.allreduce(time.perf_counter() - start, MPI.MAX))


def main() -> None:
    """Prints medians, spread and paired ratios."""
    comm = MPI.COMM_WORLD
    directory = Path(comm.bcast(sys.argv[1] if len(sys.argv) > 1 else ".")) / "bench-storage"
    path = directory / "file.h5"
    if comm.rank == 0:
        directory.mkdir(parents=True, exist_ok=True)
    comm.Barrier()
    mine = block(ELEMENTS, comm.size, comm.rank)
    rows = np.random.default_rng(comm.rank).random(len(mine), dtype=np.float32)
    checkpoints = Checkpoints(comm, directory, keep=1)
    piece = Piece("x", (ELEMENTS,), mine.start, rows)
    plain, written, read = [], [], []
    for _ in range(REPEATS):
        plain.append(seconds(comm, path, lambda: posix(comm, path, mine.start, rows)))
        written.append(seconds(comm, path, lambda: checkpoints.put(path, [piece], {})))
        read.append(seconds(comm, directory / "none", lambda: checkpoints._read_back(path)))
    if comm.rank == 0:
        files.discard(path)
        directory.rmdir()
        gigabytes = ELEMENTS * 4 / 1e9
        ratios = [p / w for p, w in zip(plain, written, strict=True)]
        print(f"{comm.size} ranks, {gigabytes:.2f} GB, {REPEATS} repeats, fsync included")
        results = {"POSIX write": plain, "checkpoint, with digests": written, "read-back": read}
        for name, times in results.items():
            rates = [gigabytes / t for t in times]
            print(f"{name:26} {statistics.median(rates):6.2f} GB/s  [{min(rates):.2f}, {max(rates):.2f}]")
        print(
            f"checkpoint / POSIX bandwidth {statistics.median(ratios):.2f} "
            f"[{min(ratios):.2f}, {max(ratios):.2f}]"
        )


if __name__ == "__main__":
    main()
