"""All ranks of the job, the only place that names them; an error on one ends all, its message first."""

from __future__ import annotations

import contextlib
import os
import sys
import time
import traceback
from collections.abc import Iterator
from types import TracebackType
from typing import NoReturn

from mpi4py import MPI

from hpcopt.control import last_words
from hpcopt.control.launcher import expected_size
from hpcopt.errors import Failed, HpcoptError, UserError
from hpcopt.ground.terminal import brief, raw
from hpcopt.ground.words import counted

GRACE = 5.0
"""seconds that the other ranks have to come to an error that was agreed on"""


def world() -> MPI.Comm:
    """All ranks of the job. From here on, an exception that nobody catches ends them all. Local."""
    _guard()
    return MPI.COMM_WORLD


def ranks_for(comm: MPI.Comm | None) -> MPI.Comm:
    """The ranks that a caller names, or all; guarded. Local.

    Raises:
        UserError: it names none, or the launcher has started another number of ranks than MPI knows.
    """
    everybody = world()
    if comm is not None:
        if comm == MPI.COMM_NULL:
            raise UserError(
                "comm = MPI.COMM_NULL: this process is none of that communicator's; call only from its ranks"
            )
        return comm
    if everybody.size != expected_size():
        raise UserError(
            f"the launcher has started {expected_size()} processes, but MPI has "
            f"{counted(everybody.size, 'rank')} in all: each process would do the whole job. Start "
            "them with the mpirun of mpi4py's MPI or srun --mpi=pmix (`hpcopt doctor` tells which fits), or "
            "from Python pass comm=MPI.COMM_SELF"
        )
    return everybody


@contextlib.contextmanager
def together(comm: MPI.Comm) -> Iterator[None]:
    """Lets an error of ours, or an exit, out if all ranks come to one; else ends them, its message first.

    What was agreed on comes to all at once. What a user's code does to one rank alone, between agreements,
    would leave the others waiting for it. Of one run of several (`last_words.heard`) any other exception
    becomes one of ours, too, where all ranks come to it.
    """
    try:
        yield
    except (HpcoptError, SystemExit) as error:
        if comm.size > 1 and not _all_here(comm):
            if isinstance(error, HpcoptError):
                _abort(comm, f"{error}\n", error.exit_code)
            code = error.code if isinstance(error.code, int) and error.code else 1
            _abort(comm, f"sys.exit({error.code!r}) was called here alone\n", code)
        if isinstance(error, SystemExit) and last_words.place():
            raise Failed(f"sys.exit({error.code!r}) was called") from error
        raise
    except Exception as error:
        if not last_words.place():
            raise
        trace = "".join(traceback.format_exception(error))
        if comm.size > 1 and not _all_here(comm):
            _abort(comm, trace, 1)
        failed = Failed("".join(traceback.format_exception_only(error)).strip())
        failed.traceback = trace
        raise failed from error


def _guard() -> None:
    """An exception that nobody catches on one rank ends all; one of ours, with its exit code, too."""
    comm, usual = MPI.COMM_WORLD, sys.__excepthook__

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if isinstance(error, HpcoptError):
            if comm.size > 1 and not _all_here(comm):
                _abort(comm, f"{error}\n", error.exit_code)
            if comm.rank == 0:
                raw(f"hpcopt: error: {brief(error)}\n")
            sys.exit(error.exit_code)
        if comm.size == 1:
            usual(kind, error, trace)
        else:
            _abort(comm, "".join(traceback.format_exception(kind, error, trace)), 1)

    sys.excepthook = hook


def _all_here(comm: MPI.Comm) -> bool:
    """Whether all ranks call this, within a while."""
    request, until = comm.Ibarrier(), time.monotonic() + GRACE
    while not request.Test():
        if time.monotonic() > until:
            return False
        time.sleep(0.01)
    return True


def _abort(comm: MPI.Comm, why: str, code: int) -> NoReturn:
    who = f"rank {comm.rank} of {comm.size} on {MPI.Get_processor_name()}"
    raw(f"hpcopt: {who} failed{last_words.place()}:\n{why}")
    last_words.speak(code, f"{who}: {why.strip()}")
    if last_words.place():
        code = 1  # that of one run of several is not the job's
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stdout.flush()
    MPI.COMM_WORLD.Abort(code)
    os._exit(code)
