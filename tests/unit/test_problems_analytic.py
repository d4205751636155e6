"""Linear regression and quadratics against numpy; mini-batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hpcopt.errors import UserError
from hpcopt.problems.base import Draw, Share, row
from hpcopt.problems.batches import Batches
from hpcopt.problems.linear_regression import LinearRegression
from hpcopt.problems.quadratic import Quadratic


def test_linear_regression_finds_its_optimum() -> None:
    problem = LinearRegression(4, dim=9, rows_per_worker=20).bind(Share(range(4), 4, seed=1))
    problem.settle(problem.statistics().sum(0))
    A = torch.cat([A for A, _ in problem._data]).numpy()
    b = torch.cat([b for _, b in problem._data]).numpy()
    expected = np.linalg.lstsq(A, b, rcond=None)[0]
    assert np.allclose(problem.optimum, expected, rtol=1e-12)
    assert problem.optimal_value == pytest.approx(float(problem.losses(problem.optimum).mean()), rel=1e-12)
    assert problem.gradients(problem.optimum, reduce="sum").abs().max() < 1e-12


def test_linear_regression_draws_what_it_says() -> None:
    problem = LinearRegression(200, dim=50, rows_per_worker=60).bind(Share(range(200), 200, seed=2))
    truths = torch.stack([torch.linalg.lstsq(A, b[:, None]).solution[:, 0] for A, b in problem._data])
    assert truths.mean(1).var().item() == pytest.approx(5.0, rel=0.3)
    assert torch.stack([A.var() for A, _ in problem._data]).mean().item() == pytest.approx(1, rel=0.01)
    assert problem.initial().abs().max() <= 0.1


def test_a_large_linear_regression_has_no_known_optimum() -> None:
    assert LinearRegression(1, dim=2049, rows_per_worker=1).bind(Share(range(1), 1, 0)).statistics() is None


def test_a_regression_with_fewer_rows_than_parameters_still_has_an_optimum() -> None:
    problem = LinearRegression(2, dim=9, rows_per_worker=3).bind(Share(range(2), 2, seed=1))
    problem.settle(problem.statistics().sum(0))
    assert problem.gradients(problem.optimum, reduce="sum").abs().max() < 1e-10


@pytest.mark.parametrize("name", ["outliers", "power", "geometric"])
def test_quadratic_has_its_spectrum(name: str) -> None:
    recipe = Quadratic(2, name, dim=30)
    problem = recipe.bind(Share(range(2), 2, seed=3))
    H = torch.stack([problem.hvps(problem.initial(), e, reduce="sum") for e in torch.eye(30).double()])
    assert torch.allclose(torch.linalg.eigvalsh(H), recipe.eigenvalues.sort().values, rtol=1e-9, atol=1e-12)
    assert H[0, 1] != 0  # rotated
    assert problem.gradients(problem.optimum).count_nonzero() == 0


def test_one_eigenvalue_is_exact() -> None:
    problem = Quadratic(1, [0.3]).bind(Share(range(1), 1, seed=3))
    x = problem.initial()
    assert problem.gradients(x)[0].item() == 0.3 * x.item()
    assert problem.losses(x).item() == 0.5 * (x.item() * (0.3 * x.item()))


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(UserError, match=r"problem\.dim = 9000"):
        Quadratic(1, "power", dim=9000)
    with pytest.raises(UserError, match="eigenvalues"):
        Quadratic(1, [1.0, -1.0])
    with pytest.raises(UserError, match="rows_per_worker"):
        LinearRegression(1, rows_per_worker=0)


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


def test_a_shared_or_aligned_row_is_not_copied() -> None:
    X = torch.zeros(2, 8, dtype=torch.float64)
    assert row(X[:1], 1).data_ptr() == X.data_ptr()
    assert row(X, 1).data_ptr() == X[1].data_ptr()
    assert row(torch.zeros(2, 7), 1).data_ptr() % 64 == 0
