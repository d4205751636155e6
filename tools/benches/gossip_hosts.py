"""`tools/bench gossip`: a round of gossip between rate-limited hosts against dense allreduces; exchange only.

    mpirun -n P python -m mpi4py gossip_hosts.py [LIMIT]    one rank per host

A round is `Neighbours.mix` of a vector as long as resnet18's; against it `Reducer.sum` by the plan that a
run would choose, torch's allreduce over gloo, and a step of torch's DDP over gloo on a model of resnet18's
tensors whose backward pass does next to nothing. Then a model, α + bytes · β, of the same for more workers.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.distributed
from mpi4py import MPI
from torch import Tensor, nn

from hpcopt.comm.mpi_ports import MPIPorts
from hpcopt.comm.staging import Staging
from hpcopt.ground.placement import Placement
from hpcopt.problems import models
from tools.benches.common import (
    Call,
    Mixes,
    hosts,
    in_turn,
    on_the_wire,
    ratios,
    sent_through,
    spread,
    start_gloo,
)
from tools.benches.gossip_bytes import DENSE, RING, TOPOLOGIES, TREE, in_a_row, vectors

REPEATS = 7
PINGS = 200
GLOO, DDP = "gloo's allreduce", "a step of DDP over gloo"
OURS = "our allreduce"
MODELLED = (4, 32, 256, 1024)
SWITCHED = 50e-6
"""α of a usual Ethernet, assumed; between namespaces it is shorter"""
SIZES = {"resnet18": 11_172_810, "mlp": 235_146}


class Trivial(nn.Module):
    """The parameters of a model, and an output whose gradient costs no more than writing it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.weights = nn.ParameterList(parameter.detach().clone() for parameter in model.parameters())

    def forward(self, scale: Tensor) -> Tensor:
        """Their sum, scaled."""
        return torch.stack([weight.sum() for weight in self.weights]).sum() * scale


def latency(comm: MPI.Comm) -> float:
    """α: half a round trip of a few bytes between two hosts, while the other ranks sleep [s].

    The fastest tenth of them: slower ones waited for a core, not for the network.
    """
    times, word = [], np.zeros(1)
    if comm.rank < 2:
        other = 1 - comm.rank
        for _ in range(PINGS):
            start = time.perf_counter()
            first, second = (comm.Send, comm.Recv) if comm.rank == 0 else (comm.Recv, comm.Send)
            first(word, other)
            second(word, other)
            times.append((time.perf_counter() - start) / 2)
    everybody = comm.Ibarrier()
    while not everybody.Test():
        time.sleep(0.01)
    return float(comm.bcast(statistics.quantiles(times, n=10)[0] if times else 0.0))


def sent(comm: MPI.Comm, call: Call) -> float:
    """Bytes that a host sends for a call, the mean over the hosts, as the kernel counts them."""
    comm.Barrier()
    before = sent_through("eth0")
    call()
    comm.Barrier()
    return float(comm.allreduce(sent_through("eth0") - before)) / comm.size


def model(alpha: float, measured: Mapping[str, Sequence[float]], here: int) -> None:
    """Prints what α and β say for more workers: one per host, links like these, nothing that they share.

    Gossip and allreduces have a β each, from one-peer gossip and from our allreduce as they are here.
    """
    d = SIZES["resnet18"]
    medians = {name: statistics.median(values) for name, values in measured.items()}
    one = (medians["one_peer_exponential"] - alpha) / (4 * d)
    dense = (medians[OURS] - in_a_row(RING, here) * alpha) / (4 * d * vectors(DENSE, here))

    def seconds(what: str, N: int, d: int, alpha: float) -> float:
        gossip = what in TOPOLOGIES
        nbytes = 4 * d * vectors(what if gossip else DENSE, N)
        return in_a_row(what, N) * alpha + nbytes * (one if gossip else dense)

    print(
        "  a MODEL, no measurement: messages that wait for each other · α + bytes that a worker sends · β\n"
        f"    measured here: α = {alpha * 1e6:.0f} µs, half a round trip; β = {one * 1e9:.2f} ns from "
        f"one-peer gossip, {dense * 1e9:.2f} ns from our allreduce"
    )
    checks = (f"{w} {seconds(w, here, d, alpha) / medians[w]:.2f}" for w in ("ring", "exponential"))
    print(f"    modelled / measured on {here} hosts: {', '.join(checks)}")
    columns = (*TOPOLOGIES, RING, TREE)
    for latency, origin in ((alpha, "measured"), (SWITCHED, "assumed: switches between hosts")):
        print(f"    ms, α = {latency * 1e6:.0f} µs ({origin})")
        print(" " * 25 + "".join(f"{what:>23}" for what in columns))
        for name, d in SIZES.items():
            for N in MODELLED:
                cells = (f"{1e3 * seconds(what, N, d, latency):23.1f}" for what in columns)
                print(f"    {name:>8} {N:>6,} hosts" + "".join(cells))


def main() -> None:
    """Prints medians with spread, ratios, bytes on the wire, and the model."""
    torch.set_num_threads(1)
    comm, limit = MPI.COMM_WORLD, " ".join(sys.argv[1:]) or "no limit"
    start_gloo(comm)
    d = SIZES["resnet18"]
    like = torch.randn(d, generator=torch.Generator().manual_seed(comm.rank))
    placement = Placement.even(comm.size, comm.size, comm.rank)
    dense = MPIPorts(comm, placement, Staging(like.device), like, "auto", False, {})
    part, tensor = like.clone(), like.clone()
    trivial = Trivial(models.build("resnet18", (1, 8, 8), 10))
    ddp = nn.parallel.DistributedDataParallel(trivial, gradient_as_bucket_view=True)
    gossip = {topology: Mixes(comm, topology, like) for topology in TOPOLOGIES}
    # divided by N, repeated sums stay finite
    calls: dict[str, Call] = {topology: mixes.step for topology, mixes in gossip.items()}
    calls[OURS] = lambda: dense.reduce.sum(part.div_(comm.size)[None])
    calls[GLOO] = lambda: torch.distributed.all_reduce(tensor.div_(comm.size))
    calls[DDP] = lambda: ddp(torch.ones(())).backward()
    times = in_turn(comm, calls, REPEATS, warm=2)
    wire = {name: sent(comm, call) / (4 * d) for name, call in calls.items()}
    alpha, count = latency(comm), hosts(comm)
    if comm.rank == 0:
        print(
            f"{count} hosts, {comm.size} ranks, {limit}, d = {d:,} float32 ({4 * d / 1e6:.1f} MB, of which "
            f"links let the first\n0.3 pass in a burst), exchange only, medians of {REPEATS} [min, max]"
        )
        for name, values in times.items():
            plan = f" (plan {dense.chosen['reduction']}, measured to be fastest)" if name == OURS else ""
            least = on_the_wire(limit, 4 * d * wire[name])
            print(
                f"  {name:24} {spread(values)} s; the kernel counts {wire[name]:.2f} vectors per host, for "
                f"which the link needs at least {least:.3f} s{plan}"
            )
        for name in (OURS, GLOO, DDP):
            print(f"  a round of gossip / {name}:")
            for topology in TOPOLOGIES:
                print(f"    {topology:22} {ratios(times[topology], times[name])}")
        model(alpha, times, comm.size)
    for ports in (dense, *(mixes.ports for mixes in gossip.values())):
        ports.free()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
