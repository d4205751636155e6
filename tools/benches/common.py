"""What parts of `tools/bench` share: timing in turn, a gloo group, steps and rounds outside of runs."""

from __future__ import annotations

import os
import socket
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
import torch.distributed
from mpi4py import MPI
from torch import Tensor

from hpcopt.comm.mpi_ports import MPIPorts
from hpcopt.comm.staging import Staging
from hpcopt.ground.placement import Placement
from hpcopt.math.flat import Layout, buffer_of_rows
from hpcopt.math.mixing import mixing
from hpcopt.methods.base import Method
from hpcopt.problems.base import Draw, Evaluation, Problem, Ready, Share

T = TypeVar("T")
Call = Callable[[], object]
VARIANTS = 3
"""different gradients of a `Given` problem: one and the same in every round would be accumulated unmixed"""


def seconds(comm: MPI.Comm, call: Call) -> float:
    """The slowest rank's time of one call."""
    comm.Barrier()
    start = time.perf_counter()
    call()
    return float(comm.allreduce(time.perf_counter() - start, MPI.MAX))


def in_turn(comm: MPI.Comm, calls: Mapping[str, Call], repeats: int, warm: int = 1) -> dict[str, list[float]]:
    """Seconds of every call: all of them once per repeat, every other repeat in the reverse order."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for repeat in range(-warm, repeats):
        for name in calls if repeat % 2 else reversed(list(calls)):
            took = seconds(comm, calls[name])
            if repeat >= 0:
                times[name].append(took)
    return times


def on_the_first(comm: MPI.Comm, call: Callable[[], T]) -> T:
    """What rank 0 makes of a call, for every rank; those that wait for it sleep. Collective."""
    result = call() if comm.rank == 0 else None
    everybody = comm.Ibarrier()
    while not everybody.Test():
        time.sleep(0.01)
    return cast(T, comm.bcast(result))


def ratios(over: Sequence[float], under: Sequence[float]) -> str:
    """The median of paired ratios, and their spread."""
    return spread([a / b for a, b in zip(over, under, strict=True)])


def spread(values: Sequence[float], digits: int = 3) -> str:
    """Median [min, max]."""
    low, middle, high = (f"{f(values):.{digits}f}" for f in (min, statistics.median, max))
    return f"{middle} [{low}, {high}]"


def on_the_wire(limit: str, nbytes: float) -> float:
    """Seconds that a link of a rate like "1gbit" needs for so many bytes; 0 without a limit.

    The limits of tools/cluster let the first 256 kB of a burst pass at once, so that small messages seem to
    cost nothing: what is compared with a rate gets this on top.
    """
    if not limit.endswith("bit"):
        return 0.0
    prefix = {"k": 1e3, "m": 1e6, "g": 1e9}
    scale = prefix.get(limit[-4:-3], 1.0)
    return 8 * nbytes / (float(limit[:-4] if limit[-4:-3] in prefix else limit[:-3]) * scale)


def sent_through(device: str) -> int:
    """Bytes that left this host through a network device so far, headers included, as the kernel counts."""
    for line in Path("/proc/self/net/dev").read_text().splitlines():
        name, _, numbers = line.partition(":")
        if name.strip() == device:
            return int(numbers.split()[8])
    raise ValueError(f"there is no network device {device}")


def hosts(comm: MPI.Comm) -> int:
    """On how many hosts the ranks are."""
    return len(set(comm.allgather(socket.gethostname())))


def start_gloo(comm: MPI.Comm) -> None:
    """A torch process group over the same ranks, through the same interface."""
    several = hosts(comm) > 1
    address = socket.gethostbyname(socket.gethostname()) if several else "127.0.0.1"
    with socket.socket() as free:
        free.bind((address, 0))
        port = free.getsockname()[1]
    address, port = comm.bcast((address, port))
    os.environ |= {"MASTER_ADDR": address, "MASTER_PORT": str(port)}
    os.environ["GLOO_SOCKET_IFNAME"] = "eth0" if several else "lo"
    torch.distributed.init_process_group("gloo", rank=comm.rank, world_size=comm.size)


class Given(Problem):
    """One worker per rank, whose gradients were made beforehand, so that a step has no backward pass in it.

    Entries are normal, times magnitudes of a log-normal distribution, which all workers share; half of an
    entry's variance is the same on all of them.
    """

    def __init__(self, comm: MPI.Comm, dim: int) -> None:
        share = Share(range(comm.rank, comm.rank + 1), comm.size, seed=0, dtype=torch.float32)
        super().__init__(share, Layout.of([("x", (dim,))]), [1] * comm.size)
        self._start = torch.zeros(dim)
        everybody, mine = (torch.Generator().manual_seed(seed) for seed in (0, 1 + comm.rank))
        scale = torch.empty(dim).log_normal_(mean=-6, std=1.5, generator=everybody)
        self._given = [
            (torch.randn(dim, generator=everybody) + torch.randn(dim, generator=mine))
            .mul_(scale)
            .mul_(self.weights[0])
            for _ in range(VARIANTS)
        ]

    def initial(self) -> Tensor:
        """Zeros."""
        return self._start

    def gradients(
        self, X: Tensor, draw: Draw | None = None, *, weighted: bool = False, out: Tensor | None = None
    ) -> Tensor:
        """Adds the round's gradient to ``out``."""
        assert out is not None
        out[0].add_(self._given[0 if draw is None else draw.round % VARIANTS])
        return out

    def total_gradient(
        self,
        X: Tensor,
        draw: Draw | None = None,
        *,
        out: Tensor | None = None,
        ready: Ready | None = None,
    ) -> Tensor:
        """Copies the round's gradient to ``out``."""
        assert out is not None
        return out.copy_(self._given[0 if draw is None else draw.round % VARIANTS])

    def batch_rows(self, i: int, draw: Draw | None) -> int:
        """One."""
        return 1

    def evaluate(self, X: Tensor, buffers: Tensor | None = None) -> Evaluation:
        """Not measured."""
        raise NotImplementedError

    def losses(self, *_: Any, **__: Any) -> Tensor:
        """Not computed."""
        raise NotImplementedError

    def gradient(self, *_: Any, **__: Any) -> list[Tensor]:
        """Not computed."""
        raise NotImplementedError

    def hvps(self, *_: Any, **__: Any) -> Tensor:
        """Not computed."""
        raise NotImplementedError

    def total_hvp(self, *_: Any, **__: Any) -> Tensor:
        """Not computed."""
        raise NotImplementedError


class Steps:
    """A method with ports of its own, outside of a run.

    Args:
        comm: all ranks; collective.
        method: which.
        problem: the workers here, of all workers in contiguous blocks.
        reduction: how dense sums travel.
        remembered: that of other ports.
    """

    def __init__(
        self,
        comm: MPI.Comm,
        method: Method[Any, Any],
        problem: Problem,
        reduction: str = "auto",
        remembered: Mapping[str, Any] | None = None,
    ) -> None:
        staging = Staging(torch.device("cpu"))
        like = problem.initial()
        placement = Placement.even(problem.share.total, comm.size, comm.rank)
        self.ports = MPIPorts(comm, placement, staging, like, reduction, False, remembered or {})
        method.prepare(problem)
        self.method: Any = method  # its parts are measured, too
        self.state: Any = method.start(problem, self.ports)

    def step(self) -> None:
        """One round."""
        self.method.step(self.state)
        self.state.round += 1


class Mixes:
    """Rounds of gossip and nothing else, with ports of their own. Collective.

    Args:
        comm: all ranks, one worker each.
        topology: with Metropolis weights.
        like: a vector, the worker's first.

    Attributes:
        X: the worker's vector, (1, d).
        port: for averages.
    """

    def __init__(self, comm: MPI.Comm, topology: str, like: Tensor) -> None:
        placement = Placement.even(comm.size, comm.size, comm.rank)
        self.ports = MPIPorts(comm, placement, Staging(like.device), like, "mpi", False, {})
        self.port = self.ports.neighbours(like, mixing(topology, "metropolis", comm.size))
        self.X = buffer_of_rows(1, len(like), like).copy_(like)
        self.round = 0

    def step(self) -> None:
        """X ← W X."""
        self.port.mix(self.X, self.round)
        self.round += 1
