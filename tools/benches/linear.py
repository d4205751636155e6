"""`tools/bench linear`: seconds until f/f* − 1 ≤ 1e-3: FADL, common directions, baselines, LIBLINEAR.

    REPEATS=5 mpirun -n P python -m mpi4py linear.py [LIMIT [problem.KEY=VALUE …]]    one rank per host

The problem is that of linear.toml, with eight workers in all. Seconds are the optimisation clock of runs:
neither start nor reading nor evaluation. They are shared out, as means over the ranks: computing, and being
in the ports (sending, and waiting for slower ranks). Rounds are made by the loop of runs, and all methods
take turns in one process per rank, whose rows are read once.

LIBLINEAR (by scikit-learn, where that is installed) has all rows on rank 0, while the others sleep. It makes
as many of its iterations as reach the gap, and no more: the loosest tolerances overshoot by far. Its seconds
are all of `fit`; those of a `fit` that stops at once, for checking and converting the rows, stand beside.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from mpi4py import MPI
from scipy.sparse import csr_matrix

from hpcopt.comm.mpi_ports import MPIPorts
from hpcopt.comm.mpi_ranks import MPIRanks
from hpcopt.comm.staging import Staging
from hpcopt.config import RunConfig, load
from hpcopt.engine.build import begin, bind
from hpcopt.engine.loop import Run, loop
from hpcopt.engine.meter import COMPUTE, EVALUATION, FILES
from hpcopt.engine.names import method_of
from hpcopt.engine.optimum import optimum
from hpcopt.engine.reporter import Reporter
from hpcopt.engine.simulation import Memory
from hpcopt.ground.placement import Placement
from hpcopt.problems.base import Share
from tools.benches.common import hosts, on_the_first, on_the_wire, ratios, spread

if TYPE_CHECKING:
    from hpcopt.problems.linear_problem import LinearProblem

CONFIG = Path(__file__).with_suffix(".toml")
REPEATS = int(os.environ.get("REPEATS", "5"))
GAP = 1e-3
BURST = 256e3
"""bytes that pass at once where a link was idle"""
OURS = {
    "FADL, quadratic": ("run.method=fadl",),
    "common directions": ("run.method=common_directions",),
    "FADL, adaptive": ("run.method=fadl", "method.approximation=adaptive"),
}
BASELINES = {
    "TRON": ("run.method=tron",),
    "TRON, preconditioned": ("run.method=tron", "method.preconditioner=diagonal"),
    "L-BFGS, 10 pairs": ("run.method=lbfgs", "method.memory=10"),
    "CoCoA+, 10 passes": ("run.method=cocoa", "method.local_passes=10"),
}
ITERATIONS = (*range(1, 11), 15, 20, 30, 50, 100, 200)
FORMS = {"LIBLINEAR, primal": False, "LIBLINEAR, dual": True}


class Result(NamedTuple):
    """A run: how far it came, and what that cost, bytes per host."""

    gap: float
    seconds: float
    computing: float
    in_ports: float
    passes: float
    rounds: int
    bytes: float


class Races:
    """Runs of all methods on one problem, which is read once. Collective.

    Args:
        comm: all ranks.
        config: with `optimum` and `target_loss`.
    """

    def __init__(self, comm: MPI.Comm, config: RunConfig) -> None:
        self._comm, self._ranks = comm, MPIRanks(comm)
        self._placement = Placement.even(config.run.workers, comm.size, comm.rank)
        problem = bind(self._ranks, self._placement, config, config.problem.recipe())
        assert isinstance(problem, LinearProblem)
        self.problem = problem
        self._remembered: dict[str, Any] = {}
        self.way = ""
        """how dense sums travel, once there was a run"""

    @property
    def ranks(self) -> int:
        """How many there are."""
        return self._comm.size

    def run(self, config: RunConfig) -> Result:
        """A run from zero until the target, or for all rounds."""
        problem, staging = self.problem, Staging(torch.device("cpu"))
        like = problem.initial()
        ports = MPIPorts(self._comm, self._placement, staging, like, "auto", False, self._remembered)
        self._remembered, self.way = ports.remembered, ports.chosen["reduction"]
        built = begin(self._ranks, config, problem, ports, method_of(config), "cpu")
        run, kept = Run.of(built, {}), Memory(Reporter(None, config.run.rounds, active=False), lambda: None)
        self._comm.Barrier()
        loop(run, run.measure(), kept)
        last = kept.records[-1]
        phases = run.recorder.schema(last, 1).dimensions["phase"]
        spent = dict(zip(phases, last["phases/seconds_mean"], strict=True))
        ports.free()
        return Result(
            gap=last["metrics/relative_gap"],
            seconds=last["metrics/seconds"],
            computing=spent[COMPUTE],
            in_ports=sum(spent[name] for name in spent if name not in (COMPUTE, EVALUATION, FILES)),
            passes=last["metrics/passes"],
            rounds=last["metrics/round"],
            bytes=last["metrics/bytes_sent"] / self._comm.size,
        )


class Liblinear:
    """LIBLINEAR with all rows; local.

    Args:
        config: of the same problem, with a single worker.
        best: f*.
    """

    def __init__(self, config: RunConfig, best: float) -> None:
        problem: Any = config.problem.recipe().bind(Share(range(1), 1, config.run.seed))
        X = problem.rows_of_worker(0)
        self._X, self._y = csr_matrix(X.arrays(), shape=X.shape), problem.y.numpy()
        self._problem, self._best, self._kind = problem, best, config.problem.kind

    def fit(self, dual: bool, iterations: int, tolerance: float = 1e-12) -> tuple[float, float]:
        """Seconds, and the relative gap."""
        from sklearn.linear_model import LogisticRegression
        from sklearn.svm import LinearSVC

        kind = partial(LogisticRegression, solver="liblinear") if self._kind == "logistic" else LinearSVC
        strength = self._problem.regularisation
        model = kind(
            C=1 / strength, dual=dual, tol=tolerance, fit_intercept=False, max_iter=iterations, random_state=0
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it has not converged
            start = time.perf_counter()
            model.fit(self._X, self._y)
            took = time.perf_counter() - start
        w = torch.from_numpy(np.ascontiguousarray(model.coef_[0]))
        return took, float(self._problem.evaluate(w).values["loss"][0]) / self._best - 1

    def measure(self) -> tuple[list[str], dict[str, list[float]]]:
        """Lines to print; form -> seconds of its repeats."""
        said, times = [], {}
        for name, dual in FORMS.items():
            tried = ((count, self.fit(dual, count)[1]) for count in ITERATIONS)
            count, gap = next(((n, gap) for n, gap in tried if gap <= GAP), (0, 0.0))
            if not count:
                said.append(f"  {name:21} does not come to {GAP:g} in {ITERATIONS[-1]} iterations")
                continue
            pairs = [(self.fit(dual, count)[0], self.fit(dual, 1, 1e10)[0]) for _ in range(REPEATS)]
            times[name], idle = ([pair[i] for pair in pairs] for i in (0, 1))
            said.append(
                f"  {name:21} {spread(times[name])} s, {count} iterations, gap {gap:.1e}; one that stops at "
                f"once {spread(idle)} s"
            )
        return said, times


def liblinear(config: RunConfig, best: float) -> tuple[list[str], dict[str, list[float]]]:
    """See `Liblinear.measure`; nothing but a line where there is no scikit-learn."""
    try:
        import sklearn  # noqa: F401  (whether it is there)
    except ImportError:
        return ["  LIBLINEAR is not measured: scikit-learn, which brings it, is not installed"], {}
    return Liblinear(config, best).measure()


def in_turn(runs: Mapping[str, Callable[[], Result]]) -> dict[str, list[Result]]:
    """Every run once per repeat, every other repeat in the reverse order."""
    results: dict[str, list[Result]] = {name: [] for name in runs}
    for repeat in range(REPEATS):
        for name in runs if repeat % 2 else reversed(list(runs)):
            results[name].append(runs[name]())
    return results


def describe(name: str, results: list[Result], limit: str, best: list[float]) -> str:
    """A line of the table; ``best`` are the seconds of the best baseline."""

    def middle(key: str) -> float:
        return statistics.median(getattr(result, key) for result in results)

    seconds = [result.seconds for result in results]
    wire = on_the_wire(limit, middle("bytes"))
    where = "" if middle("gap") <= GAP else f"  NOT reached, gap {middle('gap'):.1e}"
    return (
        f"  {name:21} {spread(seconds)} s  {ratios(seconds, best)}  "
        f"{middle('computing'):7.3f} {middle('in_ports'):7.3f} {wire:7.3f}  "
        f"{middle('passes'):6g} {middle('rounds'):5g}  {middle('bytes') / 1e6:7.1f}{where}"
    )


def report(races: Races, limit: str, results: Mapping[str, list[Result]]) -> None:
    """Prints the table."""
    medians = {name: statistics.median(result.seconds for result in results[name]) for name in BASELINES}
    reached = {name: took for name, took in medians.items() if results[name][0].gap <= GAP}
    first = min(reached or medians, key=lambda name: medians[name])
    if races.ranks > 1:
        sent = 2 * 8 * races.problem.dim * (races.ranks - 1) / races.ranks
        print(
            f"sums travel by {races.way}; a pass takes a host {sent / 1e6:.1f} MB, "
            f"{on_the_wire(limit, sent):.3f} s at the link's rate, of which a burst saves "
            f"{on_the_wire(limit, BURST):.3f} s at most"
        )
    print(
        f"  {'':21} seconds, and as a ratio to {first}; computing, in the ports, bytes at the link's rate "
        "[s]; passes, rounds; MB sent per host"
    )
    for name in results:
        print(describe(name, results[name], limit, [result.seconds for result in results[first]]))


def main() -> None:
    """See above."""
    torch.set_num_threads(1)
    comm = MPI.COMM_WORLD
    limit, plain = (sys.argv[1], sys.argv[2:]) if len(sys.argv) > 1 else ("no limit", [])
    whole = load(CONFIG, [*plain, "run.workers=1"])
    best = on_the_first(comm, lambda: optimum(whole))
    said, alone = on_the_first(comm, lambda: liblinear(whole, best))
    target = [*plain, f"problem.optimum={best!r}", f"run.target_loss={best * (1 + GAP)!r}"]
    races = Races(comm, load(CONFIG, target))
    keys = {name: [*target, *own] for name, own in (OURS | BASELINES).items()}
    for own in keys.values():  # what is compiled, or chosen by measuring, is then there
        races.run(load(CONFIG, [*own, "run.rounds=1"]))
    configs = {name: load(CONFIG, own) for name, own in keys.items()}
    results = in_turn({name: partial(races.run, config) for name, config in configs.items()})
    count = hosts(comm)
    if comm.rank:
        return
    problem, table = races.problem, whole.problem.dump()
    print(
        f"{count} hosts, {comm.size} ranks, {os.cpu_count()} cores for all, {limit}; {table['kind']}, "
        f"λ/n = {table['regularisation']:g}, {problem.total_rows:,} rows, d = {problem.dim:,}, "
        f"{problem.share.total} workers; until f/f* - 1 <= {GAP:g}; medians of {REPEATS} [min, max]"
    )
    report(races, limit, results)
    print("all rows on one host:")
    for line in said:
        print(line)
    for name, took in alone.items():
        adaptive = statistics.median(result.seconds for result in results["FADL, adaptive"])
        print(f"  FADL, adaptive / {name}: {adaptive / statistics.median(took):.2f}")


if __name__ == "__main__":
    main()
