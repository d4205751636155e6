"""`tools/bench gossip`: what a worker sends in a round of gossip, and in an allreduce, as their number grows.

    mpirun -n P … gossip_bytes.py counted    one worker per rank: the ports' counters, and the kernel's
    gossip_bytes.py simulated                up to 1,024 workers, by the ports' in-process twins

For ``counted`` MPI has to send over TCP through the loopback device, whose bytes the kernel counts; with more
ranks than cores no time is looked at. Symbols: N workers, d numbers.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from mpi4py import MPI
from torch import Tensor

from hpcopt.comm.local_ports import LocalPorts
from hpcopt.comm.mpi_ports import MPIPorts
from hpcopt.comm.ports import Counter, Ports
from hpcopt.comm.staging import Staging
from hpcopt.ground.placement import Placement
from hpcopt.math.graphs import doublings
from hpcopt.math.mixing import mixing
from tools.benches.common import Call, sent_through

TOPOLOGIES = ("ring", "one_peer_exponential", "exponential")
ELEMENTS = 1_000_000
"""counted: float32, 4 MB"""
SIMULATED_ELEMENTS = 256
ROUNDS = 6
"""a multiple of the period of one_peer_exponential on 2, 4 and 6 to 8 workers, too"""
WORKERS = (2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
DENSE = "allreduce"
RING, TREE = "ring allreduce", "halving and doubling"
"""two ways to make an allreduce, with the same bytes where N is a power of two"""


def one_round(ports: Ports, X: Tensor, what: str, N: int) -> tuple[Callable[[int], object], Counter]:
    """A round of gossip on a topology, or an allreduce, and the counter of its port. Collective."""
    if what == DENSE:
        return lambda _: ports.reduce.sum(X), ports.reduce.counters["sum"]
    port = ports.neighbours(X[0], mixing(what, "metropolis", N))
    return lambda round: port.mix(X, round), port.counter


def through_loopback(comm: MPI.Comm, call: Call) -> int:
    """What the kernel counts for a call of all ranks: bytes sent by all of them together."""
    comm.Barrier()
    before = sent_through("lo")
    comm.Barrier()
    call()
    comm.Barrier()
    after = sent_through("lo")
    comm.Barrier()
    return int(comm.bcast(after - before))


def counted(comm: MPI.Comm) -> None:
    """Prints d-vectors per rank and round, as counted by the ports and by the kernel."""
    nbytes = 4 * ELEMENTS
    found = []
    for what in (*TOPOLOGIES, DENSE):
        X = torch.randn(1, ELEMENTS)
        placement = Placement.even(comm.size, comm.size, comm.rank)
        ports = MPIPorts(comm, placement, Staging(torch.device("cpu")), X[0], "mpi", False, {})
        call, counter = one_round(ports, X, what, comm.size)
        call(0)  # opens connections
        start, start_workers = counter.bytes, counter.bytes_workers

        def rounds(call: Callable[[int], object] = call) -> None:
            for round in range(ROUNDS):
                call(round)

        kernel = through_loopback(comm, rounds) / comm.size
        mine = torch.tensor([counter.bytes - start, counter.bytes_workers - start_workers])
        every = torch.stack(comm.allgather(mine)) / ROUNDS / nbytes
        found.append((what, every, kernel / ROUNDS / nbytes))
        ports.free()
    if comm.rank:
        return
    print(
        f"  {comm.size} ranks, one worker each; vectors of d numbers that a rank sends in a round", flush=True
    )
    for what, every, kernel in found:
        least, most = float(every[:, 0].min()), float(every[:, 0].max())
        assert torch.equal(every[:, 0], every[:, 1]), "with one worker per rank both counters are the same"
        print(f"    {what:22} port {least:.3f} to {most:.3f}, kernel {kernel:.3f} (mean, with headers)")


def vectors(what: str, N: int) -> float:
    """Vectors of d numbers that a worker sends in a round, by the twins."""
    X = torch.randn(N, SIMULATED_ELEMENTS)
    call, counter = one_round(LocalPorts(N, X[0]), X, what, N)
    rounds = max(1, doublings(N))
    for round in range(rounds):
        call(round)
    return counter.bytes_workers / rounds / N / (4 * SIMULATED_ELEMENTS)


def in_a_row(what: str, N: int) -> int:
    """Messages of a round that wait for each other; those of gossip do not.

    An allreduce of long vectors is a reduce-scatter and an allgather: 2 (N - 1) messages of d/N numbers in a
    ring, or 2 ⌈log₂ N⌉ by halving and doubling.
    """
    return {RING: 2 * (N - 1), TREE: 2 * doublings(N)}.get(what, 1)


def simulated() -> None:
    """Prints vectors and messages per worker and round."""
    print(
        "  simulated: vectors of d numbers that a worker sends in a round (its messages one after the other)"
    )
    print(f"    {'workers':>8}" + "".join(f"{what:>24}" for what in (*TOPOLOGIES, f"{DENSE} (ring, tree)")))
    for N in WORKERS:
        cells = [f"{vectors(what, N):.3f} (1)" for what in TOPOLOGIES]
        cells.append(f"{vectors(DENSE, N):.3f} ({in_a_row(RING, N):,}, {in_a_row(TREE, N)})")
        print(f"    {N:>8,}" + "".join(f"{cell:>24}" for cell in cells), flush=True)


def main() -> None:
    """See above."""
    torch.set_num_threads(1)
    if sys.argv[1:] == ["counted"]:
        counted(MPI.COMM_WORLD)
    else:
        simulated()


if __name__ == "__main__":
    main()
