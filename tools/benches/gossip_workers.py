"""`tools/bench gossip`: D-PSGD of 128 workers on one rank against a bare torch loop that exchanges nothing.

    gossip_workers.py [LOCAL_STEPS …]    default: 1 and 5 steps between exchanges

Worker steps per second, all in turn in one process with one thread: rounds of `dpsgd`, rounds of `local` (our
steps without the exchange), and 128 torch modules by hand, one after the other, with the same rows, model,
mini-batches and learning rate. What counts is the ratio to the fastest of the bare loops.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterator
from functools import partial

import torch
from mpi4py import MPI
from torch import Tensor, nn

import hpcopt
from hpcopt.config.problems import NetworkTable
from hpcopt.engine.build import choose
from hpcopt.math.streams import stream
from hpcopt.problems import models
from hpcopt.problems.base import Share
from hpcopt.problems.network_problem import NetworkProblem
from tools.benches.common import Call, Steps, in_turn, ratios, spread

WORKERS = 128
BATCH = 32
LR = 0.01
SEED = 0
REPEATS = 7
TOPOLOGIES = ("ring", "one_peer_exponential", "exponential")
UPDATES = ("optim.SGD", "_foreach_add_", "tensor by tensor")
AIM = 0.85


class BareWorker:
    """A model of its own, its rows, and plain SGD as people write it.

    Args:
        problem: whose rows.
        i: the worker.
        update: one of `UPDATES`.
        standardised: the rows are kept as they go into the model, four times as many bytes; otherwise as
            hpcopt keeps them, in bytes.
    """

    def __init__(self, problem: NetworkProblem, i: int, update: str, standardised: bool) -> None:
        self._model = models.build("mlp", (1, 28, 28), 10)
        models.initialise(self._model, SEED)
        self._parameters: list[Tensor] = list(self._model.parameters())
        fused = torch.optim.SGD(self._parameters, lr=LR, foreach=True) if update == UPDATES[0] else None
        self._optimizer, self._foreach = fused, update == UPDATES[1]
        rows = problem._data[i].train
        self._input = (lambda features: features) if standardised else problem._input
        self._features = problem._input(rows.features) if standardised else rows.features
        self._targets = rows.targets
        self._batches = self._endless(i)

    def _endless(self, i: int) -> Iterator[Tensor]:
        """Which rows are in each mini-batch: all of them in another order in every epoch, hpcopt's own."""
        epoch = 0
        while True:
            order = stream(SEED, "batches", i, epoch).permutation(len(self._targets))
            whole = len(order) // BATCH * BATCH
            yield from torch.from_numpy(order[:whole]).split(BATCH)
            epoch += 1

    def step(self) -> None:
        """Forward, backward, update."""
        rows = next(self._batches)
        features = self._input(self._features.index_select(0, rows))
        for parameter in self._parameters:
            parameter.grad = None
        nn.functional.cross_entropy(self._model(features), self._targets.index_select(0, rows)).backward()
        if self._optimizer is not None:
            self._optimizer.step()
            return
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        with torch.no_grad():
            if self._foreach:
                torch._foreach_add_(self._parameters, gradients, alpha=-LR)
                return
            for parameter, gradient in zip(self._parameters, gradients, strict=True):
                parameter.add_(gradient, alpha=-LR)

    def point(self) -> Tensor:
        """All parameters, in the order of hpcopt's flat vector."""
        return torch.cat([parameter.detach().flatten() for parameter in self._parameters])


class Bare:
    """All workers by hand."""

    def __init__(self, problem: NetworkProblem, update: str, standardised: bool = False) -> None:
        self.workers = [BareWorker(problem, i, update, standardised) for i in range(problem.share.n)]

    def round(self, steps: int) -> None:
        """One worker makes all its steps before the next one begins: its parameters stay in the cache."""
        for worker in self.workers:
            for _ in range(steps):
                worker.step()


def bind() -> NetworkProblem:
    """Fashion-MNIST, 468 rows per worker, mlp 784-256-128-10."""
    table = NetworkTable(workers=WORKERS, dataset="fashion-mnist", model="mlp", batch_size=BATCH)
    share = Share(range(WORKERS), WORKERS, SEED, torch.float32)
    problem = table.recipe().bind(share)
    assert isinstance(problem, NetworkProblem)
    return problem


def check(problem: NetworkProblem) -> None:
    """The bare loop does the same work: after three steps every worker is where ours is."""
    ours = Steps(MPI.COMM_SELF, hpcopt.Local(lr=LR, local_steps=3), problem)
    ours.step()
    for update in UPDATES:
        bare = Bare(problem, update)
        bare.round(3)
        points = torch.stack([worker.point() for worker in bare.workers])
        torch.testing.assert_close(points, ours.state.X, rtol=0, atol=1e-5)
    ours.ports.free()


def compare(problem: NetworkProblem, steps: int) -> None:
    """Prints throughputs and ratios for so many steps between exchanges."""
    bare = {f"bare, {update}": Bare(problem, update) for update in UPDATES}
    bare["bare, rows as floats"] = Bare(problem, UPDATES[1], standardised=True)
    ours = {"local (no exchange)": Steps(MPI.COMM_SELF, hpcopt.Local(lr=LR, local_steps=steps), problem)}
    for topology in TOPOLOGIES:
        method = hpcopt.DPSGD(lr=LR, local_steps=steps, topology=topology)
        ours[f"dpsgd {topology}"] = Steps(MPI.COMM_SELF, method, problem)
    calls: dict[str, Call] = {name: partial(one.round, steps) for name, one in bare.items()}
    calls |= {name: one.step for name, one in ours.items()}
    times = in_turn(MPI.COMM_SELF, calls, REPEATS)
    best = min(bare, key=lambda name: statistics.median(times[name]))
    print(f"  {steps} step{'s' * (steps > 1)} per round; worker steps per second, and relative to {best}")
    for name, values in times.items():
        speeds = spread([steps * WORKERS / value for value in values], 0)
        aim = f"; aim: at least {AIM}" if name.startswith("dpsgd") else ""
        print(f"    {name:30} {speeds:24} {ratios(times[best], values)}{aim}", flush=True)
    for name, one in ours.items():
        if counted := one.ports.counters().get("neighbours"):
            share = counted.seconds / counted.calls / statistics.median(times[name])
            print(f"    {name:30} {share:.1%} of a round is the average with the neighbours")
        one.ports.free()


def main() -> None:
    """See above."""
    torch.set_num_threads(1)
    problem = bind()
    print(
        f"{WORKERS} workers on one rank, mlp 784-256-128-10 (d = {problem.dim:,}), batch {BATCH}, float32, "
        f"one thread, medians of {REPEATS} [min, max]"
    )
    check(problem)
    first = Steps(MPI.COMM_SELF, hpcopt.Local(lr=LR), problem)
    choose(problem, first.ports)  # as a run does
    print(f"  gradients {first.ports.chosen['gradients']}, as measured")
    first.ports.free()
    for steps in map(int, sys.argv[1:] or ("1", "5")):
        compare(problem, steps)


if __name__ == "__main__":
    main()
