"""Problems and a method of the tests' own, named in configs as ``tests.parallel.factories:NAME``."""

import time
from dataclasses import dataclass

import torch

import hpcopt


def batchnorm(workers):
    """A small network with BatchNorm on 48 made-up rows."""
    torch.manual_seed(0)
    x = torch.randn(60, 6)
    y = (x.sum(1) > 0).long()
    model = torch.nn.Sequential(
        torch.nn.Linear(6, 5), torch.nn.BatchNorm1d(5), torch.nn.ReLU(), torch.nn.Linear(5, 2)
    )
    loss = torch.nn.functional.cross_entropy
    data = (x[:48], y[:48]), (x[48:], y[48:])
    return hpcopt.Network(
        model, loss, *data, workers=workers, batch_size=4, private=["3.*"], new_workers=1, new_worker_steps=20
    )


class SlicedTable(hpcopt.Table):
    """Heavy ball, every rank a slice."""

    lr: float = 0.01
    """η"""


@dataclass(kw_only=True)
class SlicedState(hpcopt.State):
    """Slices of the parameters and of their momentum."""

    x: torch.Tensor = hpcopt.sliced()
    m: torch.Tensor = hpcopt.sliced()


class Sliced(hpcopt.Method[SlicedTable, SlicedState]):
    """A state of which every rank has a slice, the model too."""

    def start(self, problem, ports):
        self.problem, self.reduce = problem, ports.reduce
        self.part = ports.reduce.contribution(problem.dim)
        own = ports.reduce.own(problem.dim)
        x = problem.initial()[own.start : own.stop].clone()
        return SlicedState(x=x, m=torch.zeros_like(x))

    def step(self, state):
        # g = this rank's slice of Σ ω_n ∇f_n(x)
        g = self.part.add_gradients(self.problem, self.model(state), hpcopt.Draw(state.round)).scatter()
        # m ← 0.9 m + g; x ← x − η m
        state.m.mul_(0.9).add_(g)
        state.x.sub_(state.m, alpha=self.settings.lr)
        return hpcopt.StepInfo()

    def model(self, state):
        """The slices put together: collective."""
        return self.reduce.allgather(state.x, self.problem.dim)

    def metrics(self, state):
        return {"speed": float(self.reduce.slices((state.m @ state.m)[None]))}


class CountingTable(hpcopt.Table):
    """Workers that make things of no use, each at its own pace."""

    window: int = 8
    """how many all of them make until a round ends"""
    seconds: float = 0.002
    """for each"""


@dataclass(kw_only=True)
class CountingState(hpcopt.State):
    """The model, which stays, and what a worker has made."""

    x: torch.Tensor = hpcopt.replicated()
    made: torch.Tensor = hpcopt.per_worker()


class Counting(hpcopt.Method[CountingTable, CountingState]):
    """Rounds in which nobody waits for anybody; the wish to stop travels with what was made."""

    def start(self, problem, ports):
        self.mailbox = ports.mailbox(problem.initial())
        return CountingState(x=problem.initial(), made=torch.zeros(problem.share.n, dtype=torch.int64))

    def step(self, state):
        agreed, goal = None, (state.round + 1) * self.settings.window
        while agreed is None:
            time.sleep(self.settings.seconds)
            state.made[0] += 1
            agreed = self.mailbox.agree(int(state.made.sum()), goal)
        return hpcopt.StepInfo(wish=agreed.wish)

    def pause(self, state):
        self.mailbox.pause()


PRODUCTS = []
"""made with the Hessians below on this rank, but at the start"""


class SlowHessian(hpcopt.Objective):
    """A quadratic whose gradient takes its time, and whose Hessian does, but at the start."""

    dim: int = 12
    """parameters"""
    seconds: float = 0.5
    """of a product with all four workers' Hessians [s]"""
    pause: float = 0.0
    """of a worker's gradient [s]"""

    def data(self, worker, seed):
        return (torch.arange(1.0, self.dim + 1).numpy()[None],)

    def loss(self, x, H):
        return (H * (x - 1).square()).sum() / 2

    def gradient(self, x, H):
        time.sleep(self.pause)
        return H.sum(0) * (x - 1)

    def hvp(self, x, v, H):
        if x.any():
            PRODUCTS.append(1)
            time.sleep(self.seconds / 4)
        return (H * v).sum(0)


def size(problem, model):
    """A metric: of every worker's model."""
    return model.abs().sum(-1)


def first_worker(problem, model):
    """No metric: every rank has another number."""
    return problem.share.workers.start
