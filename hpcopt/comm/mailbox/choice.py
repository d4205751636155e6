"""Which transport carries a mailbox's vectors: the first that is right, which is tried."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from mpi4py import MPI
from torch import Tensor

from hpcopt.comm.mailbox.links import Links
from hpcopt.comm.mailbox.messages import Messages
from hpcopt.comm.mailbox.parcel import room
from hpcopt.comm.mailbox.post import Post, Wire
from hpcopt.comm.mailbox.windows import Windows
from hpcopt.comm.ports import Full, Transport
from hpcopt.comm.staging import Staging

WIRES: dict[Transport, Callable[[MPI.Intracomm, Links, int, int], Wire]] = {
    "windows": Windows,
    "messages": Messages,
}
PRIME = 101
"""above the numbers of the self-test"""
TEST_SECONDS = 60.0
"""after which what has not arrived in the self-test is taken for lost"""
LOOK_SECONDS = 5e-4
"""between two looks in the self-test"""


class Choice:
    """Opens transports until one is right. Collective.

    Args:
        comm: of the port alone.
        links: all of them.
        like, depth, full: see `hpcopt.comm.ports.Ports.mailbox`.
        staging: of the device of the vectors.
        wanted: the transport, or "auto".
        remembered: what an earlier job of the run chose; empty: there was none.

    Attributes:
        name, wire: the transport.
        post: the queues over it.

    Raises:
        RuntimeError: none is right; on every rank.
    """

    name: str
    wire: Wire
    post: Post

    def __init__(
        self,
        comm: MPI.Intracomm,
        links: Links,
        like: Tensor,
        depth: int,
        full: Full,
        staging: Staging,
        wanted: Transport,
        remembered: str,
    ) -> None:
        self._comm, self._links, self._like, self._depth = comm, links, like, depth
        self._full, self._staging = full, staging
        complaints = []
        for name in order(wanted, remembered, _one_host(comm)):
            wrong = self._tried(name)
            if not wrong:
                return
            complaints.append(f"{name}: {wrong}")
        library = MPI.Get_library_version().splitlines()[0].rstrip("\0 ")
        raise RuntimeError(
            f"{library} does not carry vectors between workers rightly: {'; '.join(complaints)}"
        )

    def _tried(self, name: Transport) -> str:
        """Opens a transport and tries it; what is wrong, in words, in which case it is closed again."""
        wire, wrong = None, ""
        try:
            wire = WIRES[name](self._comm, self._links, self._depth, room(self._like))
        except MPI.Exception as error:
            wrong = str(error)
        if not any(self._comm.allgather(wrong)):
            assert wire is not None
            self.name, self.wire = name, wire
            self.post = Post(self._links, self._like, self._depth, self._full, wire, self._staging)
            wrong = self._test(self.post)
        found = next((text for text in self._comm.allgather(wrong) if text), "")
        if found and wire is not None:
            wire.free()
        return found

    def _test(self, post: Post) -> str:
        """More vectors of known numbers than there are entries, over every link. Collective."""
        puts, width = 2 * self._depth + 1, min(len(self._like), 5)
        for number in range(puts):
            for origin, to in self._links.leaving:
                post.put(origin, to, _numbers(origin, to, number, self._like[:width]), number)
            post.turn(absorb=False)
        got = dict.fromkeys(self._links.arriving, 0)
        wrong, done, deadline = "", None, time.monotonic() + TEST_SECONDS
        while done is None or not done.Test():
            if not post.turn(absorb=False):
                time.sleep(LOOK_SECONDS)
            for mail in post.collect():
                pair = mail.origin, mail.to
                several = range(mail.number, mail.number + mail.count)
                each = torch.stack([_numbers(*pair, k, self._like[:width]) for k in several])
                want, stamp = (each.sum(0), several[0]) if self._full == "add" else (each[-1], several[-1])
                if mail.number != got[pair] or mail.stamp != stamp or not torch.equal(mail.vector, want):
                    wrong = f"worker {mail.to} got {mail} instead of {want}"
                got[pair] += mail.count
            told = all(post.collected(*pair) == puts for pair in self._links.leaving)
            late = time.monotonic() > deadline
            if done is None and (late or (told and set(got.values()) <= {puts} and post.quiet())):
                wrong = wrong or ("vectors did not arrive" if late else "")
                done = self._comm.Ibarrier()
        post.forget(puts)
        return wrong


def order(wanted: Transport, remembered: str, one_host: bool) -> list[Transport]:
    """Transports to try, the better one first: across hosts, messages; what is remembered if it works there.

    >>> order("auto", "", one_host=True), order("auto", "windows", one_host=False)
    (['windows', 'messages'], ['messages', 'windows'])
    """
    if wanted != "auto":
        return [wanted]
    first: Transport = "windows" if one_host and remembered != "messages" else "messages"
    return sorted(WIRES, key=lambda name: name != first)


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
