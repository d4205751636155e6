"""FADL: models with the right gradient, the same iterates on a worker's columns, an f that never rises."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix, random_array

import hpcopt
from hpcopt.comm.local_ports import LocalPorts
from hpcopt.errors import UserError
from hpcopt.math.compiled_rows import Rows
from hpcopt.math.krylov import conjugate_gradients
from hpcopt.math.linesearch import search
from hpcopt.math.stochastic import Objective, sweep
from hpcopt.methods import fadl
from hpcopt.methods.parts.local_directions import LocalDirections
from hpcopt.methods.parts.local_models import LocalModel, Support, factors
from hpcopt.problems.base import Share
from hpcopt.problems.data.arrays import SparseArraySplit

KINDS = {"logistic": hpcopt.Logistic, "squared_hinge": hpcopt.SquaredHinge, "squares": hpcopt.LeastSquares}
APPROXIMATIONS = ("quadratic", "hybrid", "nonlinear", "linear")
ULPS = 4


def sparse(recipe, X):
    """The same problem with sparse rows."""
    recipe.train = replace(recipe.train, split=SparseArraySplit(csr_matrix(X), recipe.train.split.labels))
    return recipe


def data(r=90, d=12, seed=0, offset=0.0):
    draw = np.random.default_rng(seed)
    X = draw.standard_normal((r, d)) * np.logspace(0, -1.5, d)
    y = np.sign(X @ draw.standard_normal(d) + 0.5 * draw.standard_normal(r))
    y[:2] = -1, 1
    return X + offset, y


def few_words(r=90, d=200, seed=0):
    """Sparse rows, so that every worker misses columns."""
    X = random_array((r, d), density=0.02, rng=np.random.default_rng(seed), format="csr")
    return X, np.sign(np.random.default_rng(seed).standard_normal(r))


def bound(recipe):
    return recipe.bind(Share(range(recipe.workers), recipe.workers, seed=0))


def begin(recipe, ranks=1, **keys):
    """Method, problem, ports and state of round 0."""
    problem, method = bound(recipe), hpcopt.FADL(**keys)
    method.prepare(problem)
    ports = LocalPorts(recipe.workers, problem.initial(), ranks=ranks)
    return method, problem, ports, method.start(problem, ports)


def step(method, state):
    info = method.step(state)
    state.round += 1
    return info


def f(problem, w):
    z = problem.margins(w)
    return float(problem.loss.value(z, problem.y).sum() + problem.regularisation / 2 * w @ w)


def gradient(problem, w):
    g = problem.regularisation * w
    problem.transposed(problem.loss.slope(problem.margins(w), problem.y), g)
    return g


def differentiated(function, x):
    x = x.clone().requires_grad_()
    return torch.autograd.grad(function(x), x)[0]


def losses(runs):
    return [run["metrics/loss"].values for run in runs]


def a_model(problem, i, w, approximation):
    """Worker i's model at w, and g."""
    g, rows = gradient(problem, w), problem.span(i)
    z, y = problem.margins(w)[rows], problem.y[rows]
    support = Support(problem.rows_of_worker(i))
    model = LocalModel(
        support,
        problem.loss,
        y,
        z,
        problem.loss.slope(z, y),
        problem.loss.curvature(z, y),
        support.take(g, float(g @ g)),
        problem.regularisation,
        factors(approximation, problem.total_rows / len(y)),
    )
    return model, g


@pytest.mark.parametrize(("kind", "approximation"), [*product(KINDS, APPROXIMATIONS)])
def test_the_gradient_of_a_model_is_that_of_f(kind, approximation):
    """And the rest of it is as the paper writes it, differentiated by torch."""
    X, y = data()
    rows = np.split(np.arange(90), [50, 50, 60])
    problem = bound(KINDS[kind]((X, y), workers=4, rows=rows, regularisation=1e-3))
    w = torch.from_numpy(np.random.default_rng(1).standard_normal(13))
    v0 = torch.from_numpy(0.3 * np.random.default_rng(2).standard_normal(13))
    for i in (0, 2, 3):
        model, g = a_model(problem, i, w, approximation)
        zero = torch.zeros_like(model.z)
        assert torch.equal(model.gradient(torch.zeros_like(w), zero), g)

        block, c = torch.tensor(np.c_[X, np.ones(90)][rows[i]]), problem.total_rows / len(rows[i])
        mine = torch.tensor(y[rows[i]])

        def L(u, block=block, mine=mine):
            return problem.loss.value(block @ u, mine).sum()

        slope = differentiated(L, w)
        H = block.T @ (problem.loss.curvature(block @ w, mine)[:, None] * block)
        whole = g - problem.regularisation * w

        def paper(v, slope=slope, H=H, whole=whole, c=c, L=L):
            linear = L(w + v) + (whole - slope) @ v
            shapes = {
                "linear": linear,
                "hybrid": linear + (c - 1) / 2 * v @ H @ v,
                "quadratic": whole @ v + c / 2 * v @ H @ v,
                "nonlinear": c * L(w + v) + (whole - c * slope) @ v,
            }
            return problem.regularisation / 2 * (w + v) @ (w + v) + shapes[approximation]

        s = block @ v0
        rise = float(paper(v0) - paper(torch.zeros_like(v0)))
        assert model.value(v0, s) == pytest.approx(rise, rel=1e-10)
        torch.testing.assert_close(model.gradient(v0, s), differentiated(paper, v0), rtol=1e-9, atol=1e-9)
        if kind != "squared_hinge":
            ends = [model.gradient(v0 + step * w, s + step * (block @ w)) for step in (1e-5, -1e-5)]
            near = (ends[0] - ends[1]) / 2e-5
            torch.testing.assert_close(model.hessian(s)(w), near, rtol=1e-6, atol=1e-6 * float(near.norm()))


@pytest.mark.parametrize("iterations", [1, 3, 8])
def test_conjugate_gradients_on_a_workers_own_columns(iterations):
    """The same iterates as with all columns; the rest of them is a multiple of the gradient."""
    X, y = few_words()
    problems = [bound(hpcopt.Logistic((X.toarray(), y), workers=3))]
    problems.append(bound(sparse(hpcopt.Logistic((X.toarray(), y), workers=3), X)))
    w = torch.from_numpy(np.random.default_rng(1).standard_normal(201))
    for i in range(3):
        steps = []
        for problem in problems:
            model, g = a_model(problem, i, w, "quadratic")
            found = conjugate_gradients(
                model.hessian(torch.zeros_like(model.z)), model.g, iterations, stable=True
            )
            out = torch.zeros(201, dtype=torch.float64)
            multiple = model.support.add_to(out, found.s, model.g, 1.0)
            steps.append(out + multiple * g)
        assert len(model.g) < 150
        torch.testing.assert_close(steps[1], steps[0], rtol=0, atol=1e-13 * float(steps[0].abs().max()))


SOLVERS = {
    "cg": {},
    "tron": {"approximation": "hybrid"},
    "svrg": {"approximation": "linear", "inner_solver": "svrg", "inner_iterations": 3},
    "sgd": {"approximation": "linear", "inner_solver": "sgd", "inner_iterations": 3, "warm_start": 2},
}


@pytest.mark.parametrize("solver", SOLVERS)
def test_sparse_rows_make_the_same_run(solver):
    X, y = few_words()
    recipes = [hpcopt.Logistic((X.toarray(), y), workers=3, regularisation=1e-3) for _ in range(2)]
    sparse(recipes[1], X)
    method = hpcopt.FADL(combination="rows", **SOLVERS[solver])
    dense, few = losses(hpcopt.simulate(method, recipe, 6, evaluate_every=1) for recipe in recipes)
    np.testing.assert_allclose(few, dense, rtol=1e-11)
    assert (np.diff(dense) < 0).all()


def test_rounding_is_not_amplified():
    """One outlying eigenvalue is enough for the plain recurrence to lose most digits."""
    X, y = data(200, 40, offset=5.0)
    problem = bound(hpcopt.Logistic((X, y), workers=1, regularisation=1e-6))
    model, g = a_model(problem, 0, problem.initial(), "quadratic")
    hv = model.hessian(torch.zeros_like(model.z))
    other = g * (1 + 2e-16 * torch.from_numpy(np.random.default_rng(0).standard_normal(len(g))))
    kept = [conjugate_gradients(hv, right, 12, stable=True).s for right in (g, other)]
    plain = [conjugate_gradients(hv, right, 12).s for right in (g, other)]
    assert (kept[0] - kept[1]).norm() < 1e-12 * kept[0].norm()
    assert (plain[0] - plain[1]).norm() > 1e-10 * plain[0].norm()
    exact = conjugate_gradients(hv, g, 41, stable=True)
    assert (hv(exact.s) + g).norm() < 1e-12 * g.norm()


@pytest.mark.parametrize("combination", ["uniform", "rows"])
def test_a_round_with_exact_local_minima(combination):
    """w = −t Σ weight_p (λI + c_p H_p)⁻¹ g; a worker without rows takes no part."""
    X, y = data(90, 8)
    rows = np.split(np.arange(90), [50, 50, 60])
    method, _, _, state = begin(
        hpcopt.Logistic((X, y), workers=4, rows=rows, regularisation=1e-2),
        inner_iterations=20,
        combination=combination,
    )
    A, lam = np.c_[X, np.ones(90)], 1e-2 * 90
    g = -A.T @ y / 2
    d = np.zeros(9)
    for mine in (rows[0], rows[2], rows[3]):
        weight = 1 / 3 if combination == "uniform" else len(mine) / 90
        H = A[mine].T @ A[mine] / 4 * 90 / len(mine)
        d -= weight * np.linalg.solve(lam * np.eye(9) + H, g)
    step(method, state)
    w = state.w.numpy()
    t = w @ d / (d @ d)
    np.testing.assert_allclose(w, t * d, rtol=1e-10)
    z, slope = A @ w, g @ d
    value = np.logaddexp(0, -y * z).sum() + lam / 2 * w @ w
    ahead = (lam * w - A.T @ (y / (1 + np.exp(y * z)))) @ d
    assert value <= 90 * np.log(2) + 1e-4 * t * slope
    assert abs(ahead) <= 0.9 * abs(slope)


def test_steps_that_are_no_descent_are_replaced():
    X, y = data()
    recipe = hpcopt.SquaredHinge((X, y), workers=3)
    method, problem, _, state = begin(recipe, angle=0.9999)
    step(method, state)
    g = gradient(problem, problem.initial())
    assert torch.nn.functional.cosine_similarity(state.w, -g, dim=0) > 1 - 1e-12
    ports = LocalPorts(3, g)
    local = LocalDirections(method.settings, problem, ports.reduce, otherwise="nothing", combination="rows")
    assert not local.direction(problem.margins(0 * g), g, 3).any()


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10**6),
    kind=st.sampled_from(sorted(KINDS)),
    approximation=st.sampled_from(APPROXIMATIONS),
    workers=st.integers(1, 4),
    regularisation=st.sampled_from([1e-8, 1e-5, 1e-2, 3.0]),
    scale=st.sampled_from([1e-3, 1.0, 300.0]),
    offset=st.sampled_from([0.0, 1.0, 100.0]),
)
def test_f_never_rises(seed, kind, approximation, workers, regularisation, scale, offset):
    draw = np.random.default_rng(seed)
    r, d = int(draw.integers(3, 40)), int(draw.integers(1, 12))
    X = scale * draw.standard_normal((r, d)) * np.logspace(0, -draw.uniform(0, 3), d) + offset
    y = np.sign(draw.standard_normal(r))
    y[:2] = -1, 1
    if kind == "squares":
        y = X @ draw.standard_normal(d) + draw.choice([0, 1e-3, 1]) * draw.standard_normal(r)
    rows = np.split(np.arange(r), np.sort(draw.integers(0, r + 1, workers - 1)))
    recipe = KINDS[kind]((X, y), workers=workers, rows=rows, regularisation=regularisation)
    run = hpcopt.simulate(hpcopt.FADL(approximation=approximation), recipe, 10, evaluate_every=1)
    (found,) = losses([run])
    assert (np.diff(found) <= ULPS * np.spacing(found[:-1])).all()


@pytest.mark.parametrize(("kind", "approximation"), [*product(KINDS, APPROXIMATIONS)])
def test_linear_convergence_to_1e_10(kind, approximation):
    X, y = data(240, 8)
    recipe = KINDS[kind]((X, y), workers=3, regularisation=1e-2)
    problem = bound(recipe)
    w = problem.initial()
    A = torch.tensor(np.c_[X, np.ones(240)])
    order = torch.cat([torch.from_numpy(part) for part in problem._parts.train])
    for _ in range(50):  # Newton's method
        c = problem.loss.curvature(problem.margins(w), problem.y)
        H = A[order].T @ (c[:, None] * A[order]) + problem.regularisation * torch.eye(9, dtype=w.dtype)
        w = w - torch.linalg.solve(H, gradient(problem, w))
    assert gradient(problem, w).norm() < 1e-9
    run = hpcopt.simulate(hpcopt.FADL(approximation=approximation), recipe, 60, evaluate_every=1)
    gaps = losses([run])[0] / f(problem, w) - 1
    assert gaps.min() < 1e-10
    first = int(np.argmax(gaps < 1e-10))
    assert (gaps[1 : first + 1] < 0.9 * gaps[:first]).all()


def test_margins_are_computed_once_per_round(monkeypatch):
    """X w, X d and Xᵀ l', however many trials the search makes; two passes."""
    X, y = data()
    method, problem, ports, state = begin(hpcopt.Logistic((X, y), workers=3))
    trials = []

    def restless(along, *args, **keys):
        trials.extend(along(t) for t in (0.1, 0.2, 0.3, 0.4, 0.5))
        return search(along, *args, **keys)

    monkeypatch.setattr(fadl, "search", restless)
    counts = []
    for _ in range(4):
        step(method, state)
        counts.append((problem.products, ports.reduce.counters["sum"].passes))
    assert len(trials) == 20
    assert counts[0] == (4, 2)  # X w of the first round, too
    assert np.array_equal(np.diff(counts, axis=0), [[3, 2]] * 3)


def test_bytes_are_those_of_the_passes():
    X, y = data(40, 2000)
    method, problem, ports, state = begin(hpcopt.Logistic((X, y), workers=8), ranks=4, inner_iterations=3)
    for _ in range(5):
        step(method, state)
    counters = ports.reduce.counters.values()
    sent, passes = 4 * sum(one.bytes for one in counters), sum(one.passes for one in counters)
    assert passes == 10
    assert sent == pytest.approx(passes * 16 * problem.dim * 3, rel=0.01)


def test_the_end():
    X, y = data()
    recipe = hpcopt.Logistic((X, y), workers=3)
    method, problem, _, state = begin(recipe, tolerance=1e-3)
    while not step(method, state).done:
        assert gradient(problem, state.w).norm() > 0
    assert gradient(problem, state.w).norm() <= 1e-3 * gradient(problem, problem.initial()).norm()
    method, problem, _, state = begin(recipe)
    while not step(method, state).done:
        assert state.round < 100
    before = state.w.clone()
    assert step(method, state).done
    assert torch.equal(before, state.w)


def test_the_warm_start():
    """Round 1: one pass, on the clock; never worse than the start."""
    X, y = data()
    recipe = hpcopt.SquaredHinge((X, y), workers=3)
    method, problem, ports, state = begin(recipe, warm_start=2)
    step(method, state)
    assert ports.reduce.counters["sum"].passes == 1
    assert f(problem, state.w) < 0.7 * f(problem, problem.initial())
    method, problem, ports, state = begin(recipe, warm_start=2, inner_lr=1e3)
    step(method, state)
    assert not state.w.any()
    step(method, state)
    assert state.w.any()


@pytest.mark.parametrize("kind", KINDS)
def test_stochastic_steps(kind):
    """Dense and sparse rows, steps that vanish and steps so large that 1 − ηλ is 0, against NumPy."""
    draw = np.random.default_rng(3)
    X = draw.standard_normal((30, 5)) * (draw.random((30, 5)) < 0.5)
    z, y, c = draw.standard_normal(30), np.sign(draw.standard_normal(30)), draw.standard_normal(30)
    C, loss, order = draw.standard_normal(6), KINDS[kind].loss, draw.permutation(30)
    csr = csr_matrix(X)
    for rate, decay, lam in ((0.01, 0.5, 0.1), (0.5, 0.0, 2.0), (0.3, 0.0, 3.0), (1e-3, 0.0, 1e-9)):
        v = np.ones(6)
        for t, i in enumerate(order):
            eta, x = rate / (1 + rate * decay * t), np.append(X[i], 0)
            slope = float(loss.slope(torch.tensor([z[i] + x @ v]), torch.tensor([y[i]])))
            v = v - eta * (3.0 * (slope - c[i]) * x + C + lam * v)
        for rows in (Rows(X), Rows(csr.data, csr.indices, csr.indptr)):
            mine = np.ones(6)
            sweep(rows, Objective(loss, z, y, c, C, 3.0, lam), mine, order, rate, decay)
            np.testing.assert_allclose(mine, v, rtol=1e-9)
            assert rows.squares().max() == pytest.approx((X**2).sum(1).max())


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"inner_iterations": 0}, "inner_iterations"),
        ({"approximation": "hybrid", "inner_solver": "cg"}, 'solves approximation = "quadratic" only'),
        ({"inner_solver": "svrg"}, 'is for approximation = "linear" only'),
        ({"approximation": "cubic"}, "approximation"),
        ({"angle": 1.0}, "angle"),
        ({"combination": "size"}, "combination"),
        ({"warm_start": -1}, "warm_start"),
        ({"inner_lr": 0.0}, "inner_lr"),
    ],
)
def test_wrong_settings(keys, message):
    with pytest.raises(UserError, match=message):
        hpcopt.FADL(**keys)


def test_another_problem():
    with pytest.raises(
        UserError, match=r'\[run\] method = "fadl" needs a linear problem \(kind = "logistic"'
    ):
        hpcopt.simulate(hpcopt.FADL(), hpcopt.Quadratic(3, "power", dim=6), 2)
