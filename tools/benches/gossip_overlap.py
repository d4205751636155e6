"""`tools/bench gossip`: how much of the throughput without communication is left, with and without `overlap`.

    mpirun -n P python -m mpi4py gossip_overlap.py LIMIT FACTOR …    one rank per host

Rounds of `dpsgd` on resnet18 (11.17 M parameters) with real gradient steps, so many that computing takes at
least FACTOR times as long as the longest exchange, against the same rounds of `local`, which exchanges
nothing, on the same ranks; and of `fedavg`, the same steps with an allreduce, for comparison.

Where hosts are namespaces of one machine with fewer cores than ranks, ranks share cores when they compute, on
both sides of the ratio; what a rank does for the network then takes time from the others' computing, which a
real host would not see.

What an exchange takes of a core (copies, TCP, the average) cannot be hidden where each rank has one core:
with c seconds of computing and w of that work, at most c / (c + w) of the throughput is left.
"""

from __future__ import annotations

import math
import os
import statistics
import sys
import time
from typing import Any

import torch
from mpi4py import MPI

import hpcopt
from hpcopt.config.problems import NetworkTable
from hpcopt.methods.base import Method
from hpcopt.problems.base import Share
from tools.benches.common import Call, Mixes, Steps, hosts, in_turn, ratios, spread

REPEATS = 5
ROWS = 32
LR = 0.001
LONG = 1.0
"""seconds that a timed call takes at least: several rounds, where rounds are short"""
ALONE = "local"
AIM = 0.95


class Bench:
    """Rounds on resnet18 and digits, one worker per rank.

    Args:
        comm: all ranks; collective.
    """

    def __init__(self, comm: MPI.Comm) -> None:
        self._comm = comm
        table = NetworkTable(workers=comm.size, dataset="digits", model="resnet18", batch_size=ROWS)
        share = Share(range(comm.rank, comm.rank + 1), comm.size, seed=0, dtype=torch.float32)
        self._problem = table.recipe().bind(share)
        # on two hosts they are the same
        self._topologies = ("ring", "one_peer_exponential")[: 1 + (comm.size > 2)]
        self._step, self._exchange, self._work = self._calibrate()

    def describe(self) -> str:
        """What was measured beforehand."""
        exchanges = ", ".join(
            f"{name} {took:.3f} s (of a core {self._work[name]:.3f} s)"
            for name, took in self._exchange.items()
        )
        return (
            f"d = {self._problem.dim:,} float32\n  one step ({ROWS} rows, all ranks at once) takes "
            f"{self._step:.3f} s, an exchange alone: {exchanges}"
        )

    def compare(self, factor: float) -> list[str]:
        """What is left of the throughput where computing takes so many times as long as exchanging."""
        local_steps = math.ceil(factor * max(self._exchange.values()) / self._step)
        rounds = max(1, round(LONG / (local_steps * self._step)))
        made = self._methods(local_steps)
        calls: dict[str, Call] = {name: some(rounds, own) for name, own in made.items()}
        times = in_turn(self._comm, calls, REPEATS)
        for own in made.values():
            own.ports.free()
        lines = [
            f"  {local_steps} steps per round; seconds per round (medians of {REPEATS} times {rounds}), and "
            f"throughput relative to {ALONE}"
        ]
        for name, values in times.items():
            aim = f"; aim: at least {AIM}" if "overlap" in name else ""
            per_round = spread([value / rounds for value in values])
            lines.append(f"    {name:40} {per_round} s  {ratios(times[ALONE], values)}{aim}")
        c = statistics.median(times[ALONE]) / rounds
        bounds = (
            f"{name} {c / self._exchange[name]:.2f}, at most {c / (c + self._work[name]):.3f}"
            for name in self._topologies
        )
        return [
            *lines,
            f"    computing / exchanging, and what can be left with a core each: {'; '.join(bounds)}",
        ]

    def _methods(self, local_steps: int) -> dict[str, Steps]:
        kept: dict[str, Any] = {"lr": LR, "local_steps": local_steps}
        made = {ALONE: self._steps(hpcopt.Local(**kept))}
        for topology in self._topologies:
            made[topology] = self._steps(hpcopt.DPSGD(topology=topology, **kept))
            made[f"{topology}, overlap"] = self._steps(hpcopt.DPSGD(topology=topology, overlap=True, **kept))
        return made | {"fedavg": self._steps(hpcopt.FedAvg(**kept))}

    def _steps(self, method: Method[Any, Any]) -> Steps:
        return Steps(self._comm, method, self._problem, "ring")

    def _calibrate(self) -> tuple[float, dict[str, float], dict[str, float]]:
        """Seconds of a step without an exchange, of exchanges without a step, and of a core in these."""
        local = self._steps(hpcopt.Local(lr=LR, local_steps=1))
        mixes = {name: Mixes(self._comm, name, self._problem.initial()) for name in self._topologies}
        calls = {ALONE: local.step} | {name: one.step for name, one in mixes.items()}
        times = in_turn(self._comm, calls, REPEATS, warm=2)
        medians = {name: statistics.median(values) for name, values in times.items()}
        work = {name: self._core_seconds(one, medians[name]) for name, one in mixes.items()}
        for ports in (local.ports, *(one.ports for one in mixes.values())):
            ports.free()
        return medians.pop(ALONE), medians, work

    def _core_seconds(self, mixes: Mixes, usual: float) -> float:
        """What an overlapped exchange takes of a core on the busiest rank, with nothing else to do."""
        found = []
        for _ in range(REPEATS):
            self._comm.Barrier()
            before = time.process_time()
            snapshot = mixes.port.begin(mixes.X, mixes.round)
            time.sleep(1.5 * usual)  # waiting in MPI would keep the core busy
            mixes.port.finish(mixes.X, snapshot)
            found.append(self._comm.allreduce(time.process_time() - before, MPI.MAX))
            mixes.round += 1
        return statistics.median(found)


def some(rounds: int, steps: Steps) -> Call:
    """Several rounds, as one call."""

    def call() -> None:
        for _ in range(rounds):
            steps.step()

    return call


def main() -> None:
    """Prints medians with spread and the fractions of the throughput."""
    torch.set_num_threads(1)
    comm, limit = MPI.COMM_WORLD, sys.argv[1]
    bench = Bench(comm)
    say = print if comm.rank == 0 else lambda *_, **__: None
    cores = len(os.sched_getaffinity(0))
    shared = f", which share {cores} cores" if comm.size > cores else ""
    say(f"{hosts(comm)} hosts, {comm.size} ranks{shared}, {limit}, {bench.describe()}", flush=True)
    for factor in map(float, sys.argv[2:]):
        say("\n".join(bench.compare(factor)), flush=True)


if __name__ == "__main__":
    main()
