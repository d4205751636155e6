"""`tools/bench free`: free workers against synchronous SGD where one worker of four is slow.

A network of one hidden layer (d = 101,770) on Fashion-MNIST, batches of 16. Every gradient takes 20 ms more
than it does, one worker's 80 ms, both with 10 % of jitter, by sleeping, so that cores are not what is short.
Printed: gradients a second (synchronous SGD makes four every 80 ms, free workers could make 3.25 times as
many), staleness of the slow worker's gradients and of the others', what the others do while one rank is
stopped for two seconds, and seconds of the optimisation clock to one training loss, each method at the best
rate of one grid on a seed of its own.

    mpirun -n 4 python -m mpi4py -m tools.benches.free [pace|lateness|stopped|race …]
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mpi4py import MPI

import hpcopt
from hpcopt.config.problems import NetworkTable
from hpcopt.errors import NotFinite
from hpcopt.problems.base import Draw, Part, Problem, Recipe, Share
from tools.benches.common import on_the_first, ratios, spread

PAUSES, JITTER = (0.02, 0.02, 0.02, 0.08), 0.1
BATCH, WINDOW = 16, 64
REPEATS = 5
RATES, TUNING_SEED, SEEDS = (0.02, 0.05, 0.1, 0.2, 0.4), 100, (1, 2, 3)
TARGET = 0.5
"""training loss"""
GRADIENTS = 4096
"""at most, in search of it"""
STOPPED = 2.0
"""seconds"""
METHODS: dict[str, dict[str, Any]] = {
    "synchronous": {},
    "free, owners": {"mode": "free", "window": WINDOW},
    "free, neighbours": {"mode": "free", "window": WINDOW, "layout": "neighbours"},
}


@dataclass
class Padded:
    """A recipe whose gradients take longer.

    Attributes:
        recipe: of the problem.
        made: when the workers here had made a gradient.
    """

    recipe: Recipe
    made: list[float] = field(default_factory=list)

    @property
    def workers(self) -> int:
        """N."""
        return self.recipe.workers

    def bind(self, share: Share) -> Problem:
        """See `Recipe`."""
        problem, random = self.recipe.bind(share), np.random.default_rng([share.seed, *share.workers])
        gradient, total = problem.gradient, problem.total_gradient

        def wait(i: int) -> None:
            time.sleep(PAUSES[share.workers[i]] * random.uniform(1 - JITTER, 1 + JITTER))
            self.made.append(time.perf_counter())

        def one(i: int, x: torch.Tensor, draw: Draw | None, part: Part = "all") -> list[torch.Tensor]:
            wait(i)
            return gradient(i, x, draw, part)

        def every(x: torch.Tensor, draw: Draw | None = None, **options: Any) -> torch.Tensor:
            for i in range(share.n):
                wait(i)
            return total(x, draw, **options)

        problem.gradient, problem.total_gradient = one, every  # type: ignore[method-assign]
        return problem


def run(name: str, lr: float, seed: int, folder: Path, gradients: int, **settings: Any) -> tuple[Any, Padded]:
    """A run's records, and when the workers here made their gradients. Collective."""
    keys = METHODS[name]
    method = hpcopt.DelayedSGD(lr=lr, **keys) if keys else hpcopt.AllreduceSGD(lr=lr)
    of_a_round = WINDOW if keys else len(PAUSES)
    data = {"dataset": "fashion-mnist", "model": "mlp", "hidden": [128], "batch_size": BATCH}
    table = NetworkTable(len(PAUSES), **data)
    recipe = Padded(table.recipe())
    shutil.rmtree(folder, ignore_errors=True)
    MPI.COMM_WORLD.Barrier()
    settings = {"evaluate_every": max(1, 2 * WINDOW // of_a_round)} | settings
    options = {"rounds": gradients // of_a_round, "seed": seed, "out": folder, "dtype": "float32"}
    hpcopt.run(method, recipe, comm=MPI.COMM_WORLD, checkpoint_every=0, **options, **settings)
    return on_the_first(MPI.COMM_WORLD, lambda: hpcopt.load(folder).load()), recipe


def pace(folder: Path) -> None:
    """Gradients a second, the methods in turn, and who is late. Collective."""
    paces: dict[str, list[float]] = {name: [] for name in METHODS}
    for _ in range(REPEATS):
        for name in METHODS:
            count = 384 if name == "synchronous" else 1152
            tree, _ = run(name, 0.02, 0, folder, count, evaluate_every=count)
            end = tree["metrics"].isel(record=-1)
            paces[name].append(float(end["gradients"] / BATCH / end["seconds"]))
    for name, values in paces.items():
        more = ratios(values, paces["synchronous"])
        say(f"{name:17} {spread(values, 1)} gradients a second, {more} times those of synchronous SGD")


def lateness(folder: Path) -> None:
    """The staleness of a run, by worker. Collective."""
    for name in METHODS:
        if name == "synchronous":
            continue
        tree, _ = run(name, 0.02, 0, folder, 1152, evaluate_every=1152)
        counts, end = tree["staleness_by_worker/count"].values, tree["metrics"].isel(record=-1)
        mean = (counts * np.arange(len(counts))[:, None]).sum(0) / counts.sum(0)
        whole = ", ".join(f"{what} {float(end['staleness_' + what]):.1f}" for what in ("mean", "p95", "max"))
        say(f"{name:17} staleness: {whole}; mean of each worker's {' '.join(f'{m:.1f}' for m in mean)}")


def race(folder: Path) -> None:
    """Seconds to a training loss, each at its best rate. Collective."""

    def seconds(name: str, lr: float, seed: int) -> float:
        try:
            tree, _ = run(name, lr, seed, folder, GRADIENTS, target_loss=TARGET)
        except NotFinite:  # on every rank
            return float("inf")
        end = tree["metrics"].isel(record=-1)
        return float(end["seconds"]) if end["loss"] <= TARGET else float("inf")

    times: dict[str, list[float]] = {}
    for name in METHODS:
        tuned = {lr: seconds(name, lr, TUNING_SEED) for lr in RATES}
        best = min(tuned, key=tuned.__getitem__)
        times[name] = [seconds(name, best, seed) for seed in SEEDS]
        tried = ", ".join(f"{lr:g}: {s:.1f}" for lr, s in tuned.items())
        say(f"{name:17} {spread(times[name], 1)} s to a loss of {TARGET} at η = {best:g} (tried {tried})")
    for name in METHODS:
        if name != "synchronous":
            say(f"{name:17} {ratios(times['synchronous'], times[name])} times sooner")


def stopped(folder: Path) -> None:
    """What the others do while the last rank is stopped. Collective."""
    comm, wait = MPI.COMM_WORLD, 4.0
    for name in METHODS:
        if name == "synchronous":
            continue
        start = comm.bcast(time.time())
        if comm.rank == comm.size - 1:
            script = f"sleep {wait}; kill -STOP {os.getpid()}; sleep {STOPPED}; kill -CONT {os.getpid()}"
            subprocess.Popen(["sh", "-c", script])
        tree, recipe = run(name, 0.02, 0, folder, 1664, evaluate_every=1664)
        del tree
        offset = time.time() - time.perf_counter()
        at = np.array(recipe.made) + offset - start - wait
        during = float(((at > 0) & (at < STOPPED)).sum())
        before = float(((at > -STOPPED) & (at < 0)).sum())
        every = comm.gather((before, during))
        if comm.rank == 0:
            others = [b / a for a, b in every[:-1]]
            say(f"{name:17} one rank stopped for {STOPPED:g} s: pace of the others {spread(others, 2)}")


def say(line: str) -> None:
    """Prints on the first rank."""
    if MPI.COMM_WORLD.rank == 0:
        print(line, flush=True)


def main() -> None:
    """See above."""
    torch.set_num_threads(1)
    comm = MPI.COMM_WORLD
    os.environ["HPCOPT_PROGRESS"] = "off"
    runs = Path(__file__).resolve().parents[2] / "runs"  # hosts have a /tmp of their own
    runs.mkdir(exist_ok=True)
    folder = Path(comm.bcast(tempfile.mkdtemp(prefix="free-", dir=runs) if comm.rank == 0 else None))
    say(f"{comm.size} ranks, {len(set(comm.allgather(MPI.Get_processor_name())))} host(s); pauses {PAUSES} s")
    for part in (pace, lateness, stopped, race):
        if not sys.argv[1:] or part.__name__ in sys.argv[1:]:
            part(folder)
    comm.Barrier()
    if comm.rank == 0:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
