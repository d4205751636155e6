"""The `Mailbox` port: vectors that workers put to each other without waiting."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from hpcopt.comm.ports import Counter

Transport = Literal["auto", "windows", "messages"]
Full = Literal["add", "newest"]


@dataclass(frozen=True)
class Mail:
    """A vector that one worker put to another, or what several became that it put one after the other.

    Attributes:
        origin, to: the workers.
        number: which of the puts from the one to the other it is, from 0; the first of several.
        count: how many puts it stands for.
        stamp: what was given with it; of several that were added up, with the first.
        stamps: the sum of what was given with all of them.
        vector: as long as what was put; until the next `collect`.
    """

    origin: int
    to: int
    number: int
    count: int
    stamp: int
    stamps: int
    vector: Tensor


Receive = Callable[[Mail], None]
"""what becomes of a vector at once where it arrives; another port's `Mailbox.put` may be called in it"""


@dataclass(frozen=True)
class Agreed:
    """What all ranks made together, as one sum of many found it; the same on every rank.

    Attributes:
        made: the sum over all ranks.
        wish: the largest of the ranks' wishes, see `Ports`.
    """

    made: int
    wish: int


class Mailbox(Protocol):
    """Vectors that workers put to each other while they compute; nobody waits for anybody.

    Only opening, `pause` and freeing are collective. Between them a thread of the port's own carries the
    vectors, and no call of another port may be made in a way that some ranks wait in it for what others
    collect.

    From one worker to another vectors arrive in the order in which they were put, each once. At most K of
    them are under way, from when they are sent until they are collected; what is put beyond that is added to
    what waits, in the order of the puts, or takes its place. So memory is bounded and no put blocks.

    Where it was opened with a `Receive`, that is called for every vector as soon as it is here, one at a
    time, by the port's thread or in `collect`, which then gives none.

    Attributes:
        counter: what it cost so far. ``seconds``: in `put`, `collect` and `pause`. ``bytes``: of parcels.
        merged: puts from here that met one that waited.
        busy: CPU time of the port's thread, until it ended in the last `pause` [s].
        transport: what carries the vectors.
    """

    counter: Counter
    busy: float
    transport: str

    @property
    def merged(self) -> int:
        """See `Mailbox`."""

    def put(self, origin: int, to: int, vector: Tensor, stamp: int) -> None:
        """Copies a vector, which will be given to a worker wherever it lives. Local.

        Args:
            origin: the worker here that puts it.
            to: the worker that gets it.
            vector: (k,), k at most what the port was opened for, the same for all puts to this worker.
            stamp: any integer.
        """

    def collect(self) -> list[Mail]:
        """What has arrived for the workers here since the last call, oldest first of each origin. Local."""

    def collected(self, origin: int, to: int) -> int:
        """How many puts of a worker here were collected by another, as far as is known here. Local."""

    def agree(self, made: int, goal: int) -> Agreed | None:
        """The first sum over all ranks that has reached a goal, or has a wish; None if none has yet. Local.

        Nobody waits: one sum after the other travels while everybody computes. All ranks get the same one,
        each when it has heard of it; until then it may make more, which the next goal's sums have in them.

        Args:
            made: how much was made here; never less than in the last call.
            goal: the same on every rank, in every call until it is reached; then never a smaller one.
        """

    def pause(self) -> None:
        """Returns when all that was put, anywhere, is where the next `collect` finds it. Collective.

        And nothing that is put afterwards; and all ranks know what was collected before. From then until
        the next call here but one `collect` the port makes no MPI call.
        """

    def free(self) -> None:
        """Frees buffers, windows and communicators; what is under way is dropped. Collective."""
