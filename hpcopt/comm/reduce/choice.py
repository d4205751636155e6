"""Which ways dense sums take here: asked for, remembered, or measured by all ranks when a run begins.

Three things are measured, each only where there is a choice: whether a ring is faster between hosts, or NCCL
between GPUs; in what pieces long vectors are summed; whether a GPU's tensors go to a CUDA-aware MPI directly
or staged. That is done with vectors like those to come, where they will be, full of zeros; of the longest a
part will do, so that it takes fractions of a second but over slow links. In which order MPI adds up may
depend on the pieces, and so may the last bits of a sum. Sums in the order of the workers ask MPI to add
nothing up: there only the way of what is gathered is measured, on which no bit depends.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

from mpi4py import MPI
from torch import Tensor

from hpcopt.comm.reduce.collectives import NCCL, refusal
from hpcopt.comm.reduce.ring import Ring
from hpcopt.comm.reduce.ways import MIB, Table, Ways
from hpcopt.comm.staging import Staging
from hpcopt.comm.timing import fastest
from hpcopt.costs.travel import RING_ELEMENTS
from hpcopt.errors import UserError
from hpcopt.ground.placement import sizes
from hpcopt.math.flat import buffer

Reduction = Literal["mpi", "ring", "nccl", "ordered"]

LONG = 2 * MIB
"""bytes from which on it matters in what pieces a vector is summed"""
PIECES = ("1 MiB", "4 MiB")
MEASURED = 1 << 10, 1 * MIB, 16 * MIB
"""bytes of the short, the middle and the long vectors that are timed; shorter where the model is"""


def choose(
    comm: MPI.Comm, wanted: str, remembered: Mapping[str, Any], staging: Staging, like: Tensor
) -> tuple[Reduction, Table]:
    """The ways of all verbs, the same on every rank. Collective.

    Args:
        comm: all ranks.
        wanted: "auto", or a way by name; a ring that these ranks do not admit becomes "mpi".
        remembered: the table of an earlier job of the run in a place like this; empty if there was none.
        staging: of the tensors.
        like: a vector (d,) like the model.

    Raises:
        UserError: NCCL is wanted and cannot sum here.
    """
    nccl = wanted in (NCCL, "auto") and not (why := refusal(comm, staging.device))
    if wanted == NCCL and not nccl:
        raise UserError(f'[run] reduction = "nccl": {why}')
    if comm.size == 1:  # nothing travels
        return ("ordered" if wanted == "ordered" else "mpi"), plain(comm, "mpi", staging, like)
    ring = wanted in ("ring", "auto") and Ring.admits(comm)
    families: list[Reduction] = []
    if wanted in ("mpi", "auto", "ordered") or not (ring or nccl):
        families.append("mpi")
    if ring:
        families.append("ring")
    if nccl:
        families.append("nccl")
    trial = _Trial(comm, staging, like, remembered)
    table: Table = {}
    if wanted != "ordered":
        table["sum"] = trial.measured("sum", families)
        families = [_family(table["sum"])]
        table["scatter"] = trial.measured("scatter", families)
    table["gather"] = trial.measured("gather", families)
    trial.free()
    reduction: Reduction = "ordered" if wanted == "ordered" else families[0]
    return reduction, table


def plain(comm: MPI.Comm, reduction: Reduction, staging: Staging, like: Tensor) -> Table:
    """The ways of a reduction where nothing is measured. Collective."""
    last = _throughs(comm, staging)[-1]
    named = {"0": "whole" + last}
    if reduction in ("ring", NCCL):
        named[str(RING_ELEMENTS * like.element_size())] = NCCL if reduction == NCCL else "ring" + last
    return {verb: dict(named) for verb in ("sum", "scatter", "gather")}


class _Trial:
    """What is timed. Collective."""

    def __init__(self, comm: MPI.Comm, staging: Staging, like: Tensor, remembered: Mapping[str, Any]) -> None:
        self._comm, self._like, self._remembered = comm, like, remembered
        self._throughs = _throughs(comm, staging)
        self._ways = Ways(comm, staging, {})

    def measured(self, verb: str, families: list[Reduction]) -> dict[str, str]:
        """The fastest way of a verb for short vectors, for those of the ring, and for long ones."""
        itemsize = self._like.element_size()
        named = dict[str, str]()
        for start, nbytes in zip((0, RING_ELEMENTS * itemsize, LONG), MEASURED, strict=True):
            names = self._names(verb, start, families)
            size = min(nbytes // itemsize, len(self._like))
            if len(names) == 1:
                named[str(start)] = names[0]
            elif size * itemsize >= start:
                known = self._remembered.get(verb, {}).get(str(start), "")
                named[str(start)] = fastest(self._comm, self._calls(verb, size, names), remembered=known)
        return named

    def free(self) -> None:
        """Frees what was opened."""
        self._ways.free()

    def _names(self, verb: str, start: int, families: list[Reduction]) -> list[str]:
        names = []
        for through in self._throughs:
            if "mpi" in families or start == 0:
                names.append("whole" + through)
            # an allgather needs pieces only to be copied while others travel
            if "mpi" in families and start == LONG and (verb != "gather" or "staged" in through):
                names += [piece + through for piece in PIECES]
            if "ring" in families and start:
                names.append("ring" + through)
        if "nccl" in families and start:
            names.append(NCCL)
        return names

    def _calls(self, verb: str, size: int, names: list[str]) -> dict[str, Callable[[], object] | None]:
        counts = sizes(size, self._comm.size)
        whole, piece = (buffer((m,), self._like).zero_() for m in (size, counts[self._comm.rank]))

        def call(name: str) -> Callable[[], object] | None:
            try:
                way = self._ways.named(name)  # opened by all ranks, also those that cannot take it
            except UserError:  # on all ranks: NCCL does not start here
                return None
            if not self._ways.admits(name):
                return None
            if verb == "sum":
                return lambda: way.allreduce(whole)
            if verb == "scatter":
                return lambda: way.reduce_scatter(whole, piece, counts)
            return lambda: way.allgather(piece, whole, counts)

        return {name: call(name) for name in names}


def _throughs(comm: MPI.Comm, staging: Staging) -> list[str]:
    """How tensors may reach MPI on some rank, as the end of a way's name; "" where all are on the CPU."""
    found = {way for ways in comm.allgather(sorted(staging.ways())) for way in ways}
    return [f", {way}" for way in sorted(found - {""})] or [""]


def _family(named: dict[str, str]) -> Reduction:
    longest = list(named.values())[-1]
    return "ring" if longest.startswith("ring") else "nccl" if longest == NCCL else "mpi"
