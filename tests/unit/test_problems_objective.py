"""Your own objective: in a config and in Python, against numpy, together and with nobody there."""

from __future__ import annotations

import functools
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mpi4py import MPI

import hpcopt
from hpcopt.api import start
from hpcopt.config import from_tables, template
from hpcopt.config.io import resumable
from hpcopt.errors import UserError
from hpcopt.math.flat import Layout
from hpcopt.problems import choice, groups
from hpcopt.problems.base import Draw, Problem, Share
from hpcopt.problems.choice import KINDS, TOGETHER
from hpcopt.problems.objective import Objective

N = 3
EXAMPLE = Objective.__doc__.split("[problem] table:")[1].split("    Then ``hpcopt.run")[0]
SOURCE = "\n".join(line.removeprefix("        ") for line in EXAMPLE.splitlines()).strip() + "\n"


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The module of the documented example, found as a user's is: in the current directory."""
    (tmp_path / "mine.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    import mine

    return mine


def bound(recipe, workers=range(N), dtype=torch.float64) -> Problem:
    return recipe.bind(Share(workers, recipe.workers, seed=4, dtype=dtype))


def points(problem: Problem, n: int = N) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, problem.dim, generator=generator, dtype=problem.share.dtype)


def test_the_documented_example_is_short_and_computes_what_it_says(mine) -> None:
    assert len(SOURCE.splitlines()) <= 25
    ridge = mine.Ridge(N, dim=5, rows_per_worker=12)
    problem = bound(ridge)
    X, V = points(problem), points(problem).flip(0)
    assert (problem.total_rows, problem.rows.tolist()) == (36, [12] * 3)
    for i, (x, v) in enumerate(zip(X.numpy(), V.numpy(), strict=True)):
        A, b = ridge.data(i, 4)
        np.testing.assert_allclose(problem.losses(X)[i], np.mean((A @ x - b) ** 2) + 0.1 * x @ x)
        np.testing.assert_allclose(problem.gradients(X)[i], A.T @ (A @ x - b) / 6 + 0.2 * x)
        np.testing.assert_allclose(problem.hvps(X, V)[i], A.T @ (A @ v) / 6 + 0.2 * v)
    assert problem.samples == 3 * 36 + 3 * 2 * 36  # a product counts as two


def test_mini_batches_weights_and_the_workers_place(mine) -> None:
    """Rows of unequal numbers; a worker's numbers are the same alone, and in float32 the data are cast."""

    class Unequal(mine.Ridge):
        def data(self, worker, seed):
            A, b = super().data(worker, seed)
            return A[worker:], b[worker:]

    recipe = Unequal(N, dim=5, rows_per_worker=9, batch_size=4, weights="rows")
    problem = bound(recipe)
    assert problem.weights.tolist() == [9 / 24, 8 / 24, 7 / 24]
    X = points(problem)
    for i in range(N):
        alone = bound(recipe, range(i, i + 1))
        assert alone.total_rows == 24
        assert torch.equal(alone.gradients(X[i, None], Draw(1)), problem.gradients(X, Draw(1))[i, None])
    assert bound(recipe, dtype=torch.float32).gradients(X.float(), Draw(1)).dtype == torch.float32
    one = bound(recipe)
    one.gradients(X, Draw(1))
    assert one.samples == 12


def test_it_runs_from_a_config_as_from_python_and_goes_on(mine, tmp_path: Path) -> None:
    how = {"workers": N, "rounds": 6, "evaluate_every": 2, "dtype": "float64"}
    keys = {"kind": "mine:Ridge", "dim": 4, "batch_size": 10}
    config = from_tables({"run": how | {"out": "config"}, "problem": keys}, "mine.toml")
    assert config.tables()["problem"] == keys | {"rows_per_worker": 50, "penalty": 0.1, "weights": "uniform"}
    start(MPI.COMM_SELF, config)
    recipe = mine.Ridge(workers=N, dim=np.int64(4), batch_size=10)
    settings = {"evaluate_every": 2, "dtype": "float64"}
    hpcopt.run(hpcopt.AllreduceSGD(), recipe, out="python", rounds=3, **settings)
    hpcopt.resume("python", problem=recipe, overrides=("run.rounds=6",))
    hpcopt.resume("config", overrides=("problem.batch_size=10",))  # finished
    losses = [hpcopt.load(tmp_path / out)["metrics/loss"].values for out in ("config", "python")]
    np.testing.assert_array_equal(losses[0], np.delete(losses[1], 2))  # of rounds 0, 2, (3,) 4, 6
    with pytest.raises(UserError, match=r"\[problem\] dim = 5: the run was begun with 4"):
        resumable(tmp_path / "config", ["problem.dim=5"])


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"dmi": 3}, ["[problem] dmi: unknown key; did you mean 'dim'?", "penalty"]),
        ({"dim": "three"}, ["[problem] dim = 'three'", "whole number"]),
        ({"workers": 3}, ["[problem] workers", "belongs to [run]"]),
        ({"kind": "mine:Rigde"}, ["[problem] kind", "did you mean 'Ridge'?"]),
        ({"kind": "yours:Ridge"}, ["[problem] kind", "no module yours"]),
    ],
)
def test_its_keys_are_checked(mine, keys: dict, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        from_tables({"run": {"workers": N}, "problem": {"kind": "mine:Ridge"} | keys}, "mine.toml")
    for word in ["mine.toml", *words]:
        assert word in str(caught.value)


def test_the_command_line_knows_it(mine, tmp_path: Path, command) -> None:
    text = template("topk", "mine:Ridge")
    for line in ('kind = "mine:Ridge"', "# parameters d", "dim = 10", "penalty = 0.1", "batch_size = "):
        assert line in text
    (tmp_path / "bad.toml").write_text('[problem]\nkind = "mine:Ridge"\npenaltie = 1.0\n')
    code, _, err = command("run", "bad.toml")
    assert (code, "did you mean 'penalty'?" in err) == (2, True), err
    (tmp_path / "mine.py").write_text("def factory(workers): ...\n")
    del sys.modules["mine"]
    with pytest.raises(UserError, match="mine:factory: a function"):
        template("topk", "mine:factory")


class Softmax(Objective):
    """Named parameters, a head of the worker's own, labels that stay integers, gradients by hand."""

    @property
    def layout(self) -> Layout:
        return Layout.of({"head": (3,), "body": (2, 3)}.items(), private=["head"])

    def data(self, worker, seed):
        generator = np.random.default_rng(worker)
        return generator.standard_normal((8, 2)), generator.integers(0, 3, 8)

    def common(self, seed):
        return (np.ones(3),)

    def initial(self, seed):
        return np.linspace(-1, 1, 9)

    def loss(self, x, A, labels, scale):
        named = self.layout.views(x)
        logits = (A @ named["body"] + named["head"]) * scale
        return torch.nn.functional.cross_entropy(logits, labels)


def test_named_and_private_parameters() -> None:
    problem = bound(Softmax(N, batch_size=3))
    X = points(problem)
    assert problem.layout.names == ("body", "head")
    for part, shapes in (("shared", [(2, 3)]), ("private", [(3,)]), ("all", [(2, 3), (3,)])):
        found = problem.gradient(1, X[1], Draw(0), part)
        assert [tuple(g.shape) for g in found] == shapes
        flat = torch.cat([g.ravel() for g in found])
        assert torch.equal(flat, problem.gradients(X, Draw(0))[1, problem.layout.part(part)])
    assert hpcopt.Objective is Objective


@pytest.mark.parametrize(
    "recipe",
    [
        Softmax(N, batch_size=3),
        hpcopt.LinearRegression(N, dim=5, rows_per_worker=7, batch_size=2),
        hpcopt.Quadratic(N, dim=5),
        hpcopt.ToyLogistic(2),
    ],
    ids=lambda recipe: type(recipe).__name__,
)
def test_all_workers_together_are_the_workers_one_by_one(recipe, monkeypatch) -> None:
    monkeypatch.setattr(groups, "FEWEST", 2)
    monkeypatch.setattr(choice, "LONG", 1.0)
    n = recipe.workers
    alone, stacked = (bound(recipe, range(n)) for _ in range(2))
    X = points(alone, n)
    for kind, ways in stacked.ways().items():
        assert all(ways.values())
        stacked.take(kind, TOGETHER)
    stacked.samples = 0
    (group,) = stacked.groups([0] * n)
    for part in ("all", "shared", "private"):
        together = stacked.stacked_gradient(group, X, Draw(1), part)
        for i in range(n):
            for g, mine in zip(together, alone.gradient(i, X[i], Draw(1), part), strict=True):
                assert torch.allclose(g[i], mine, rtol=1e-12, atol=1e-14)
    for of in (
        lambda problem: problem.losses(X, Draw(1)),
        lambda problem: problem.gradients(X, Draw(1), weighted=True),
        lambda problem: problem.total_gradient(X[0]),
        lambda problem: problem.hvps(X, X, Draw(1)),
        lambda problem: problem.total_hvp(X[0], X[1], Draw(1)),
    ):
        assert torch.allclose(of(stacked), of(alone), rtol=1e-12, atol=1e-14)
    assert stacked.samples == alone.samples
    assert stacked._together == dict.fromkeys((*KINDS, "hvps"), TOGETHER)  # nothing was refused


def test_what_vmap_cannot_see_through_stays_one_by_one(monkeypatch) -> None:
    class Branches(hpcopt.LinearRegression):
        def gradient(self, x, A, b):
            return x if x.sum().item() > 0 else -x

    monkeypatch.setattr(groups, "FEWEST", 2)
    problem, alone = (bound(Branches(N, dim=3, rows_per_worker=2)) for _ in range(2))
    assert problem.ways()["gradients"][TOGETHER] is None
    problem.take("gradients", TOGETHER)  # and where that comes out later
    assert torch.equal(problem.gradients(points(problem)), alone.gradients(points(problem)))
    assert problem._together.keys() == {"hvps"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"initial": lambda self, seed: [0.0]}, r"the start has shape \(1,\), but the layout 9"),
        ({"count_rows": lambda self, worker, seed: 5}, "worker 0 has 5 rows, but its data have 8, 8"),
        ({"loss": lambda self, x, A, labels, scale: x}, "must be a scalar"),
        ({"loss": Objective.loss}, r"the class has no loss\(self, x, \*rows\)"),
        ({"data": lambda self, worker, seed: np.ones((8, 2))}, r"data gave a ndarray, not a tuple: \(A, b\)"),
    ],
)
def test_what_does_not_fit_together_is_named(change: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        bound(type("Wrong", (Softmax,), change)(N))
    with pytest.raises(UserError, match="neither a key `dim` nor a start"):
        bound(type("Nameless", (Objective,), {})(N))


RECIPES = {
    "linear": lambda: hpcopt.LinearRegression(N, dim=5, rows_per_worker=7),
    "quadratic": lambda: hpcopt.Quadratic(N, dim=5),
    "softmax": lambda: Softmax(N),
    "network": lambda: hpcopt.Network(
        torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3)),
        torch.nn.functional.cross_entropy,
        *[(torch.randn(30, 2), torch.arange(30) % 3)] * 2,
        workers=N,
        logit_adjustment=1.0,
        private=["0.bias"],
        new_workers=2,
    ),
}


@pytest.mark.parametrize("kind", RECIPES)
def test_a_rank_may_have_no_worker(kind: str) -> None:
    recipe = RECIPES[kind]()
    problem, somebody = bound(recipe, range(1, 1)), bound(recipe, range(1, 2))
    d, x = somebody.dim, somebody.initial()
    nobody = x.new_empty(0, d)
    assert torch.equal(problem.initial(), x)
    assert (problem.weights.shape, problem.buffers.shape) == ((0,), (0, somebody.buffers.shape[1]))
    for X in (x, nobody):
        assert problem.losses(X, Draw(0)).shape == (0,)
        assert problem.gradients(X, Draw(0), weighted=True).shape == (0, d)
        assert problem.hvps(X, X, Draw(0)).shape == (0, d)
        for total in (problem.total_gradient(X), problem.total_hvp(X, X)):
            assert (total.shape, total.count_nonzero()) == ((d,), 0)
        found, others = problem.evaluate(X), somebody.evaluate(x)
        assert list(found.values) == list(others.values)
        assert all(len(value) == 0 for value in (*found.values.values(), *found.weights.values()))
    for statistics, theirs in zip(problem.statistics(), somebody.statistics(), strict=True):
        assert statistics.shape == (0, theirs.shape[1])
    assert problem.samples == 0


def test_a_start_that_the_objective_keeps_is_not_trained():
    class Kept(hpcopt.Objective):
        dim: int = 3

        @functools.cached_property
        def start(self):
            return torch.ones(3, dtype=torch.float64)

        def initial(self, seed):
            return self.start

        def loss(self, x):
            return x.square().sum()

    problem = Kept(workers=2)
    share = Share(range(2), 2, seed=0)
    first = problem.bind(share).initial()
    first.zero_()
    assert problem.bind(share).initial().tolist() == [1.0, 1.0, 1.0]
