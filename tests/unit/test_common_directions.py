"""Common directions, against the algorithm written out in NumPy, and what must hold in every round."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix

import hpcopt
from hpcopt.comm.local_ports import LocalPorts
from hpcopt.errors import UserError
from hpcopt.math.span_newton import newton_step, steepest_step
from hpcopt.problems.base import Share
from hpcopt.problems.data.arrays import SparseArraySplit

KINDS = {"logistic": hpcopt.Logistic, "squared_hinge": hpcopt.SquaredHinge, "squares": hpcopt.LeastSquares}


def rows(seed=0, n=150, d=12, spread=2.0):
    """Features of quite different sizes, and labels that they do not quite tell."""
    draw = np.random.default_rng(seed)
    X = draw.standard_normal((n, d)) * np.logspace(0, -spread, d)
    y = np.sign(X @ draw.standard_normal(d) + 0.3 * draw.standard_normal(n))
    y[:2] = -1, 1
    return X, y


def begun(method, recipe, ordered=False):
    """The bound problem and the state of round 0."""
    problem = recipe.bind(Share(range(recipe.workers), recipe.workers, seed=0))
    state = method.start(problem, LocalPorts(recipe.workers, problem.initial(), ordered))
    return problem, state


def steps(method, state, count):
    for _ in range(count):
        method.step(state)
        state.round += 1


def objective(problem, w):
    """f."""
    z = problem.margins(w)
    return float(problem.loss.value(z, problem.y).sum() + problem.regularisation / 2 * w @ w)


def oracle(kind, X, y, lam, m, rounds, diagonal_every, margins_every):
    """f after every round."""
    value, slope, curvature = {
        "logistic": (
            lambda z: np.logaddexp(0, -y * z),
            lambda z: -y / (1 + np.exp(y * z)),
            lambda z: 1 / (2 + np.exp(z) + np.exp(-z)),
        ),
        "squared_hinge": (
            lambda z: np.maximum(0, 1 - y * z) ** 2,
            lambda z: -2 * y * np.maximum(0, 1 - y * z),
            lambda z: 2.0 * (y * z < 1),
        ),
        "squares": (lambda z: (z - y) ** 2 / 2, lambda z: z - y, np.ones_like),
    }[kind]
    w, z, kept, D, passes, due = np.zeros(X.shape[1]), np.zeros(len(X)), [], None, 0, 4
    found = []
    for r in range(rounds):
        g = lam * w + X.T @ slope(z)
        passes += 1
        if passes >= due:
            D = lam + (X**2).T @ curvature(z)
            passes += 1
            due = passes + diagonal_every
        new = [-g] + ([-g / D] if D is not None else []) + ([w] if w.any() else [])
        V = np.stack([v / np.linalg.norm(v) for v in [*kept, *new]], 1)
        E, a, total = X @ V, np.zeros(V.shape[1]), 0.0

        def f(a, E=E, V=V, z=z, w=w):
            return value(z + E @ a).sum() + lam / 2 * np.sum((w + V @ a) ** 2)

        for _ in range(8):
            s = z + E @ a
            h = E.T @ slope(s) + lam * V.T @ (w + V @ a)
            K = (E.T * curvature(s)) @ E + lam * V.T @ V
            scale = 1 / np.sqrt(np.diag(K))
            e, U = np.linalg.eigh(K * np.outer(scale, scale))
            U = U[:, e > 1e-9 * e[-1]] / np.sqrt(e[e > 1e-9 * e[-1]])
            p = -scale * (U @ (U.T @ (scale * h)))
            t = 1.0
            while f(a) - f(a + t * p) < 1e-4 * t * -(h @ p) and t > 1e-9:
                t /= 2
            if t <= 1e-9:
                break
            gain = f(a) - f(a + t * p)
            a, total = a + t * p, total + gain
            if gain < 0.1 * total:
                break
        kept = [*kept, *([-g / D] if D is not None else []), V @ a][-m:]
        w, z = w + V @ a, z + E @ a
        if (r + 1) % margins_every == 0:
            z = X @ w
        found.append(value(z).sum() + lam / 2 * w @ w)
    return np.array(found)


@pytest.mark.parametrize("kind", KINDS)
def test_the_algorithm_written_out(kind):
    X, y = rows()
    method = hpcopt.CommonDirections(keep=5, diagonal_every=3, margins_every=4)
    recipe = KINDS[kind]((X, y), workers=3, regularisation=1e-3, bias=False)
    data = hpcopt.simulate(method, recipe, 10, evaluate_every=1)
    want = oracle(kind, X, y, 1e-3 * len(y), 5, 10, 3, 4)
    best = want.min()
    got = data["metrics/loss"].values[1:]
    np.testing.assert_allclose(got, want[: len(got)], rtol=1e-9)
    if kind == "squares":  # a method of conjugate directions, preconditioned: nothing is left to gain
        assert got[-1] <= best * (1 + 1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_the_minimum_over_the_span(kind):
    """Of every round, SciPy's: what is left is small beside what was gained."""
    X, y = rows(1)
    method = hpcopt.CommonDirections(keep=4)
    problem, state = begun(method, KINDS[kind]((X, y), workers=2, regularisation=1e-3))
    for _ in range(6):
        w, kept = state.w.clone(), state.V.clone()
        z = problem.margins(w)
        c = problem.loss.slope(z, problem.y)
        g = problem.regularisation * w + sum(
            problem.rows_of_worker(i).transposed_times(c[problem.span(i)]) for i in range(2)
        )
        steps(method, state, 1)
        new = [g, w, g / state.D] if state.spent[1] else [g, w]
        V = torch.cat([kept, torch.stack(new, 1)], 1)
        V = V[:, V.abs().sum(0) > 0]
        basis, lengths, _ = np.linalg.svd(V.numpy() / V.norm(dim=0).numpy(), full_matrices=False)
        of = torch.from_numpy(np.ascontiguousarray(basis[:, lengths > 1e-7]))  # w may be a sum of kept steps

        def f(a, w=w, of=of):
            return objective(problem, w + of @ torch.from_numpy(a))

        start, end = objective(problem, w), objective(problem, state.w)
        lowest = scipy.optimize.minimize(f, np.zeros(of.shape[1]), method="BFGS", options={"gtol": 1e-7}).fun
        assert lowest <= start
        assert end - lowest <= 0.03 * (start - lowest) + 1e-9 * start


@settings(max_examples=30)
@given(
    kind=st.sampled_from(sorted(KINDS)),
    seed=st.integers(0, 1000),
    spread=st.floats(0, 5),
    regularisation=st.sampled_from([1e-8, 1e-4, 1.0]),
    keep=st.integers(1, 9),
    adaptive=st.booleans(),
)
@example("squared_hinge", 100, 1.57421875, 1e-8, 8, True)  # λ/2 ‖w‖² is nearly all of f
def test_f_never_rises(kind, seed, spread, regularisation, keep, adaptive):
    """Neither with the workers' direction nor without, whatever the data."""
    recipe = KINDS[kind](rows(seed, 40, 7, spread), workers=3, regularisation=regularisation)
    method = (
        hpcopt.FADL(approximation="adaptive", keep=keep) if adaptive else hpcopt.CommonDirections(keep=keep)
    )
    problem, state = begun(method, recipe)
    f = objective(problem, method.model(state))
    for _ in range(15):
        steps(method, state, 1)
        before, f = f, objective(problem, method.model(state))
        assert f <= before + 4 * np.spacing(before)


@pytest.mark.parametrize(("kind", "adaptive"), [("logistic", False), ("squared_hinge", True)])
def test_margins_do_not_drift(kind, adaptive):
    """After 200 rounds on bad data kept margins are those of w and of V, and f is the same of both."""
    recipe = KINDS[kind](rows(2, 120, 40, 4.0), workers=3, regularisation=1e-7)
    method = hpcopt.FADL(approximation="adaptive") if adaptive else hpcopt.CommonDirections()
    problem, state = begun(method, recipe)
    for _ in range(2):
        steps(method, state, 99)  # the last computation of z from w is 19 rounds ago
        w = method.model(state)
        z = problem.margins(w)
        assert float((z - state.z).abs().max()) <= 1e-12 * float(z.abs().max())
        of_z, of_w = (float(problem.loss.value(m, problem.y).sum()) for m in (state.z, z))
        penalty = float(problem.regularisation / 2 * w @ w)
        assert of_z + penalty == pytest.approx(of_w + penalty, rel=1e-12)
        XV = problem.margins(state.V.contiguous())
        lengths = XV.norm(dim=0)
        assert float(((state.E - XV).norm(dim=0)[lengths > 0] / lengths[lengths > 0]).max()) <= 1e-6
        steps(method, state, 1)


def test_how_rows_are_dealt_out_changes_nothing():
    """One worker; unequal ones, of which one has no rows; more workers than parameters."""
    X, y = rows(3)
    cuts = np.split(np.arange(len(y)), [0, 7, 90])
    deals = {
        "one": {"workers": 1},
        "unequal": {"workers": 4, "rows": cuts},
        "many": {"workers": 20},
    }
    found = [
        hpcopt.simulate(
            hpcopt.CommonDirections(),
            hpcopt.Logistic((X, y), **deal),
            15,
            evaluate_every=1,
            deterministic=True,
        )["metrics/loss"].values
        for deal in deals.values()
    ]
    np.testing.assert_allclose(found[1], found[0], rtol=1e-10)
    np.testing.assert_allclose(found[2], found[0], rtol=1e-10)


def test_passes():
    """One for each gradient, one for D where it is due, half of one for w."""
    method = hpcopt.CommonDirections(diagonal_every=3, margins_every=5)
    recipe = hpcopt.Logistic(rows(4, 300, 30, 3.0), workers=2, regularisation=1e-6)
    data = hpcopt.simulate(method, recipe, 8, evaluate_every=1)
    # D in the rounds after which 4, 8 + … passes are spent: 4 gradients, then 3 more after each D
    assert np.diff(data["metrics/passes"].values).tolist() == [1, 1, 1, 2, 1.5, 1, 2, 1]


def test_the_cut_does_not_cost_the_gradient():
    """Nearly the same direction twice: what little is left of −g is dropped, and −g alone promises more."""
    K = torch.tensor([[1.0, 1 - 1e-11], [1 - 1e-11, 1.0]], dtype=torch.float64)
    h = torch.tensor([-1.0, 1.0], dtype=torch.float64)
    assert newton_step(h, K).decrement < steepest_step(h, K, 0).decrement == 1.0
    h[1] = -0.5
    step = newton_step(h, torch.eye(2, dtype=torch.float64))
    assert step.decrement == pytest.approx(1.25)
    assert step.p.tolist() == pytest.approx([1.0, 0.5])


def test_directions_of_length_zero_take_no_part():
    K = torch.zeros(3, 3, dtype=torch.float64)
    K[1, 1] = 4.0
    step = newton_step(torch.tensor([0.0, -2.0, 0.0], dtype=torch.float64), K)
    assert step.p.tolist() == [0.0, 0.5, 0.0]
    assert newton_step(torch.zeros(3, dtype=torch.float64), torch.zeros_like(K)).decrement == 0.0


def test_bad_settings():
    for keys in ({"keep": 0}, {"keep": "many"}, {"diagonal_every": 0}, {"margins_every": 0}, {"k": 3}):
        with pytest.raises(UserError, match=next(iter(keys))):
            hpcopt.CommonDirections(**keys)
    with pytest.raises(UserError, match='method = "common_directions" needs a linear problem'):
        hpcopt.simulate(hpcopt.CommonDirections(), hpcopt.Quadratic(2, "power", dim=3), 1)


def test_sparse_rows():
    X, y = rows(5)
    X[np.abs(X) < 0.3] = 0
    dense, sparse = (hpcopt.Logistic((X, y), workers=3) for _ in range(2))
    sparse.train = replace(sparse.train, split=SparseArraySplit(csr_matrix(X), y))
    losses = [
        hpcopt.simulate(hpcopt.CommonDirections(), recipe, 12, evaluate_every=4)["metrics/loss"]
        for recipe in (dense, sparse)
    ]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-9)


@pytest.mark.parametrize("method", [hpcopt.CommonDirections(), hpcopt.FADL(approximation="adaptive")])
def test_single_precision_is_refused(method):
    X, y = rows(5)
    with pytest.raises(UserError, match=r'dtype = "float32".*needs "float64"'):
        hpcopt.simulate(method, hpcopt.Logistic((X, y), workers=3), 2, dtype="float32")
