"""PowerSGD: against a serial oracle, what stays in the memories, when it is dense SGD, and what it sends."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import hpcopt
from hpcopt.comm.local_ports import LocalPorts
from hpcopt.comm.reduce.contribution import Buffer
from hpcopt.costs.volumes import allreduce_bytes
from hpcopt.math.streams import stream
from hpcopt.problems.base import Draw, Share

N, SEED = 3, 7
GENERATOR = np.random.default_rng(1)
TRAIN = GENERATOR.standard_normal((60, 12)), GENERATOR.integers(0, 5, 60)


def mlp() -> nn.Module:
    """With 2 factors: 8·12 and 10·8 are worth while, 5·10 is not with 4."""
    torch.manual_seed(2)
    return nn.Sequential(
        *(nn.Linear(12, 8), nn.Tanh()), *(nn.Linear(8, 10), nn.Tanh()), nn.Linear(10, 5)
    ).double()


def cnn() -> nn.Module:
    torch.manual_seed(2)
    return nn.Sequential(
        nn.Unflatten(1, (1, 3, 4)), nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(72, 5)
    ).double()


def network(model: nn.Module, workers: int = N, **keys):
    # unequal shares with weights in proportion, so that a forgotten weight shows
    keys = {"batch_size": 4, "partition": "unequal", "weights": "rows"} | keys
    recipe = hpcopt.Network(model, cross_entropy, TRAIN, workers=workers, **keys)
    return recipe.bind(Share(range(workers), workers, SEED))


def linear_regression():
    return hpcopt.LinearRegression(workers=N, dim=9, rows_per_worker=20).bind(Share(range(N), N, SEED))


def begin(problem, ordered=False, method=hpcopt.PowerSGD, **keys):
    ports = LocalPorts(problem.share.total, problem.initial(), ordered=ordered)
    method = method(**keys)
    return method, method.start(problem, ports), ports


def go(method, state, rounds):
    for _ in range(rounds):
        method.step(state)
        state.round += 1
    return state


def trajectory(problem, rounds=6, **keys):
    method, state, _ = begin(problem, **keys)
    return torch.stack([go(method, state, 1).x.clone() for _ in range(rounds)])


def gram_schmidt(P):
    """Orthonormal columns in the plainest way."""
    P = P.copy()
    for j in range(P.shape[1]):
        for k in range(j):
            P[:, j] -= (P[:, k] @ P[:, j]) * P[:, k]
        P[:, j] /= np.sqrt(P[:, j] @ P[:, j])
    return P


def oracle(problem, rank, lr, momentum, rounds):
    """Matrix by matrix and worker by worker in NumPy; the factors' signs and order do not matter to x."""
    names, shapes = problem.layout.names, dict(zip(problem.layout.names, problem.layout.shapes, strict=True))
    x = {name: t.numpy().copy() for name, t in problem.layout.views(problem.initial()).items()}
    velocity = {name: np.zeros(shapes[name]) for name in names}
    error = [{name: np.zeros(shapes[name]) for name in names} for _ in range(N)]
    numbers, Q = stream(SEED, "powersgd"), {}
    for name in names:
        a, b = shapes[name][0], int(np.prod(shapes[name][1:]))
        if len(shapes[name]) > 1 and rank * (a + b) < a * b:
            Q[name] = numbers.standard_normal((b, rank))
    points = []
    for round in range(rounds):
        flat = torch.cat([torch.from_numpy(x[name]).ravel() for name in names])
        rows = problem.gradients(flat, Draw(round))
        gradients = [problem.layout.views(row) for row in rows]
        for name in names:
            for worker in range(N):
                error[worker][name] += problem.weights[worker].item() * gradients[worker][name].numpy()
            if name in Q:
                M = [error[worker][name].reshape(shapes[name][0], -1) for worker in range(N)]
                P = gram_schmidt(sum(M_n @ Q[name] for M_n in M))
                mine = [M_n.T @ P for M_n in M]
                for worker in range(N):
                    error[worker][name] = (M[worker] - P @ mine[worker].T).reshape(shapes[name])
                Q[name] = sum(mine)
                g = (P @ Q[name].T).reshape(shapes[name])
            else:
                g = sum(error[worker][name] for worker in range(N))
                for worker in range(N):
                    error[worker][name] = np.zeros(shapes[name])
            velocity[name] = momentum * velocity[name] + g
            x[name] = x[name] - lr * velocity[name]
        points.append(np.concatenate([x[name].ravel() for name in names]))
    return np.stack(points), [np.concatenate([e[name].ravel() for name in names]) for e in error]


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("model", [mlp, cnn])
@pytest.mark.parametrize("rank", [1, 2])
def test_five_rounds_are_those_of_a_serial_oracle(model, rank, ordered):
    expected, errors = oracle(network(model()), rank, lr=0.3, momentum=0.9, rounds=5)
    method, state, _ = begin(network(model()), ordered, rank=rank, lr=0.3, momentum=0.9)
    points = [go(method, state, 1).x.clone() for _ in range(5)]
    np.testing.assert_allclose(torch.stack(points), expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(state.e, np.stack(errors), rtol=0, atol=1e-12)
    assert np.abs(errors).max() > 1e-3  # something was compressed


def test_what_was_sent_and_what_was_kept_are_what_had_accumulated():
    problem = network(mlp())
    method, state, _ = begin(problem, rank=2, lr=1.0)
    for _ in range(8):
        before, x = state.e.sum(0), state.x.clone()
        accumulated = before + problem.total_gradient(x, Draw(state.round))
        go(method, state, 1)
        sent, kept = x - state.x, state.e.sum(0)
        torch.testing.assert_close(sent + kept, accumulated, rtol=0, atol=1e-13)
        torch.testing.assert_close(sent @ kept, torch.zeros_like(sent @ kept), rtol=0, atol=1e-13)
    views = problem.layout.views(state.e)
    assert all((tensor != 0).any() == (tensor.ndim == 3) for tensor in views.values())


@pytest.mark.parametrize(
    ("problem", "keys"),
    [
        (lambda: network(mlp()), {"rank": 8}),  # nothing is worth while
        (lambda: network(mlp()), {"rank": 1000, "optimizer": "adam", "lr": 0.01}),
        (lambda: network(mlp(), batch_size=1), {"rank": 3}),  # gradients of rank N: exact
        (linear_regression, {"rank": 1, "lr": 0.01}),  # nothing is a matrix
    ],
    ids=["full", "beyond", "exact", "vector"],
)
@pytest.mark.parametrize("ordered", [False, True])
def test_it_is_dense_sgd_where_nothing_is_lost(problem, keys, ordered):
    common = {name: value for name, value in keys.items() if name != "rank"}
    dense = trajectory(problem(), ordered=ordered, method=hpcopt.AllreduceSGD, **common)
    mine = trajectory(problem(), ordered=ordered, **keys)
    torch.testing.assert_close(mine, dense, rtol=0, atol=1e-10)


@pytest.mark.parametrize("problem", [lambda: network(mlp()), lambda: network(cnn()), linear_regression])
def test_both_forms_agree(problem):
    keys = {"rank": 1, "lr": 0.05, "momentum": 0.9}
    one, other = (trajectory(problem(), ordered=ordered, **keys) for ordered in (False, True))
    torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize(
    ("rank", "numbers", "calls"),
    [
        (1, (8 + 12) + (10 + 8) + (5 + 10) + 23, 2),
        (3, 3 * (8 + 12) + 3 * (10 + 8) + 3 * (5 + 10) + 23, 2),
        (4, 4 * (8 + 12) + 4 * (10 + 8) + 5 * 10 + 23, 2),
        (8, 8 * 12 + 10 * 8 + 5 * 10 + 23, 1),
    ],
)
def test_bytes(rank, numbers, calls, ordered):
    method, state, ports = begin(network(mlp()), ordered, rank=rank)
    go(method, state, 4)
    counter = ports.reduce.counters["sum"]
    assert counter.bytes_workers == pytest.approx(4 * N * allreduce_bytes(8 * numbers, N))
    assert counter.calls == 4 * calls
    assert counter.passes == (4 if calls == 1 else 0)  # whole vectors only where nothing is compressed


@pytest.mark.parametrize("rank", [1, 2])
def test_workers_in_other_processes_change_no_bit(rank):
    """Memories lie elsewhere in memory there; what a worker hands over may not depend on that."""

    class Recording:
        def __init__(self, workers):
            self.rows, self.workers = [], workers

        def contribution(self, size):
            return Buffer(size, torch.empty(0), self.workers, True, self.sum, scatter=None)

        def sum(self, rows):
            self.rows.append(rows.clone())
            return next(self.totals)

    class Ports:
        def __init__(self, workers):
            self.reduce = Recording(workers)

    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(12, 67), nn.Tanh(), nn.Linear(67, 150), nn.Tanh(), nn.Linear(150, 5))
    recipe = hpcopt.Network(model, cross_entropy, TRAIN, workers=N, batch_size=4)
    together, apart = Ports(N), [Ports(1) for _ in range(N)]
    method = hpcopt.PowerSGD(rank=rank)
    everyone = recipe.bind(Share(range(N), N, SEED, torch.float32))
    state = method.start(everyone, together)
    totals = []
    together.reduce.totals = iter(lambda: totals.append(together.reduce.rows[-1].sum(0)) or totals[-1], None)
    go(method, state, 3)
    for worker, ports in enumerate(apart):
        ports.reduce.totals = iter([total.clone() for total in totals])
        alone = hpcopt.PowerSGD(rank=rank)
        problem = recipe.bind(Share(range(worker, worker + 1), N, SEED, torch.float32))
        mine = go(alone, alone.start(problem, ports), 3)
        assert torch.equal(mine.x, state.x)
        assert torch.equal(mine.q, state.q)
        assert torch.equal(mine.e[0], state.e[worker])
        for one, other in zip(ports.reduce.rows, together.reduce.rows, strict=True):
            assert torch.equal(one[0], other[worker])


def test_gradients_that_vanish_leave_neither_nan_nor_a_factor_that_stays_zero():
    """A head of zeros gives the layer before it no gradient at first, and two of its units are dead."""
    model = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 5)).double()
    with torch.no_grad():
        model[2].weight.zero_()
        model[0].weight[:2].zero_()
        model[0].bias[:2] = -1.0
    problem = network(model)
    method, state, _ = begin(problem, rank=2, lr=0.1)
    start = problem.layout.views(state.x.clone())["0.weight"]
    go(method, state, 1)
    assert torch.equal(problem.layout.views(state.x)["0.weight"], start)  # nothing came
    go(method, state, 4)
    assert all(torch.isfinite(tensor).all() for _, tensor in state.tensors().values())
    assert not torch.equal(problem.layout.views(state.x)["0.weight"], start)
