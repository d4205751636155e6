"""A method's state as pieces of global arrays, and back, on any number of ranks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mpi4py import MPI
from torch import Tensor

from hpcopt.errors import UserError
from hpcopt.methods.base import Held
from hpcopt.placement import block
from hpcopt.storage import format
from hpcopt.storage.checkpoint import Piece

Tensors = Mapping[str, tuple[Held, Tensor]]


def global_rows(comm: MPI.Comm, held: Held, tensor: Tensor) -> tuple[int, range]:
    """The length of a tensor's global array, and which rows of it this rank holds. Collective."""
    if held is Held.REPLICATED:
        return len(tensor), range(len(tensor))
    total = comm.allreduce(len(tensor))
    return total, block(total, comm.size, comm.rank)


def pieces_of(comm: MPI.Comm, tensors: Tensors) -> list[Piece]:
    """What this rank writes: its rows, and of replicated arrays an equal share. Collective."""
    pieces = []
    for name, (held, tensor) in tensors.items():
        total, mine = global_rows(comm, held, tensor)
        rows = tensor.detach()
        if held is Held.REPLICATED:
            mine = block(total, comm.size, comm.rank)
            rows = rows[mine.start : mine.stop]
        array = np.ascontiguousarray(rows.cpu().numpy())
        pieces.append(Piece(name, (total, *tensor.shape[1:]), mine.start, array))
    return pieces


def check_fits(comm: MPI.Comm, path: Path, meta: Mapping[str, Any], tensors: Tensors) -> None:
    """Checks that a checkpoint holds exactly the arrays that this state has. Collective.

    Raises:
        UserError: it does not, on every rank.
    """
    wanted = {
        name: [global_rows(comm, held, tensor)[0], *tensor.shape[1:]]
        for name, (held, tensor) in tensors.items()
    }
    if wanted != meta["arrays"]:
        raise UserError(f"{path}: holds arrays {meta['arrays']}, but this run's state is {wanted}")


def restore(comm: MPI.Comm, path: Path, tensors: Tensors) -> None:
    """Fills tensors, in place, with a verified checkpoint's rows. Collective."""
    for name, (held, tensor) in tensors.items():
        _, mine = global_rows(comm, held, tensor)
        rows = np.ascontiguousarray(format.read_rows(path, name, mine.start, mine.stop))
        tensor.copy_(torch.from_numpy(rows))
