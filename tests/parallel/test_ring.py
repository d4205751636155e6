"""The ring between hosts, on one host: the nodes are made up, the arithmetic is the same."""

import numpy as np
import pytest
from mpi4py import MPI

from hpcopt.comm.reduce import ring as ring_module
from hpcopt.comm.reduce.choice import choose
from hpcopt.comm.reduce.ring import Ring

pytestmark = pytest.mark.mpi


class MadeUpNodes(Ring):
    """A ring over nodes of ``ranks`` consecutive ranks each."""

    def __init__(self, comm: MPI.Comm, ranks: int) -> None:
        self._node = comm.Split(comm.rank // ranks, comm.rank)
        self._across = comm.Split(self._node.rank, comm.rank)
        self._landing = {}


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("size", [0, 1, 3, 7, 1001, 300_000])
def test_sums_and_the_same_bits_everywhere(comm, monkeypatch, ranks, size):
    monkeypatch.setattr(ring_module, "SEGMENT_BYTES", 4096)
    if comm.size % ranks:
        pytest.skip("nodes of two ranks need an even number of them")
    ring = MadeUpNodes(comm, ranks)
    for dtype in (np.float32, np.float64, np.float32):
        vector = np.random.default_rng(comm.rank).standard_normal(size).astype(dtype)
        expected = vector.astype(np.float64)
        comm.Allreduce(MPI.IN_PLACE, expected)
        ring.allreduce(vector)
        assert np.allclose(vector, expected, atol=1e-5)
        assert all(np.array_equal(vector, other) for other in comm.allgather(vector))
    ring.free()


def test_within_one_node_mpi_sums(comm):
    assert not Ring.admits(comm)
    for wanted, remembered in (("auto", ""), ("auto", "ring"), ("ring", ""), ("mpi", "ring")):
        assert choose(comm, wanted, remembered, 10, 4) == "mpi"
    assert choose(comm, "ordered", "", 10, 4) == "ordered"
