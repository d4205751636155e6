"""Linear regression and quadratics against numpy, the toy against autograd; mini-batches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import hpcopt
from hpcopt.config import from_tables
from hpcopt.errors import UserError
from hpcopt.problems.base import Draw, Share, row
from hpcopt.problems.batches import Batches
from hpcopt.problems.linear_regression import PIECE, LinearRegression
from hpcopt.problems.quadratic import Quadratic
from hpcopt.problems.toy_logistic import ToyLogistic


def settle(problem) -> None:
    problem.settle(torch.cat([rows.sum(0) for rows in problem.statistics()]))


@pytest.mark.parametrize("dim", [9, 500])
def test_linear_regression_finds_its_optimum(dim) -> None:
    problem = LinearRegression(4, dim=dim, rows_per_worker=2 * dim).bind(Share(range(4), 4, seed=1))
    settle(problem)
    A = torch.cat([A for A, _ in problem._data]).numpy()
    b = torch.cat([b for _, b in problem._data]).numpy()
    expected = np.linalg.lstsq(A, b, rcond=None)[0]
    assert np.allclose(problem.optimum, expected, rtol=1e-11)
    # never a whole matrix of each worker, unless they are small
    assert max(rows.numel() for rows in problem.statistics()) <= 4 * PIECE
    assert problem.optimal_value == pytest.approx(float(problem.losses(problem.optimum).mean()), rel=1e-12)
    assert problem.total_gradient(problem.optimum).abs().max() < 1e-12


def test_linear_regression_draws_what_it_says() -> None:
    problem = LinearRegression(200, dim=50, rows_per_worker=60).bind(Share(range(200), 200, seed=2))
    truths = torch.stack([torch.linalg.lstsq(A, b[:, None]).solution[:, 0] for A, b in problem._data])
    assert truths.mean(1).var().item() == pytest.approx(5.0, rel=0.3)
    assert torch.stack([A.var() for A, _ in problem._data]).mean().item() == pytest.approx(1, rel=0.01)
    assert problem.initial().abs().max() <= 0.1


def test_a_large_linear_regression_has_no_known_optimum() -> None:
    assert not [*LinearRegression(1, dim=2049, rows_per_worker=1).bind(Share(range(1), 1, 0)).statistics()]


def test_a_regression_with_fewer_rows_than_parameters_still_has_an_optimum() -> None:
    problem = LinearRegression(2, dim=9, rows_per_worker=3).bind(Share(range(2), 2, seed=1))
    settle(problem)
    assert problem.total_gradient(problem.optimum).abs().max() < 1e-10


@pytest.mark.parametrize("name", ["outliers", "power", "geometric"])
def test_quadratic_has_its_spectrum(name: str) -> None:
    recipe = Quadratic(2, eigenvalues=name, dim=30)
    problem = recipe.bind(Share(range(2), 2, seed=3))
    H = torch.stack([problem.total_hvp(problem.initial(), e) for e in torch.eye(30).double()])
    assert torch.allclose(torch.linalg.eigvalsh(H), recipe.spectrum().sort().values, rtol=1e-9, atol=1e-12)
    assert H[0, 1] != 0  # rotated
    assert problem.gradients(problem.optimum).count_nonzero() == 0


@pytest.mark.parametrize("eigenvalues", [[2.0, 0.0, 1.0], [-3.0, 1.0, 1.0], [-1.0]])
def test_a_quadratic_may_have_no_optimum(eigenvalues: list[float]) -> None:
    recipe = Quadratic(2, eigenvalues=eigenvalues)
    problem = recipe.bind(Share(range(2), 2, seed=3))
    H = torch.stack([problem.total_hvp(problem.initial(), e) for e in torch.eye(recipe._d).double()])
    assert torch.linalg.eigvalsh(H).tolist() == pytest.approx(sorted(eigenvalues), abs=1e-12)
    assert (problem.optimum, problem.optimal_value) == (None, None)
    data = hpcopt.simulate(hpcopt.AllreduceSGD(lr=0.1), recipe, rounds=2, seed=3)
    assert "loss" in data["metrics"]
    assert not {"gap", "relative_gap", "distance"} & set(data["metrics"].data_vars)


def test_one_eigenvalue_is_exact() -> None:
    problem = Quadratic(1, eigenvalues=[0.3]).bind(Share(range(1), 1, seed=3))
    x = problem.initial()
    assert problem.gradients(x)[0].item() == 0.3 * x.item()
    assert problem.losses(x).item() == 0.5 * (x.item() * (0.3 * x.item()))


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(UserError, match="dim = 9000"):
        Quadratic(1, eigenvalues="power", dim=9000)
    for wrong in ([1.0, float("nan")], [float("inf")], [], ["1"], "outlier"):
        with pytest.raises(UserError, match=r"eigenvalues|dim = 0"):
            Quadratic(1, eigenvalues=wrong)
    with pytest.raises(UserError, match="rows_per_worker"):
        LinearRegression(1, rows_per_worker=0)


@pytest.mark.parametrize("weights", ["uniform", "rows"])
def test_the_toy_starts_where_the_paper_does(weights: str) -> None:
    problem = ToyLogistic(2, weights=weights).bind(Share(range(2), 2, seed=0))
    evaluated = problem.evaluate(problem.initial())
    assert evaluated.values["loss"].tolist() == pytest.approx([0.3133, 0.3133], abs=5e-5)
    assert evaluated.weights["loss"].tolist() == [0.5, 0.5]
    slope = 1 / (1 + np.e)
    expected = torch.tensor([[-100 * slope, -slope], [100 * slope, -slope]]).double()
    assert torch.allclose(problem.gradients(problem.initial()), expected, atol=1e-5)
    assert problem.total_gradient(problem.initial())[0] == 0
    assert (problem.optimum, problem.optimal_value) == (None, None)


def test_the_toys_derivatives_are_those_of_autograd() -> None:
    problem = ToyLogistic(4, spread=3.0).bind(Share(range(4), 4, seed=0))
    torch.manual_seed(1)
    X, V = torch.randn(2, 4, 2, dtype=torch.float64)
    rows = torch.tensor([[3, 1], [-3, 1], [3, 1], [-3, 1]]).double()

    def loss(X: torch.Tensor) -> torch.Tensor:
        return torch.log1p(torch.exp(-(rows * X).sum(1))).sum()  # a worker's term needs its row of X alone

    assert torch.allclose(problem.losses(X).sum(), loss(X))
    assert torch.allclose(problem.gradients(X), torch.autograd.functional.jacobian(loss, X))
    assert torch.allclose(problem.hvps(X, V), torch.autograd.functional.hvp(loss, X, V)[1])
    assert torch.allclose(problem.total_gradient(X), problem.gradients(X).mean(0))
    assert torch.allclose(problem.total_hvp(X, V), problem.hvps(X, V).mean(0))
    assert problem.gradient(0, X[0], None, "private") == []
    for worker in range(4):
        alone = ToyLogistic(4, spread=3.0).bind(Share(range(worker, worker + 1), 4, seed=5))
        x, v = X[worker, None], V[worker, None]
        assert torch.equal(alone.losses(x)[0], problem.losses(X)[worker])
        assert torch.equal(alone.gradients(x)[0], problem.gradients(X)[worker])
        assert torch.equal(alone.hvps(x, v)[0], problem.hvps(X, V)[worker])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("workers", [2, 6, 10, 14])
def test_the_toys_large_coordinates_cancel_exactly(workers: int, dtype: torch.dtype) -> None:
    problem = ToyLogistic(workers).bind(Share(range(workers), workers, seed=0, dtype=dtype))
    for height in np.linspace(1, 5, 50):
        x = torch.tensor([0, height], dtype=dtype)
        assert problem.total_gradient(x)[0] == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_toy_is_stable_far_from_the_start(dtype: torch.dtype) -> None:
    problem = ToyLogistic(2).bind(Share(range(2), 2, seed=0, dtype=dtype))
    far = torch.tensor([1e6, 0], dtype=dtype)
    assert problem.losses(far).tolist() == [0, 1e8]
    assert problem.gradients(far).tolist() == [[0, 0], [100, -1]]
    assert problem.hvps(far, far).count_nonzero() == 0
    for margin in (-45.0, -39.0, -25.0, 25.0, 39.0):
        found = problem.losses(torch.tensor([0, margin], dtype=dtype))[0]
        assert found.dtype == dtype
        expected = np.logaddexp(0, -margin)
        assert found.item() == pytest.approx(expected, rel=4 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("workers", [-2, 0, 1, 3])
def test_the_toy_needs_pairs_of_workers(workers: int) -> None:
    with pytest.raises(UserError, match=rf"run\.workers = {workers}: .* even numbers from 2"):
        ToyLogistic(workers)
    with pytest.raises(UserError, match=r"\[run\] workers|run\.workers"):
        from_tables({"run": {"workers": workers}, "problem": {"kind": "toy_logistic"}}, "c")
    with pytest.raises(UserError, match="spread"):
        ToyLogistic(2, spread=0.0)


def test_dense_descent_on_the_toy_ends_as_in_the_paper(tmp_path: Path) -> None:
    method, toy = hpcopt.AllreduceSGD(lr=0.9), hpcopt.ToyLogistic(workers=2)
    file = hpcopt.run(method, toy, out=tmp_path / "run", rounds=100, dtype="float64")
    losses = hpcopt.load(file)["metrics/loss"].values
    assert (round(losses[0], 4), round(losses[-1], 4)) == (0.3133, 0.0110)


@pytest.mark.parametrize(("rows", "size"), [(12, 4), (13, 4), (3, 4), (5, "full")])
def test_batches_go_once_through_the_rows_in_an_epoch(rows: int, size: int | str) -> None:
    batches = Batches(Share(range(4, 6), 9, seed=0), [rows, rows], size)
    count = batches.count(1, Draw(0))
    if count == rows:
        assert batches.select(1, Draw(7)) is None
        return
    steps = rows // count
    epochs = [torch.cat([batches.select(1, Draw(e, s, steps)) for s in range(steps)]) for e in range(3)]
    for epoch in epochs:
        assert len(epoch.unique()) == steps * count
    assert not torch.equal(epochs[0], epochs[1])
    again = Batches(
        Share(range(5, 6), 9, seed=0), [rows], size
    )  # alone, out of order, other split of the draws
    assert torch.equal(again.select(0, Draw(2 * steps)), epochs[2][:count])
    assert torch.equal(again.select(0, Draw(0)), epochs[0][:count])


def test_one_model_or_an_aligned_row_is_not_copied() -> None:
    X = torch.zeros(2, 8, dtype=torch.float64)
    assert row(X[0], 1).data_ptr() == X.data_ptr()
    assert row(X, 1).data_ptr() == X[1].data_ptr()
    assert row(torch.zeros(2, 7), 1).data_ptr() % 64 == 0
