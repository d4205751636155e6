"""What the checks of tools/gpu_check have in common: a line of the table, and how it comes about."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any, NamedTuple

import torch
from mpi4py import MPI
from torch import Tensor

from hpcopt.ground.placement import Placement

WORKERS = 5
REPEATS = {"cuda": 5, "cpu": 1}
"""of a device; a rehearsal measures nothing"""
# of different orders of the sums, relative to the largest entry; ordered sums must be the same bits
ROUNDING = {torch.float64: 1e-12, torch.float32: 1e-5}
LINE = "{:36} {:>10} {:8} {:>9} {:>11} {:>11} {:>7}  {}"
HEAD = LINE.format("check", "size", "type", "error", "CPU", "device", "ratio", "")


class Outcome(NamedTuple):
    """One line of the table; times in seconds, of the slowest rank, none where it is 0.

    Of a speed there is no error: ``cpu`` is then what it is compared with.
    """

    name: str
    size: int
    dtype: str
    error: float | None
    limit: float
    cpu: float
    device: float

    @property
    def right(self) -> bool:
        """Whether the error is within its limit (a nan is not)."""
        return self.error is None or self.error <= self.limit

    def __str__(self) -> str:
        ratio = f"{self.device / self.cpu:.2f}" if self.cpu else ""
        times = [f"{1e3 * seconds:.3f} ms" if seconds else "" for seconds in (self.cpu, self.device)]
        error = "" if self.error is None else f"{self.error:.1e}"
        verdict = "" if self.error is None else "right" if self.right else "WRONG"
        return LINE.format(self.name, f"{self.size:,}", self.dtype, error, *times, ratio, verdict)


Report = Callable[[Outcome], None]


def placed(comm: MPI.Comm) -> Placement:
    """The workers on the ranks."""
    return Placement.even(WORKERS, comm.size, comm.rank)


def name_of(dtype: torch.dtype) -> str:
    """A dtype's name."""
    return str(dtype).removeprefix("torch.")


def numbers(rows: int, size: int, dtype: torch.dtype) -> Tensor:
    """The same random numbers on every rank, (rows, size)."""
    return torch.randn(rows, size, dtype=dtype, generator=torch.Generator().manual_seed(size))


def timed(comm: MPI.Comm, call: Callable[[Tensor], Tensor], given: Tensor) -> tuple[Tensor, float]:
    """The result, and the least time of some more calls, of the slowest rank [s]. Collective."""
    result = call(given.clone()).clone()
    times = []
    for _ in range(REPEATS[given.device.type]):
        again = given.clone()
        finish(given.device)
        comm.Barrier()
        start = time.perf_counter()
        call(again)
        finish(given.device)
        times.append(comm.allreduce(time.perf_counter() - start, MPI.MAX))
    return result, min(times)


def finish(device: torch.device) -> None:
    """Waits for the GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def difference(comm: MPI.Comm, got: Any, want: Any) -> float:
    """The largest difference on any rank, relative to the largest entry wanted. Collective."""
    a, b = (torch.as_tensor(x).cpu().double() for x in (got, want))
    if a.shape != b.shape:
        worst = float("inf")
    else:
        scale = float(b.abs().max()) if b.numel() else 1.0
        worst = float((a - b).abs().max()) / (scale or 1.0) if b.numel() else 0.0
    # MPI's maximum may lose a nan
    return float(comm.allreduce(worst if worst == worst else float("inf"), MPI.MAX))


@contextmanager
def quiet() -> Iterator[None]:
    """Without the summaries of runs between the lines of the table."""
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        yield


def asleep(comm: MPI.Comm) -> None:
    """Waits for all ranks without taking a core from those that work. Collective."""
    request = comm.Ibarrier()
    while not request.Test():
        time.sleep(0.02)
