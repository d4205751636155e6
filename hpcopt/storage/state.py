"""A method's state as pieces of global arrays, and back, on any number of ranks.

Replicated arrays are written in equal shares and read whole. All others are the ranks' pieces one after the
other: workers live on ranks in contiguous blocks, so rows of workers, numbers for every row that a worker
has, and slices of a long vector are all in an order that does not depend on the ranks. Where a rank's piece
begins follows from the lengths of the pieces before it; a state that restores knows its own lengths, which
may be quite others, and finds its pieces in the same way. Any rank may have length 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from mpi4py import MPI
from torch import Tensor

from hpcopt.control.agree import agree
from hpcopt.ground.placement import block
from hpcopt.state import FIXED, Held
from hpcopt.storage import format
from hpcopt.storage.checkpoint import Piece

Tensors = Mapping[str, tuple[Held, Tensor]]


def global_rows(comm: MPI.Comm, tensors: Tensors) -> dict[str, tuple[int, range]]:
    """Of every tensor, the length of its global array and which rows of that it is. Collective."""
    lengths = comm.allgather([len(tensor) for _, tensor in tensors.values()])
    ends = np.cumsum(lengths, axis=0, dtype=np.int64)
    found = {}
    for i, (name, (held, tensor)) in enumerate(tensors.items()):
        total, end = int(ends[-1, i]), int(ends[comm.rank, i])
        mine = range(end - len(tensor), end)
        found[name] = (len(tensor), range(len(tensor))) if held is Held.REPLICATED else (total, mine)
    return found


def pieces_of(comm: MPI.Comm, tensors: Tensors) -> list[Piece]:
    """What this rank writes: its rows, and of replicated arrays an equal share. Collective."""
    pieces = []
    for name, (total, mine) in global_rows(comm, tensors).items():
        held, tensor = tensors[name]
        rows = tensor.detach()
        if held is Held.REPLICATED:
            mine = block(total, comm.size, comm.rank)
            rows = rows[mine.start : mine.stop]
        array = np.ascontiguousarray(rows.cpu().numpy())
        pieces.append(Piece(name, (total, *tensor.shape[1:]), mine.start, array))
    return pieces


def check_fits(comm: MPI.Comm, path: Path, arrays: Mapping[str, list[int]], tensors: Tensors) -> None:
    """Checks that a checkpoint holds exactly the arrays that this state has, but for empty ones. Collective.

    Raises:
        UserError: it does not, on every rank.
    """
    wanted = {
        name: [total, *tensors[name][1].shape[1:]] for name, (total, _) in global_rows(comm, tensors).items()
    }
    wanted = {name: shape for name, shape in wanted.items() if 0 not in shape}
    found: dict[str, list[int]] = {
        name: shape for name, shape in arrays.items() if 0 not in shape and not name.startswith(FIXED)
    }
    different = [
        f"{name} {found.get(name, 'is not there')}, here {wanted.get(name, 'is none')}"
        for name in sorted(wanted.keys() | found.keys())
        if wanted.get(name) != found.get(name)
    ]
    agree(comm, not different, f"{path}: holds other arrays than this run's state: {'; '.join(different)}")


def restore(comm: MPI.Comm, path: Path, tensors: Tensors) -> None:
    """Fills tensors, in place, with the rows of a checkpoint that fits and is intact. Collective."""
    for name, (total, mine) in global_rows(comm, tensors).items():
        tensor = tensors[name][1]
        if 0 not in (total, *tensor.shape[1:]):
            rows = np.ascontiguousarray(format.read_rows(path, name, mine.start, mine.stop))
            tensor.copy_(torch.from_numpy(rows))
