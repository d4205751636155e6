"""The `Neighbours` port over MPI."""

from __future__ import annotations

import time
from collections.abc import Hashable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from mpi4py import MPI
from numpy.typing import NDArray
from torch import Tensor

from hpcopt.comm import gather
from hpcopt.comm.neighbours.poller import Poller
from hpcopt.comm.neighbours.schedule import schedule
from hpcopt.comm.neighbours.wire import Requests, Wire
from hpcopt.comm.ports import Counter
from hpcopt.comm.staging import Staging
from hpcopt.comm.timing import fastest
from hpcopt.ground.placement import Placement
from hpcopt.math.averages import Averages
from hpcopt.math.flat import buffer, copied

if TYPE_CHECKING:
    from hpcopt.math.mixing import Mixing

CHUNK_BYTES = 8 << 20
"""of a row that goes through host memory: one is copied while another travels"""
TRIED = 4 << 20
"""numbers of the longest rows that are timed"""
TESTED = 5
"""columns of the self-test"""
PRIME = 101
"""above its numbers: small enough for single precision to tell a wrong sum from a rounded one"""


class MPINeighbours:
    """`Neighbours` over a communicator: rows travel from the memory of X to those ranks that need them.

    Not by MPI's neighbourhood collectives: these need rows packed for each neighbour, and their persistent
    and nonblocking forms have delivered wrong blocks. Every W is tried when the port is opened.

    What `begin` sends off goes on travelling by itself, see `Poller`.

    Args:
        comm: duplicated; the caller's stays as it is. Collective.
        placement: of the workers on the ranks of ``comm``.
        like: a vector (m,) of the rows' dtype, on their device.
        mixing: the matrices W, (N, N).
        staging: how GPU tensors reach MPI.
        ordered: averages have the same bits on any number of ranks; otherwise only where workers have few
            neighbours.
        remembered: what `way` was in an earlier job; empty if there was none.

    Attributes:
        way: "direct" or "staged", where there was a choice; else empty.

    Raises:
        RuntimeError: rows do not arrive where they should: the MPI library is defect.
    """

    def __init__(
        self,
        comm: MPI.Comm,
        placement: Placement,
        like: Tensor,
        mixing: Mixing,
        staging: Staging,
        ordered: bool = True,
        remembered: str = "",
    ) -> None:
        self._comm = comm.Dup()
        self._here = placement.here
        self._schedules = [schedule(W, placement) for W in mixing.matrices]
        self._averages = [Averages(p.terms, p.received, like, ordered) for p in self._schedules]
        self._landing = buffer((max(p.received for p in self._schedules), len(like)), like)
        self._snapshot: Tensor | None = None
        self._pending: tuple[int, Poller, Any, float] | None = None
        self._wire = Wire(self._comm)
        self._like = like[:0]
        self._choose(staging, like, remembered)
        self._test(mixing, min(TESTED, len(like)))
        self.counter = Counter()

    def mix(self, X: Tensor, round: int) -> None:
        """See `Neighbours`. Collective."""
        start = time.perf_counter()
        assert self._pending is None, "a mix has begun and was not finished"
        number = round % len(self._schedules)
        self._averages[number].replace(X, self._exchanged(X, number))
        self._count(start, X, number)

    def begin(self, X: Tensor, round: int) -> Tensor:
        """See `Neighbours`. Collective; the snapshot is overwritten by the next one."""
        start = time.perf_counter()
        assert self._pending is None, "a mix has begun and was not finished"
        self._snapshot = copied(X, self._snapshot)
        number = round % len(self._schedules)
        requests, landing = self._start(self._snapshot, number)
        # a thread has no GPU of its own choosing, and networks that take GPU pointers need no help
        progress = Poller(requests.all, poll=X.device.type == "cpu" or not self._staging.direct)
        self._pending = number, progress, landing, time.perf_counter() - start
        return self._snapshot

    def finish(self, X: Tensor, snapshot: Tensor) -> None:
        """See `Neighbours`. Collective."""
        start = time.perf_counter()
        assert self._pending is not None, "nothing has begun"
        assert snapshot is self._snapshot, "finish takes what begin gave"
        number, progress, landing, seconds = self._pending
        progress.finish()
        others = self._others(number, X.shape[1])
        if landing is not None:
            self._staging.back(landing, others)
        self._averages[number].add_change(X, snapshot, others)
        self._pending = None
        self._count(start - seconds, X, number)

    def free(self) -> None:
        """See `Neighbours`. Collective."""
        if self._pending is not None:
            self._pending[1].finish()
        self._wire.release()
        self._comm.Free()

    # --- rows on their way ----------------------------------------------------------------------------------

    def _exchanged(self, X: Tensor, number: int) -> Tensor:
        """The other ranks' rows, (r, m); staged, one is copied while the next one travels. Collective."""
        requests, landing = self._start(X, number)
        others = self._others(number, X.shape[1])
        if self._staging.direct or landing is None:
            MPI.Request.Waitall(requests.all)
            return others
        cuts = self._cuts(X.shape[1])
        for at, group in enumerate(requests.receives):
            slot, cut = at // len(cuts), cuts[at % len(cuts)]
            MPI.Request.Waitall(group)
            self._staging.home(landing[slot][cut], [others[slot][cut]])
        MPI.Request.Waitall(requests.all)
        self._staging.finish()
        return others

    def _start(self, X: Tensor, number: int) -> tuple[Requests, Any]:
        """The requests that carry a schedule's rows, and the wire (r, m) where they land, if any do."""
        assert X.dtype == self._landing.dtype
        part, m = self._schedules[number], X.shape[1]
        if not part.sends and not part.receives:
            return Requests([], []), None
        cuts, staging = self._cuts(m), self._staging
        landing = staging.landing(self._others(number, m))
        pairs = [(row, cut) for row in part.leaving for cut in cuts]
        memory: Hashable
        rows: Iterable[Any]
        if staging.direct:
            wire, memory = staging.out(X), (X.data_ptr(), X.shape, X.stride())
            rows = (wire[row][cut] for row, cut in pairs)
        else:
            rows, memory = staging.leaving([[X[row, cut]] for row, cut in pairs]), m
        return self._wire.start(memory, number, part, cuts, rows, landing), landing

    def _others(self, number: int, m: int) -> Tensor:
        """Where the other ranks' rows come to, (r, m)."""
        return self._landing[: self._schedules[number].received, :m]

    def _cuts(self, m: int) -> list[slice]:
        """What of a row travels at a time; messages have to be the same on both sides."""
        step = CHUNK_BYTES // self._like.element_size() if self._staged else m
        return gather.cuts(m, step) if m else [slice(0, 0)]

    def _count(self, since: float, X: Tensor, number: int) -> None:
        nbytes, part = X.shape[1] * X.element_size(), self._schedules[number]
        self.counter.add(since, nbytes * part.sent, nbytes * part.fan_out, nbytes * len(X))

    def _choose(self, staging: Staging, like: Tensor, remembered: str) -> None:
        """How rows reach MPI, by timing exchanges where there are two ways. Collective."""
        # pinned memory of its own: another port's use must not overwrite rows that travel
        own = {name: way.another(way.direct) for name, way in staging.ways().items()}
        found = {name for names in self._comm.allgather(list(own)) for name in names}
        names = sorted(found - {""}) or [""]

        def use(name: str) -> None:
            # messages are cut alike on both sides, also where a rank is on the CPU beside others with GPUs
            self._staging, self._staged = own.get(name) or own[""], name == "staged"

        self.way = ""
        if len(names) > 1 and self._comm.size > 1:
            X = buffer((len(self._here), min(len(like), TRIED)), like).zero_()

            def exchange(name: str) -> None:
                use(name)
                self._exchanged(X, 0)

            calls = {name: partial(exchange, name) if {"", name} & own.keys() else None for name in names}
            self.way = fastest(self._comm, calls, remembered)
            self._wire.release()
        use(self.way or names[0])

    # --- the self-test -------------------------------------------------------------------------------------

    def _test(self, mixing: Mixing, width: int) -> None:
        """Averages of known integers with every W, twice from the same memory. Collective."""
        self.counter = Counter()
        numbers = _numbers(mixing.N, width)
        X = self._like.new_empty((len(self._here), width))
        complaints = []
        for round in [t for t in range(mixing.period) for _ in range(2)]:
            X.copy_(torch.from_numpy(numbers[self._here.start : self._here.stop]))
            self.mix(X, round)
            W = mixing.at(round)[self._here.start : self._here.stop]
            complaints += self._compare(X.cpu().double().numpy(), W @ numbers, round, np.diff(W.indptr))
        self._wire.release()
        found = [text for texts in self._comm.allgather(complaints[:1]) for text in texts]
        if found:
            library = MPI.Get_library_version().splitlines()[0].rstrip("\0 ")
            raise RuntimeError(f"{library} does not deliver rows between neighbours rightly: {found[0]}")

    def _compare(
        self, got: NDArray[np.float64], want: NDArray[np.float64], round: int, terms: NDArray[np.int64]
    ) -> list[str]:
        """What is wrong in a round, in words."""
        rounding = PRIME * torch.finfo(self._like.dtype).eps * (4 + terms[:, None])
        wrong = np.argwhere(~(np.abs(got - want) <= rounding))
        return [
            f"rank {self._comm.rank} has {got[i, c]} instead of {want[i, c]} "
            f"in column {c} of worker {self._here.start + i} after round {round}"
            for i, c in wrong[:1]
        ]


def _numbers(workers: int, columns: int) -> NDArray[np.float64]:
    """Integers below `PRIME`, (N, columns), that tell workers and columns apart."""
    j, c = np.arange(workers)[:, None], np.arange(columns)
    return (((7 + c) * j + c * (31 + j // PRIME)) % PRIME).astype(np.float64)
