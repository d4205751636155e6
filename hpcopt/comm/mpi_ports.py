"""All ports of a run over MPI: opened when a method asks for them, counted and freed together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from mpi4py import MPI
from torch import Tensor

from hpcopt.comm.agree import agree_same
from hpcopt.comm.neighbours import MPINeighbours
from hpcopt.comm.plans import choose, fastest, measure
from hpcopt.comm.ports import Counter, Exchange, Neighbours, Reducer, Select, SparseSum, Way
from hpcopt.comm.reducer import MPIReducer
from hpcopt.comm.sparse import MPISparseSum
from hpcopt.comm.sparse_plans import Costs
from hpcopt.comm.staging import Staging

if TYPE_CHECKING:
    from hpcopt.math.mixing import Mixing


class MPIPorts:
    """`Ports` over a communicator. Every call but `counters` is collective.

    Args:
        comm: all ranks of the run.
        workers: N.
        staging: how GPU tensors reach MPI.
        like: a vector (d,) like the model.
        reduction: how dense sums travel: "auto", "mpi", "ring" or "ordered".
        overlap: see `MPIReducer`.
        remembered: what an earlier job of the run chose by measuring (`chosen`); empty if there was none.

    Attributes:
        chosen: what was measured or chosen so far; plain numbers and strings.
    """

    def __init__(
        self,
        comm: MPI.Comm,
        workers: int,
        staging: Staging,
        like: Tensor,
        reduction: str,
        overlap: bool,
        remembered: Mapping[str, Any],
    ) -> None:
        self._comm, self._workers, self._staging = comm, workers, staging
        plan = choose(comm, reduction, remembered.get("reduction", ""), len(like), like.element_size())
        self.chosen: dict[str, Any] = dict(remembered) | {"reduction": plan}
        self.reduce: Reducer = self.reducer(overlap)
        self._open: dict[str, Any] = {"reduce": self.reduce}

    def reducer(self, overlap: bool = False) -> MPIReducer:
        """Another `Reducer` with the run's plan, that nobody counts; the caller frees it."""
        return MPIReducer(self._comm, self._workers, self._staging, self.chosen["reduction"], overlap)

    def sparse_sum(self, like: Tensor, exchange: Exchange = "auto", select: Select = "local") -> SparseSum:
        """See `Ports`."""
        reducer = self.reducer()

        def costs() -> tuple[Costs, Costs]:
            measured = self.chosen.setdefault(
                "sparse", {}
            )  # where the run began, then on other numbers of ranks
            here = str(self._comm.size)
            if here not in measured:
                measured[here] = asdict(measure(self._comm, self._workers, reducer, like))
            return Costs(**measured[here]), Costs(**next(iter(measured.values())))

        if exchange == "auto":
            costs()  # before the run begins
        port = MPISparseSum(self._comm, self._workers, like, reducer, exchange, select, costs)
        self._open["sparse"] = port
        return port

    def fastest(self, name: str, ways: Mapping[str, Way | None]) -> str:
        """See `Ports`."""
        if self.reduce.form == "weighted":
            return next(iter(ways))
        self.chosen[name] = fastest(self._comm, ways, remembered=self.chosen.get(name, ""))
        return str(self.chosen[name])

    def neighbours(self, like: Tensor, mixing: Mixing) -> Neighbours:
        """See `Ports`.

        Raises:
            UserError: the ranks have read different files.
        """
        agree_same(
            self._comm,
            mixing.digest(),
            f'topology = "{mixing.topology}", mixing = "{mixing.weights}": the ranks have read different '
            "graphs; name files that are the same on every node",
        )
        ordered = self.reduce.form == "weighted"
        port = MPINeighbours(self._comm, self._workers, like, mixing, self._staging, ordered)
        self._open["neighbours"] = port
        return port

    def counters(self) -> dict[str, Counter]:
        """The counter of every open port, by name."""
        return {name: port.counter for name, port in self._open.items()}

    def free(self) -> None:
        """Frees all ports."""
        for port in self._open.values():
            port.free()
