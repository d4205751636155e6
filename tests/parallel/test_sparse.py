"""SparseSum over MPI against its in-process twin, on however many ranks mpirun started."""

import itertools
from dataclasses import asdict

import numpy as np
import pytest
import torch

import hpcopt
from hpcopt.comm import gather
from hpcopt.comm.chosen import place_of
from hpcopt.comm.local_ports import LocalPorts
from hpcopt.comm.mpi_ports import MPIPorts
from hpcopt.comm.sparse.costs import Costs
from hpcopt.comm.sparse.local_sparse_sum import LocalSparseSum
from hpcopt.comm.staging import Staging
from hpcopt.costs import volumes
from hpcopt.ground.placement import Placement, block
from hpcopt.problems.base import Share

pytestmark = pytest.mark.mpi
WORKERS = 9
CPU = torch.device("cpu")
EXCHANGES = ("allgather", "owner", "dense")


def entries(workers, dim, k, dtype, kind):
    """All workers' ascending indices and values of very different magnitudes."""
    generator = np.random.default_rng(dim + k)
    weights = np.ones(dim)
    if kind == "skewed":
        weights[: max(1, dim // 50)] = 1000
    rows = [generator.choice(dim, k, replace=False, p=weights / weights.sum()) for _ in range(workers)]
    if kind == "same":
        rows = [rows[0]] * workers
    values = generator.standard_normal((workers, k)) * 10.0 ** generator.integers(-3, 3, (workers, k))
    return torch.from_numpy(np.sort(rows, axis=1)), torch.from_numpy(values).to(dtype)


def opened(comm, workers, dim, dtype, ordered, exchange, select="local"):
    like = torch.zeros(dim, dtype=dtype)
    reduction = "ordered" if ordered else "mpi"
    costs = asdict(Costs(comm.size, latency=1e-5, bandwidth=1e9, dense=1e-9, select=1e-9))
    remembered = {"sparse": {place_of(comm, CPU, dim): costs}}
    ports = MPIPorts(
        comm,
        Placement.even(workers, comm.size, comm.rank),
        Staging(CPU),
        like,
        reduction,
        overlap=False,
        remembered=remembered,
    )
    return ports, ports.sparse_sum(like, exchange, select)


@pytest.mark.parametrize(("dim", "k"), [(1, 1), (5, 2), (5, 5), (30_000, 400)])
@pytest.mark.parametrize("kind", ["even", "skewed", "same"])
def test_every_plan_gives_the_twins_sum(comm, dim, k, kind):
    """Also twice through the same port, and the same bits where sums are ordered and on every rank."""
    cases = itertools.product((torch.float32, torch.float64), (False, True), EXCHANGES, ("local", "global"))
    for dtype, ordered, exchange, select in cases:
        indices, values = entries(WORKERS, dim, k, dtype, kind)
        mine = block(WORKERS, comm.size, comm.rank)
        like = torch.zeros(dim, dtype=dtype)
        twin = LocalSparseSum(WORKERS, like, exchange, select)
        ports, port = opened(comm, WORKERS, dim, dtype, ordered, exchange, select)
        for scale in (1.0, -2.0):
            want = twin.sum(indices, values * scale)
            got = port.sum(indices[mine.start : mine.stop], values[mine.start : mine.stop] * scale)
            about = (dtype, ordered, exchange, select)
            if ordered:
                assert torch.equal(got.dense, want.dense), about
            elif select == "local":
                rounding = WORKERS * torch.finfo(dtype).eps * float(values.abs().max()) * abs(scale)
                assert torch.allclose(got.dense, want.dense, rtol=0, atol=rounding), about
            else:  # another order of the sum may select another entry where two are almost the same
                assert len(got.support) == len(want.support), about
            if ordered or select == "local":
                assert torch.equal(got.support, want.support), about
            assert all(np.array_equal(got.dense, other) for other in comm.allgather(got.dense.numpy())), about
        assert comm.allreduce(port.counter.bytes_workers) == pytest.approx(twin.counter.bytes_workers), about
        ports.free()


def test_messages_in_many_pieces_and_indices_of_64_bits(comm, monkeypatch):
    monkeypatch.setattr(gather, "MAX_MESSAGE", 64)
    monkeypatch.setattr(volumes, "LARGEST_INT32", 3)
    test_every_plan_gives_the_twins_sum(comm, 300, 11, "skewed")


@pytest.mark.parametrize("exchange", EXCHANGES)
def test_entries_that_cancel_do_not_win_a_global_selection(comm, exchange):
    """±100 at 7 and 1 at 8, on the first two workers; the other workers give zeros."""
    indices = torch.tensor([[7, 8]] * WORKERS)
    values = torch.zeros(WORKERS, 2, dtype=torch.float64)
    values[0], values[1] = torch.tensor([100.0, 1.0]), torch.tensor([-100.0, 0.0])
    mine = block(WORKERS, comm.size, comm.rank)
    ports, port = opened(comm, WORKERS, 1000, torch.float64, False, exchange, "global")
    got = port.sum(indices[mine.start : mine.stop], values[mine.start : mine.stop])
    assert got.support.tolist() == [8]
    assert got.holds(torch.tensor([7, 8])).tolist() == [False, True]
    ports.free()


UPDATES = [
    {"weight_decay": 0.01},
    {"momentum": 0.9, "nesterov": True},
    {"optimizer": "adam", "weight_decay": 0.01},
]


def test_updates_that_change_the_gradient_leave_the_port_alone(comm):
    """In long vectors, where the port clears entries one by one."""
    dim, mine = 3000, block(WORKERS, comm.size, comm.rank)
    problem = hpcopt.LinearRegression(WORKERS, dim=dim, rows_per_worker=3)
    for update, exchange in itertools.product(UPDATES, EXCHANGES):
        points = []
        for comm_, workers in ((comm, mine), (None, range(WORKERS))):
            bound = problem.bind(Share(workers, WORKERS, seed=1))
            like = bound.initial()
            if comm_ is None:
                ports = LocalPorts(WORKERS, like)
            else:
                ports, _ = opened(comm, WORKERS, dim, like.dtype, False, "dense")
            method = hpcopt.TopK(k=2, lr=1e-3, exchange=exchange, **update)
            state = method.start(bound, ports)
            for _ in range(8):
                method.step(state)
                state.round += 1
            points.append(state.x)
        assert torch.allclose(*points, rtol=0, atol=1e-9), (update, exchange)


def test_ranks_that_hold_no_entry_of_a_range_own_nothing(comm):
    """All entries lie in one place: most owners have nothing to add."""
    indices = torch.full((WORKERS, 1), 77)
    mine = block(WORKERS, comm.size, comm.rank)
    ports, port = opened(comm, WORKERS, 100, torch.float64, False, "owner")
    got = port.sum(indices[mine.start : mine.stop], torch.ones(len(mine), 1, dtype=torch.float64))
    assert (got.dense[77], len(got.support), float(got.dense.sum())) == (WORKERS, 1, WORKERS)
    ports.free()


@pytest.mark.parametrize("kind", ["even", "skewed"])
def test_bytes_are_those_of_the_simulation(comm, kind):
    dim, k, entry = 50_000, 2000, 8
    indices, values = entries(comm.size, dim, k, torch.float32, kind)
    row = slice(comm.rank, comm.rank + 1)
    for exchange, select in itertools.product(EXCHANGES, ("local", "global")):
        ports, port = opened(comm, comm.size, dim, torch.float32, False, exchange, select)
        total = port.sum(indices[row], values[row])
        twin = LocalSparseSum(comm.size, torch.zeros(dim), exchange, select, ranks=comm.size)
        twin.sum(indices, values)
        sent = comm.allreduce(port.counter.bytes) / comm.size
        assert sent == pytest.approx(twin.counter.bytes), (exchange, select)
        if exchange == "owner" and select == "local":
            assert sent <= 1.1 * entry * (k + len(total.support))
        if exchange == "owner" and select == "global":
            assert sent <= 6 * 4 * k
        ports.free()


def test_what_was_measured_is_the_same_everywhere_and_used_again(comm):
    like = torch.zeros(10_000)
    placed = Placement.even(comm.size, comm.size, comm.rank)
    ports = MPIPorts(comm, placed, Staging(CPU), like, "auto", overlap=False, remembered={})
    port = ports.sparse_sum(like)
    assert all(chosen == ports.chosen for chosen in comm.allgather(ports.chosen))
    density = port.affordable((1.0, 0.1, 0.01))
    ports.free()
    again = MPIPorts(comm, placed, Staging(CPU), like, "auto", overlap=False, remembered=ports.remembered)
    assert again.sparse_sum(like).affordable((1.0, 0.1, 0.01)) == density
    assert again.chosen == ports.chosen
    again.free()
    slow = asdict(Costs(2, latency=1e-3, bandwidth=1e5, dense=1e-3, select=1e-9))
    elsewhere = MPIPorts(comm, placed, Staging(CPU), like, "auto", False, remembered={"sparse": {"99": slow}})
    assert elsewhere.sparse_sum(like).affordable((1.0, 0.1, 0.01)) == 0.01  # as where the run began
    assert list(elsewhere.remembered["sparse"]) == ["99", place_of(comm, CPU, len(like))]
    elsewhere.free()
    assert LocalPorts(3, like).sparse_sum(like).affordable((1.0, 0.1)) == 1.0
