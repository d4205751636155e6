"""Sums of GPU tensors by torch.distributed: NCCL moves them from GPU to GPU, and no MPI sees them.

MPI brings the ranks together: rank 0 opens a store and tells the others where. NCCL wants a GPU for each
rank. The same class on CPU tensors, with gloo in NCCL's place, is what tests compare.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from mpi4py import MPI
from torch import Tensor

from hpcopt.control.agree import agree, agreed
from hpcopt.errors import UserError

NCCL = "nccl"
START = timedelta(minutes=5)
"""until all ranks have found each other"""
LOST = timedelta(hours=1)
"""until NCCL gives up a rank; the watchdog (run.stall_seconds) ends a job that stands still long before"""

# torch has one default group in a process, and each of NCCL's communicators takes memory of the GPU
_users = 0


class Collectives:
    """Sums, their slices and what is gathered, of tensors where they are. Every call is collective.

    Args:
        comm: all ranks; the same ones for all that are open at a time.
        device: where the tensors are.
        backend: torch's; "gloo" for CPU tensors.

    Raises:
        UserError: torch cannot start the backend, or the process uses torch.distributed for something else.
    """

    def __init__(self, comm: MPI.Comm, device: torch.device, backend: str = NCCL) -> None:
        self._device, self._rank = device, comm.rank
        _join(comm, device, backend)

    def allreduce(self, part: Tensor) -> None:
        """Sums a vector over all ranks, in place."""
        dist.all_reduce(part)
        self._finish()

    def reduce_scatter(self, part: Tensor, piece: Tensor, counts: Sequence[int]) -> None:
        """This rank's slice of a sum over all ranks.

        Args:
            part: (Σ counts,), this rank's.
            piece: (counts[rank],), for the result.
            counts: how long the slice of every rank is, (P,), one after the other in ``part``.
        """
        most, landing = max(counts), piece
        if min(counts) < most:  # slices of equal length are all that backends agree on
            slices = part.new_zeros(len(counts), most)
            for whole, own in zip(slices, part.split(list(counts)), strict=True):
                whole[: len(own)] = own
            part, landing = slices.view(-1), part.new_empty(most)
        _newest("reduce_scatter_single", "reduce_scatter_tensor")(landing, part)
        if landing is not piece:
            piece.copy_(landing[: len(piece)])
        self._finish()

    def allgather(self, piece: Tensor, whole: Tensor, counts: Sequence[int]) -> None:
        """Puts the ranks' pieces one after the other into ``whole``; arguments as above."""
        most, landing = max(counts), whole
        if min(counts) < most:
            piece = torch.cat([piece, piece.new_zeros(most - len(piece))])
            landing = whole.new_empty(len(counts) * most)
        _newest("all_gather_single", "all_gather_into_tensor")(landing, piece)
        if landing is not whole:
            slices = landing.view(len(counts), most)
            torch.cat([own[:count] for own, count in zip(slices, counts, strict=True)], out=whole)
        self._finish()

    def free(self) -> None:
        """Leaves the process group; the last one ends it."""
        global _users
        _users -= 1
        if not _users:
            dist.destroy_process_group()

    def _finish(self) -> None:
        """Waits until it is done, as MPI does: what is timed is the sum, not what comes next."""
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()


def refusal(comm: MPI.Comm, device: torch.device) -> str:
    """Why these ranks cannot use NCCL, the same on every rank; empty if they can. Collective."""
    return why_not(comm.allgather((_card(device), dist.is_available() and dist.is_nccl_available())))


def why_not(ranks: Sequence[tuple[str, bool]]) -> str:
    """Why NCCL cannot connect ranks; empty if it can.

    Args:
        ranks: of each its GPU, empty where it computes on the CPU, and whether its torch has NCCL.
    """
    cards = {card for card, _ in ranks}
    if "" in cards:
        return "NCCL sums what lies on GPUs, but this run computes on the CPU (run.device)"
    if not all(able for _, able in ranks):
        return "this torch has no NCCL"
    if len(cards) < len(ranks):
        return (
            f"NCCL wants a GPU for each rank, but {len(ranks)} ranks share {len(cards)}: start at most "
            f"{len(cards)}"
        )
    return ""


def _card(device: torch.device) -> str:
    """Which GPU of all it is: ranks that see one each may all call theirs the first."""
    return str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else ""


def _join(comm: MPI.Comm, device: torch.device, backend: str) -> None:
    """The process group of these ranks, unless it is there already. Collective."""
    global _users
    agree(
        comm,
        _users > 0 or not dist.is_initialized(),
        '[run] reduction = "nccl": this process has a process group of torch.distributed already, and can '
        "have one only: end it first (destroy_process_group), or choose another reduction",
    )
    if not _users:
        here = MPI.Get_processor_name()
        with _started(comm, backend):  # at a port that is free
            store = _store("localhost", 0, first=True) if comm.rank == 0 else None
        host, port = comm.bcast((here, store.port if store is not None else 0))
        with _started(comm, backend):
            store = store or _store("localhost" if host == here else host, port, first=False)
            at: dict[str, Any] = {"device_id": device} if device.type == "cuda" else {}
            dist.init_process_group(
                backend, store=store, rank=comm.rank, world_size=comm.size, timeout=LOST, **at
            )
    _users += 1


@contextmanager
def _started(comm: MPI.Comm, backend: str) -> Iterator[None]:
    """What torch cannot do on one rank is told on all. Collective."""
    with agreed(comm):
        try:
            yield
        except (RuntimeError, ValueError) as error:
            raise UserError(f'[run] reduction = "nccl": torch cannot start {backend}: {error}') from error


def _store(host: str, port: int, first: bool) -> Any:
    make: Any = dist
    return make.TCPStore(host, port, is_master=first, timeout=START, wait_for_workers=False)


def _newest(name: str, older: str) -> Any:
    """A function of torch.distributed that has another name in older torch."""
    return getattr(dist, name, None) or getattr(dist, older)
