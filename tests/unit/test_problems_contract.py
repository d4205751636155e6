"""Every kind of problem keeps the contract of `hpcopt.problems.base`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hpcopt.problems.base import Draw, Problem, Recipe, Share
from hpcopt.problems.linear_regression import LinearRegression
from hpcopt.problems.models import ResNet18, build, initialise
from hpcopt.problems.network import Network
from hpcopt.problems.quadratic import Quadratic

N = 3
DRAW = Draw(2, 1, 3)


def images(rows: int, size: int = 8) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(5)
    return generator.standard_normal((rows, 1, size, size)), generator.integers(0, 5, rows)


def network(model: nn.Module, **options: object) -> Network:
    initialise(model, 3)
    keys = {"workers": N, "batch_size": 4, "regularisation": 0.1, "weights": "rows", **options}
    return Network(model, nn.functional.cross_entropy, images(31), images(10), **keys)


RECIPES: dict[str, Callable[[], Recipe]] = {
    "linear": lambda: LinearRegression(N, dim=7, rows_per_worker=12, batch_size=5),
    "quadratic": lambda: Quadratic(N, eigenvalues="geometric", dim=7),
    "mlp": lambda: network(build("mlp", (1, 8, 8), 5, (6,)), partition="unequal"),
    "cnn": lambda: network(build("cnn", (1, 8, 8), 5, dropout=0.3)),
    "resnet18": lambda: network(ResNet18((1, 8, 8), 5, width=2)),
}


@pytest.fixture(params=RECIPES)
def recipe(request: pytest.FixtureRequest) -> Recipe:
    torch.manual_seed(0)
    return RECIPES[request.param]()


def bound(recipe: Recipe, workers: range = range(N)) -> Problem:
    return recipe.bind(Share(workers, N, seed=11))


def points(problem: Problem, rows: int) -> Tensor:
    torch.manual_seed(1)
    return problem.initial() + 0.1 * torch.randn(rows, problem.dim, dtype=torch.float64)


def test_gradient_and_product_are_derivatives_of_the_loss(recipe: Recipe) -> None:
    problem = bound(recipe)
    X, V = points(problem, N), points(problem, N) - problem.initial()
    h = 1e-6
    slope = (problem.losses(X + h * V, DRAW) - problem.losses(X - h * V, DRAW)) / (2 * h)
    gradients = problem.gradients(X, DRAW)
    assert torch.allclose((gradients * V).sum(1), slope, rtol=1e-5, atol=1e-7)
    bend = (problem.gradients(X + h * V, DRAW) - problem.gradients(X - h * V, DRAW)) / (2 * h)
    assert torch.allclose(problem.hvps(X, V, DRAW), bend, rtol=1e-4, atol=1e-5)


def test_reductions_and_parts_agree_with_the_rows(recipe: Recipe) -> None:
    problem = bound(recipe)
    X = points(problem, N)
    rows = problem.gradients(X, DRAW)
    weighted = problem.weights[:, None] * rows
    assert torch.allclose(problem.gradients(X, DRAW, weighted=True), weighted)
    assert torch.allclose(problem.total_gradient(X, DRAW), weighted.sum(0))
    assert torch.allclose(problem.total_hvp(X, X, DRAW), problem.hvps(X, X, DRAW, weighted=True).sum(0))
    for part in ("shared", "private"):
        own = torch.stack([flat(problem.gradient(i, X[i], DRAW, part)) for i in range(N)])
        assert torch.allclose(own, rows[:, problem.layout.part(part)])
    out = torch.full_like(rows[0], torch.nan)  # is overwritten
    assert problem.total_gradient(X, DRAW, out=out) is out
    assert torch.allclose(out, weighted.sum(0))


def flat(tensors: list[Tensor]) -> Tensor:
    return (
        torch.cat([tensor.ravel() for tensor in tensors]) if tensors else torch.empty(0, dtype=torch.float64)
    )


def test_a_workers_numbers_do_not_depend_on_its_company(recipe: Recipe) -> None:
    together = bound(recipe)
    X = points(together, N)  # most rows are not aligned
    everything = numbers(together, X)
    for worker in range(N):
        for name, value in numbers(bound(recipe, range(worker, worker + 1)), X[worker, None]).items():
            assert torch.equal(value[0], everything[name][worker]), name


def numbers(problem: Problem, X: Tensor) -> dict[str, Tensor]:
    evaluation = problem.evaluate(X)
    weights = {f"{name} weight": value for name, value in evaluation.weights.items()}
    found = {
        "loss": problem.losses(X, DRAW),
        "gradient": problem.gradients(X, DRAW),
        "full gradient": problem.gradients(X),
        "hvp": problem.hvps(X, X, DRAW),
        "buffers": problem.buffers,
        "weight": problem.weights,
        "rows": problem.rows,
    }
    return found | weights | {f"evaluated {name}": value for name, value in evaluation.values.items()}


def test_one_model_counts_for_all_workers(recipe: Recipe) -> None:
    problem = bound(recipe)
    x = points(problem, 1)[0]
    X = x.expand(N, -1).contiguous()
    assert torch.equal(problem.gradients(x, DRAW), bound(recipe).gradients(X, DRAW))
    assert torch.equal(problem.losses(x, DRAW), problem.losses(X, DRAW))
    assert torch.equal(problem.hvps(x, x, DRAW), problem.hvps(X, X, DRAW))


def test_the_global_generator_is_left_alone_and_sample_gradients_are_counted(recipe: Recipe) -> None:
    problem = bound(recipe)
    torch.manual_seed(4)
    expected = torch.rand(1)
    torch.manual_seed(4)
    problem.gradients(problem.initial(), DRAW)
    problem.hvps(problem.initial(), problem.initial(), DRAW)
    assert torch.equal(torch.rand(1), expected)
    assert problem.samples == 3 * sum(problem.batch_rows(i, DRAW) for i in range(N))
    assert problem.total_rows >= int(problem.rows.sum())


def test_weights_sum_to_one_and_weigh_the_training_loss(recipe: Recipe) -> None:
    problem = bound(recipe)
    evaluated = problem.evaluate(points(problem, N))
    assert problem.weights.sum().item() == pytest.approx(1)
    assert torch.equal(evaluated.weights["loss"], problem.weights)
    assert evaluated.values["loss"].dtype == torch.float64


def test_evaluation_is_the_loss_over_all_rows() -> None:
    for kind in ("linear", "quadratic", "mlp"):
        problem = bound(RECIPES[kind]())
        X = points(problem, N)
        assert torch.allclose(problem.evaluate(X).values["loss"], problem.losses(X), rtol=1e-14)
