"""The Reducer over MPI against its in-process twin, on however many ranks mpirun started."""

import pytest
import torch

from hpcopt.comm import gather
from hpcopt.comm.local import LocalReducer
from hpcopt.comm.ports import allreduce_bytes
from hpcopt.comm.reducer import MPIReducer
from hpcopt.comm.staging import Staging
from hpcopt.placement import block

pytestmark = pytest.mark.mpi
WORKERS = 7
CPU = torch.device("cpu")


def contributions(size: int, dtype: torch.dtype) -> torch.Tensor:
    """All workers' rows, with magnitudes that make the order of a sum visible."""
    torch.manual_seed(size)
    return torch.randn(WORKERS, size, dtype=dtype) * 10.0 ** torch.randint(-6, 6, (WORKERS, size))


@pytest.fixture(params=[1 << 30, 64], ids=["whole", "in pieces"])
def limit(request, monkeypatch):
    monkeypatch.setattr(gather, "MAX_MESSAGE", request.param)


@pytest.mark.parametrize("size", [0, 1, 3, 101])  # fewer than ranks, not divisible
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.usefixtures("limit")
def test_every_verb_equals_the_twin(comm, size, dtype, ordered):
    rows = contributions(size, dtype)
    mine = block(WORKERS, comm.size, comm.rank)
    plan = "ordered" if ordered else "mpi"
    port, twin = MPIReducer(comm, WORKERS, Staging(CPU), plan), LocalReducer(WORKERS, ordered)

    def here():
        own = rows[mine.start : mine.stop].clone()
        return own if ordered else own.sum(0)

    def everywhere():
        return rows.clone() if ordered else rows.sum(0)

    expected = twin.sum(everywhere())
    own = port.own(size)

    def close(a, b):
        largest = float(rows.abs().amax()) if size else 0.0
        rounding = 0.0 if ordered else WORKERS * torch.finfo(dtype).eps * largest
        return torch.allclose(a, b, rtol=0, atol=rounding)

    assert close(port.sum(here()), expected)
    piece = port.reduce_scatter(here())
    assert close(piece, expected[own.start : own.stop])
    assert close(port.allgather(piece, size), expected)
    assert close(port.scalars(here()), expected)
    # one allreduce, two halves; scalars are free
    assert port.counter.passes == 2.0
    assert twin.counter.passes == 1.0
    port.free()


def test_results_are_the_same_bits_on_every_rank(comm):
    port = MPIReducer(comm, WORKERS, Staging(CPU))
    total = port.sum(contributions(1000, torch.float32)[comm.rank].clone())
    assert all(torch.equal(total, other) for other in comm.allgather(total))
    port.free()


def test_bytes_follow_the_definition(comm):
    port = MPIReducer(comm, WORKERS, Staging(CPU))
    part = torch.ones(1000, dtype=torch.float32)
    data = part.data_ptr()
    assert port.sum(part).data_ptr() == data  # in place, no copy
    sent = comm.allreduce(port.counter.bytes)
    assert sent == pytest.approx(2 * 4000 * (comm.size - 1))
    assert comm.allreduce(port.counter.bytes_workers) == pytest.approx(2 * 4000 * (WORKERS - 1))
    twin = LocalReducer(WORKERS, ranks=comm.size)
    twin.sum(part)
    assert twin.counter.bytes == pytest.approx(allreduce_bytes(4000, comm.size))
    assert twin.counter.bytes == pytest.approx(port.counter.bytes)
    port.free()
