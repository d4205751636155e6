"""DHO2 finding its settings itself: as written out in NumPy, what it may cost, and where it has to hold."""

import numpy as np
import pytest
from mpi4py import MPI

import hpcopt
from hpcopt import api
from hpcopt.config import from_tables
from hpcopt.methods.parts import hybrid

from .hybrid_cases import WORKERS, Dense, Logit, begun, oracle, settings

AUTO = {"refresh_every": "auto", "alpha": "auto", "planned_rounds": 2560, "curvature_batch": 2}


FOUND = [
    {"base": "sgd", "lr": 0.02},
    {"lr": 0.004},
    {"base": "adam", "lr": 0.02},
    {"lr": 0.004, "schedule": "exponential", "lr_decay": 0.97},
]


@pytest.mark.parametrize("base", FOUND)
def test_lengths_and_refreshes_are_found(base):
    """Pairs at rounds 10 and 40, lengths at 0, 10, 20 and 40; only Adam's step is never scaled."""
    method = settings(**AUTO | base | {"warmup": None})
    problem = Dense(batch_size=5)
    points, spectra = oracle(problem, 45, method.settings, first=10)
    _, _, state = begun(method, problem.recipe)
    scales = []
    for point in points:
        method.step(state)
        state.round += 1
        scales.append(float(state.lengths[hybrid.SCALE]))
        np.testing.assert_allclose(state.x, point, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(method.groups(state)["spectrum"].columns["eigenvalue"], spectra, rtol=1e-9)
    assert len(spectra) == 2
    assert (max(scales) > 1.5) == (base.get("base") != "adam")


def test_the_loss_is_that_of_which_gradients_are():
    """Where f is a sum over rows, of their mean."""
    method = hpcopt.DHO2(lr=0.1, **AUTO, largest=2)
    X, y = Logit(workers=1).data(0, 0)
    recipe = hpcopt.Logistic((X, y), workers=WORKERS, regularisation=0.1, batch_size="full")
    _, _, state = begun(method, recipe)
    method.step(state)
    assert float(state.lengths[hybrid.LOSS]) == pytest.approx(np.log(2))


def test_what_is_told_may_be_found_from_some_round_on(tmp_path):
    """A run goes on with "auto" and ends as one does that has more to say."""
    config = {
        "run": {"method": "dho2", "workers": 2, "rounds": 12, "out": str(tmp_path)},
        "method": {"lr": 0.01, "largest": 2, "warmup": 3, "refresh_every": 5},
        "problem": {"kind": "linear_regression", "dim": 20},
    }
    path = api.start(MPI.COMM_SELF, from_tables(config, "test"))
    further = ["run.rounds=80", "method.planned_rounds=4000"]
    further += [f'method.{key}="auto"' for key in ("alpha", "refresh_every")]
    api.resume(path.parent, overrides=tuple(further))
    losses = hpcopt.load(path)["metrics"]["loss"].values
    assert losses[-1] < losses[0]
    assert len(hpcopt.load(path)["spectrum"]["refresh"]) == 3  # at 3, 8, 32


class Hopeless(hpcopt.Objective):
    """f = ‖x‖²/2 with noise: all eigenvalues are the same."""

    dim: int = 30
    """parameters"""

    def data(self, worker, seed):
        return (np.random.default_rng([seed, worker]).standard_normal((40, self.dim)),)

    def loss(self, x, A):
        return 0.5 * (x - A).square().sum(1).mean()


@pytest.mark.parametrize("rounds", [60, 400, 1600])
def test_a_twentieth_at_most_is_spent_on_curvature(rounds):
    """On a problem that curvature cannot help, and where a run is too short for it not at all."""
    recipe = Hopeless(workers=2, batch_size=8)
    trees = [
        hpcopt.simulate(method, recipe, rounds, evaluate_every=rounds)
        for method in (
            hpcopt.DHO2(lr=0.01, largest=3, refresh_every="auto", alpha="auto"),
            hpcopt.AllreduceSGD(lr=0.01, momentum=0.9),
        )
    ]
    mine, plain = (float(tree["metrics"]["gradients"][-1]) for tree in trees)
    refreshes = len(trees[0]["spectrum"]["refresh"])
    assert plain < mine <= 1.05 * plain if rounds > 60 else mine == plain
    assert refreshes == {60: 0, 400: 1, 1600: 4}[rounds]
    if rounds == 60:
        assert np.array_equal(*(tree["metrics"]["loss"] for tree in trees))


class Steep(hpcopt.Objective):
    """Least squares, ten eigenvalues from 300 to 30 and the others from 1 to 0.1."""

    dim: int = 60
    """parameters"""

    def data(self, worker, seed):
        draw = np.random.default_rng([seed, worker])
        steep = np.sqrt([*np.geomspace(300, 30, 10), *np.linspace(1, 0.1, self.dim - 10)])
        A = draw.standard_normal((400, self.dim)) * steep
        return A, (A / steep).sum(1) + draw.standard_normal(400)

    def loss(self, x, A, b):
        return 0.5 * (A @ x - b).square().mean()


@pytest.mark.parametrize("keys", [{}, {"largest": 0, "smallest": 3}])
def test_mini_batches_may_have_few_rows(keys):
    """A quarter of 16 rows has fewer than there are pairs; and the smallest eigenvalues tell no scale."""
    recipe, rounds = Steep(workers=1, batch_size=16), 1500
    methods = (
        hpcopt.DHO2(lr=3e-4, refresh_every="auto", alpha="auto", **keys),
        hpcopt.AllreduceSGD(lr=3e-4, momentum=0.9),
    )
    trees = [hpcopt.simulate(method, recipe, rounds, evaluate_every=rounds) for method in methods]
    mine, plain = (float(tree["metrics"]["loss"][-1]) for tree in trees)
    assert len(trees[0]["spectrum"]["refresh"])
    assert mine < 1.1 * plain
