"""Delayed SGD against recurrences and a simulation of events in NumPy."""

import heapq
import math

import numpy as np
import pytest
import torch

import hpcopt
from hpcopt.comm.local_ports import LocalPorts
from hpcopt.errors import UserError
from hpcopt.problems.base import Draw, Share

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


@pytest.mark.parametrize("delay", [0, 1, 2, 4, 8, 16, 32])
def test_the_boundary_of_stability(delay):
    """x_{t+1} = x_t − a x_{t−τ} shrinks below a = 2 sin(π/(2(2τ + 1))) and grows above it, to 1 %."""
    boundary = 2 * math.sin(math.pi / (2 * (2 * delay + 1)))
    problem = bound(hpcopt.Quadratic(workers=1, eigenvalues=[1.0]), 1)
    period = 3 * (4 * delay + 2)  # of the oscillation at the boundary, thrice
    growth = []
    for a in (0.99 * boundary, 1.01 * boundary):
        xs, _ = iterates(hpcopt.DelayedSGD(lr=a, delay=delay), problem, 60 * (delay + 1) + period)
        sizes = np.abs(np.array(xs)[:, 0])
        early = 20 * (delay + 1)  # the other roots have died away
        growth.append(sizes[-period:].max() / sizes[early : early + period].max())
    assert growth[0] < 0.97
    assert growth[1] > 1.03


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
    ],
)
def test_exact_is_the_recurrence(delay, options):
    problem, rounds = bound(regression()), 15
    method = hpcopt.DelayedSGD(lr=LR, delay=delay, **options)
    got, state = iterates(method, problem, rounds)
    xs, counts = [problem.initial().numpy().copy()], {}
    for t in range(rounds):
        if isinstance(delay, str):
            delays = [t - one.read for one in method._delays.at(t)]  # drawn; that they differ is tested below
        else:
            delays = [min(t, d) for d in (delay if isinstance(delay, list) else [delay] * N)]
        step = np.zeros_like(xs[0])
        for n, tau in enumerate(delays):
            g = gradient(problem, n, xs[t - tau], t)
            g = g + options.get("compensation", 0.0) * g * g * (xs[t] - xs[t - tau])
            rule, c = options.get("lr_rule", "constant"), options.get("lr_factor", 0.05)
            longest = 4 if isinstance(delay, str) else np.max(delay)
            lr = {"constant": LR, "stability": c / 2 / (longest + 1), "adaptive": c / 2 / (tau + 1)}[rule]
            step += lr / N * g
            counts[tau] = counts.get(tau, 0) + 1
        xs.append(xs[t] - step)
    np.testing.assert_allclose(got, xs, rtol=1e-12)
    assert {k: int(c) for k, c in enumerate(state.counts) if c} == counts


def test_random_delays_are_those_of_the_seed_and_of_all_sizes():
    problem = bound(regression())
    first, second = (hpcopt.DelayedSGD(delay="random:3") for _ in range(2))
    for method in (first, second):
        method.prepare(problem)
    drawn = [[t - one.read for one in first._delays.at(t)] for t in range(50, 90)]
    assert drawn == [[t - one.read for one in second._delays.at(t)] for t in range(50, 90)]
    assert {delay for row in drawn for delay in row} == {0, 1, 2, 3}


@pytest.mark.parametrize("aggregate", ["sum", "mean"])
@pytest.mark.parametrize("delay", [2, 4, 9, [1, 3, 4, 7]])
def test_a_schedule_is_a_simulation_of_events(delay, aggregate):
    """Workers hold models; one that hands in its gradient takes up the model as it then was."""
    problem, rounds = bound(regression()), 30
    got, state = iterates(
        hpcopt.DelayedSGD(lr=LR, mode="schedule", delay=delay, aggregate=aggregate), problem, rounds
    )
    periods = delay if isinstance(delay, list) else [delay] * N
    x, version = problem.initial().numpy().copy(), 0
    held = [(x.copy(), 0)] * N
    events = [(n % period, n) for n, period in enumerate(periods)]
    heapq.heapify(events)
    made, counts, xs = [0] * N, np.zeros(max(periods) + 1, int), [x.copy()]
    for t in range(rounds):
        arrived = []
        while events[0][0] == t:
            _, n = heapq.heappop(events)
            arrived.append(gradient(problem, n, held[n][0], made[n]))
            counts[version - held[n][1]] += 1
            held[n] = x.copy(), version
            made[n] += 1
            heapq.heappush(events, (t + periods[n], n))
        if arrived:
            x = x - LR * (np.sum(arrived, 0) if aggregate == "sum" else np.mean(arrived, 0))
            version += 1
        xs.append(x.copy())
    np.testing.assert_allclose(got, xs, rtol=1e-12)
    assert state.counts.tolist() == counts.tolist()
    if delay == 9:  # longer than there are workers: no staler than these are many
        assert counts[N + 1 :].sum() == 0


def test_smoothness_is_found():
    problem = bound(hpcopt.Quadratic(workers=N, eigenvalues=[5.0, 1.0, 0.5, -0.2]))
    _, state = iterates(hpcopt.DelayedSGD(lr_rule="stability", delay=2), problem, 0)
    assert float(state.L) == pytest.approx(5.0, rel=1e-8)


def test_staleness_is_recorded():
    method = hpcopt.DelayedSGD(lr=LR, delay=[0, 1, 1, 6])
    tree = hpcopt.simulate(method, regression(), 100, seed=SEED, evaluate_every=50)
    counts = tree["staleness/count"].values
    assert counts[0] == 100 + 3
    assert counts.sum() == 400
    last = {name: float(tree[f"metrics/staleness_{name}"][-1]) for name in ("mean", "p95", "max")}
    assert last == {"mean": counts @ np.arange(7) / 400, "p95": 6.0, "max": 6.0}


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"delay": [1, 2]}, "delay has 2 entries, but there are 4 workers"),
        ({"delay": -1}, "delay"),
        ({"delay": "often"}, "delay"),
        ({"delay": 0, "mode": "schedule"}, "at least 1"),
        ({"delay": "random:3", "mode": "schedule"}, "give numbers of rounds"),
        ({"aggregate": "sum"}, "the mean of all workers"),
    ],
)
def test_bad_settings(options, text):
    with pytest.raises(UserError, match=text):
        hpcopt.simulate(hpcopt.DelayedSGD(**options), regression(), 3)
