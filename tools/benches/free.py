"""`tools/bench free`: free workers against synchronous SGD where one worker of four is slow.

A network of one hidden layer (d = 101,770) on Fashion-MNIST, batches of 16. A gradient takes 20 ms in all,
one worker's 80 ms, both with 10 % of jitter: what computing leaves of that is slept, so that cores are not
what is short. Synchronous SGD could make 4 of them every 80 ms, free workers 3 every 20 and 1 every 80, 3.25
times as many. (`on_top`: as long is slept on top of 1.5 ms of computing; then 3.09 times as many.)

Printed: gradients a second, and how late they are, by worker; what the others do while one rank is stopped
for two seconds; seconds of the optimisation clock to training losses, each method at its best rate. That is
what `tune` finds on a seed of its own, of one grid for all; synchronous SGD, whose path does not depend on
time, sleeps for nothing there. Where rates are constant losses go up and down, so that when one is first
reached differs by up to 2 between seeds.

    mpirun -n 4 python -m mpi4py -m tools.benches.free [pace|stopped|race|on_top|tune …]

Without an argument: pace, stopped and race, about 100, 30 and 600 s; on_top is as long as pace, tune takes 15
minutes and more.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from mpi4py import MPI

import hpcopt
from hpcopt.config.problems import NetworkTable
from hpcopt.errors import NotFinite
from hpcopt.problems.base import Draw, Part, Problem, Recipe, Share
from tools.benches.common import on_the_first, ratios, spread

TIMES, JITTER = (0.02, 0.02, 0.02, 0.08), 0.1
BATCH, WINDOW = 16, 64
REPEATS, SHORT, LONG = 5, 240, 768
"""of a pace, and how many gradients are made for it: of synchronous SGD, of free workers"""
RATES, TUNING_SEED, SEEDS = (0.02, 0.05, 0.1, 0.2, 0.4), 100, (1, 2, 3)
TARGETS = (0.5, 0.4, 0.36)
"""training losses: after a third of a pass over the rows, one pass and nearly two, where workers are free"""
GRADIENTS = 12288
"""at most, in search of the last one"""
STOPPED = 2.0
"""seconds"""
BEST = {"synchronous": 0.2, "free, owners": 0.05, "free, neighbours": 0.1}
"""η: of `tune`, to a loss of 0.4, where 0.1 and 0.2 were as good for synchronous SGD; of neighbours no other
was tried"""
METHODS: dict[str, dict[str, Any]] = {
    "synchronous": {},
    "free, owners": {"mode": "free", "window": WINDOW},
    "free, neighbours": {"mode": "free", "window": WINDOW, "layout": "neighbours"},
}

T = TypeVar("T")


@dataclass
class Padded:
    """A recipe whose gradients take longer.

    Attributes:
        recipe: of the problem.
        times: how long each worker's gradient takes.
        on_top: that is slept beside computing.
        made: when the workers here had made a gradient.
    """

    recipe: Recipe
    times: Sequence[float] = TIMES
    on_top: bool = False
    made: list[float] = field(default_factory=list)

    @property
    def workers(self) -> int:
        """N."""
        return self.recipe.workers

    def bind(self, share: Share) -> Problem:
        """See `Recipe`."""
        problem, random = self.recipe.bind(share), np.random.default_rng([share.seed, *share.workers])
        gradient, total = problem.gradient, problem.total_gradient

        def padded(workers: Iterable[int], compute: Callable[[], T]) -> T:
            wanted = sum(
                self.times[share.workers[i]] * random.uniform(1 - JITTER, 1 + JITTER) for i in workers
            )
            begun = time.perf_counter()
            result = compute()
            computing = 0.0 if self.on_top else time.perf_counter() - begun
            time.sleep(max(0.0, wanted - computing))
            self.made.append(time.perf_counter())
            return result

        def one(i: int, x: torch.Tensor, draw: Draw | None, part: Part = "all") -> list[torch.Tensor]:
            return padded([i], lambda: gradient(i, x, draw, part))

        def every(x: torch.Tensor, draw: Draw | None = None, **options: Any) -> torch.Tensor:
            return padded(range(share.n), lambda: total(x, draw, **options))

        problem.gradient, problem.total_gradient = one, every  # type: ignore[method-assign,assignment]
        return problem


def run(name: str, lr: float, seed: int, folder: Path, gradients: int, **options: Any) -> tuple[Any, Padded]:
    """A run's records, and when the workers here made their gradients. Collective.

    Args:
        name, lr: of the method.
        seed, folder: of the run.
        gradients: how many, about.
        options: of `Padded`, or of the run.
    """
    keys = METHODS[name]
    method = hpcopt.DelayedSGD(lr=lr, **keys) if keys else hpcopt.AllreduceSGD(lr=lr)
    of_a_round = WINDOW if keys else len(TIMES)
    data: dict[str, Any] = {"dataset": "fashion-mnist", "model": "mlp", "hidden": [128], "batch_size": BATCH}
    padding = {key: options.pop(key) for key in ("times", "on_top") if key in options}
    recipe = Padded(NetworkTable(workers=len(TIMES), **data).recipe(), **padding)
    shutil.rmtree(folder, ignore_errors=True)
    MPI.COMM_WORLD.Barrier()
    options = {"evaluate_every": max(1, 4 * WINDOW // of_a_round), "checkpoint_every": 0} | options
    options |= {"rounds": gradients // of_a_round, "seed": seed, "out": folder, "dtype": "float32"}
    hpcopt.run(method, recipe, comm=MPI.COMM_WORLD, **options)
    return on_the_first(MPI.COMM_WORLD, lambda: hpcopt.load(folder).load()), recipe


def pace(folder: Path, **options: Any) -> None:
    """Gradients a second, the methods in turn, and how late they are. Collective."""
    paces: dict[str, list[float]] = {name: [] for name in METHODS}
    late = {}
    for _ in range(REPEATS):
        for name, keys in METHODS.items():
            count = LONG if keys else SHORT
            tree, _ = run(name, 0.02, 0, folder, count, evaluate_every=count, **options)
            end = tree["metrics"].isel(record=-1)
            paces[name].append(float(end["gradients"] / BATCH / end["seconds"]))
            if keys:
                late[name] = staleness(tree)
    for name, values in paces.items():
        more = ratios(values, paces["synchronous"])
        say(f"{name:17} {spread(values, 1)} gradients a second, {more} times those of synchronous SGD")
    for name, told in late.items():
        say(f"{name:17} staleness, once: {told}")


def on_top(folder: Path) -> None:
    """The same, where 20 and 80 ms are slept beside computing. Collective."""
    say("slept on top of computing:")
    pace(folder, on_top=True)


def staleness(tree: Any) -> str:
    """Of a run and of its workers."""
    counts, end = tree["staleness_by_worker/count"].values, tree["metrics"].isel(record=-1)
    mean = (counts * np.arange(len(counts))[:, None]).sum(0) / counts.sum(0)
    whole = ", ".join(f"{what} {float(end['staleness_' + what]):.1f}" for what in ("mean", "p95", "max"))
    return f"{whole}; mean of each worker's {' '.join(f'{m:.1f}' for m in mean)}"


def reached(name: str, lr: float, seed: int, folder: Path, **options: Any) -> Any:
    """Of the first record at each target the seconds and the gradients made, (2, targets). Collective."""
    never = np.full((2, len(TARGETS)), np.inf)
    try:
        tree, _ = run(name, lr, seed, folder, GRADIENTS, target_loss=TARGETS[-1], **options)
    except NotFinite:  # on every rank
        return never
    records = tree["metrics"]
    for k, target in enumerate(TARGETS):
        there = np.flatnonzero(records["loss"].values <= target)
        if len(there):
            first = records.isel(record=there[0])
            never[:, k] = float(first["seconds"]), float(first["gradients"]) / BATCH
    return never


def tune(folder: Path) -> None:
    """Gradients to the last target, at every rate of the grid. Collective."""
    for name, keys in METHODS.items():
        options = {} if keys else {"times": [0.0] * len(TIMES)}
        tried = {lr: reached(name, lr, TUNING_SEED, folder, **options)[1] for lr in RATES}
        told = ", ".join(
            f"{lr:g}: {'/'.join(f'{count:.0f}' for count in found)}" for lr, found in tried.items()
        )
        say(f"{name:17} gradients to losses of {'/'.join(map(str, TARGETS))} at η = {told}")


def race(folder: Path) -> None:
    """Seconds to training losses, each method at its best rate, seed by seed. Collective."""
    times: dict[str, list[Any]] = {name: [] for name in METHODS}
    for seed in SEEDS:
        for name in METHODS:
            times[name].append(reached(name, BEST[name], seed, folder)[0])
            told = "/".join(f"{seconds:.1f}" for seconds in times[name][-1])
            say(f"{name:17} seed {seed}: {told} s to losses of {'/'.join(map(str, TARGETS))}")
    for k, target in enumerate(TARGETS):
        for name, found in times.items():
            seconds, synchronous = ([one[k] for one in every] for every in (found, times["synchronous"]))
            sooner = f"{ratios(synchronous, seconds)} times sooner"
            say(f"{name:17} {spread(seconds, 1)} s to a loss of {target} at η = {BEST[name]:g}, {sooner}")


def stopped(folder: Path) -> None:
    """What the others do while the last rank is stopped. Collective."""
    comm, wait = MPI.COMM_WORLD, 8.0
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
            others = [b / a for a, b in (every or [])[:-1]]
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
    hosts = len(set(comm.allgather(MPI.Get_processor_name())))
    say(f"{comm.size} ranks, {hosts} host(s); gradients of {TIMES} s")
    for part in (pace, stopped, race, on_top, tune):
        if part.__name__ in (sys.argv[1:] or ("pace", "stopped", "race")):
            part(folder)
    comm.Barrier()
    if comm.rank == 0:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
