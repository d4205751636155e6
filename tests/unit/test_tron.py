"""TRON against Newton's method written out in NumPy; f* against LIBLINEAR's."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.svm import LinearSVC

import hpcopt
from hpcopt.config import from_tables
from hpcopt.engine.optimum import optimum
from hpcopt.errors import UserError
from hpcopt.methods import tron

from .linear_cases import KINDS, begun, gradient, objective, passes, recipe


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("preconditioner", ["none", "diagonal"])
@pytest.mark.parametrize("kind", KINDS)
def test_newtons_steps(kind, preconditioner, sparse):
    """With an exact solution the step is −H⁻¹g, wherever on it the search ends."""
    method = hpcopt.TRON(cg_tolerance=1e-12, preconditioner=preconditioner)
    problem, _, state = begun(method, recipe(kind, sparse))
    X = np.concatenate([problem.rows_of_worker(i).times(torch.eye(8, dtype=torch.float64)) for i in range(4)])
    y, lam, f = problem.y, problem.regularisation, objective(problem, state.w)
    start = float(gradient(problem, state.w).norm())
    for _ in range(9):
        if float(gradient(problem, state.w).norm()) < 1e-7 * start:
            return
        w, z = state.w.clone(), torch.tensor(X) @ state.w
        c, D = problem.loss.slope(z, y).numpy(), problem.loss.curvature(z, y).numpy()
        newton = -np.linalg.solve(lam * np.eye(8) + X.T @ (D[:, None] * X), lam * w.numpy() + X.T @ c)
        method.step(state)
        step = (state.w - w).numpy()
        t = step @ newton / (newton @ newton)
        assert t > 0
        np.testing.assert_allclose(step, t * newton, atol=1e-8 * np.abs(newton).max())
        f, before = objective(problem, state.w), f
        assert f <= before + 4 * np.spacing(before)
    pytest.fail("no quadratic convergence")


@pytest.mark.parametrize("preconditioner", ["none", "diagonal"])
def test_what_it_costs(preconditioner, monkeypatch):
    """A pass for the gradient, for each product with H and for its diagonal; margins however many trials."""
    found, tried = [], []

    def solve(*arguments, **options):
        found.append(conjugate_gradients(*arguments, **options))
        return found[-1]

    def five(along, *arguments, **options):
        tried.extend(along(t) for t in (0.1, 0.2, 0.3, 0.4, 0.5))
        return search(along, *arguments, **options)

    conjugate_gradients, search = tron.conjugate_gradients, tron.search
    monkeypatch.setattr(tron, "conjugate_gradients", solve)
    monkeypatch.setattr(tron, "search", five)
    method = hpcopt.TRON(preconditioner=preconditioner)
    problem, ports, state = begun(method, recipe("logistic"))
    method.step(state)
    assert len(tried) == 5
    assert passes(ports) == 1 + found[0].products + (preconditioner == "diagonal")
    assert problem.products == 3 + 2 * found[0].products  # X w, X s, Xᵀ l'; X v and Xᵀ D X v


def test_few_iterations_and_a_stop_where_nothing_falls():
    method = hpcopt.TRON(cg_iterations=1)
    _, ports, state = begun(method, recipe("squares"))
    method.step(state)
    assert passes(ports) == 2
    still = hpcopt.LeastSquares((np.eye(4), np.zeros(4)), workers=2)
    assert hpcopt.simulate(hpcopt.TRON(), still, 5).attrs["last_round"] == 1


def test_other_problems_are_refused():
    with pytest.raises(UserError, match='"tron" needs a linear problem'):
        hpcopt.simulate(hpcopt.TRON(), hpcopt.Quadratic(3, "power", dim=6), 1)


def config(kind, **keys):
    problem = {"kind": kind, "dataset": "digits", "positive": 3} | keys
    return from_tables({"run": {"method": "tron", "workers": 4, "rounds": 1}, "problem": problem}, "test")


@pytest.mark.parametrize("kind", ["logistic", "squared_hinge"])
@pytest.mark.parametrize("regularisation", [1e-4, 1e-2])
def test_the_optimum_is_that_of_liblinear(kind, regularisation):
    checked = config(kind, regularisation=regularisation)
    problem = checked.problem.recipe().bind(hpcopt.Share(range(4), 4, 0))
    X = np.concatenate([problem.rows_of_worker(i).arrays()[0] for i in range(4)])
    C = 1 / problem.regularisation
    other = (
        LogisticRegression(C=C, solver="liblinear", fit_intercept=False, tol=1e-8, max_iter=1000)
        if kind == "logistic"
        else LinearSVC(C=C, loss="squared_hinge", dual=False, fit_intercept=False, tol=1e-8, max_iter=10000)
    )
    w = torch.tensor(other.fit(X, problem.y.numpy()).coef_[0])
    assert optimum(checked) == pytest.approx(objective(problem, w), rel=1e-9)


def test_the_line_to_paste(tmp_path, command):
    """It round-trips; other problems are refused with code 2."""
    file = tmp_path / "config.toml"
    for kind, code in (("least_squares", 0), ("quadratic", 2)):
        keys = 'dataset = "digits"\npositive = 3' if code == 0 else "dim = 6"
        file.write_text(
            f'[run]\nmethod = "allreduce_sgd"\nworkers = 2\nrounds = 1\n[problem]\nkind = "{kind}"\n{keys}\n'
        )
        found, out, err = command("data", "optimum", file)
        assert found == code, err
        if code == 0:
            key, value = out.split(" = ")
            assert key == "optimum"
            assert float(value) == pytest.approx(optimum(config(kind)), rel=1e-12)
        else:
            assert "linear problems only" in err
