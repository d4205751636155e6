"""The ring between hosts, on one host: the nodes are made up, the arithmetic is the same."""

from itertools import product

import numpy as np
import pytest
import torch
import torch.distributed as dist
from mpi4py import MPI

from hpcopt.comm.reduce import mpi_reducer, ways
from hpcopt.comm.reduce import ring as ring_module
from hpcopt.comm.reduce.choice import choose
from hpcopt.comm.reduce.collectives import Collectives, why_not
from hpcopt.comm.reduce.ring import Ring
from hpcopt.comm.staging import Staging
from hpcopt.costs.volumes import allreduce_bytes, gather_bytes
from hpcopt.errors import UserError
from hpcopt.ground.placement import Placement, sizes

pytestmark = pytest.mark.mpi


@pytest.fixture(params=["1 rank", "2 ranks", "every other rank"])
def ring(request, comm, monkeypatch):
    """A ring over nodes of one or two ranks each, which follow each other or, as on two nodes, take turns."""
    monkeypatch.setattr(ring_module, "SEGMENT_BYTES", 4096)
    if comm.size % 2 and request.param != "1 rank":
        pytest.skip("two ranks on a node, or two nodes, need an even number of them")
    nodes = {"1 rank": comm.rank, "2 ranks": comm.rank // 2, "every other rank": comm.rank % 2}
    ring = Ring(comm, comm.Split(nodes[request.param], comm.rank))
    yield ring
    ring.free()


def test_sums_and_the_same_bits_everywhere(comm, ring):
    # what a longer vector, or one of the other kind, left in the ring's memory is of no importance
    for size, dtype in product((30_001, 0, 1, 3, 7, 1001), (np.float32, np.float64)):
        vector = np.random.default_rng([size, comm.rank]).standard_normal(size).astype(dtype)
        expected, part = vector.astype(np.float64), vector.copy()
        comm.Allreduce(MPI.IN_PLACE, expected)
        ring.allreduce(vector)
        tolerance = 8 * comm.size * np.finfo(dtype).eps
        assert np.allclose(vector, expected, rtol=0, atol=tolerance)
        assert all(np.array_equal(vector, other) for other in comm.allgather(vector))
        uneven = [size, *[0] * (comm.size - 1)]  # as where one rank has all workers
        for counts in (sizes(size, comm.size), uneven, uneven[::-1]):
            start = sum(counts[: comm.rank])
            piece = np.full(counts[comm.rank], np.nan, dtype)
            ring.reduce_scatter(part.copy(), piece, counts)
            assert np.allclose(piece, expected[start : start + counts[comm.rank]], rtol=0, atol=tolerance)
            whole = np.full(size, np.nan, dtype)
            ring.allgather(piece, whole, counts)
            assert np.array_equal(whole, np.concatenate(comm.allgather(piece)))


def test_a_reducer_takes_it_for_what_is_long_and_counts_the_same(comm, ring, monkeypatch):
    taken = []
    for verb in ("allreduce", "reduce_scatter", "allgather"):
        plan = getattr(ring, verb)
        monkeypatch.setattr(ring, verb, lambda *a, plan=plan, verb=verb: (taken.append(verb), plan(*a))[1])
    monkeypatch.setattr(ring, "free", lambda: None)
    monkeypatch.setattr(ways, "Ring", lambda comm: ring)
    for size, dtype in product((5, 20_001), (torch.float32, torch.float64)):
        like, placement = torch.zeros(size, dtype=dtype), Placement.even(7, comm.size, comm.rank)
        made = torch.Generator().manual_seed(size)
        rows = torch.randn(7, size, dtype=dtype, generator=made)
        found = {}
        for way in ("ring", "mpi"):
            port = mpi_reducer.MPIReducer(comm, placement, Staging(torch.device("cpu")), like, way)
            mine = rows[placement.here.start : placement.here.stop]
            part = port.contribution(size)
            for i, worker in enumerate(mine):
                part.add(i, worker)
            piece, total = part.scatter(), port.sum(mine)
            by_worker = torch.cat([total[:0], *(total.tensor_split(7)[w] for w in placement.here)])
            wholes = port.allgather(piece, size), port.allgather(by_worker, size, by_worker=True)
            assert torch.equal(wholes[1], total)
            few = port.slices(piece[:2].sum()[None]), port.scalars(mine[:, :2])
            found[way] = [piece, *wholes, total, *few]
            nbytes = size * like.element_size()
            counted = [port.counters[verb].bytes for verb in ("scatter", "gather", "sum")]
            half, both = gather_bytes(nbytes, comm.size), allreduce_bytes(nbytes, comm.size)
            assert counted == pytest.approx([half, 2 * half, both])
            port.free()
        for a, b in zip(*found.values(), strict=True):
            assert torch.allclose(a, b, rtol=0, atol=100 * torch.finfo(dtype).eps)
    of_the_longer = ["reduce_scatter", "allreduce", "allgather", "allgather"] * 2
    assert taken == of_the_longer * (comm.size > 1)


def test_within_one_node_mpi_sums(comm):
    assert not Ring.admits(comm)
    staging, like = Staging(torch.device("cpu")), torch.zeros(10)
    for wanted, way in (("auto", "mpi"), ("ring", "mpi"), ("mpi", "mpi"), ("ordered", "ordered")):
        assert choose(comm, wanted, {"sum": {"0": "ring"}}, staging, like)[0] == way


def test_collectives_of_torch_sum_the_same(comm, monkeypatch):
    """What NCCL does with GPUs' tensors, by gloo with the CPU's."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    cpu = torch.device("cpu")
    with pytest.raises(UserError, match=r'reduction = "nccl": .* this run computes on the CPU'):
        choose(comm, "nccl", {}, Staging(cpu), torch.zeros(10))
    assert why_not([("one", True), ("other", True)]) == ""
    assert "3 ranks share 2: start at most 2" in why_not([("one", True), ("other", True), ("one", True)])
    assert why_not([("one", True), ("other", False)]) == "this torch has no NCCL"
    both = Collectives(comm, cpu, "gloo"), Collectives(comm, cpu, "gloo")
    for size, dtype in product((1, 3, 1001), (torch.float32, torch.float64)):
        part = torch.randn(size, dtype=dtype, generator=torch.Generator().manual_seed(comm.rank))
        want, way = sum(comm.allgather(part.double())), both[size % 2]
        tolerance = 8 * comm.size * torch.finfo(dtype).eps
        total = part.clone()
        way.allreduce(total)
        assert torch.allclose(total.double(), want, rtol=0, atol=tolerance)
        assert all(torch.equal(total, other) for other in comm.allgather(total))
        uneven = [size, *[0] * (comm.size - 1)]  # as where one rank has all workers
        for counts in (sizes(size, comm.size), uneven, uneven[::-1]):
            own = slice(sum(counts[: comm.rank]), sum(counts[: comm.rank + 1]))
            piece, whole = torch.full_like(part[own], torch.nan), torch.full_like(part, torch.nan)
            way.reduce_scatter(part.clone(), piece, counts)
            assert torch.allclose(piece.double(), want[own], rtol=0, atol=tolerance)
            way.allgather(piece, whole, counts)
            assert torch.equal(whole, torch.cat(comm.allgather(piece)))
    monkeypatch.setattr(ways, "Collectives", lambda comm, device: Collectives(comm, device, "gloo"))
    rows, placement = torch.ones(7, 20_001), Placement.even(7, comm.size, comm.rank)
    port = mpi_reducer.MPIReducer(comm, placement, Staging(cpu), rows[0], "nccl")
    monkeypatch.setattr(ways.Way, "allreduce", None)  # MPI's, which only short vectors take
    assert torch.equal(port.sum(rows[placement.here.start : placement.here.stop]), 7 * rows[0])
    port.free()
    for way in both:
        assert dist.is_initialized()
        way.free()
    assert not dist.is_initialized()
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # somebody else's
    with pytest.raises(UserError, match="has a process group of torch"):
        Collectives(comm, cpu, "gloo")
    dist.destroy_process_group()
