"""The ways of dense sums: a plan for what is on the wire, and how tensors get there.

A way has a name: a plan, "whole", "1 MiB" (pieces), "ring", and, for a GPU's tensors, "direct" or "staged";
or "nccl", which needs neither (`hpcopt.comm.reduce.collectives`).
Which one a verb of the reducer takes for which vector is in a `Table`, made by `hpcopt.comm.reduce.choice`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from mpi4py import MPI
from torch import Tensor

from hpcopt.comm import gather
from hpcopt.comm.reduce.collectives import NCCL, Collectives
from hpcopt.comm.reduce.pieces import WHOLE, Pieces
from hpcopt.comm.reduce.ring import Ring
from hpcopt.comm.staging import Staging
from hpcopt.comm.wires import Wire

Table = dict[str, dict[str, str]]
"""verb -> from how many bytes on, ascending -> the way's name; plain, to be stored"""
MIB = 1 << 20


class Plan(Protocol):
    """How vectors on wires are summed over all ranks. Every call is collective.

    Memory that a plan needs is where the wires are.

    Attributes:
        step: bytes of a piece; a longer vector goes piece by piece.
    """

    @property
    def step(self) -> int: ...

    def allreduce(self, vector: Wire) -> None:
        """Sums a vector (m,) in place, to the same bits everywhere."""

    def reduce_scatter(self, vector: Wire, landing: Wire, counts: Sequence[int]) -> None:
        """Puts this rank's part of the sum into ``landing``; may overwrite the vector.

        Args:
            vector: (Σ counts,).
            landing: (counts[rank],).
            counts: how long the ranks' parts are, (P,), one after the other in ``vector``.
        """

    def allgather(self, piece: Wire, whole: Wire, counts: Sequence[int]) -> None:
        """Puts the ranks' pieces one after the other into ``whole``."""

    def free(self) -> None:
        """Frees what it holds. Collective."""


class Way:
    """Sums of tensors (m,) by one plan; staged, pieces are copied while others are summed. Collective.

    Args:
        plan: for the wires.
        staging: of the tensors.
        rank: this one.
    """

    def __init__(self, plan: Plan, staging: Staging, rank: int) -> None:
        self.plan, self.staging, self._rank = plan, staging, rank

    def allreduce(self, part: Tensor) -> None:
        """Sums a vector in place."""
        staging = self.staging
        if staging.direct:
            self.plan.allreduce(staging.out(part))
            return
        steps = gather.steps([len(part)], self._step(part))
        leaving = staging.leaving(_parts(part, steps))
        for wire, cut in zip(leaving, steps, strict=True):
            self.plan.allreduce(wire)
            staging.home(wire, [part[cut[0]]])
        staging.finish()

    def reduce_scatter(self, part: Tensor, piece: Tensor, counts: Sequence[int]) -> None:
        """Puts this rank's part of the sum into ``piece``; may overwrite ``part``."""
        staging, landing = self.staging, self.staging.landing(piece)
        if staging.direct:
            self.plan.reduce_scatter(staging.out(part), landing, counts)
            return
        steps = gather.steps(counts, self._step(part))
        leaving = staging.leaving(_parts(part, steps))
        for wire, cut, own in zip(leaving, steps, self._own(steps, counts), strict=True):
            self.plan.reduce_scatter(wire, landing[own], _lengths(cut))
            staging.home(landing[own], [piece[own]])
        staging.finish()

    def allgather(self, piece: Tensor, whole: Tensor, counts: Sequence[int]) -> None:
        """Puts the ranks' pieces one after the other into ``whole``."""
        staging, landing = self.staging, self.staging.landing(whole)
        if staging.direct:
            self.plan.allgather(staging.out(piece), landing, counts)
            return
        steps, end = gather.steps(counts, self._step(piece)), 0
        leaving = staging.leaving([[piece[own]] for own in self._own(steps, counts)])
        for wire, cut in zip(leaving, steps, strict=True):
            at, end = end, end + sum(_lengths(cut))
            self.plan.allgather(wire, landing[at:end], _lengths(cut))
            staging.home(landing[at:end], [whole[part] for part in cut])
        staging.finish()

    def _step(self, tensor: Tensor) -> int:
        return self.plan.step // tensor.element_size()

    def _own(self, steps: Sequence[Sequence[slice]], counts: Sequence[int]) -> list[slice]:
        """Of each step this rank's part, counted from where that begins."""
        start = sum(counts[: self._rank])
        mine = [cut[self._rank] for cut in steps]
        return [slice(own.start - start, own.stop - start) for own in mine]


def _parts(vector: Tensor, steps: Sequence[Sequence[slice]]) -> list[list[Tensor]]:
    return [[vector[part] for part in cut] for cut in steps]


def _lengths(cut: Sequence[slice]) -> list[int]:
    return [part.stop - part.start for part in cut]


class Ways:
    """The ways of one reducer, each opened when it is named first. Collective.

    Args:
        comm: all ranks; not duplicated.
        staging: of the tensors; a way's name may narrow it down.
        table: the ways of its verbs.
    """

    def __init__(self, comm: MPI.Comm, staging: Staging, table: Table) -> None:
        self._comm, self.stagings = comm, staging.ways()
        self._plans: dict[str, Plan] = {}
        self._ways: dict[str, Way | Collectives] = {}
        self._of = {
            verb: [(int(start), self.named(name)) for start, name in _changes(named)]
            for verb, named in table.items()
        }

    def of(self, verb: str, nbytes: int) -> Way | Collectives:
        """The way of a vector: "sum" in place, "scatter" or "gather". Local."""
        for start, way in self._of[verb]:
            if nbytes >= start:
                return way
        raise AssertionError("a table begins with 0 bytes")

    def admits(self, name: str) -> bool:
        """Whether tensors here can go that way; those on the CPU have but one, whatever its name. Local."""
        return name == NCCL or "" in self.stagings or name.partition(", ")[2] in self.stagings

    def short(self) -> int:
        """Up to how many bytes vectors of the host are summed by one call of MPI; -1 if none are. Local."""
        ends = [gather.MAX_MESSAGE, *(start - 1 for start, _ in self._of["sum"])]
        _, shortest = self._of["sum"][-1]
        return ends[-2] if shortest is self._ways.get("whole") else -1

    def named(self, name: str) -> Way | Collectives:
        """A way by name. Collective."""
        if name not in self._ways:
            plan, _, through = name.partition(", ")
            # a rank on the CPU beside others with GPUs has only one
            staging = self.stagings.get(through) or next(iter(self.stagings.values()))
            self._ways[name] = (
                Collectives(self._comm, staging.device)
                if name == NCCL
                else Way(self._plan(plan), staging, self._comm.rank)
            )
        return self._ways[name]

    def free(self) -> None:
        """Frees all plans. Collective."""
        for plan in self._plans.values():
            plan.free()
        for way in self._ways.values():
            if not isinstance(way, Way):
                way.free()

    def _plan(self, name: str) -> Plan:
        if name not in self._plans:
            step = WHOLE if name in ("ring", "whole") else int(name.removesuffix(" MiB")) * MIB
            self._plans[name] = Ring(self._comm) if name == "ring" else Pieces(self._comm, step)
        return self._plans[name]


def _changes(named: dict[str, str]) -> list[tuple[str, str]]:
    """Where another way begins, the longest vectors first."""
    found = list(named.items())
    return [now for last, now in zip([("", ""), *found], found, strict=False) if now[1] != last[1]][::-1]
