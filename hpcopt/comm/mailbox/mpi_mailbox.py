"""The `Mailbox` port over MPI."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable

from mpi4py import MPI
from torch import Tensor

from hpcopt.comm.mailbox.choice import choose
from hpcopt.comm.mailbox.links import Lanes, Links, Pair
from hpcopt.comm.mailbox.sums import Sums
from hpcopt.comm.ports import Agreed, Counter, Full, Mail, Receive, Transport
from hpcopt.comm.staging import Staging
from hpcopt.ground.placement import Placement

POLL_SECONDS = {"windows": 2e-3, "messages": 5e-4}
"""between two looks; over TCP messages travel only within MPI's calls"""
PATIENCE_SECONDS = 0.05
"""for which the computing thread waits for a turn of the mailbox's, at most"""
CALLS = threading.Lock()
"""held by a mailbox's thread while it makes MPI calls, of which none waits: a process may have several"""


class MPIMailbox:
    """`Mailbox` over a communicator.

    One thread makes all MPI calls between opening, `pause` and freeing; it begins with the first `put`,
    `collect` or `agree` and ends in `pause`, whose vectors the next `collect` takes without beginning it.
    Where it is not ``threaded``, or without MPI_THREAD_MULTIPLE, there is none: what is under way then moves
    within these calls and `pause`.

    Whoever computes is ahead of the thread by what is put between two calls of `collect`, at most.

    Args:
        comm: duplicated; the caller's stays as it is. Collective.
        placement: of the workers on the ranks of ``comm``.
        staging: of the device of the vectors.
        like, links, depth, transport, full, receive: see `hpcopt.comm.ports.Ports.mailbox`.
        wish: see `hpcopt.comm.ports.Ports`; called by the thread.
        remembered: the transport that an earlier job of the run chose; empty: there was none.
        threaded: whether it has a thread, where MPI allows that.

    Raises:
        RuntimeError: vectors do not arrive as they were put; on every rank.
    """

    def __init__(
        self,
        comm: MPI.Comm,
        placement: Placement,
        staging: Staging,
        like: Tensor,
        links: Iterable[Pair] | None = None,
        depth: int = 4,
        transport: Transport = "auto",
        full: Full = "add",
        wish: Callable[[], int] = lambda: 0,
        remembered: str = "",
        threaded: bool = True,
        receive: Receive | None = None,
    ) -> None:
        assert depth > 0
        assert isinstance(comm, MPI.Intracomm)
        self._comm, self._wish = comm.Dup(), wish
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._wake, self._pausing, self._rests = threading.Event(), False, False
        self._receive = receive
        # held by whoever starts the thread; by whoever hands on what has arrived, in its order
        self._starting, self._handing_on = threading.Lock(), threading.Lock()
        self._multiple = threaded and MPI.Query_thread() == MPI.THREAD_MULTIPLE
        self.busy = 0.0
        own = staging.another(direct=False)  # pinned memory of its own
        lanes = Lanes(Links(links, placement), like[:].detach(), depth, full)
        self.transport, self._wire, self._post = choose(self._comm, lanes, own, transport, remembered)
        self._sums = Sums(self._comm)
        # puts: made, carried, made before the last `collect`; the thread had a turn
        self._puts = self._carried = self._old = 0
        self._turned = threading.Event()
        self.counter: Counter = self._post.counter

    @property
    def merged(self) -> int:
        """See `Mailbox`."""
        return self._post.merged

    def put(self, origin: int, to: int, vector: Tensor, stamp: int) -> None:
        """See `Mailbox`."""
        self._post.put(origin, to, vector.detach(), stamp)
        self._puts += 1
        self._go()

    def collect(self) -> list[Mail]:
        """See `Mailbox`."""
        self._keep_pace()
        mail = self._arrived()
        if self._rests:  # what the pause brought; other ports may still be at work
            self._rests = False
        else:
            self._go(news=bool(mail))
        return mail

    def collected(self, origin: int, to: int) -> int:
        """See `Mailbox`."""
        return self._post.collected(origin, to)

    def agree(self, made: int, goal: int) -> Agreed | None:
        """See `Mailbox`."""
        agreed = self._sums.agree(made, goal)
        self._go(news=False)
        return agreed

    def pause(self) -> None:
        """See `Mailbox`. Collective."""
        start, self._pausing = time.perf_counter(), True
        if self._thread is None:  # others may be on their way to us
            self._run()
        else:
            self._wake.set()
            self._thread.join()
            self._thread = None
        self._pausing, self._rests = False, True
        self._check()
        self.counter.seconds += time.perf_counter() - start

    def free(self) -> None:
        """See `Mailbox`. Collective."""
        self.pause()
        self._wire.free()
        self._sums.free()
        self._comm.Free()

    def _arrived(self) -> list[Mail]:
        """What has arrived and nobody receives."""
        if self._receive is None:
            return self._post.collect()
        with self._handing_on:
            for mail in self._post.collect():
                self._receive(mail)
        return []

    # --- the thread ----------------------------------------------------------------------------------------

    def _go(self, news: bool = True) -> None:
        """Sees to it that somebody carries, at once if there is something new to carry."""
        self._check()
        self._rests = False
        if not self._multiple:
            self._carry(pausing=False)
            return
        with self._starting:  # who puts may be another mailbox's thread
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="mailbox", daemon=True)
                self._thread.start()
        if news:
            self._wake.set()

    def _keep_pace(self) -> None:
        """Lets the thread carry what was put before the last `collect`, which takes it no time.

        Of itself Python may let it wait for 5 ms, in which small gradients grow old by dozens. No other rank
        is waited for.
        """
        old, self._old = self._old, self._puts
        while self._thread is not None and self._carried < old and self._turned.wait(PATIENCE_SECONDS):
            self._turned.clear()

    def _check(self) -> None:
        if self._error is not None:
            raise self._error

    def _carry(self, pausing: bool) -> tuple[bool, bool]:
        """Moves what can be moved; whether anything was, and whether nothing is under way on any rank."""
        puts = self._puts
        with CALLS:
            moved = self._post.turn(absorb=pausing)
            quiet = pausing and self._post.quiet()
            over = self._sums.turn(quiet, self._wish())
        if self._receive is not None:
            self._arrived()
        self._carried = puts
        self._turned.set()
        return moved, over

    def _run(self) -> None:
        """Carries until all ranks pause and nothing is under way."""
        begun = time.thread_time()
        try:
            over = False
            while not over:
                moved, over = self._carry(self._pausing)
                if not (moved or over):
                    self._wake.wait(POLL_SECONDS[self.transport])
                    self._wake.clear()
            with CALLS:
                self._post.turn(absorb=True)  # what the others have told at last
                # whoever goes on puts again: not before everybody has ceased to look
                everybody = self._comm.Ibarrier()
            while not self._tested(everybody):
                time.sleep(POLL_SECONDS["messages"])
        except BaseException as error:  # raised again where somebody can act on it
            self._error = error
        self.busy += time.thread_time() - begun

    def _tested(self, request: MPI.Request) -> bool:
        with CALLS:
            return request.Test()
