"""`tools/bench sparse`: a whole step of RegTop-k against dense ones, gradients given; a worker per rank."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.distributed
from mpi4py import MPI
from torch import Tensor

import hpcopt
from hpcopt.comm.ports import Aggregate
from hpcopt.comm.reduce.ring import Ring
from hpcopt.costs.volumes import EXCHANGES, Shape
from hpcopt.math.topk import take
from hpcopt.problems.base import Draw
from tools.benches.common import (
    Given,
    Steps,
    hosts,
    in_turn,
    on_the_wire,
    ratios,
    seconds,
    spread,
    start_gloo,
)

ELEMENTS = 11_000_000  # float32: 44 MB
DENSITY = 0.001
REPEATS = 5
AUTO = 'density = "auto"'
WARM = 3
"""rounds before: error memories and what is remembered are not empty then"""
QUICK = 15
"""repeats of what takes milliseconds"""


class Gloo:
    """A dense step by hand, through torch's own allreduce."""

    def __init__(self, problem: Given) -> None:
        self._problem, self._x, self._g = problem, problem.initial().clone(), torch.empty(problem.dim)
        self._round = 0

    def step(self) -> None:
        """g ← Σ ω_n ∇f_n(x); x ← x − η g."""
        self._problem.total_gradient(self._x, Draw(self._round), out=self._g)
        torch.distributed.all_reduce(self._g)
        self._x.add_(self._g, alpha=-0.1)
        self._round += 1


def pieces(comm: MPI.Comm, steps: Steps, problem: Given) -> dict[str, list[float]]:
    """Seconds of the parts of `RegTopK.step`, all ranks beginning each part together."""
    method, state, port = steps.method, steps.state, steps.ports.counters()["sparse"]
    found: dict[str, list[float]] = {}
    last: dict[str, Any] = {}

    def part(name: str, call: Callable[..., Any], *given: Any) -> None:
        def kept() -> None:
            last[name] = call(*given)

        found.setdefault(name, []).append(seconds(comm, kept))

    for _ in range(QUICK):
        part("accumulate", method._feedback.accumulate, state)
        part("score and select", method._choose, state.e, state)
        s = last["score and select"]
        part("take", take, state.e, s)
        sent, before = last["take"], port.seconds
        part("exchange", method._exchange.sum, state, s, sent)
        inside = comm.allreduce(port.seconds - before, MPI.MAX)
        found.setdefault("(in the port)", []).append(inside)
        g = last["exchange"]
        part("remember", remember, state, s, sent, g)
        part("apply", method._feedback.apply, state, g.dense, g.support, s.shape[1])
        state.round += 1
    return found


def remember(state: Any, s: Tensor, sent: Tensor, g: Aggregate) -> None:
    """What the next round's scores need."""
    k = s.shape[1]
    state.s[:, :k], state.sent[:, :k], state.back[:, :k] = s, sent, g.dense[s]


def plans(comm: MPI.Comm, steps: Steps, problem: Given, repeats: int) -> list[str]:
    """Every plan by force: predicted against measured seconds, all for the same entries."""
    method, state = steps.method, steps.state
    problem.gradients(state.x, Draw(state.round), out=state.e)
    s = method._choose(state.e, state)
    sent = state.e.gather(1, s)
    k, entries = s.shape[1], int(state.counts[1])
    shape = Shape(problem.dim, comm.size, sent.element_size())
    costs, _ = method._exchange._port._costs()
    lines = [
        f"  costs as measured at the start: latency {costs.latency * 1e6:.0f} µs, "
        f"{costs.bandwidth / 1e6:.0f} MB/s sent per rank, dense {costs.dense * problem.dim:.3f} s, "
        f"selection {costs.select * problem.dim:.3f} s"
    ]
    best = costs.fastest(shape, k, entries)
    for plan in EXCHANGES:
        method = hpcopt.RegTopK(density=DENSITY, exchange=plan)
        own = Steps(comm, method, problem, "auto", steps.ports.remembered)
        port = own.method._exchange._port
        count = repeats if plan == "dense" else QUICK
        times = in_turn(comm, {plan: partial(port.sum, s, sent, expected=entries)}, count)[plan]
        predicted = costs.exchange(plan, shape, k, entries)
        lines.append(
            f"    {plan:10} predicted {predicted:7.4f} s, measured {spread(times, 4)} s, "
            f"predicted / measured {predicted / statistics.median(times):.2f}"
            + ("  <- auto" if plan == best else "")
        )
        own.ports.free()
    return lines


def main() -> None:
    """Prints the steps' medians with spread, ratios, the parts of the compressed step, and the plans."""
    torch.set_num_threads(1)
    comm, limit = MPI.COMM_WORLD, " ".join(sys.argv[1:]) or "no limit"
    start_gloo(comm)
    problem = Given(comm, ELEMENTS)
    dense = {"dense, MPI's allreduce": "mpi"}
    if Ring.admits(comm):
        dense["dense, ring"] = "ring"
    steps = {name: Steps(comm, hpcopt.AllreduceSGD(), problem, plan) for name, plan in dense.items()}
    compressed = Steps(comm, hpcopt.RegTopK(density=DENSITY), problem)
    measured = compressed.ports.remembered
    auto = Steps(comm, hpcopt.RegTopK(density="auto"), problem, remembered=measured)
    calls = {name: own.step for name, own in steps.items()} | {
        "dense, gloo": Gloo(problem).step,
        "RegTop-k": compressed.step,
        AUTO: auto.step,
    }
    start = time.perf_counter()
    for _ in range(WARM):
        compressed.step()
        auto.step()
    repeats = REPEATS if len(sys.argv) > 1 else QUICK
    times = in_turn(comm, calls, repeats)
    ours, automatic = times["RegTop-k"], times[AUTO]
    best = min((n for n in times if n.startswith("dense,")), key=lambda n: statistics.median(times[n]))
    same = "dense, ring" if compressed.ports.chosen["reduction"] == "ring" else "dense, MPI's allreduce"
    say = print if comm.rank == 0 else lambda *_: None
    say(
        f"{hosts(comm)} hosts, {comm.size} ranks, {limit}, d = {ELEMENTS / 1e6:.0f} M float32, "
        f"medians of {repeats} [min, max]"
    )
    for name, values in times.items():
        say(f"  {name:24} {spread(values)} s  this / RegTop-k {ratios(values, ours)}")
    say(f"  best dense ({best[7:]}) / RegTop-k at density {DENSITY}: {ratios(times[best], ours)}")
    counter = compressed.ports.counters()["sparse"]
    wire = on_the_wire(limit, counter.bytes / counter.calls)
    if wire:
        slower = ratios(times[best], [took + wire for took in ours])
        say(
            f"  the same, were no burst of small messages let through at once ({wire * 1e3:.1f} ms more): "
            f"{slower}"
        )
    say(
        f"  {AUTO} settled on {auto.method._exchange.density}; its step / the same run dense ({same[7:]}): "
        f"{ratios(automatic, times[same])}, / best dense {ratios(automatic, times[best])}"
    )
    say("  the parts of a compressed step, ms:")
    for name, values in pieces(comm, compressed, problem).items():
        say(f"    {name:18} {spread([value * 1e3 for value in values], 2)}")
    k, entries = compressed.state.counts.tolist()
    say(f"  every worker sends {k} entries, the sum has {entries}")
    for line in plans(comm, compressed, problem, repeats):
        say(line)
    say(f"  ({time.perf_counter() - start:.0f} s)")
    for own_steps in (*steps.values(), compressed, auto):
        own_steps.ports.free()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
