"""All ranks of the job, the only place that names them; an exception on one ends all, its traceback first."""

from __future__ import annotations

import os
import sys
import traceback
from types import TracebackType

from mpi4py import MPI


def world() -> MPI.Comm:
    """All ranks of the job. From here on, an exception that nobody catches ends them all. Local."""
    _abort_on_exception(MPI.COMM_WORLD)
    return MPI.COMM_WORLD


def _abort_on_exception(comm: MPI.Comm) -> None:
    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        lines = "".join(traceback.format_exception(kind, error, trace))
        host = MPI.Get_processor_name()
        # one write, so that lines of several ranks do not mix
        os.write(2, f"hpcopt: rank {comm.rank} of {comm.size} on {host} failed:\n{lines}".encode())
        sys.stdout.flush()
        if comm.size > 1:
            comm.Abort(1)
        os._exit(1)

    sys.excepthook = hook
