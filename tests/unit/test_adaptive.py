"""FADL's direction in the span of common directions: what it is, and when it is asked for."""

import numpy as np
import pytest
import torch

import hpcopt
from hpcopt.errors import UserError
from hpcopt.math.span_newton import newton_step
from hpcopt.methods.fadl_adaptive import advantage, closed, worth
from hpcopt.methods.parts.subspace import Found, Small

from .test_common_directions import begun, objective, rows, steps


def test_the_first_round_is_the_minimum_over_the_gradient_and_the_workers_average():
    """Everything in NumPy: k conjugate-gradient steps of each worker, by rows weighted; one has none."""
    X, y = rows(6)
    cuts = np.split(np.arange(len(y)), [10, 10, 70])
    recipe = hpcopt.LeastSquares((X, y), workers=4, rows=cuts, regularisation=1e-3, bias=False)
    method = hpcopt.FADL(approximation="adaptive", inner_iterations=3)
    _, state = begun(method, recipe)
    steps(method, state, 1)
    lam, g, d = 1e-3 * len(y), -X.T @ y, np.zeros(X.shape[1])
    for mine in filter(len, cuts):
        H = lam * np.eye(len(g)) + len(y) / len(mine) * X[mine].T @ X[mine]
        x, r = np.zeros_like(g), -g
        p = r
        for _ in range(3):
            alpha = r @ r / (p @ H @ p)
            x, rest = x + alpha * p, r - alpha * (H @ p)
            p, r = rest + rest @ rest / (r @ r) * p, rest
        d += len(mine) / len(y) * x
    V = np.stack([-g, d], 1)
    a = np.linalg.solve(V.T @ (lam * np.eye(len(g)) + X.T @ X) @ V, -V.T @ g)
    np.testing.assert_allclose(method.model(state), V @ a, rtol=1e-8, atol=1e-12)


def test_what_d_is_worth():
    """ρ from the small matrix, q from gains, and the ρ from which it pays."""
    draw = torch.Generator().manual_seed(0)
    A = torch.randn(9, 4, generator=draw, dtype=torch.float64)
    h, K = torch.randn(4, generator=draw, dtype=torch.float64), A.T @ A
    found = Found(h, h, 0.0, 0.0, Small(h, K))
    assert advantage(found) == pytest.approx(
        float(h @ torch.linalg.solve(K, h) / (h[:3] @ torch.linalg.solve(K[:3, :3], h[:3])))
    )
    # gaps 1, 0.7², 0.7³, 0.7⁵ after rounds of two, one and two passes
    gaps = 0.7 ** np.array([0, 2, 3, 5])
    gains = torch.tensor(np.stack([-np.diff(gaps), [2, 1, 2]], 1))
    assert closed(gains) == pytest.approx(0.3, abs=0.02)
    gaps = 0.7 ** np.arange(4)
    assert closed(torch.tensor(np.stack([-np.diff(gaps), [1, 1, 1]], 1))) == pytest.approx(0.3)
    assert closed(torch.zeros(3, 2, dtype=torch.float64)) == 0.0
    assert worth(0.3, 2) == pytest.approx(2 - 0.3)
    assert worth(0.0, 2) == 2
    assert worth(0.5, 3) == pytest.approx((1 - 0.5**3) / 0.5)


@pytest.mark.parametrize("cost_ratio", [1.0, 2.0, 100.0])
def test_when_it_is_asked_for(cost_ratio):
    """The rule, replayed from what each round was worth; passes tell which rounds asked."""
    recipe = hpcopt.Logistic(rows(7, 400, 40, 3.0), workers=8, regularisation=1e-6)
    method = hpcopt.FADL(
        approximation="adaptive", cost_ratio=cost_ratio, inner_iterations=4, keep=6, diagonal_every=1000
    )
    _, state = begun(method, recipe)
    seen, minimise = [], method._adaptive._span.minimise
    method._adaptive._span.minimise = lambda state: seen.append(minimise(state)) or seen[-1]
    k, wait, later, gains = 4, 0, 3, []
    for r in range(20):
        before = int(state.spent[0])
        assert int(state.plan[0]) == k
        steps(method, state, 1)
        expected = r < 3 or wait <= 0
        gains.append((seen[-1].gain, 1 + expected))
        if not expected:
            wait -= 1
        elif r >= 2:
            pays = advantage(seen[-1]) >= worth(closed(torch.tensor(gains[-3:])), cost_ratio)
            k, wait, later = (min(2 * k, 16), 0, 3) if pays else (max(k // 2, 4), later, min(2 * later, 24))
        assert int(state.spent[0]) - before == 1 + expected + (
            int(state.spent[1]) == int(state.spent[0]) - expected
        )
    if cost_ratio == 100:  # then after 3, 6, … rounds
        assert [passes for _, passes in gains] == [2, 2, 2, 1, 1, 1, 2, 1, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1, 1, 1]
    if cost_ratio == 1:
        assert {passes for _, passes in gains} == {2}


def test_it_is_no_worse_than_without():
    """Passes to a relative gap of 1e-3; and shards sorted by label cost little."""
    X, y = rows(8, 600, 60, 2.0)
    order = np.argsort(y)
    for deal in (np.arange(600), order):
        recipe = hpcopt.Logistic((X, y), workers=6, rows=np.array_split(deal, 6), regularisation=1e-5)
        needed = {}
        for name, method in {
            "with": hpcopt.FADL(approximation="adaptive"),
            "without": hpcopt.CommonDirections(),
        }.items():
            problem, state = begun(method, recipe)
            curve = []
            for _ in range(60):
                steps(method, state, 1)
                curve.append((int(state.spent[0]), objective(problem, method.model(state))))
            needed[name] = curve
        best = min(f for curve in needed.values() for _, f in curve)
        passes = {name: next(p for p, f in curve if f <= best * (1 + 1e-3)) for name, curve in needed.items()}
        assert passes["with"] <= max(1.2 * passes["without"], passes["without"] + 2)


def test_it_stops_where_the_gradient_is_small():
    recipe = hpcopt.Logistic(rows(9), workers=3)
    data = hpcopt.simulate(hpcopt.FADL(approximation="adaptive", tolerance=1e-3), recipe, 50)
    assert data.attrs["stopped_by"] == "method"
    assert data.attrs["last_round"] < 15


def test_bad_settings():
    for keys in ({"cost_ratio": 0.5}, {"keep": 0}, {"warm_start": 1}, {"inner_solver": "svrg"}):
        with pytest.raises(UserError, match=next(iter(keys))):
            hpcopt.FADL(approximation="adaptive", **keys)


def test_a_direction_that_is_there_already_is_worth_nothing():
    """ρ = 1, although K is singular."""
    h = torch.tensor([-1.0, -1.0], dtype=torch.float64)
    found = Found(h, h, 0.0, 0.0, Small(h, torch.ones(2, 2, dtype=torch.float64)))
    assert advantage(found) == pytest.approx(1.0)
    assert newton_step(h, found.small.K).decrement == pytest.approx(1.0)
