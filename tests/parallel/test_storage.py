"""The slab door and checkpoints on several ranks, some of them with nothing to write; states on others."""

from dataclasses import dataclass

import h5py
import numpy as np
import pytest
import torch

from hpcopt.errors import UserError
from hpcopt.ground.placement import Placement, block, sizes
from hpcopt.state import State, per_worker, replicated, sliced
from hpcopt.storage import slab
from hpcopt.storage.checkpoint import Checkpoints, Piece, allocate, write_pieces
from hpcopt.storage.format import read_rows
from hpcopt.storage.state import check_fits, pieces_of, restore

from .conftest import first_ranks

pytestmark = pytest.mark.mpi


def piece(comm, name, rows, width, dtype=np.float64, only=None):
    """Rows of arange, spread over the ranks, or all on rank ``only``."""
    shape = (rows, width) if width else (rows,)
    whole = np.arange(np.prod(shape), dtype=dtype).reshape(shape)
    mine = block(rows, comm.size, comm.rank)
    if only is not None:
        mine = range(rows) if comm.rank == only else range(0)
    return Piece(name, whole.shape, mine.start, whole[mine.start : mine.stop]), whole


@pytest.mark.parametrize("limit", [1 << 30, 128])
def test_slabs_of_every_shape_and_empty_ranks(comm, mpi_tmp_path, monkeypatch, limit):
    monkeypatch.setattr(slab, "MAX_WRITE", limit)
    path = mpi_tmp_path / "slabs.h5"
    made = [
        piece(comm, "one_row", 1, 0),  # fewer rows than ranks
        piece(comm, "uneven", 101, 0, np.float32),
        piece(comm, "matrix", 7, 13),
        piece(comm, "last_only", 11, 3, np.int64, only=comm.size - 1),
        piece(comm, "nothing", 0, 0),
        piece(comm, "no_columns", 6, 1),
    ]
    pieces = [p for p, _ in made]
    pieces[-1] = Piece("no_columns", (6, 0), pieces[-1].start, pieces[-1].rows[:, :0])
    if comm.rank == 0:
        allocate(path, pieces)
    comm.Barrier()
    write_pieces(comm, path, pieces)
    with h5py.File(path, "r") as file:
        for p, whole in made[:-1]:
            assert np.array_equal(file["state"][p.name][...], whole), p.name
        assert file["state/no_columns"].shape == (6, 0)
    comm.Barrier()


def test_checkpoints_come_back_keep_the_last_and_pass_over_damage(comm, mpi_tmp_path):
    checkpoints = Checkpoints(comm, mpi_tmp_path, keep=2)
    assert checkpoints.newest() is None
    for round in (1, 2, 3):
        p, whole = piece(comm, "x", 1000, 3)
        path = checkpoints.write(round, [Piece(p.name, p.shape, p.start, p.rows + round)], {"note": "hello"})
    assert sorted(f.name for f in mpi_tmp_path.iterdir()) == ["round-00000002.h5", "round-00000003.h5"]
    newest, meta, warnings = checkpoints.newest()
    assert (newest, meta["round"], meta["note"], warnings) == (path, 3, "hello", [])
    assert np.array_equal(read_rows(path, "x", 0, 1000), whole + 3)
    comm.Barrier()
    if comm.rank == 0:
        with path.open("r+b") as file:
            file.truncate(path.stat().st_size // 2)
    comm.Barrier()
    _, meta, warnings = checkpoints.newest()
    assert meta["round"] == 2
    assert len(warnings) == 1
    assert str(path) in warnings[0]


def test_the_file_does_not_depend_on_the_ranks(comm, mpi_tmp_path):
    contents = []
    for ranks in range(1, comm.size + 1):
        with first_ranks(comm, ranks) as sub:
            if sub is not None:
                p, _ = piece(sub, "x", 50, 2)
                Checkpoints(sub, mpi_tmp_path / str(ranks), 1).write(7, [p], {})
        contents.append(read_rows(mpi_tmp_path / str(ranks) / "round-00000007.h5", "x", 0, 50))
    assert all(np.array_equal(contents[0], other) for other in contents)


ROWS = [3, 0, 4, 1, 2]
"""of each of five workers"""


@dataclass(kw_only=True)
class Toy(State):
    """A state of every kind of tensor."""

    mean: torch.Tensor = replicated()
    """(3,)"""
    models: torch.Tensor = per_worker()
    """(n, 4)"""
    duals: torch.Tensor = per_worker()
    """as many as the workers here have rows"""
    vector: torch.Tensor = sliced()
    """(m,)"""
    pairs: torch.Tensor = sliced()
    """(m, 2)"""

    @classmethod
    def on(cls, comm, uneven):
        """The share of this rank, of which one, with all other slices short, is ``uneven``."""
        mine = at_rank(comm, [5] if comm.size == 1 else [0, *sizes(5, comm.size - 1)])
        starts = np.cumsum([0, *ROWS])
        own = at_rank(comm, lengths(11, comm.size, uneven))
        random = torch.Generator().manual_seed(1)
        mean, models, duals, vector, pairs = (
            torch.randn(*shape, generator=random, dtype=torch.float64)
            for shape in ((3,), (5, 4), (sum(ROWS),), (11,), (11, 2))
        )
        return cls(
            round=9,
            mean=mean,
            models=models[mine.start : mine.stop],
            duals=duals[starts[mine.start] : starts[mine.stop]],
            vector=vector[own.start : own.stop],
            pairs=pairs[own.start : own.stop],
        )

    def cleared(self):
        """The same shapes without content."""
        return type(self)(
            round=0, **{name: torch.full_like(t, torch.nan) for name, (_, t) in self.tensors().items()}
        )


def at_rank(comm, counts):
    return Placement(tuple(counts), comm.rank).here


def lengths(total, ranks, uneven):
    """Slices of 0, 1, 2, … numbers, but for one that has the rest."""
    short = list(range(ranks))
    short[uneven % ranks] = 0
    short[uneven % ranks] = total - sum(short)
    return short


def test_a_state_comes_back_on_any_number_of_ranks_in_other_slices(comm, mpi_tmp_path):
    for ranks in range(1, comm.size + 1):
        with first_ranks(comm, ranks) as sub:
            if sub is not None:
                state = Toy.on(sub, uneven=0)
                Checkpoints(sub, mpi_tmp_path / str(ranks), 1).write(9, pieces_of(sub, state.tensors()), {})
    for ranks in range(1, comm.size + 1):
        with first_ranks(comm, ranks) as sub:
            if sub is not None:
                for written in range(1, comm.size + 1):
                    path, meta, _ = Checkpoints(sub, mpi_tmp_path / str(written), 1).newest()
                    wanted = Toy.on(sub, uneven=written)
                    state = wanted.cleared()
                    check_fits(sub, path, meta["arrays"], state.tensors())
                    restore(sub, path, state.tensors())
                    for name, (_, tensor) in wanted.tensors().items():
                        assert torch.equal(state.tensors()[name][1], tensor), (name, written, ranks)


def test_a_state_of_other_totals_is_refused_on_every_rank(comm, mpi_tmp_path):
    state = Toy.on(comm, uneven=0)
    checkpoints = Checkpoints(comm, mpi_tmp_path, 1)
    checkpoints.write(9, pieces_of(comm, state.tensors()), {})
    path, meta, _ = checkpoints.newest()
    if comm.rank == comm.size - 1:  # one of its workers has another row now
        state.duals = torch.cat([state.duals, torch.zeros(1, dtype=torch.float64)])
    with pytest.raises(UserError, match=r"this run's state: duals \[10\], here \[11\]$"):
        check_fits(comm, path, meta["arrays"], state.tensors())
    comm.Barrier()
