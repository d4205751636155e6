"""Neighbours over MPI against its in-process twin, on however many ranks mpirun started."""

import numpy as np
import pytest
import torch

from hpcopt.comm.local_ports import LocalPorts
from hpcopt.comm.mpi_ports import MPIPorts
from hpcopt.comm.neighbours import mpi_neighbours as neighbours
from hpcopt.comm.neighbours.local_neighbours import LocalNeighbours
from hpcopt.comm.neighbours.mpi_neighbours import MPINeighbours
from hpcopt.comm.neighbours.wire import Wire
from hpcopt.comm.reduce import ring
from hpcopt.comm.rehearsal import Rehearsal
from hpcopt.comm.staging import Staging
from hpcopt.errors import UserError
from hpcopt.ground.placement import Placement, block
from hpcopt.math.mixing import mixing

from .conftest import first_ranks

pytestmark = pytest.mark.mpi
CPU = torch.device("cpu")
NAMED = ("ring", "torus", "star", "complete", "exponential", "erdos_renyi", "one_peer_exponential")
IRREGULAR = "0 1\n0 2\n0 5\n1 3\n2 3 # a comment\n3 4\n4 8\n5 6\n5 8\n6 7\n0 8\n"


def matrices(topology, N):
    return mixing(topology, "metropolis", N, probability=0.6)


def columns(N, m, dtype):
    return torch.randn(N, m, dtype=dtype, generator=torch.Generator().manual_seed(N + m))


def placed(comm, N):
    return Placement.even(N, comm.size, comm.rank)


def opened(comm, N, like, mixes, ordered=True, staging=None):
    return MPINeighbours(comm, placed(comm, N), like, mixes, staging or Staging(CPU), ordered)


def check(comm, mixes, m, dtype, beyond=0, rounds=2, staging=None):
    """Some mixes have the twin's bits and bytes; columns beyond m are left alone."""
    N = mixes.N
    here = block(N, comm.size, comm.rank)
    everything = columns(N, m + beyond, dtype)
    wide = everything[here.start : here.stop].clone()
    X, whole = wide[:, :m], everything[:, :m].contiguous()
    port = opened(comm, N, X[0], mixes, staging=staging)
    twin = LocalNeighbours(whole[0], mixes, ranks=comm.size)
    mean = whole.double().mean(0)
    for t in range(mixes.period + rounds):
        port.mix(X, t)
        twin.mix(whole, t)
        assert torch.equal(X, whole[here.start : here.stop]), (mixes.topology, N, m, dtype, t)
    assert torch.equal(wide[:, m:], everything[here.start : here.stop, m:])
    total = torch.from_numpy(comm.allreduce(X.double().sum(0).numpy()))
    assert torch.allclose(total / N, mean, rtol=0, atol=100 * torch.finfo(dtype).eps)
    assert comm.allreduce(port.counter.bytes) == pytest.approx(comm.size * twin.counter.bytes)
    assert comm.allreduce(port.counter.bytes_workers) == twin.counter.bytes_workers
    assert port.counter.calls == twin.counter.calls
    port.free()


@pytest.mark.parametrize("topology", NAMED)
def test_every_topology_has_the_twins_bits_and_bytes(comm, topology):
    for N, dtype in ((4, torch.float64), (9, torch.float32), (64, torch.float32)):
        check(comm, matrices(topology, N), 101, dtype, beyond=12)


def test_chunks_pieces_and_one_column(comm, monkeypatch):
    """More columns than are worked on at once, messages of a few numbers, and a single column."""
    check(comm, matrices("ring", 5), 20_011, torch.float32, beyond=3)
    monkeypatch.setattr("hpcopt.comm.gather.MAX_MESSAGE", 64)
    check(comm, matrices("exponential", 9), 100, torch.float64, beyond=1)
    check(comm, matrices("ring", 7), 1, torch.float32)
    monkeypatch.setattr("hpcopt.comm.gather.MAX_MESSAGE", 1 << 30)
    monkeypatch.setattr(ring, "SEGMENT_BYTES", 32)
    monkeypatch.setattr("hpcopt.comm.neighbours.wire._on_node", lambda comm: frozenset())
    check(comm, matrices("one_peer_exponential", 11), 50, torch.float32)


def test_an_edge_list(comm, tmp_path):
    path = comm.bcast(tmp_path) / "graph.txt"
    if comm.rank == 0:
        path.write_text(IRREGULAR)
    comm.Barrier()
    check(comm, matrices(str(path), 9), 33, torch.float64)


def test_a_part_of_the_ranks(comm):
    with first_ranks(comm, max(1, comm.size - 1)) as part:
        if part is not None:
            check(part, matrices("torus", 6), 10, torch.float64)


@pytest.mark.parametrize("aware", [False, True])
def test_rows_go_to_mpi_as_a_gpu_s_do(comm, monkeypatch, aware):
    """By memory of the host, where nothing is before its time, and as tensors, which are no arrays."""
    monkeypatch.setattr(neighbours, "CHUNK_BYTES", 40)
    for topology in ("star", "one_peer_exponential"):
        check(comm, matrices(topology, 9), 21, torch.float32, beyond=2, staging=Rehearsal(CPU, aware))


def test_which_way_rows_of_a_gpu_take_is_measured_and_remembered(comm, monkeypatch):
    mixes, like = matrices("ring", 5), torch.zeros(10)
    ports = MPIPorts(comm, placed(comm, 5), Rehearsal(CPU), like, "mpi", overlap=False, remembered={})
    way = ports.neighbours(like, mixes).way
    if comm.size == 1:
        assert (way, ports.chosen.get("neighbours")) == ("", None)
        return
    assert way == ports.chosen["neighbours"] in ("direct", "staged")
    ports.free()
    monkeypatch.setattr(neighbours, "fastest", lambda comm, ways, remembered: remembered)
    for other in ("direct", "staged"):
        remembered = ports.chosen | {"neighbours": other}
        again = MPIPorts(comm, placed(comm, 5), Rehearsal(CPU), like, "mpi", False, remembered)
        assert again.neighbours(like, mixes).way == other
        again.free()


@pytest.mark.parametrize("staging", [Staging(CPU), Rehearsal(CPU, aware=False), Rehearsal(CPU, aware=True)])
def test_an_overlapped_mix_has_the_twins_bits(comm, staging):
    """Between plain ones, for every W of a period; X moves on in the meantime."""
    mixes, m = matrices("one_peer_exponential", 9), 77
    here = block(9, comm.size, comm.rank)
    whole = columns(9, m, torch.float32)
    X = torch.empty(len(here), m + 5)[:, :m].copy_(whole[here.start : here.stop])
    port = opened(comm, 9, whole[0], mixes, staging=staging)
    twin = LocalNeighbours(whole[0], mixes, ranks=comm.size)
    for t in range(9):
        if t % 3 == 2:
            port.mix(X, t)
            twin.mix(whole, t)
            continue
        begun, there = port.begin(X, t), twin.begin(whole, t)
        before, step = whole.clone(), columns(9, m, torch.float32) * (t + 1)
        X += step[here.start : here.stop]
        whole += step
        port.finish(X, begun)
        twin.finish(whole, there)
        assert torch.equal(begun, before[here.start : here.stop])
        W = torch.from_numpy(mixes.at(t).toarray()).float()
        assert torch.allclose(whole, before + step + W @ before - before, rtol=0, atol=1e-4)
        assert torch.equal(X, whole[here.start : here.stop])
    assert comm.allreduce(port.counter.bytes) == pytest.approx(comm.size * twin.counter.bytes)
    port.begin(X, 0)  # a job may end before it finishes
    port.free()


def test_rows_travel_while_a_rank_computes(comm):
    """And not only once it asks for them: the thread that helps ends when all have arrived."""
    mixes, here = matrices("one_peer_exponential", 8), block(8, comm.size, comm.rank)
    whole = columns(8, 1 << 18, torch.float32)
    X = whole[here.start : here.stop].clone()
    port = opened(comm, 8, whole[0], mixes)
    begun = port.begin(X, 2)
    helper = port._pending[1]._thread
    if helper is not None:  # on one rank nothing travels
        helper.join(60)
        assert not helper.is_alive()
    port.finish(X, begun)
    W = torch.from_numpy(mixes.at(2).toarray()).float()
    assert torch.allclose(X, (W @ whole)[here.start : here.stop], rtol=0, atol=1e-5)
    port.free()


def test_requests_follow_the_memory(comm):
    """Rows in new memory in every round, as wide as some and narrower than others."""
    mixes = matrices("ring", 8)
    here = block(8, comm.size, comm.rank)
    whole = columns(8, 40, torch.float64)
    port, twin = opened(comm, 8, whole[0], mixes), LocalNeighbours(whole[0], mixes)
    kept = []
    for t in range(6):
        kept.append(whole[here.start : here.stop, : 40 - t].clone())
        port.mix(kept[-1], t)
        want = whole[:, : 40 - t].clone()
        twin.mix(want, t)
        assert torch.equal(kept[-1], want[here.start : here.stop])
    assert len(port._wire._requests) <= 2
    port.free()


def test_the_run_s_port_adds_in_order_only_where_sums_do(comm):
    mixes = mixing("erdos_renyi", "metropolis", 40, probability=0.9)
    here = block(40, comm.size, comm.rank)
    whole = columns(40, 100, torch.float64)
    want = whole.clone()
    LocalNeighbours(whole[0], mixes).mix(want, 0)
    for reduction, error in (("ordered", 0.0), ("mpi", 1e-14)):
        ports = MPIPorts(
            comm, placed(comm, 40), Staging(CPU), whole[0], reduction, overlap=False, remembered={}
        )
        X = whole[here.start : here.stop].clone()
        ports.neighbours(whole[0], mixes).mix(X, 0)
        assert float((X - want[here.start : here.stop]).abs().max()) <= error
        assert ports.counters()["neighbours"].calls == 1
        ports.free()


@pytest.mark.parametrize("N", [1, 2, 9, 40])
def test_where_all_rows_of_w_are_the_same_a_mix_is_a_sum(comm, N):
    """W X of a complete graph, overlapped and not; with sums in order, bits that no ranks change."""
    m, here = 101, block(N, comm.size, comm.rank)
    weights = "weighted" if N == 9 else "metropolis"
    mixes = mixing("complete", weights, N, counts=np.arange(1.0, N + 1))
    W = mixes.at(0).toarray()
    for reduction, dtype, error in (("ordered", torch.float32, 1e-6), ("mpi", torch.float64, 1e-15)):
        whole = columns(N, m + 5, dtype)
        step = columns(N, m, dtype).flip(0)
        like = whole[0, :m]
        twins = LocalPorts(N, like, ordered=reduction == "ordered", ranks=comm.size)
        ports = MPIPorts(comm, placed(comm, N), Staging(CPU), like, reduction, overlap=False, remembered={})
        port, twin = ports.neighbours(like, mixes), twins.neighbours(like, mixes)
        wide = whole[here.start : here.stop].clone()
        X, begun = wide[:, :m], whole[:, :m].clone()
        want = W @ whole[:, :m].numpy().astype(float)
        port.mix(X, 0)
        twin.mix(begun, 0)
        mean = want.copy()
        assert torch.equal(wide[:, m:], whole[here.start : here.stop, m:])
        snapshot, kept = port.begin(X, 1), twin.begin(begun, 1)
        X += step[here.start : here.stop]
        begun += step
        port.finish(X, snapshot)
        twin.finish(begun, kept)
        want = want + step.numpy() + W @ want - want
        assert np.abs(X.numpy() - want[here.start : here.stop]).max(initial=0) < error * 10
        assert np.abs(snapshot.numpy() - mean[here.start : here.stop]).max(initial=0) < error * 10
        if reduction == "ordered":
            assert torch.equal(X, begun[here.start : here.stop])
        counters = port.counter, twin.counter
        assert [counter.calls for counter in counters] == [2, 2]
        assert [counter.passes for counter in counters] == [2, 2]
        assert comm.allreduce(port.counter.bytes) == pytest.approx(comm.size * twin.counter.bytes)
        assert comm.allreduce(port.counter.bytes_workers) == pytest.approx(twin.counter.bytes_workers)
        if reduction == "mpi":
            nbytes = 8 * m * 2 * (comm.size - 1) / comm.size
            assert port.counter.bytes == pytest.approx(2 * nbytes)
        port.begin(X, 2)  # a job may end before it finishes
        ports.free()


def test_ranks_that_have_read_different_graphs_are_told(comm):
    like = torch.zeros(3)
    ports = MPIPorts(comm, placed(comm, 8), Staging(CPU), like, "mpi", overlap=False, remembered={})
    if comm.size > 1:
        with pytest.raises(UserError, match="have read different graphs"):
            ports.neighbours(like, matrices("complete" if comm.rank == 1 else "ring", 8))
    ports.neighbours(like, matrices("ring", 8))
    ports.free()


@pytest.mark.mpi(min_size=2)
def test_rows_that_go_astray_are_found_at_the_start_on_every_rank(comm, monkeypatch):
    start = Wire.start

    def swapped(wire, memory, number, plan, cuts, rows, landing):
        rows = reversed(list(rows)) if comm.rank == 1 else rows
        return start(wire, memory, number, plan, cuts, rows, landing)

    monkeypatch.setattr(Wire, "start", swapped)
    with pytest.raises(RuntimeError, match=r"MPI.* does not deliver rows .* instead of .* worker \d"):
        opened(comm, 16, torch.zeros(9), matrices("ring", 16))


def test_the_numbers_of_the_self_test_tell_workers_apart():
    numbers = neighbours._numbers(1024, 5)
    assert len({tuple(row) for row in numbers.tolist()}) == 1024
    assert len({tuple(column) for column in numbers.T.tolist()}) == 5
    assert numbers.max() < neighbours.PRIME
