"""Which transport carries a mailbox's vectors: the first that is right, which is tried."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from mpi4py import MPI
from torch import Tensor

from hpcopt.comm.mailbox.links import Lanes, Links
from hpcopt.comm.mailbox.messages import Messages
from hpcopt.comm.mailbox.parcel import room
from hpcopt.comm.mailbox.post import Post, Wire
from hpcopt.comm.mailbox.windows import Windows
from hpcopt.comm.ports import Transport
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


class Choice(NamedTuple):
    """A transport that is right: its name, what carries parcels, and the queues over it."""

    name: str
    wire: Wire
    post: Post


def choose(comm: MPI.Intracomm, lanes: Lanes, staging: Staging, wanted: Transport, remembered: str) -> Choice:
    """Opens transports until one is right. Collective.

    Args:
        comm: of the port alone.
        lanes: what is carried.
        staging: of the device of the vectors.
        wanted: the transport, or "auto".
        remembered: what an earlier job of the run chose; empty: there was none.

    Raises:
        RuntimeError: none is right; on every rank.
    """
    complaints = []
    for name in order(wanted, remembered, _one_host(comm)):
        found = _tried(name, comm, lanes, staging)
        if isinstance(found, Choice):
            return found
        complaints.append(f"{name}: {found}")
    library = MPI.Get_library_version().splitlines()[0].rstrip("\0 ")
    raise RuntimeError(f"{library} does not carry vectors between workers rightly: {'; '.join(complaints)}")


def _tried(name: Transport, comm: MPI.Intracomm, lanes: Lanes, staging: Staging) -> Choice | str:
    """Opens a transport and tries it; or what is wrong, in words, in which case it is closed again."""
    wire, post, wrong = None, None, ""
    try:
        wire = WIRES[name](comm, lanes.links, lanes.depth, room(lanes.like))
    except MPI.Exception as error:
        wrong = str(error)
    if not any(comm.allgather(wrong)):
        assert wire is not None
        post = Post(lanes, wire, staging)
        wrong = _test(post, comm, lanes)
    found = next((text for text in comm.allgather(wrong) if text), "")
    if wire is not None and post is not None and not found:
        return Choice(name, wire, post)
    if wire is not None:
        wire.free()
    return found


def _test(post: Post, comm: MPI.Intracomm, lanes: Lanes) -> str:
    """More vectors of known numbers than there are entries, over every link. Collective."""
    puts, like = 2 * lanes.depth + 1, lanes.like[:5]
    for number in range(puts):
        for origin, to in lanes.links.leaving:
            post.put(origin, to, _numbers(origin, to, number, like), number)
        post.turn(absorb=False)
    got = dict.fromkeys(lanes.links.arriving, 0)
    wrong, done, deadline = "", None, time.monotonic() + TEST_SECONDS
    while done is None or not done.Test():
        if not post.turn(absorb=False):
            time.sleep(LOOK_SECONDS)
        for mail in post.collect():
            pair = mail.origin, mail.to
            several = range(mail.number, mail.number + mail.count)
            each = torch.stack([_numbers(*pair, k, like) for k in several])
            want, stamp = (each.sum(0), several[0]) if lanes.full == "add" else (each[-1], several[-1])
            if mail.number != got[pair] or mail.stamp != stamp or not torch.equal(mail.vector, want):
                wrong = f"worker {mail.to} got {mail} instead of {want}"
            got[pair] += mail.count
        told = all(post.collected(*pair) == puts for pair in lanes.links.leaving)
        late = time.monotonic() > deadline
        if done is None and (late or (told and set(got.values()) <= {puts} and post.quiet())):
            wrong = wrong or ("vectors did not arrive" if late else "")
            done = comm.Ibarrier()
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
