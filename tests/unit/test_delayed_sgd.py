"""Delayed SGD against recurrences and a simulation of events in NumPy."""

import heapq
import math
from typing import ClassVar

import numpy as np
import pytest
import torch

import hpcopt
from hpcopt.comm.local_ports import LocalPorts
from hpcopt.errors import UserError
from hpcopt.methods.parts.delays import Delays
from hpcopt.problems.base import Draw, Share

from .plain_steps import UPDATES, Step

N, SEED, LR = 4, 3, 0.03


def bound(recipe, workers=N):
    return recipe.bind(Share(range(workers), workers, SEED))


def regression():
    return hpcopt.LinearRegression(workers=N, dim=7, rows_per_worker=20, batch_size=5)


def iterates(method, problem, rounds):
    """x_0, x_1, … and the last state."""
    method.prepare(problem)
    state = method.start(problem, LocalPorts(problem.share.total, problem.initial(), ordered=True))
    xs = [state.x.clone().numpy()]
    for _ in range(rounds):
        method.step(state)
        state.round += 1
        xs.append(state.x.clone().numpy())
    return xs, state


def gradient(problem, n, x, draw):
    rows = problem.gradients(torch.from_numpy(x), Draw(draw))
    return rows[n].numpy().copy()


class Coordinates(hpcopt.Objective):
    """f(x) = ½ Σ a_j x_j² from x = 1: as many recurrences x_{t+1} = x_t − η a x_{t−τ} in one run."""

    curvatures: list[float]
    batch_size: ClassVar[str] = "full"

    def common(self, seed):
        return (torch.tensor(self.curvatures, dtype=torch.float64),)

    def initial(self, seed):
        return np.ones(len(self.curvatures))

    def loss(self, x, a):
        return 0.5 * (a * x) @ x

    def gradient(self, x, a):
        return a * x


@pytest.mark.parametrize("delay", [0, 1, 2, 4, 8, 16, 32])
def test_the_boundary_of_stability(delay):
    """x_{t+1} = x_t − a x_{t−τ} neither shrinks nor grows at a = 2 sin(π/(2(2τ + 1))), found to 1 %."""
    boundary = 2 * math.sin(math.pi / (2 * (2 * delay + 1)))
    period = 3 * (4 * delay + 2)  # of the oscillation at the boundary, thrice
    early = 20 * (delay + 1)  # the other roots have died away
    near = np.array(
        [0.97, 0.98, 0.99, 1.01, 1.02, 1.03]
    )  # curvatures, at the rate that is to be the boundary
    problem = bound(Coordinates(1, curvatures=near.tolist()), 1)
    xs, _ = iterates(hpcopt.DelayedSGD(lr=boundary, delay=delay), problem, 60 * (delay + 1) + period)
    sizes = np.abs(xs)
    growth = sizes[-period:].max(0) / sizes[early : early + period].max(0)
    assert (np.diff(growth) > 0).all()
    assert growth[2] < 0.97
    assert growth[3] > 1.03


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("delay", [0, [0] * N])
def test_without_delay_it_is_synchronous_sgd_to_the_bit(delay, deterministic):
    keys = {"rounds": 12, "seed": SEED, "deterministic": deterministic, "dtype": "float32"}
    options = {"lr": LR, "schedule": "cosine"}
    want = hpcopt.simulate(hpcopt.AllreduceSGD(**options), regression(), **keys)
    got = hpcopt.simulate(hpcopt.DelayedSGD(delay=delay, **options), regression(), **keys)
    for name in ("loss", "gradients", "bytes_workers", "passes"):
        assert np.array_equal(got["metrics"][name], want["metrics"][name]), name


@pytest.mark.parametrize(
    ("delay", "options"),
    [
        (3, {}),
        ([5, 0, 2, 2], {}),
        ("random:4", {}),
        (3, {"compensation": 0.7}),
        ([5, 0, 2, 2], {"lr_rule": "adaptive", "smoothness": 2.0, "lr_factor": 0.3}),
        (3, {"lr_rule": "adaptive", "smoothness": 2.0, "lr_factor": 0.3}),
        ("random:4", {"lr_rule": "stability", "smoothness": 2.0, "compensation": 0.7}),
        ([5, 0, 2, 2], UPDATES["adamw"]),
        ("random:4", UPDATES["nesterov"]),
    ],
)
def test_exact_is_the_recurrence(delay, options):
    problem, rounds = bound(regression()), 15
    method = hpcopt.DelayedSGD(lr=LR, delay=delay, **options)
    got, state = iterates(method, problem, rounds)
    xs, counts = [problem.initial().numpy().copy()], np.zeros((N, 6), int)
    update = Step(**options)
    for t in range(rounds):
        if isinstance(delay, str):
            # drawn; that they differ is tested below
            delays = [t - one.read for one in Delays(method.settings, N, SEED).at(t)]
        else:
            delays = [min(t, d) for d in (delay if isinstance(delay, list) else [delay] * N)]
        mean = np.zeros_like(xs[0])
        for n, tau in enumerate(delays):
            g = gradient(problem, n, xs[t - tau], t)
            g = g + options.get("compensation", 0.0) * g * g * (xs[t] - xs[t - tau])
            rule, c = options.get("lr_rule", "constant"), options.get("lr_factor", 0.05)
            longest = 4 if isinstance(delay, str) else np.max(delay)
            lr = {"constant": LR, "stability": c / 2 / (longest + 1), "adaptive": c / 2 / (tau + 1)}[rule]
            mean += lr / LR / N * g
            counts[n, tau] += 1
        xs.append(update(xs[t], mean, LR))
    np.testing.assert_allclose(got, xs, rtol=1e-12)
    assert state.counts.tolist() == counts[:, : state.counts.shape[1]].tolist()
    assert counts[:, state.counts.shape[1] :].sum() == 0


def test_random_delays_are_those_of_the_seed_and_of_all_sizes():
    first, second = (Delays(hpcopt.DelayedSGD(delay="random:3").settings, N, SEED) for _ in range(2))
    drawn = [[t - one.read for one in first.at(t)] for t in range(50, 90)]
    assert drawn == [[t - one.read for one in second.at(t)] for t in range(50, 90)]
    assert {delay for row in drawn for delay in row} == {0, 1, 2, 3}


@pytest.mark.parametrize(("aggregate", "update"), [("sum", {}), ("mean", {}), ("sum", UPDATES["adamw"])])
@pytest.mark.parametrize("delay", [2, 4, 9, [1, 3, 4, 7]])
def test_a_schedule_is_a_simulation_of_events(delay, aggregate, update):
    """Workers hold models; one that hands in its gradient takes up the model as it then was."""
    problem, rounds = bound(regression()), 30
    got, state = iterates(
        hpcopt.DelayedSGD(lr=LR, mode="schedule", delay=delay, aggregate=aggregate, **update), problem, rounds
    )
    periods = delay if isinstance(delay, list) else [delay] * N
    x, version = problem.initial().numpy().copy(), 0
    held, step = [(x.copy(), 0)] * N, Step(**update)
    events = [(n % period, n) for n, period in enumerate(periods)]
    heapq.heapify(events)
    made, counts, xs = [0] * N, np.zeros((N, max(periods) + 1), int), [x.copy()]
    for t in range(rounds):
        arrived = []
        while events[0][0] == t:
            _, n = heapq.heappop(events)
            arrived.append(gradient(problem, n, held[n][0], made[n]))
            counts[n, version - held[n][1]] += 1
            held[n] = x.copy(), version
            made[n] += 1
            heapq.heappush(events, (t + periods[n], n))
        if arrived:
            x = step(x, np.sum(arrived, 0) if aggregate == "sum" else np.mean(arrived, 0), LR)
            version += 1
        xs.append(x.copy())
    np.testing.assert_allclose(got, xs, rtol=1e-12)
    assert state.counts.tolist() == counts.tolist()
    if delay == 9:  # longer than there are workers: no staler than these are many
        assert counts[:, N + 1 :].sum() == 0


def test_smoothness_is_found():
    problem = bound(hpcopt.Quadratic(workers=N, eigenvalues=[5.0, 1.0, 0.5, -0.2]))
    _, state = iterates(hpcopt.DelayedSGD(lr_rule="stability", delay=2), problem, 0)
    assert float(state.L) == pytest.approx(5.0, rel=1e-8)


def test_staleness_is_recorded():
    method = hpcopt.DelayedSGD(lr=LR, delay=[0, 1, 1, 6])
    tree = hpcopt.simulate(method, regression(), 100, seed=SEED, evaluate_every=50)
    each = np.zeros((7, N), int)
    for n, delay in enumerate([0, 1, 1, 6]):
        for t in range(100):
            each[min(t, delay), n] += 1  # of x_0 before it was so old
    assert tree["staleness_by_worker/count"].dims == ("delay", "origin")
    assert np.array_equal(tree["staleness_by_worker/count"], each)
    counts = tree["staleness/count"].values
    assert np.array_equal(counts, each.sum(1))
    last = {name: float(tree[f"metrics/staleness_{name}"][-1]) for name in ("mean", "p95", "max")}
    assert last == {"mean": counts @ np.arange(7) / 400, "p95": 6.0, "max": 6.0}


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"delay": [1, 2]}, "delay has 2 entries, but there are 4 workers"),
        ({"delay": -1}, "delay = -1: must be a number of rounds, 0 or more"),
        ({"delay": [0, 1, -1, 0]}, "must be a number of rounds, 0 or more"),
        ({"delay": []}, "a list with one of each worker"),
        ({"delay": "often"}, 'delay = .often.: must be .* or "random:8"'),
        ({"delay": 4}, "delay = 4: longer than the run, which has run.rounds = 3"),
        ({"delay": [0, 3, 4, 0]}, "longer than the run"),
        ({"delay": "random:4"}, "longer than the run"),
        ({"delay": 4, "mode": "schedule"}, "longer than the run"),
        ({"delay": 0, "mode": "schedule"}, "at least 1"),
        ({"delay": "random:3", "mode": "schedule"}, "give numbers of rounds"),
        ({"delay": 3, "aggregate": "sum"}, "the mean of all workers"),
        ({"lr_rule": "adaptive", "optimizer": "adam"}, "those of optimizer = .adam. are as long as lr says"),
    ],
)
def test_bad_settings(options, text):
    with pytest.raises(UserError, match=text):
        hpcopt.simulate(hpcopt.DelayedSGD(**options), regression(), 3)


def test_a_delay_as_long_as_the_run_and_a_run_without_rounds_are_allowed():
    for delay, rounds in ((3, 3), (9, 0)):
        tree = hpcopt.simulate(hpcopt.DelayedSGD(delay=delay), regression(), rounds)
        assert tree.attrs["last_round"] == rounds
