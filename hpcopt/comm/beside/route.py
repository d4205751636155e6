"""The way between ranks that make rounds and ranks that compute beside them: one mailbox over all ranks.

Both sides cut vectors of length d into slices, of d/(P - C) and d/C numbers. Only ranks whose slices meet
write to each other, and only what both have: so a rank's part of the mailbox grows as its slices do.
"""

from __future__ import annotations

import torch
from mpi4py import MPI
from torch import Tensor

from hpcopt.comm.mailbox.mpi_mailbox import MPIMailbox
from hpcopt.comm.ports import Task
from hpcopt.comm.staging import Staging
from hpcopt.ground.placement import Placement, block

STOP = -1
"""the stamp of what ends the work"""
COSTS = 6
"""numbers that tell what an answer cost, see `hpcopt.comm.beside.service.Spent`"""
LOOK_SECONDS = 5e-4
"""between two looks of a rank that waits"""


class Route:
    """Opens the mailbox. Collective over all ranks.

    An address of the mailbox is a rank. It has no thread: mail moves within its calls and within those of the
    rounds, which come at least once in a round, so that no two threads of a rank make MPI calls at a time.

    Args:
        everybody: all ranks.
        rounders: how many of them make rounds, the first ones.
        task: what is sent.
        staging: of the device of the vectors.
        like: a vector of their dtype, on their device.

    Attributes:
        mailbox: open; nobody else has it.
        here: this rank's address.
        meets: address of a rank of the other side -> what of this rank's slice it has, too.
        names: of all ranks.
    """

    def __init__(
        self, everybody: MPI.Comm, rounders: int, task: Task, staging: Staging, like: Tensor
    ) -> None:
        ranks, self.here = everybody.size, everybody.rank
        pairs = meetings(task.size, rounders, ranks - rounders)
        links = [(u, rounders + b) for u, b, _ in pairs]
        mine = self.here < rounders
        own = block(task.size, *((rounders, self.here) if mine else (ranks - rounders, self.here - rounders)))
        self.meets: dict[int, slice] = {}
        for (u, b), (_, _, both) in zip(links, pairs, strict=True):
            if self.here in (u, b):
                self.meets[b if mine else u] = slice(both.start - own.start, both.stop - own.start)
        longest = max(len(both) for _, _, both in pairs)
        self._words = (task.numbers + COSTS) * 8 // like.element_size()
        room = longest * max(task.rows, task.columns) + self._words
        self.task, self._like = task, like
        self.mailbox = MPIMailbox(
            everybody,
            Placement((1,) * ranks, self.here),
            staging,
            like.new_empty(room),
            links + [(b, u) for u, b in links],
            depth=2,  # a request that was not told yet to be collected, and the next one; one more may wait
            full="newest",
            threaded=False,
        )
        host = MPI.Get_processor_name()
        self.names: list[str] = everybody.allgather(f"rank {self.here} of {ranks} on {host}")

    def put(self, to: int, vectors: Tensor, stamp: int, numbers: Tensor | None = None) -> None:
        """Sends vectors (k, length), and float64 numbers (m + `COSTS`,), bit by bit. Local."""
        content = vectors.reshape(-1)
        if numbers is not None:
            content = torch.cat([content, numbers.view(content.dtype).to(content.device)])
        self.mailbox.put(self.here, to, content, stamp)

    def stop(self) -> None:
        """Tells the other side that this rank asks no more. Local."""
        for rank in self.meets:
            self.mailbox.put(self.here, rank, self._like[:0], STOP)

    def taken(self, content: Tensor, vectors: int, numbers: bool) -> tuple[Tensor, Tensor]:
        """What was put, (k, length) and (m + `COSTS`,), as copies."""
        content, words = content.clone(), self._words if numbers else 0
        length = len(content) - words
        values = content[length:].cpu().clone().view(torch.float64)
        return content[:length].view(vectors, length // vectors), values


def meetings(size: int, ours: int, theirs: int) -> list[tuple[int, int, range]]:
    """Which of a vector's ``ours`` blocks meets which of its ``theirs``, and in what; an empty one meets one.

    >>> meetings(5, 2, 1)
    [(0, 0, range(0, 3)), (1, 0, range(3, 5))]
    """
    found = []
    for u in range(ours):
        mine = block(size, ours, u)
        for b in range(theirs):
            other = block(size, theirs, b)
            both = range(max(mine.start, other.start), min(mine.stop, other.stop))
            nobody = (not mine and b == u % theirs) or (not other and u == b % ours)
            if both or nobody:
                found.append((u, b, both if both else range(mine.start, mine.start)))
    return found
