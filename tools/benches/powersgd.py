"""`tools/bench sparse`: RegTop-k against torch DDP over gloo with its PowerSGD hook, on the same hosts.

    powersgd.py step [LIMIT]    what communication costs per step: the hook's, and our whole compressed step
    powersgd.py race [LIMIT]    seconds and rounds until the same training loss, from the same start and rows
    powersgd.py tune            our rounds until then for some learning rates, on another seed

One worker per rank. The MLP has 10.9 M parameters (44 MB).
"""

from __future__ import annotations

import copy
import io
import logging
import math
import os
import shutil
import statistics
import sys
import time
from contextlib import nullcontext, redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path

import torch
import torch.distributed
from mpi4py import MPI
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import powerSGD_hook as hook

import hpcopt
from hpcopt.config.problems import NetworkTable
from hpcopt.problems import models
from hpcopt.problems.base import Draw, Share
from hpcopt.problems.network_problem import NetworkProblem
from hpcopt.problems.rows import WorkerRows
from tools.benches.common import Call, Given, Steps, hosts, in_turn, spread, start_gloo

HIDDEN = [3072, 2752]
DENSE_ROUNDS = 2
"""the fewest rounds before the hook compresses anything"""
REPEATS = 11
STEP_ROWS = 8
"""per mini-batch where only communication is looked at"""
RANKS = (1, 4)
DENSITY = 0.001

ROWS = 16
"""per mini-batch and worker"""
TARGET = 0.6
"""mean training loss over the first rows of every worker, evaluated outside of the clock"""
CHECKED = 1000
"""so many rows of each worker"""
EVERY = 5
"""rounds between evaluations"""
ROUNDS = 200
"""at most"""
SEED, TUNING_SEED = 0, 1
OURS = {0.001: 0.05, 0.01: 0.05}
"""density: learning rate, the best of `tune`"""
THEIRS = (0.03, 0.05, 0.1)
"""learning rates that the hook may choose the best of, in the race itself"""
GRID = (0.03, 0.05, 0.1, 0.2)


def mlp(seed: int) -> nn.Module:
    """The start of both sides."""
    model = models.build("mlp", (1, 28, 28), 10, HIDDEN)
    models.initialise(model, seed)
    return model


class Hooked:
    """DDP with the PowerSGD hook, and plain SGD by hand."""

    def __init__(self, rank: int, lr: float, seed: int) -> None:
        # over gloo the hook deadlocks where there is more than one bucket
        self._ddp = nn.parallel.DistributedDataParallel(mlp(seed), bucket_cap_mb=1000)
        state = hook.PowerSGDState(None, matrix_approximation_rank=rank, start_powerSGD_iter=DENSE_ROUNDS)
        self._ddp.register_comm_hook(state, hook.powerSGD_hook)
        self._parameters: list[Tensor] = list(self._ddp.parameters())
        self._lr = lr

    def step(self, features: Tensor, targets: Tensor, communicate: bool = True) -> None:
        """Forward, backward and update, with or without communication."""
        for parameter in self._parameters:
            parameter.grad = None
        with nullcontext() if communicate else self._ddp.no_sync():
            nn.functional.cross_entropy(self._ddp(features), targets).backward()
        with torch.no_grad():
            torch._foreach_add_(
                self._parameters, [p.grad for p in self._parameters if p.grad is not None], alpha=-self._lr
            )

    def point(self) -> Tensor:
        """All parameters, in the order of hpcopt's flat vector."""
        return torch.cat([parameter.detach().flatten() for parameter in self._parameters])


class Recipe:
    """Fashion-MNIST and the MLP; training loss over the first rows of a worker only, and no test rows."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        table = NetworkTable(
            workers=workers, dataset="fashion-mnist", model="mlp", hidden=HIDDEN, batch_size=ROWS
        )
        self._network = table.recipe()

    def bind(self, share: Share) -> NetworkProblem:
        """See `hpcopt.problems.base.Recipe`."""
        problem = self._network.bind(share)
        assert isinstance(problem, NetworkProblem)
        few = copy.copy(problem)
        few._data = [WorkerRows(rows.train.at(slice(CHECKED)), None, None) for rows in problem._data]
        problem.evaluate = few.evaluate  # type: ignore[method-assign]  # on fewer rows
        return problem


def mean_loss(comm: MPI.Comm, problem: NetworkProblem, x: Tensor) -> float:
    """Over all workers."""
    return comm.allreduce(float(problem.evaluate(x).values["loss"].mean())) / comm.size


def race_hook(comm: MPI.Comm, rank: int, lr: float, seed: int, most: int) -> tuple[float, float, int]:
    """Seconds until the target (inf: never), seconds of the dense rounds before the first, and rounds."""
    share = Share(range(comm.rank, comm.rank + 1), comm.size, seed, torch.float32)
    problem, hooked = Recipe(comm.size).bind(share), Hooked(rank, lr, seed)
    took = dense = 0.0
    for round in range(most):
        if round % EVERY == 0:
            comm.Barrier()
        start = time.perf_counter()
        (rows, _), *_ = problem._batch(0, Draw(round))
        hooked.step(problem._input(rows.features), rows.targets)
        took += time.perf_counter() - start
        dense = took if round < DENSE_ROUNDS else dense
        if (round + 1) % EVERY == 0:
            loss = mean_loss(comm, problem, hooked.point())
            if not loss > TARGET:
                return comm.allreduce(took, MPI.MAX), dense, round + 1
            if not math.isfinite(loss):
                break
    return math.inf, dense, most


def race_ours(comm: MPI.Comm, density: float, lr: float, seed: int, most: int) -> tuple[float, int, float]:
    """Seconds until the target (inf: never), rounds, and the last loss."""
    out = Path("runs") / f"bench-sparse-{comm.bcast(os.getpid())}"
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            hpcopt.run(
                hpcopt.RegTopK(density=density, lr=lr),
                Recipe(comm.size),
                comm=comm,
                out=out,
                rounds=most,
                evaluate_every=EVERY,
                target_loss=TARGET,
                seed=seed,
                dtype="float32",
            )
        tree = hpcopt.load(out)
        loss, took, rounds = (
            float(tree["metrics"].dataset[name][-1]) for name in ("loss", "seconds", "round")
        )
    except hpcopt.NotFinite:
        loss, took, rounds = math.inf, math.inf, most
    comm.Barrier()
    if comm.rank == 0:
        shutil.rmtree(out)
    comm.Barrier()
    return (took if loss <= TARGET else math.inf), int(rounds), loss


def measure_steps(comm: MPI.Comm, limit: str) -> None:
    """What communication costs per step."""
    features, targets = torch.randn(STEP_ROWS, 784), torch.arange(STEP_ROWS) % 10
    hooked = {rank: Hooked(rank, 0.01, SEED) for rank in RANKS}
    problem = Given(comm, len(hooked[1].point()))
    ours = Steps(comm, hpcopt.RegTopK(density=DENSITY), problem)
    calls: dict[str, Call] = {
        f"rank {rank}": partial(one.step, features, targets) for rank, one in hooked.items()
    }
    calls["alone"] = lambda: hooked[1].step(features, targets, communicate=False)
    calls["RegTop-k"] = ours.step
    times = in_turn(comm, calls, REPEATS, warm=DENSE_ROUNDS + 3)
    ours.ports.free()
    where = f"{hosts(comm)} hosts, {comm.size} ranks"
    if comm.rank:
        return
    print(
        f"{where}, {limit}, {problem.dim / 1e6:.1f} M parameters, {STEP_ROWS} rows per worker, "
        f"medians of {REPEATS} [min, max]"
    )
    print(f"  forward, backward and update alone {spread(times['alone'])} s")
    print(f"  our whole compressed step, density {DENSITY}, gradient given {spread(times['RegTop-k'])} s")
    for rank in RANKS:
        whole = times[f"rank {rank}"]
        part = [a - b for a, b in zip(whole, times["alone"], strict=True)]
        ratio = statistics.median(times["RegTop-k"]) / statistics.median(part)
        print(
            f"  DDP with PowerSGD rank {rank}: a step {spread(whole)} s, less forward, backward and update "
            f"{spread(part)} s; our step / this {ratio:.2f}; aim: at most 0.5"
        )


def race(comm: MPI.Comm, limit: str) -> None:
    """Everybody until the same loss."""
    say = print if comm.rank == 0 else lambda *_, **__: None
    say(
        f"until the training loss is {TARGET}, seed {SEED}, {limit}; evaluated every {EVERY} rounds",
        flush=True,
    )
    best = math.inf
    for density, lr in OURS.items():
        took, rounds, _ = race_ours(comm, density, lr, SEED, ROUNDS)
        best = min(best, took)
        say(f"  RegTop-k density {density}, lr {lr}: {took:.1f} s, {rounds} rounds", flush=True)
    for rank in RANKS:
        fastest, most = (math.inf, 0.0, 0), ROUNDS
        for lr in THEIRS:
            took, dense, rounds = race_hook(comm, rank, lr, SEED, most)
            say(
                f"  DDP with PowerSGD rank {rank}, lr {lr}: {took:.1f} s, {rounds} rounds, "
                f"first {DENSE_ROUNDS} (dense) {dense:.1f} s",
                flush=True,
            )
            if took < fastest[0]:
                fastest, most = (took, dense, rounds), rounds
        say(
            f"  our best / PowerSGD rank {rank} at its best {best / fastest[0]:.2f}, "
            f"without its dense rounds {best / (fastest[0] - fastest[1]):.2f}",
            flush=True,
        )


def tune(comm: MPI.Comm) -> None:
    """Our rounds for a grid of learning rates."""
    for density in OURS:
        for lr in GRID:
            took, rounds, loss = race_ours(comm, density, lr, TUNING_SEED, ROUNDS)
            if comm.rank == 0:
                print(
                    f"density {density} lr {lr}: {rounds} rounds, {took:.1f} s, loss {loss:.3f}", flush=True
                )


def main() -> None:
    """See above."""
    torch.set_num_threads(1)
    os.environ["HPCOPT_PROGRESS"] = "off"
    logging.getLogger(hook.__name__).setLevel(logging.ERROR)
    comm, what, limit = MPI.COMM_WORLD, sys.argv[1], " ".join(sys.argv[2:]) or "no limit"
    start_gloo(comm)
    if what == "tune":
        tune(comm)
    else:
        {"step": measure_steps, "race": race}[what](comm, limit)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
