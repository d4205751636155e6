"""L-BFGS: the two-loop recursion against the formula, what a round costs, and every kind of problem."""

import numpy as np
import pytest
import torch

import hpcopt
from hpcopt.math.quasi_newton import direction, remember
from hpcopt.methods import lbfgs

from .linear_cases import KINDS, begun, gradient, objective, passes, recipe


@pytest.mark.parametrize("pairs", [0, 1, 3, 4, 9])
def test_the_direction_is_that_of_the_formula(pairs):
    """H ← (I − ρ s yᵀ) H (I − ρ y sᵀ) + ρ s sᵀ over the last 4 pairs, from (s·y/y·y) I."""
    draw, m, d = np.random.default_rng(pairs), 4, 6
    A = draw.standard_normal((d, d))
    A = A @ A.T + np.eye(d)
    S, Y, count = (
        torch.zeros(m, d, dtype=torch.float64),
        torch.zeros(m, d, dtype=torch.float64),
        torch.zeros(1),
    )
    count = count.long()
    steps = draw.standard_normal((pairs, d))
    for s in steps:
        remember(S, Y, count, torch.tensor(s), torch.tensor(A @ s))
    remember(S, Y, count, torch.ones(d).double(), -torch.ones(d).double())  # curves downwards: not kept
    assert int(count) == pairs
    H = np.eye(d)
    for k, s in enumerate(steps[-m:]):
        if k == 0:
            y = A @ steps[-1]
            H = steps[-1] @ y / (y @ y) * np.eye(d)
        y = A @ s
        rho = 1 / (s @ y)
        left = np.eye(d) - rho * np.outer(s, y)
        H = left @ H @ left.T + rho * np.outer(s, s)
    g = draw.standard_normal(d)
    np.testing.assert_allclose(direction(S, Y, count, torch.tensor(g)), -H @ g, rtol=1e-9)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_linear_models(kind, sparse):
    """f falls to where ∇f = 0, g is ∇f, and after the first gradient a round is one pass."""
    method = hpcopt.LBFGS(memory=5)
    problem, ports, state = begun(method, recipe(kind, sparse))
    start, f = float(gradient(problem, state.x).norm()), objective(problem, state.x)
    for state.round in range(60):
        done = method.step(state).done
        f, before = objective(problem, state.x), f
        assert f <= before + 4 * np.spacing(before)
        small = float(gradient(problem, state.x).norm()) < 1e-8 * start
        if small or done:
            break
        torch.testing.assert_close(state.g, gradient(problem, state.x), rtol=0, atol=1e-10 * start)
        assert passes(ports) == state.round + 2
    assert small


def test_trials_need_no_product(monkeypatch):
    tried = []

    def five(along, *arguments, **keys):
        tried.extend(along(t) for t in (0.1, 0.2, 0.3, 0.4, 0.5))
        return search(along, *arguments, **keys)

    search = lbfgs.search
    monkeypatch.setattr(lbfgs, "search", five)
    method = hpcopt.LBFGS()
    problem, ports, state = begun(method, recipe("logistic"))
    method.step(state)
    state.round, before = 1, problem.products
    method.step(state)
    assert len(tried) == 10
    assert passes(ports) == 3
    assert problem.products - before == 3  # X x, X d, Xᵀ l'


OTHERS = {
    "quadratic": (lambda: hpcopt.Quadratic(3, "power", dim=6), 1e-12),
    "regression": (lambda: hpcopt.LinearRegression(3, dim=6, rows_per_worker=10), 1e-12),
    "toy": (lambda: hpcopt.ToyLogistic(2, spread=10.0), 1e-4),
}


@pytest.mark.parametrize("name", OTHERS)
def test_every_other_problem(name):
    """Towards the known minimum; about a pass per round."""
    make, bound = OTHERS[name]
    method = hpcopt.LBFGS()
    problem, ports, state = begun(method, make())
    losses = [float(problem.weights @ problem.losses(state.x))]
    lowest = 0.0 if problem.optimum is None else float(problem.weights @ problem.losses(problem.optimum))
    for state.round in range(14):
        if method.step(state).done:
            break
        losses.append(float(problem.weights @ problem.losses(state.x)))
        if losses[-1] - lowest < bound:
            break
    assert (np.diff(losses) <= 4 * np.spacing(losses[:-1])).all()
    assert losses[-1] - lowest < bound
    assert passes(ports) <= 1.5 * state.round + 5


def test_a_network():
    """Not convex: f falls nevertheless."""
    draw = np.random.default_rng(5)
    x = draw.standard_normal((60, 4))
    y = (x[:, 0] > 0).astype(int) + (x[:, 1] * x[:, 2] > 0)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 3))
    network = hpcopt.Network(model, torch.nn.functional.cross_entropy, (x, y), workers=3, batch_size=5)
    losses = hpcopt.simulate(hpcopt.LBFGS(), network, 20, evaluate_every=5)["metrics/loss"].values
    assert (np.diff(losses) < 0).all()
    assert losses[-1] < 0.3 * losses[0]
