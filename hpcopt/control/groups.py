"""Groups of the ranks of a job, each of which does something of its own."""

from __future__ import annotations

import time
from collections.abc import Sequence

from mpi4py import MPI


def groups(hosts: Sequence[str], size: int, most: int | None = None) -> list[list[int]]:
    """Which ranks make a group; on one host each where that is possible, the first ones on different hosts.

    Args:
        hosts: of every rank.
        size: ranks in each group; ranks that are left over are in none.
        most: groups.

    >>> groups(["a", "a", "a", "b", "b", "b"], 2)
    [[0, 1], [3, 4], [2, 5]]
    """
    found: list[tuple[int, list[int]]] = []
    rest: list[int] = []
    for host in dict.fromkeys(hosts):
        ranks = [rank for rank, name in enumerate(hosts) if name == host]
        whole = len(ranks) // size * size
        found += [(at, ranks[at : at + size]) for at in range(0, whole, size)]
        rest += ranks[whole:]
    found.sort(key=lambda group: group[0])  # stable: hosts take turns
    across = [rest[at : at + size] for at in range(0, len(rest) // size * size, size)]
    return [*(ranks for _, ranks in found), *across][:most]


def split(comm: MPI.Comm, every: Sequence[Sequence[int]]) -> MPI.Comm | None:
    """The communicator of this rank's group; None if it is in none. Collective."""
    mine = next((number for number, ranks in enumerate(every) if comm.rank in ranks), None)
    group = comm.Split(MPI.UNDEFINED if mine is None else mine, comm.rank)
    return None if mine is None else group


def meet(comm: MPI.Comm) -> None:
    """A barrier that leaves the cores to those who are still at work."""
    request = comm.Ibarrier()
    while not request.Test():
        time.sleep(0.01)
