"""The Reducer over MPI against its in-process twin, on however many ranks mpirun started."""

from itertools import product

import pytest
import torch
from mpi4py import MPI

import hpcopt
from hpcopt.comm import gather
from hpcopt.comm.mpi_ports import MPIPorts
from hpcopt.comm.reduce import choice, ring, ways
from hpcopt.comm.reduce.local_reducer import LocalReducer
from hpcopt.comm.reduce.mpi_reducer import MPIReducer
from hpcopt.comm.rehearsal import Rehearsal
from hpcopt.comm.sparse.mpi_sparse_sum import MPISparseSum
from hpcopt.comm.staging import Staging
from hpcopt.costs.volumes import EXCHANGES, allreduce_bytes, gather_bytes
from hpcopt.ground.placement import Placement
from hpcopt.math.mixing import mixing
from hpcopt.problems.base import Draw, Share

pytestmark = pytest.mark.mpi
WORKERS = 7
CPU = torch.device("cpu")
PLANS = ("whole", "1 MiB", "ring", "ordered")


def contributions(size: int, dtype: torch.dtype) -> torch.Tensor:
    """All workers' rows, with magnitudes that make the order of a sum visible."""
    torch.manual_seed(size)
    return torch.randn(WORKERS, size, dtype=dtype) * 10.0 ** torch.randint(-6, 6, (WORKERS, size))


def placements(comm):
    """Even blocks, and all workers on the last rank: the others only help."""
    yield Placement.even(WORKERS, comm.size, comm.rank)
    yield Placement((0,) * (comm.size - 1) + (WORKERS,), comm.rank)


def opened(comm, placement, like, ordered=False):
    plan = "ordered" if ordered else "mpi"
    twin = LocalReducer(WORKERS, like, ordered, ranks=comm.size)
    return MPIReducer(comm, placement, Staging(CPU), like, plan), twin


@pytest.fixture(params=[1 << 30, 64], ids=["whole", "in pieces"])
def limit(request, monkeypatch):
    monkeypatch.setattr(gather, "MAX_MESSAGE", request.param)


@pytest.mark.parametrize("size", [0, 1, 3, 101])  # fewer than ranks, not divisible
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.usefixtures("limit")
def test_every_verb_equals_the_twin(comm, size, dtype, ordered):
    rows, like = contributions(size, dtype), torch.zeros(size, dtype=dtype)

    def close(a, b):
        largest = float(rows.abs().amax()) if size else 0.0
        rounding = 0.0 if ordered else WORKERS * torch.finfo(dtype).eps * largest
        return torch.allclose(a, b, rtol=0, atol=rounding)

    for placement in placements(comm):
        port, twin = opened(comm, placement, like, ordered)
        mine = rows[placement.here.start : placement.here.stop]
        expected, own = twin.sum(rows), port.own(size)
        part, whole = port.contribution(size), twin.contribution(size)
        for _ in range(2):  # the second one begins anew
            for i, row in enumerate(mine):
                part.add(i, row, weight=0.5)
                part.of(i).add_(row, alpha=0.5)
            for i, row in enumerate(rows):
                whole.add(i, row, weight=0.5)
                whole.of(i).add_(row, alpha=0.5)
            assert close(part.sum(), whole.sum())
        for i, row in enumerate(mine):
            part.add(i, row)
        piece = part.scatter()
        assert close(piece, expected[own.start : own.stop])
        assert close(port.allgather(piece, size), expected)
        assert close(port.sum(mine), expected)
        assert close(port.scalars(mine), expected)
        assert torch.equal(
            mine, rows[placement.here.start : placement.here.stop]
        )  # what was handed over is left alone
        # three allreduces and two halves; scalars are free
        assert sum(counter.passes for counter in port.counters.values()) == 4.0
        assert port.counters["scalars"].calls == 1
        port.free()


def test_what_slices_contribute(comm):
    """A dot product of two vectors of which every rank has a slice."""
    a, b = contributions(101, torch.float64)[:2]
    for ordered in (False, True):
        port, twin = opened(comm, Placement.even(WORKERS, comm.size, comm.rank), a, ordered)
        own = port.own(101)
        here = slice(own.start, own.stop)
        found = port.slices(torch.stack([a[here] @ b[here], a[here] @ a[here]]))
        want = twin.slices(torch.stack([a @ b, a @ a]))
        assert torch.allclose(found, want, rtol=1e-12, atol=0)
        assert all(torch.equal(found, other) for other in comm.allgather(found))
        counter = port.counters["slices"]
        assert (counter.calls, counter.payload, counter.passes) == (1, 16, 0)
        assert counter.bytes == pytest.approx(allreduce_bytes(16, comm.size))
        assert comm.allreduce(counter.bytes_workers) == pytest.approx(twin.counters["slices"].bytes_workers)
        port.free()


@pytest.mark.parametrize("ordered", [False, True])
def test_gradients_and_products_of_a_problem(comm, ordered):
    recipe, v = (
        hpcopt.LinearRegression(WORKERS, dim=11, rows_per_worker=5),
        torch.linspace(-1, 1, 11).double(),
    )
    whole = recipe.bind(Share(range(WORKERS), WORKERS, seed=1))
    x = whole.initial()
    for placement in placements(comm):
        problem = recipe.bind(Share(placement.here, WORKERS, seed=1))
        port, twin = opened(comm, placement, x, ordered)
        rounding = 0.0 if ordered else 1e-13
        want = twin.gradient(whole, x, Draw(0))
        assert torch.allclose(port.gradient(problem, x, Draw(0)), want, rtol=rounding, atol=rounding)
        part, all_parts = port.contribution(11), twin.contribution(11)
        own = slice(port.own(11).start, port.own(11).stop)
        for fill in (
            lambda part, task: part.add_gradients(task, x).add_hvps(task, x, v),
            lambda part, task: part.add_hvps(task, x, v).add_gradients(task, x),
        ):
            expected = fill(all_parts, whole).scatter()
            assert torch.allclose(fill(part, problem).scatter(), expected[own], rtol=1e-12, atol=1e-12)
        port.free()


def test_results_are_the_same_bits_on_every_rank(comm):
    rows = contributions(1000, torch.float32)
    port, _ = opened(comm, Placement.even(comm.size, comm.size, comm.rank), rows[0])
    total = port.sum(rows[comm.rank, None])
    assert all(torch.equal(total, other) for other in comm.allgather(total))
    port.free()


def test_bytes_follow_the_definition(comm):
    port, twin = opened(comm, Placement.even(WORKERS, comm.size, comm.rank), torch.zeros(1000))
    part = port.contribution(1000)
    data = part.of(0).data_ptr() if port._placement.n else part.memory.data_ptr()
    assert part.sum().data_ptr() == data  # in place, no copy
    twin.contribution(1000).sum()
    counter, of_twin = port.counters["sum"], twin.counters["sum"]
    assert comm.allreduce(counter.bytes) == pytest.approx(2 * 4000 * (comm.size - 1))
    assert comm.allreduce(counter.bytes_workers) == pytest.approx(2 * 4000 * (WORKERS - 1))
    assert of_twin.bytes == pytest.approx(allreduce_bytes(4000, comm.size)) == pytest.approx(counter.bytes)
    assert (counter.payload, of_twin.payload, counter.passes) == (4000, 4000, 1)
    part.scatter()
    port.sum(torch.ones(port._placement.n, 10))
    assert port.counters["scatter"].bytes == pytest.approx(gather_bytes(4000, comm.size))
    assert port.counters["scatter"].passes == 0.5
    assert counter.passes == 1  # ten numbers are no whole vector
    port.free()


def test_ports_of_one_kind_are_counted_one_by_one_and_freed(comm):
    like = torch.zeros(5, dtype=torch.float64)
    placement = Placement.even(WORKERS, comm.size, comm.rank)
    ports = MPIPorts(comm, placement, Staging(CPU), like, "mpi", overlap=False, remembered={})
    rings = [ports.neighbours(like, mixing("ring", "metropolis", WORKERS)) for _ in range(2)]
    ports.sparse_sum(like, "allgather")
    X = torch.ones(placement.n, 5, dtype=torch.float64)
    for port, times in zip(rings, (1, 2), strict=True):
        for t in range(times):
            port.mix(X, t)
    calls = {name: counter.calls for name, counter in ports.counters().items()}
    assert {name: calls[name] for name in ("neighbours", "neighbours_2", "sparse")} == {
        "neighbours": 1,
        "neighbours_2": 2,
        "sparse": 0,
    }
    ports.free()


class Closed(Rehearsal):
    """Of tensors that are not to be moved."""

    def out(self, tensor):
        raise AssertionError("moved")

    landing = leaving = home = out


def test_on_one_rank_nothing_is_moved(monkeypatch):
    """Neither summed, gathered nor mixed, and the entries of sparse sums stay on their device, too."""
    rows, alone, placement = contributions(101, torch.float64), MPI.COMM_SELF, Placement.even(WORKERS)
    moved = property(lambda self: pytest.fail("moved"))
    for name in ("_records", "_gather", "_union"):
        monkeypatch.setattr(MPISparseSum, name, moved)
    indices = torch.tensor([[0, 3, 100]] * WORKERS)
    for reduction, exchange in product(("mpi", "ordered"), EXCHANGES):
        ports = MPIPorts(alone, placement, Closed(CPU), rows[0], reduction, overlap=False, remembered={})
        twin, reduce = LocalReducer(WORKERS, rows[0], reduction == "ordered"), ports.reduce
        part = reduce.contribution(101)
        for i, row in enumerate(rows):
            part.add(i, row)
        want, piece = twin.sum(rows), part.scatter()
        for found in (piece, reduce.sum(rows), reduce.allgather(want, 101), reduce.slices(want)):
            assert torch.allclose(found, want, rtol=0, atol=1e-9 * float(want.abs().max()))
            assert found.data_ptr() != want.data_ptr()
        X, scattered = rows.clone(), torch.zeros_like(want)
        scattered[[0, 3, 100]] = want[[0, 3, 100]]
        ports.neighbours(rows[0], mixing("ring", "metropolis", WORKERS)).mix(X, 0)
        assert torch.allclose(X.mean(0), rows.mean(0), rtol=1e-12, atol=1e-6)
        summed = ports.sparse_sum(rows[0], exchange).sum(indices, rows.gather(1, indices))
        assert torch.allclose(summed.dense, scattered, rtol=0, atol=1e-9 * float(scattered.abs().max()))
        assert summed.support.tolist() == [0, 3, 100]
        ports.free()


@pytest.fixture(params=["a node each", "two nodes"])
def nodes(request, comm, monkeypatch):
    """The plans to try; pieces and segments have a few numbers, and nodes are made up."""
    for name, nbytes in (("SEGMENT_BYTES", 48), ("LONG_BYTES", 160), ("PIECE_BYTES", 96)):
        monkeypatch.setattr(ring, name, nbytes)
    monkeypatch.setattr(ways, "MIB", 96)
    if request.param == "two nodes" and comm.size % 2:
        pytest.skip("nodes have equally many ranks")
    color = comm.rank if request.param == "a node each" else comm.rank % 2
    monkeypatch.setattr(ways, "Ring", lambda comm: ring.Ring(comm, comm.Split(color, comm.rank)))
    return PLANS if request.param == "a node each" else ("ring",)


@pytest.mark.parametrize("through", ["direct", "staged"])
def test_every_plan_takes_what_a_gpu_has(comm, through, nodes):
    """As tensors, which are no arrays, and by memory of the host, where nothing is before its time."""
    placement, staging = Placement.even(WORKERS, comm.size, comm.rank), Rehearsal(CPU)
    mine = slice(placement.here.start, placement.here.stop)
    kinds = ((0, torch.float64), (3, torch.float32), (101, torch.float64))
    for (size, dtype), plan in product(kinds, nodes):
        rows, like = contributions(size, dtype), torch.zeros(size, dtype=dtype)
        ordered = plan == "ordered"
        way = f"{'whole' if ordered else plan}, {through}"
        table = {verb: {"0": way} for verb in ("sum", "scatter", "gather")}
        port = MPIReducer(comm, placement, staging, like, "ordered" if ordered else "mpi", table=table)
        twin = LocalReducer(WORKERS, like, ordered)
        want, own = twin.sum(rows), slice(port.own(size).start, port.own(size).stop)
        rounding = 0.0 if ordered else 4 * WORKERS * torch.finfo(dtype).eps * float(rows.abs().sum())
        part = port.contribution(size)
        for _ in range(2):
            for i, row in enumerate(rows[mine]):
                part.add(i, row)
            piece = part.scatter()
            assert torch.allclose(piece, want[own], rtol=0, atol=rounding), (size, dtype, plan)
            assert torch.allclose(port.sum(rows[mine]), want, rtol=0, atol=rounding), (size, dtype, plan)
            assert torch.equal(port.allgather(want[own].clone(), size), want), (size, dtype, plan)
        by_worker = torch.cat([want[:0], *(want.tensor_split(WORKERS)[w] for w in placement.here)])
        assert torch.equal(port.allgather(by_worker, size, by_worker=True), want)
        port.free()


def test_pieces_change_no_bit_of_what_ranks_add_up_themselves(comm, monkeypatch):
    monkeypatch.setattr(ways, "MIB", 64)
    rows, found = contributions(1001, torch.float32), []
    for plan in ("1 MiB", "3 MiB", "1000 MiB"):
        table = {"sum": {"0": plan}, "scatter": {"0": plan}}
        placement = Placement.even(comm.size, comm.size, comm.rank)
        port = MPIReducer(comm, placement, Staging(CPU), rows[0], table=table)
        part = port.contribution(1001)
        part.add(0, rows[comm.rank])
        found.append(part.scatter())
        port.free()
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_ways_are_measured_where_there_is_a_choice_and_remembered(comm, monkeypatch):
    """By all ranks alike, with vectors like those to come; nothing is timed where bits depend on it."""
    timed = []

    def fastest(comm, calls, remembered):
        timed.append(remembered or sorted(calls))
        for call in calls.values():
            call()
        return remembered or max(calls)

    monkeypatch.setattr(choice, "fastest", fastest)
    monkeypatch.setattr(choice.Ring, "admits", lambda comm: True)
    monkeypatch.setattr(ways, "Ring", lambda comm: ring.Ring(comm, comm.Split(comm.rank)))
    long = torch.zeros((choice.LONG >> 2) + 1)
    reduction, table = choice.choose(comm, "auto", {}, Staging(CPU), long)
    if comm.size == 1:
        assert (reduction, timed) == ("mpi", [])
        return
    assert reduction == "mpi"
    assert table["sum"] == {"0": "whole", "65536": "whole", str(choice.LONG): "whole"}
    assert timed == [["ring", "whole"], ["1 MiB", "4 MiB", "ring", "whole"], ["1 MiB", "4 MiB", "whole"]]
    timed.clear()
    assert choice.choose(comm, "auto", table, Staging(CPU), long)[1] == table
    assert timed == ["whole"] * 3
    assert choice.choose(comm, "ring", {}, Staging(CPU), long)[0] == "ring"
    timed.clear()
    reduction, table = choice.choose(comm, "ordered", {}, Staging(CPU), long)
    assert (reduction, list(table), timed) == ("ordered", ["gather"], [])
    for wanted in ("mpi", "ordered"):
        _, table = choice.choose(comm, wanted, {}, Rehearsal(CPU), long)
        assert table["gather"]["0"] == "whole, staged"
    forced = Rehearsal(CPU, aware=True)
    table = choice.choose(comm, "ring", {}, forced, long[:10])[1]
    assert set(table["sum"].values()) == {"whole, direct", "ring, direct"}
