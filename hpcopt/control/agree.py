"""Agreement: what fails on one rank fails on all, with one message, before anybody waits for anybody."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
from mpi4py import MPI

from hpcopt.errors import HpcoptError, UserError


def agree(comm: MPI.Comm, ok: bool, message: str, kind: type[HpcoptError] = UserError) -> None:
    """Raises the same error on every rank if ``ok`` is false on any. Collective.

    Args:
        comm: who has to agree.
        ok: whether this rank is content.
        message: what is wrong here; the ranks' different messages are put together.
        kind: the class of the error.
    """
    verdict = np.array([ok], dtype=np.int32)
    comm.Allreduce(MPI.IN_PLACE, verdict, MPI.MIN)
    if verdict[0]:
        return
    messages = comm.allgather(None if ok else message)
    failed: dict[str, list[int]] = {}
    for rank, text in enumerate(messages):
        if text is not None:
            failed.setdefault(text, []).append(rank)
    everybody = len(failed) == 1 and None not in messages
    raise kind("\n".join(text if everybody else f"{text} ({_ranks(r, comm)})" for text, r in failed.items()))


def agree_same(comm: MPI.Comm, digest: int | str, message: str) -> None:
    """Raises a `UserError` on every rank if the ranks have different digests. Collective."""
    agree(comm, len(set(comm.allgather(digest))) == 1, message)


@contextmanager
def agreed(comm: MPI.Comm) -> Iterator[None]:
    """Runs local work that may raise an `HpcoptError`; the same error then rises on every rank. Collective.

    Any other exception is a bug: it goes through, and ends the job with this rank's traceback.
    """
    caught: HpcoptError | None = None
    try:
        yield
    except HpcoptError as error:
        caught = error
    code = np.array([caught.exit_code if caught else 0], dtype=np.int32)
    comm.Allreduce(MPI.IN_PLACE, code, MPI.MAX)
    kinds = {kind.exit_code: kind for kind in HpcoptError.__subclasses__()}
    agree(comm, caught is None, str(caught), kinds.get(int(code[0]), HpcoptError))


def in_agreement(opened: ExitStack, release: Callable[[], None]) -> None:
    """Releases something at the end, unless a bug ends this rank alone: the others will not come along."""

    def leave(kind: type[BaseException] | None, *_: object) -> None:
        if kind is None or issubclass(kind, HpcoptError):
            release()

    opened.push(leave)


def _ranks(ranks: list[int], comm: MPI.Comm) -> str:
    shown = ", ".join(map(str, ranks[:8])) + (", …" if len(ranks) > 8 else "")
    return f"rank{'s' * (len(ranks) > 1)} {shown} of {comm.size}"
