"""The `Mailbox` port over MPI."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable

import torch
from mpi4py import MPI
from torch import Tensor

from hpcopt.comm.mailbox.links import Links, Pair
from hpcopt.comm.mailbox.messages import Messages
from hpcopt.comm.mailbox.parcel import room
from hpcopt.comm.mailbox.post import Post, Wire
from hpcopt.comm.mailbox.windows import Windows
from hpcopt.comm.ports import Counter, Mail, Transport
from hpcopt.comm.staging import Staging
from hpcopt.ground.placement import Placement

WIRES: dict[str, Callable[[MPI.Intracomm, Links, int, int], Wire]] = {
    "windows": Windows,
    "messages": Messages,
}
POLL_SECONDS = {"windows": 2e-3, "messages": 5e-4}
"""between two looks; over TCP messages travel only within MPI's calls"""
PRIME = 101
"""above the numbers of the self-test"""
TEST_SECONDS = 60.0
"""after which what has not arrived in the self-test is taken for lost"""


class MPIMailbox:
    """`Mailbox` over a communicator.

    One thread makes all MPI calls between opening, `pause` and freeing; it begins with the first `put` or
    `collect` and ends in `pause`. Without MPI_THREAD_MULTIPLE there is none: what is under way then moves
    within `put`, `collect` and `pause`.

    Args:
        comm: duplicated; the caller's stays as it is. Collective.
        placement: of the workers on the ranks of ``comm``.
        staging: of the device of the vectors.
        like, links, depth, transport: see `hpcopt.comm.ports.Ports.mailbox`.

    Raises:
        RuntimeError: vectors do not arrive as they were put; on every rank.
    """

    transport: str

    def __init__(
        self,
        comm: MPI.Comm,
        placement: Placement,
        staging: Staging,
        like: Tensor,
        links: Iterable[Pair] | None = None,
        depth: int = 4,
        transport: Transport = "auto",
    ) -> None:
        assert depth > 0
        assert isinstance(comm, MPI.Intracomm)
        self._comm, self._depth = comm.Dup(), depth
        self._staging = Staging(staging.device, aware=False)  # pinned memory of its own
        self._links, self._like = Links(links, placement), like[:].detach()
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._wake, self._pausing = threading.Event(), False
        self._multiple = MPI.Query_thread() == MPI.THREAD_MULTIPLE
        self.busy = 0.0
        self._open(transport)
        self.counter: Counter = self._post.counter

    @property
    def merged(self) -> int:
        """See `Mailbox`."""
        return self._post.merged

    def put(self, origin: int, to: int, vector: Tensor, stamp: int) -> None:
        """See `Mailbox`."""
        self._post.put(origin, to, vector.detach(), stamp)
        self._go()

    def collect(self) -> list[Mail]:
        """See `Mailbox`."""
        mail = self._post.collect()
        self._go()
        return mail

    def collected(self, origin: int, to: int) -> int:
        """See `Mailbox`."""
        return self._post.collected(origin, to)

    def pause(self) -> None:
        """See `Mailbox`. Collective."""
        start, self._pausing = time.perf_counter(), True
        if self._thread is None:  # others may be on their way to us
            self._run()
        else:
            self._wake.set()
            self._thread.join()
            self._thread = None
        self._pausing = False
        self._check()
        self.counter.seconds += time.perf_counter() - start

    def free(self) -> None:
        """See `Mailbox`. Collective."""
        self.pause()
        self._wire.free()
        self._comm.Free()

    # --- the thread ----------------------------------------------------------------------------------------

    def _go(self) -> None:
        """Sees to it that what was put is carried away."""
        self._check()
        if not self._multiple:
            self._post.turn(absorb=False)
        elif self._thread is None:
            self._thread = threading.Thread(target=self._run, name="mailbox", daemon=True)
            self._thread.start()
        else:
            self._wake.set()

    def _check(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        """Carries until all ranks pause and nothing is under way."""
        begun, done = time.thread_time(), None
        try:
            while done is None or not done.Test():
                moved = self._post.turn(absorb=self._pausing)
                if done is None and self._pausing and self._post.quiet():
                    done = self._comm.Ibarrier()
                if not moved:
                    self._wake.wait(POLL_SECONDS[self.transport])
                    self._wake.clear()
            self._post.turn(absorb=True)  # what the others have told at last
            # whoever goes on puts again: not before everybody has ceased to look
            done = self._comm.Ibarrier()
            while not done.Test():
                time.sleep(POLL_SECONDS["messages"])
        except BaseException as error:  # raised again where somebody can act on it
            self._error = error
        self.busy += time.thread_time() - begun

    # --- which transport -----------------------------------------------------------------------------------

    def _open(self, wanted: Transport) -> None:
        """Opens the first transport that is right."""
        order = [wanted] if wanted != "auto" else ["windows", "messages"]
        if wanted == "auto" and not _one_host(self._comm):
            order.reverse()
        complaints = []
        for name in order:
            wrong = self._tried(name)
            if not wrong:
                return
            complaints.append(f"{name}: {wrong}")
        library = MPI.Get_library_version().splitlines()[0].rstrip("\0 ")
        raise RuntimeError(
            f"{library} does not carry vectors between workers rightly: {'; '.join(complaints)}"
        )

    def _tried(self, name: str) -> str:
        """Opens a transport and tries it; what is wrong, in words, in which case it is closed again."""
        wire, wrong = None, ""
        try:
            wire = WIRES[name](self._comm, self._links, self._depth, room(self._like))
        except MPI.Exception as error:
            wrong = str(error)
        if not any(self._comm.allgather(wrong)):
            assert wire is not None
            self._wire, self.transport = wire, name
            wrong = self._test()
        found = next((text for text in self._comm.allgather(wrong) if text), "")
        if found and wire is not None:
            wire.free()
        return found

    def _test(self) -> str:
        """More vectors of known numbers than there are entries, over every link. Collective."""
        post = Post(self._links, self._like, self._depth, self._wire, self._staging)
        puts, width = 2 * self._depth + 1, min(len(self._like), 5)
        for number in range(puts):
            for origin, to in self._links.leaving:
                post.put(origin, to, _numbers(origin, to, number, self._like[:width]), number)
            post.turn(absorb=False)
        got = dict.fromkeys(self._links.arriving, 0)
        wrong, done, deadline = "", None, time.monotonic() + TEST_SECONDS
        while done is None or not done.Test():
            if not post.turn(absorb=False):
                time.sleep(POLL_SECONDS["messages"])
            for mail in post.collect():
                pair = mail.origin, mail.to
                several = range(mail.number, mail.number + mail.count)
                want = torch.stack([_numbers(*pair, k, self._like[:width]) for k in several]).sum(0)
                if (
                    mail.number != got[pair]
                    or mail.stamp != mail.number
                    or not torch.equal(mail.vector, want)
                ):
                    wrong = f"worker {mail.to} got {mail} instead of {want}"
                got[pair] += mail.count
            told = all(post.collected(*pair) == puts for pair in self._links.leaving)
            late = time.monotonic() > deadline
            if done is None and (late or (told and set(got.values()) <= {puts} and post.quiet())):
                wrong = wrong or ("vectors did not arrive" if late else "")
                done = self._comm.Ibarrier()
        post.forget(puts)
        self._post = post
        return wrong


def _numbers(origin: int, to: int, number: int, like: Tensor) -> Tensor:
    """Integers below `PRIME`, as many as ``like`` has, that tell links and puts apart."""
    numbers = (7 * origin + 31 * to + 3 * number + torch.arange(len(like))) % PRIME
    return numbers.to(like.device, like.dtype)


def _one_host(comm: MPI.Comm) -> bool:
    """Whether all ranks share one memory. Collective."""
    near = comm.Split_type(MPI.COMM_TYPE_SHARED)
    size = near.size
    near.Free()
    return bool(size == comm.size)
