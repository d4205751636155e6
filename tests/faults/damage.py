"""Damages a checkpoint in many ways and restores; prints what came out. Run by test_damage as a process of
its own: should HDF5 crash on a damaged file, the test sees the signal."""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from mpi4py import MPI

from hpcopt.storage import format
from hpcopt.storage.checkpoint import Checkpoints, Piece

META = {"totals": {"seconds": 1.5}, "model": "x"}
BLOCK = 512


def make(directory: Path) -> tuple[Path, Path, dict[str, np.ndarray]]:
    """Two checkpoints, and the arrays of the newer one."""
    checkpoints = Checkpoints(MPI.COMM_SELF, directory, 2)
    draw = np.random.default_rng(0)
    for round in (10, 20):
        arrays = {
            "x": draw.standard_normal(300),
            "v": draw.standard_normal((4, 25)).astype(np.float32),
            "count": draw.integers(0, 9, 7),
            "empty": np.zeros((4, 0)),
        }
        pieces = [Piece(name, rows.shape, 0, rows) for name, rows in arrays.items()]
        checkpoints.write(round, pieces, META)
    return directory / "round-00000010.h5", directory / "round-00000020.h5", arrays


def regions(path: Path, whole: bytes) -> dict[str, range]:
    """Places in the file that each mean something else."""
    import h5py

    found = {"superblock": range(48)}
    with h5py.File(path, "r") as file:
        for name in ("state/x", "state/v", "digests/x", "meta"):
            dataset = file[name]
            start = dataset.id.get_offset()
            found[f"/{name}"] = range(start, start + dataset.nbytes)
            header = h5py.h5o.get_info(dataset.id).addr
            found[f"header of /{name}"] = range(header, min(header + 96, len(whole)))
        for name in ("/", "state", "digests"):
            header = h5py.h5o.get_info(file[name].id).addr
            found[f"header of group {name}"] = range(header, min(header + 64, len(whole)))
    return found


def bit_flips(places: dict[str, range], whole: bytes, count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """Single bits: in every region some, and ``count`` anywhere."""
    draw = random.Random(seed)
    chosen = [(name, draw.choice(place)) for name, place in places.items() for _ in range(12)]
    chosen += [("anywhere", draw.randrange(len(whole))) for _ in range(count)]
    for name, at in chosen:
        bit = draw.randrange(8)
        yield f"bit {bit} of byte {at} ({name})", whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :]


def other_bytes(whole: bytes, step: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """Every ``step``-th byte replaced by another."""
    draw = random.Random(seed)
    for at in range(draw.randrange(step), len(whole), step):
        new = (whole[at] + draw.randrange(1, 256)) % 256
        yield f"byte {at} = {new}", whole[:at] + bytes([new]) + whole[at + 1 :]


def truncations(whole: bytes) -> Iterator[tuple[str, bytes]]:
    """Cut off everywhere, from nothing left to one byte less."""
    for size in [*range(0, len(whole), 97), len(whole) - 1]:
        yield f"cut to {size} bytes", whole[:size]


def zeroed_blocks(places: dict[str, range], whole: bytes) -> Iterator[tuple[str, bytes]]:
    """A block of zeros everywhere, as a lost write leaves it, and at every region's start."""
    starts = [*range(0, len(whole), BLOCK // 2), *(place.start for place in places.values())]
    for start in starts:
        stop = min(start + BLOCK, len(whole))
        yield f"zeros in [{start}, {stop})", whole[:start] + bytes(stop - start) + whole[stop:]


def judge(older: Path, newer: Path, arrays: dict[str, np.ndarray], meta: dict) -> str:
    """ "passed over", "identical", or what is wrong."""
    found = Checkpoints(MPI.COMM_SELF, newer.parent, 2).newest()
    if found is None:
        return "WRONG: no checkpoint found"
    path, got, warnings = found
    if path == older:
        good = len(warnings) == 1 and str(newer) in warnings[0]
        return "passed over" if good else f"WRONG: warnings {warnings}"
    for name, rows in arrays.items():
        back = format.read_rows(path, name, 0, len(rows))
        if back.dtype != rows.dtype or back.tobytes() != rows.tobytes():
            return f"WRONG: {name} restored as {back.dtype} {back.ravel()[:3]}"
    return "identical" if got == meta else f"WRONG: meta {got}"


def main() -> None:
    """One line per damage; the last line says how many."""
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", type=Path)
    parser.add_argument("--flips", type=int, default=300)
    parser.add_argument("--step", type=int, default=11)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    older, newer, arrays = make(options.directory)
    whole, meta = newer.read_bytes(), format.read_meta(newer)
    places = regions(newer, whole)
    damages = {
        "flip": bit_flips(places, whole, options.flips, options.seed),
        "byte": other_bytes(whole, options.step, options.seed),
        "truncation": truncations(whole),
        "zeros": zeroed_blocks(places, whole),
    }
    count = 0
    for kind, cases in damages.items():
        for what, content in cases:
            if content == whole:
                continue
            print(f"{kind}\t{what}\t", end="", flush=True)  # first, so that a crash shows where
            newer.write_bytes(content)
            try:
                verdict = judge(older, newer, arrays, meta)
            except Exception as error:  # anything that is not a verdict is a failure
                verdict = f"WRONG: {type(error).__name__}: {error}"
            print(verdict, flush=True)
            count += 1
    newer.write_bytes(whole[:-1])
    rows = np.zeros(3)
    written = Checkpoints(MPI.COMM_SELF, options.directory, 1).write(13, [Piece("x", (3,), 0, rows)], META)
    found = Checkpoints(MPI.COMM_SELF, options.directory, 1).newest()
    print(f"pruned\tkeep 1, beside a later damaged one\t{found is not None and found[0] == written}")
    print(f"tried\t{count}")


if __name__ == "__main__":
    sys.exit(main())
