"""The ranks of tools/gpu_check: ports and runs on a device against the same on the CPU in one process.

    [mpirun -n 2] python tools/checks/gpu.py cuda|cpu DIRECTORY

A later port adds a function like `check_reducer` to `CHECKS`.
"""

from __future__ import annotations

import io
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import partial
from itertools import count, product
from pathlib import Path
from typing import Any, NamedTuple, get_args

import h5py
import numpy as np
import torch
from mpi4py import MPI
from scipy.sparse import csr_matrix
from torch import Tensor

import hpcopt
from hpcopt.comm.mailbox.choice import WIRES
from hpcopt.comm.mailbox.local_mailbox import LocalMailbox
from hpcopt.comm.mailbox.mpi_mailbox import MPIMailbox
from hpcopt.comm.mpi_ports import MPIPorts
from hpcopt.comm.neighbours.local_neighbours import LocalNeighbours
from hpcopt.comm.neighbours.mpi_neighbours import MPINeighbours
from hpcopt.comm.ports import Full, Mailbox, Neighbours, Reducer, Select, SparseSum
from hpcopt.comm.reduce.choice import Reduction
from hpcopt.comm.reduce.local_reducer import LocalReducer
from hpcopt.comm.reduce.mpi_reducer import MPIReducer
from hpcopt.comm.sparse.local_sparse_sum import LocalSparseSum
from hpcopt.comm.staging import Staging, local_device
from hpcopt.control.launcher import local_rank
from hpcopt.control.world import world
from hpcopt.costs.volumes import EXCHANGES
from hpcopt.ground.placement import Placement
from hpcopt.math.mixing import mixing
from hpcopt.math.topk import largest
from hpcopt.methods.base import Method
from hpcopt.problems.base import Recipe
from hpcopt.storage.slab import parallel_hdf5

WORKERS = 5
SIZES = (1, 1_000_003)
REPEATS = 5
ROUNDS, FEW = 40, 6
PUTS, DEPTH, LENGTHS = 5, 2, (1, 100_003)
METHODS = (
    hpcopt.AllreduceSGD(lr=0.5, momentum=0.9),
    hpcopt.RegTopK(lr=0.2, density=0.1),
    hpcopt.PowerSGD(lr=0.5),
    hpcopt.DHO2(lr=0.5, largest=4, smallest=1, warmup=5, refresh_every=15),
    # resumed while pairs are computed; where there are two ranks, by one of its own
    hpcopt.DHO2(variant="concurrent", lr=0.5, largest=4, warmup=5, refresh_every=12, handover_rounds=8),
)
FOR_MARGINS = (
    hpcopt.FADL(),
    hpcopt.FADL(approximation="adaptive"),
    hpcopt.CommonDirections(),
    hpcopt.TRON(),
    hpcopt.LBFGS(),
)
# of different orders of the sums, relative to the largest entry; ordered sums must be the same bits
ROUNDING = {torch.float64: 1e-12, torch.float32: 1e-5}
LINE = "{:32} {:>10} {:8} {:>9} {:>10} {:>10} {:>7}  {}"


class Outcome(NamedTuple):
    """One line of the table; times in seconds, of the slowest rank."""

    name: str
    size: int
    dtype: str
    error: float
    limit: float
    cpu: float
    device: float

    @property
    def right(self) -> bool:
        """Whether the error is within its limit (a nan is not)."""
        return self.error <= self.limit

    def __str__(self) -> str:
        ratio = f"{self.device / self.cpu:.2f}" if self.cpu else ""
        times = [f"{1e3 * seconds:.3f} ms" for seconds in (self.cpu, self.device)]
        verdict = "right" if self.right else "WRONG"
        return LINE.format(
            self.name, f"{self.size:,}", self.dtype, f"{self.error:.1e}", *times, ratio, verdict
        )


Report = Callable[[Outcome], None]
Call = Callable[[Reducer, Tensor], Tensor]


def check_reducer(comm: MPI.Comm, staging: Staging, report: Report) -> None:
    """Every verb of `Reducer`, plain and ordered, against the twin that holds all workers. Collective."""
    placement, here = _placement(comm), Staging(torch.device("cpu"))
    for ordered, size, dtype in product((False, True), SIZES, ROUNDING):
        rows = torch.randn(WORKERS, size, dtype=dtype, generator=torch.Generator().manual_seed(size))
        reduction: Reduction = "ordered" if ordered else "mpi"
        twin = LocalReducer(WORKERS, rows[0], ordered)
        reducers = [
            MPIReducer(comm, placement, staged, rows[0].to(staged.device), reduction)
            for staged in (here, staging)
        ]
        mine, own = rows[placement.here.start : placement.here.stop], reducers[0].own(size)
        cut = slice(own.start, own.stop)
        for verb, (call, sliced) in VERBS.items():
            if verb in ("gather", "slices"):  # of slices
                want, given = (rows[0], rows[0, cut]) if verb == "gather" else (rows[0], rows[0] / comm.size)
            else:
                want, given = call(twin, rows), mine
            (_, base), (got, seconds) = (
                _timed(comm, partial(call, reducer), given.to(staged.device))
                for reducer, staged in zip(reducers, (here, staging), strict=True)
            )
            error = _error(comm, got, want[cut] if sliced else want)
            limit = 0.0 if ordered and verb != "slices" else ROUNDING[dtype]
            title = f"reduce.{verb}{' (ordered)' * ordered}"
            kind = str(dtype).removeprefix("torch.")
            report(Outcome(title, size, kind, error, limit, base, seconds))
        for reducer in reducers:
            reducer.free()


def _scattered(reducer: Reducer, rows: Tensor) -> Tensor:
    part = reducer.contribution(rows.shape[1])
    for i, row in enumerate(rows):
        part.add(i, row)
    return part.scatter()


def _gathered(reducer: Reducer, piece: Tensor) -> Tensor:
    size = next(size for size in SIZES if len(reducer.own(size)) == len(piece))
    return reducer.allgather(piece, size)


VERBS: dict[str, tuple[Call, bool]] = {
    "sum": (lambda reducer, given: reducer.sum(given), False),
    "scatter": (_scattered, True),
    "scalars": (lambda reducer, given: reducer.scalars(given), False),
    "gather": (_gathered, False),
    "slices": (lambda reducer, given: reducer.slices(given), False),
}
"""the call of each verb, and whether its result is this rank's slice"""


def check_sparse_sum(comm: MPI.Comm, staging: Staging, report: Report) -> None:
    """Every plan of `SparseSum`, selection included, against the twin on the CPU. Collective."""
    mine = _placement(comm).here
    selections: tuple[Select, ...] = ("local", "global")
    for exchange, select, size in product(EXCHANGES, selections, (5, 1_000_003)):
        for dtype in ROUNDING:
            rows = torch.randn(WORKERS, size, dtype=dtype, generator=torch.Generator().manual_seed(size))
            k = max(1, size // 1000)
            want = LocalSparseSum(WORKERS, rows[0], exchange, select).sum(*_chosen(rows, k))
            outcomes = []
            for staged in (Staging(torch.device("cpu")), staging):
                like = rows[0].to(staged.device)
                ports = MPIPorts(
                    comm, _placement(comm), staged, like, "ordered", overlap=False, remembered={}
                )
                port = ports.sparse_sum(like, exchange, select)
                given = rows[mine.start : mine.stop].to(staged.device)

                def call(given: Tensor, port: SparseSum = port, k: int = k) -> Tensor:
                    return port.sum(*_chosen(given, k)).dense

                outcomes.append(_timed(comm, call, given))
                ports.free()
            (_, base), (got, seconds) = outcomes
            kind = str(dtype).removeprefix("torch.")
            error = _error(comm, got, want.dense)
            report(Outcome(f"sparse.sum {exchange} {select}", size, kind, error, 0.0, base, seconds))


def check_neighbours(comm: MPI.Comm, staging: Staging, report: Report) -> None:
    """Plain and overlapped mixes over several graphs against the twin on the CPU. Collective."""
    mine = _placement(comm).here
    for topology, size, dtype in product(("ring", "star", "one_peer_exponential"), SIZES, ROUNDING):
        mixes = mixing(topology, "metropolis", WORKERS)
        wide = torch.randn(WORKERS, size + 3, dtype=dtype, generator=torch.Generator().manual_seed(size))
        want, outcomes = wide[:, :size].clone(), []
        _mixed(want, LocalNeighbours(want[0], mixes))
        for staged in (Staging(torch.device("cpu")), staging):
            given = wide[mine.start : mine.stop].to(staged.device)[:, :size]
            port = MPINeighbours(comm, _placement(comm), given[0], mixes, staged)
            outcomes.append(_timed(comm, partial(_mixed, port=port), given))
            port.free()
        (_, base), (got, seconds) = outcomes
        kind, error = str(dtype).removeprefix("torch."), _error(comm, got, want[mine.start : mine.stop])
        report(Outcome(f"neighbours {topology}", size, kind, error, ROUNDING[dtype], base, seconds))


def _mixed(X: Tensor, port: Neighbours) -> Tensor:
    """Every W of the longest period, twice, and an overlapped mix."""
    for t in range(6):
        port.mix(X, t)
    snapshot = port.begin(X, 6)
    X.mul_(1.5)
    port.finish(X, snapshot)
    return X


def check_mailbox(comm: MPI.Comm, staging: Staging, report: Report) -> None:
    """Vectors put from worker to worker by every transport against the twin on the CPU. Collective."""
    placement, links = _placement(comm), [(n, (n + 1) % WORKERS) for n in range(WORKERS)]
    mine, fulls = placement.here, get_args(Full)
    for transport, full, size, dtype in product(WIRES, fulls, LENGTHS, ROUNDING):
        # whole numbers, whose sums are exact
        rows = torch.randint(-999, 999, (WORKERS, size), generator=torch.Generator().manual_seed(size))
        rows, how = rows.to(dtype), (links, DEPTH)
        twin = LocalMailbox(WORKERS, rows[0], *how, full=full)
        want = _mailed(rows, twin, range(WORKERS), count(1), 1).view(WORKERS, -1, size)
        outcomes = []
        for staged in (Staging(torch.device("cpu")), staging):
            given = rows[mine.start : mine.stop].to(staged.device)
            port = MPIMailbox(comm, placement, staged, given[0], *how, transport, full)
            call = partial(_mailed, port=port, here=mine, calls=count(1), ranks=comm.size)
            outcomes.append(_timed(comm, call, given))
            port.free()
        (_, base), (got, seconds) = outcomes
        error = _error(comm, got, want[mine.start : mine.stop].flatten(0, 1))
        kind = str(dtype).removeprefix("torch.")
        report(Outcome(f"mailbox {transport} {full}", size, kind, error, 0.0, base, seconds))


def _mailed(rows: Tensor, port: Mailbox, here: range, calls: Iterator[int], ranks: int) -> Tensor:
    """More vectors from each worker here to the next one than are under way at a time; what arrives here."""
    for k, (n, row) in product(range(1, PUTS + 1), zip(here, rows, strict=True)):
        port.put(n, (n + 1) % WORKERS, row * k, k)
    call = next(calls)
    while port.agree(call, call * ranks) is None:  # who pauses makes room
        time.sleep(1e-3)
    port.pause()
    mails = sorted(port.collect(), key=lambda mail: (mail.to, mail.number))
    return torch.stack([mail.vector for mail in mails])


def _chosen(rows: Tensor, k: int) -> tuple[Tensor, Tensor]:
    indices = largest(rows, k)
    return indices, rows.gather(1, indices)


def check_runs(comm: MPI.Comm, staging: Staging, report: Report, folder: Path) -> None:
    """A run on the device, and one from a checkpoint made there, against a run on the CPU. Collective."""
    shared = comm.size == 1 or parallel_hdf5()
    if not shared and comm.rank == 0:
        print("h5py is built without parallel HDF5: every rank makes its own run on one rank")
    ranks, own = (comm, folder) if shared else (MPI.COMM_SELF, folder / str(comm.rank))
    quadratic = hpcopt.Quadratic(workers=WORKERS, eigenvalues="geometric", dim=300)
    cases: list[tuple[Method[Any, Any], Any, int]] = [(method, quadratic, ROUNDS) for method in METHODS]
    cases += [(method, data, FEW) for data in (_linear(True), _linear(False)) for method in FOR_MARGINS]
    for number, (method, recipe, rounds) in enumerate(cases):
        kind = "" if recipe is quadratic else (", sparse" if recipe.data.sparse else ", dense")
        adaptive = " adaptive" if getattr(method.settings, "approximation", "") == "adaptive" else ""
        beside = " concurrent" if method.settings.beside else ""
        name = f"{type(method).__name__}{adaptive}{beside}{kind}"
        want, base = _run(method, recipe, MPI.COMM_SELF, "cpu", folder / f"cpu{number}-{comm.rank}", rounds)
        got, seconds = _run(method, recipe, ranks, staging.device.type, own / f"whole{number}", rounds)
        out = own / f"resumed{number}"
        _run(method, recipe, ranks, staging.device.type, out, rounds // 2)
        start = time.perf_counter()
        with _quiet():
            hpcopt.resume(out, problem=recipe, comm=ranks, overrides=(f"run.rounds={rounds}",))
        again = time.perf_counter() - start
        for title, found, took in (("run", got, seconds), ("resumed", _state(out), again)):
            error = max(_error(comm, found[key], want[key]) for key in want)
            report(Outcome(f"{name}: {title}", 300, "float64", error, 1e-9, base, took))


def _linear(sparse: bool) -> hpcopt.Logistic:
    """Logistic regression on 400 rows of 299 numbers and a bias."""
    generator = np.random.default_rng(3)
    rows = generator.standard_normal((400, 299)) * (generator.random((400, 299)) < 0.1)
    labels = np.sign(rows[:, :20].sum(1) + generator.standard_normal(400))
    given = csr_matrix(rows) if sparse else rows
    return hpcopt.Logistic((given, labels), workers=WORKERS, regularisation=0.01)


CHECKS = [check_reducer, check_sparse_sum, check_neighbours, check_mailbox]


def _placement(comm: MPI.Comm) -> Placement:
    return Placement.even(WORKERS, comm.size, comm.rank)


def _timed(comm: MPI.Comm, call: Callable[[Tensor], Tensor], given: Tensor) -> tuple[Tensor, float]:
    """The result, and the least time of some more calls, of the slowest rank [s]. Collective."""
    result = call(given.clone()).clone()
    times = []
    for _ in range(REPEATS):
        again = given.clone()
        _finish(given)
        comm.Barrier()
        start = time.perf_counter()
        call(again)
        _finish(given)
        times.append(comm.allreduce(time.perf_counter() - start, MPI.MAX))
    return result, min(times)


def _finish(tensor: Tensor) -> None:
    if tensor.device.type == "cuda":
        torch.cuda.synchronize(tensor.device)


def _error(comm: MPI.Comm, got: Any, want: Any) -> float:
    """The largest difference on any rank, relative to the largest entry wanted. Collective."""
    a, b = (torch.as_tensor(x).cpu().double() for x in (got, want))
    if a.shape != b.shape:
        worst = float("inf")
    else:
        scale = float(b.abs().max()) if b.numel() else 1.0
        worst = float((a - b).abs().max()) / (scale or 1.0) if b.numel() else 0.0
    # MPI's maximum may lose a nan
    return float(comm.allreduce(worst if worst == worst else float("inf"), MPI.MAX))


def _run(
    method: Method[Any, Any], recipe: Recipe, comm: MPI.Comm, device: str, out: Path, rounds: int
) -> tuple[dict[str, Any], float]:
    """The state and the losses of a run, and its seconds, files included. Collective over ``comm``."""
    start = time.perf_counter()
    with _quiet():
        hpcopt.run(
            method,
            recipe,
            comm=comm,
            out=out,
            rounds=rounds,
            evaluate_every=1,
            seed=3,
            device=device,
            curvature_ranks=int(comm.size > 1 and method.settings.beside),
        )
    return _state(out), time.perf_counter() - start


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the summaries of runs between the lines of the table."""
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        yield


def _state(out: Path) -> dict[str, Any]:
    """Everything that the run's last checkpoint holds, and its losses."""
    newest = max((out / "checkpoints").glob("*.h5"))
    with h5py.File(newest) as file:
        state = {name: np.asarray(array) for name, array in file["state"].items() if array.size}
    with h5py.File(out / "run.h5") as file:
        return state | {"loss": np.asarray(file["metrics/loss"])}


def main() -> int:
    """Runs all checks; 1 if anything is wrong. Collective."""
    comm = world()
    torch.set_num_threads(1)
    staging = Staging(local_device(sys.argv[1], local_rank()))
    wrong = 0

    def report(outcome: Outcome) -> None:
        nonlocal wrong
        wrong += not outcome.right
        if comm.rank == 0:
            print(outcome, flush=True)

    if comm.rank == 0:
        print(f"\n{staging.device}: {staging.description}; {comm.size} ranks, {os.uname().nodename}")
        print(LINE.format("check", "size", "type", "error", "CPU", "device", "ratio", ""))
    for check in CHECKS:
        check(comm, staging, report)
    check_runs(comm, staging, report, Path(sys.argv[2]))
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
