"""Ports of tools/gpu_check on a device's tensors against their twins on the CPU, which hold all workers.

A later port adds a function like `check_reducer` to `CHECKS`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count, product
from typing import Any, get_args

import torch
from mpi4py import MPI
from torch import Tensor

from hpcopt.comm.mailbox.choice import WIRES
from hpcopt.comm.mailbox.local_mailbox import LocalMailbox
from hpcopt.comm.mailbox.mpi_mailbox import MPIMailbox
from hpcopt.comm.mpi_ports import MPIPorts
from hpcopt.comm.neighbours.local_neighbours import LocalNeighbours
from hpcopt.comm.neighbours.mpi_neighbours import MPINeighbours
from hpcopt.comm.ports import Full, Mailbox, Neighbours, Reducer, Select, SparseSum
from hpcopt.comm.reduce.choice import Reduction
from hpcopt.comm.reduce.collectives import Collectives, refusal
from hpcopt.comm.reduce.local_reducer import LocalReducer
from hpcopt.comm.reduce.mpi_reducer import MPIReducer
from hpcopt.comm.reduce.pieces import Pieces
from hpcopt.comm.reduce.ring import Ring
from hpcopt.comm.reduce.ways import Plan, Way
from hpcopt.comm.sparse.local_sparse_sum import LocalSparseSum
from hpcopt.comm.staging import Staging
from hpcopt.costs.volumes import EXCHANGES
from hpcopt.ground.placement import sizes
from hpcopt.math.mixing import mixing
from hpcopt.math.topk import largest
from tools.checks.gpu_common import (
    ROUNDING,
    WORKERS,
    Outcome,
    Report,
    difference,
    name_of,
    numbers,
    placed,
    timed,
)

SIZES = (1, 1_000_003)
PUTS, DEPTH, LENGTHS = 5, 2, (1, 100_003)
STEP = 1 << 16
"""bytes of a piece, so that there are several"""
Call = Callable[[Reducer, Tensor], Tensor]
Check = Callable[[MPI.Comm, Staging, Report], None]


def check_reducer(comm: MPI.Comm, staging: Staging, report: Report) -> None:
    """Every verb of `Reducer`, plain and ordered, against the twin that holds all workers. Collective."""
    placement, here = placed(comm), Staging(torch.device("cpu"))
    for ordered, size, dtype in product((False, True), SIZES, ROUNDING):
        rows = numbers(WORKERS, size, dtype)
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
                timed(comm, partial(call, reducer), given.to(staged.device))
                for reducer, staged in zip(reducers, (here, staging), strict=True)
            )
            worst = difference(comm, got, want[cut] if sliced else want)
            limit = 0.0 if ordered and verb != "slices" else ROUNDING[dtype]
            title = f"reduce.{verb}{' (ordered)' * ordered}"
            report(Outcome(title, size, name_of(dtype), worst, limit, base, seconds))
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
    mine = placed(comm).here
    selections: tuple[Select, ...] = ("local", "global")
    for exchange, select, size in product(EXCHANGES, selections, (5, 1_000_003)):
        for dtype in ROUNDING:
            rows = numbers(WORKERS, size, dtype)
            k = max(1, size // 1000)
            want = LocalSparseSum(WORKERS, rows[0], exchange, select).sum(*_chosen(rows, k))
            outcomes = []
            for staged in (Staging(torch.device("cpu")), staging):
                like = rows[0].to(staged.device)
                ports = MPIPorts(comm, placed(comm), staged, like, "ordered", overlap=False, remembered={})
                port = ports.sparse_sum(like, exchange, select)
                given = rows[mine.start : mine.stop].to(staged.device)

                def call(given: Tensor, port: SparseSum = port, k: int = k) -> Tensor:
                    return port.sum(*_chosen(given, k)).dense

                outcomes.append(timed(comm, call, given))
                ports.free()
            (_, base), (got, seconds) = outcomes
            worst = difference(comm, got, want.dense)
            report(
                Outcome(f"sparse.sum {exchange} {select}", size, name_of(dtype), worst, 0.0, base, seconds)
            )


def check_neighbours(comm: MPI.Comm, staging: Staging, report: Report) -> None:
    """Plain and overlapped mixes over several graphs against the twin on the CPU. Collective."""
    mine = placed(comm).here
    for topology, size, dtype in product(("ring", "star", "one_peer_exponential"), SIZES, ROUNDING):
        mixes = mixing(topology, "metropolis", WORKERS)
        wide = numbers(WORKERS, size + 3, dtype)
        want, outcomes = wide[:, :size].clone(), []
        _mixed(want, LocalNeighbours(want[0], mixes))
        for staged in (Staging(torch.device("cpu")), staging):
            given = wide[mine.start : mine.stop].to(staged.device)[:, :size]
            port = MPINeighbours(comm, placed(comm), given[0], mixes, staged)
            outcomes.append(timed(comm, partial(_mixed, port=port), given))
            port.free()
        (_, base), (got, seconds) = outcomes
        worst = difference(comm, got, want[mine.start : mine.stop])
        report(Outcome(f"neighbours {topology}", size, name_of(dtype), worst, ROUNDING[dtype], base, seconds))


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
    placement, links = placed(comm), [(n, (n + 1) % WORKERS) for n in range(WORKERS)]
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
            outcomes.append(timed(comm, call, given))
            port.free()
        (_, base), (got, seconds) = outcomes
        worst = difference(comm, got, want[mine.start : mine.stop].flatten(0, 1))
        report(Outcome(f"mailbox {transport} {full}", size, name_of(dtype), worst, 0.0, base, seconds))


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


def check_plans(comm: MPI.Comm, staging: Staging, report: Report) -> None:
    """Every plan for dense sums on this way, and torch's collectives, beside a copy. Collective."""
    alone = comm.Split(comm.rank)
    plans: dict[str, Plan] = {
        "whole": Pieces(comm),
        "in pieces": Pieces(comm, STEP),
        "ring on a host": Ring(comm),
        "ring between hosts": Ring(comm, alone),
    }
    ways: dict[str, Way | Collectives] = {name: Way(plan, staging, comm.rank) for name, plan in plans.items()}
    on_gpu = staging.device.type == "cuda"
    if not on_gpu or not refusal(comm, staging.device):
        backend = "nccl" if on_gpu else "gloo"
        ways[backend] = Collectives(comm, staging.device, backend)
    dtypes = ROUNDING if on_gpu else [torch.float32]
    for (name, way), size, dtype in product(ways.items(), LENGTHS, dtypes):
        rows = numbers(comm.size, size, dtype)
        counts = sizes(size, comm.size)
        start = sum(counts[: comm.rank])
        total, own = rows.sum(0), slice(start, start + counts[comm.rank])
        for verb, given, want in (
            ("allreduce", rows[comm.rank], total),
            ("reduce_scatter", rows[comm.rank], total[own]),
            ("allgather", total[own], total),
        ):
            result = want.new_empty(len(want), device=staging.device)

            do = getattr(way, verb)
            rest = () if verb == "allreduce" else (result, counts)

            def call(x: Tensor, do: Any = do, rest: Any = rest) -> Tensor:
                do(x, *rest)
                return rest[0] if rest else x

            got, seconds = timed(comm, call, given.to(staging.device))
            _, copy = timed(comm, torch.clone, given.to(staging.device))
            worst = difference(comm, got, want)
            report(Outcome(f"{name}: {verb}", size, name_of(dtype), worst, ROUNDING[dtype], copy, seconds))
    for plan in plans.values():
        plan.free()
    for way in ways.values():
        if isinstance(way, Collectives):
            way.free()


CHECKS: tuple[Check, ...] = (
    *(check_plans, check_reducer, check_sparse_sum, check_neighbours, check_mailbox),
)
