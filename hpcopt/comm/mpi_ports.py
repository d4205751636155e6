"""All ports of a run over MPI: opened when a method asks for them, counted and freed together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from mpi4py import MPI
from torch import Tensor

from hpcopt.comm.beside.by_mail import ByMail
from hpcopt.comm.beside.in_line import InLine
from hpcopt.comm.chosen import Chosen, place_of
from hpcopt.comm.mailbox.mpi_mailbox import MPIMailbox
from hpcopt.comm.neighbours.common_average import CommonAverage
from hpcopt.comm.neighbours.mpi_neighbours import MPINeighbours
from hpcopt.comm.neighbours.travelling_sum import TravellingSum
from hpcopt.comm.opened import Opened
from hpcopt.comm.ports import (
    Beside,
    Counter,
    Exchange,
    Full,
    Mailbox,
    Neighbours,
    Receive,
    Reducer,
    Select,
    SparseSum,
    Task,
    Transport,
    Way,
)
from hpcopt.comm.reduce.choice import choose
from hpcopt.comm.reduce.mpi_reducer import MPIReducer
from hpcopt.comm.sparse.costs import Costs
from hpcopt.comm.sparse.measure import measure
from hpcopt.comm.sparse.mpi_sparse_sum import MPISparseSum
from hpcopt.comm.staging import Staging
from hpcopt.comm.timing import fastest
from hpcopt.control.agree import agree_same
from hpcopt.ground.placement import Placement

if TYPE_CHECKING:
    from hpcopt.math.mixing import Mixing


class MPIPorts:
    """`Ports` over a communicator. Every call but `counters` is collective.

    Args:
        comm: all ranks of the run.
        placement: of the workers on them.
        staging: how GPU tensors reach MPI.
        like: a vector (d,) like the model.
        reduction: how dense sums travel: "auto", "mpi", "ring" or "ordered".
        overlap: see `MPIReducer`.
        remembered: that of the run's earlier job; empty if there was none.
        by_mail: opens the way to the ranks that compute beside the rounds; None: there are none.

    Attributes:
        wish: see `Ports`.
    """

    def __init__(
        self,
        comm: MPI.Comm,
        placement: Placement,
        staging: Staging,
        like: Tensor,
        reduction: str,
        overlap: bool,
        remembered: Mapping[str, Any],
        by_mail: Callable[[Task], ByMail] | None = None,
    ) -> None:
        self._by_mail = by_mail
        self._comm, self._placement, self._staging, self._like = comm, placement, staging, like
        self._chosen = Chosen(place_of(comm, staging.device, len(like)), remembered)
        way, self._sums = choose(comm, reduction, self._chosen.get("sums") or {}, staging, like)
        self._reduction, self._ordered = way, way == "ordered"
        self._chosen.keep("reduction", way)
        self._chosen.keep("sums", self._sums)
        self.reduce: Reducer = self.reducer(overlap)
        self._open = Opened(self.reduce)
        self._mailboxes: list[MPIMailbox] = []
        self.wish: Callable[[], int] = lambda: 0

    @property
    def chosen(self) -> dict[str, Any]:
        """What was measured or chosen here so far, by name; plain numbers and strings."""
        return self._chosen.here

    @property
    def remembered(self) -> dict[str, dict[str, Any]]:
        """The same of all places where the run has been, for its next job."""
        return self._chosen.everywhere

    def reducer(self, overlap: bool = False) -> MPIReducer:
        """Another `Reducer` of the run's kind, that nobody counts; the caller frees it."""
        own = self._comm, self._placement, self._staging, self._like
        return MPIReducer(*own, self._reduction, overlap, self._sums)

    def sparse_sum(self, like: Tensor, exchange: Exchange = "auto", select: Select = "local") -> SparseSum:
        """See `Ports`."""
        reducer = self.reducer()

        def costs() -> tuple[Costs, Costs]:
            here = self._chosen.get("sparse") or self._chosen.keep(
                "sparse", asdict(measure(self._comm, reducer, like))
            )
            return Costs(**here), Costs(**self._chosen.first("sparse"))

        if exchange == "auto":
            costs()  # before the run begins
        port = MPISparseSum(
            self._comm, self._placement, like, reducer, self._ordered, exchange, select, costs
        )
        return self._open.add("sparse", port)

    def fastest(self, name: str, ways: Mapping[str, Way | None]) -> str:
        """See `Ports`."""
        if self._ordered:
            return next(iter(ways))
        known = self._chosen.get(name) or ""
        return str(self._chosen.keep(name, fastest(self._comm, ways, remembered=known)))

    def beside(self, task: Task) -> Beside:
        """See `Ports`."""
        return InLine(task) if self._by_mail is None else self._open.add("beside", self._by_mail(task))

    def agree_same(self, digest: str, message: str) -> None:
        """See `Ports`."""
        agree_same(self._comm, digest, message)

    def neighbours(self, like: Tensor, mixing: Mixing) -> Neighbours:
        """See `Ports`.

        Raises:
            UserError: the ranks have read different files.
        """
        self.agree_same(mixing.digest(), mixing.differs)
        return self._open.add("neighbours", self._neighbours(like, mixing))

    def mailbox(
        self,
        like: Tensor,
        links: Iterable[tuple[int, int]] | None = None,
        depth: int = 4,
        transport: Transport = "auto",
        full: Full = "add",
        receive: Receive | None = None,
    ) -> Mailbox:
        """See `Ports`.

        Raises:
            RuntimeError: no transport that is allowed is right here.
        """
        port = MPIMailbox(
            self._comm,
            self._placement,
            self._staging,
            like,
            links,
            depth,
            transport,
            full,
            wish=lambda: self.wish(),
            remembered=self._chosen.get("mailbox") or "",
            receive=receive,
        )
        self._chosen.keep("mailbox", port.transport)
        self._mailboxes.append(port)
        return self._open.add("mailbox", port)

    def _neighbours(self, like: Tensor, mixing: Mixing) -> MPINeighbours | CommonAverage:
        placement, ordered = self._placement, self._ordered
        if mixing.common is None:
            how = self._staging, ordered, self._chosen.get("neighbours") or ""
            port = MPINeighbours(self._comm, placement, like, mixing, *how)
            if port.way:
                self._chosen.keep("neighbours", port.way)
            return port
        # a sum in the order of the workers is an exchange in steps, which nothing carries
        travels = self._comm.size > 1 and not ordered
        carrier = TravellingSum(self._comm, self._staging) if travels else None
        common, dim = mixing.common, len(self._like)
        return CommonAverage(self.reducer(), placement, common, like, dim, ordered, carrier)

    def counters(self) -> dict[str, Counter]:
        """The counter of every open port, by name."""
        return self._open.counters()

    def free(self) -> None:
        """Frees all ports."""
        for mailbox in self._mailboxes:  # first of all no thread makes MPI calls any more
            mailbox.pause()
        self._open.free()
