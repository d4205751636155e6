"""run.evaluate and run.evaluate_rows: what a record measures, and on how many rows."""

import numpy as np
import pytest
import torch

import hpcopt

DRAW = np.random.default_rng(5)
X, Y = DRAW.standard_normal((60, 4)), DRAW.integers(0, 2, 60)
KEYS = {"workers": 3, "batch_size": 2}
BESIDE = {"round", "seconds", "epochs", "gradients", "bytes_sent", "bytes_workers", "passes", "peak_memory"}


def network():
    torch.manual_seed(0)
    loss = torch.nn.functional.cross_entropy
    return hpcopt.Network(torch.nn.Linear(4, 2), loss, (X[:45], Y[:45]), (X[45:], Y[45:]), **KEYS)


def linear():
    return hpcopt.Logistic((X[:45], Y[:45]), (X[45:], Y[45:]), **KEYS)


def metrics(problem, method=None, **keys):
    method = method or hpcopt.FedAvg(lr=0.1, before_mixing=True)
    data = hpcopt.simulate(method, problem, 4, dtype="float64", evaluate_every=2, **keys)
    return data["metrics"].to_dataset()


MEASURED = {
    ("train",): {"loss"},
    ("test",): {"test_loss", "accuracy"},
    ("train", "test"): {"loss", "test_loss", "accuracy", "generalisation_gap"},
    ("train", "global"): {"loss", "global_loss"},
    ("test", "before_mixing"): {"test_loss", "accuracy", "before_mixing_test_loss", "before_mixing_accuracy"},
    (): set(),
}


@pytest.mark.parametrize("wanted", MEASURED)
def test_only_what_is_asked_for_is_measured_and_changes_nothing_else(wanted):
    every, some = metrics(network()), metrics(network(), evaluate=list(wanted))
    assert set(some.data_vars) - BESIDE == MEASURED[wanted]
    for name in set(some.data_vars) - {"seconds", "peak_memory"}:
        assert np.array_equal(some[name], every[name]), name


def test_linear_and_own_problems_too():
    found = metrics(linear(), evaluate=["test"])
    assert set(found.data_vars) - BESIDE == {"test_loss", "accuracy", "auprc"}
    assert np.array_equal(found["auprc"], metrics(linear())["auprc"])
    regression = hpcopt.LinearRegression(workers=2, dim=3, rows_per_worker=9)
    found = metrics(regression, hpcopt.DPSGD(lr=0.01), evaluate=[])
    assert set(found.data_vars) - BESIDE == {"consensus", "distance"}


@pytest.mark.parametrize("make", [network, linear])
def test_the_training_loss_of_some_rows(make):
    """The same ones every time, of each worker; of all of them it is what it was."""
    method = hpcopt.AllreduceSGD(lr=0.01)
    every, some = metrics(make(), method), metrics(make(), method, evaluate_rows=4)
    assert np.array_equal(metrics(make(), method, evaluate_rows=15)["loss"], every["loss"])
    assert not np.isclose(some["loss"][1:], every["loss"][1:]).any()
    assert np.array_equal(some["test_loss"], every["test_loss"])
    bound = make().bind(hpcopt.Share(range(3), 3, 0))
    x = bound.initial()
    wanted = float(bound.losses(x, hpcopt.Draw(0, rows=4)) @ bound.weights)
    assert float(some["loss"][0]) == pytest.approx(wanted, rel=1e-12)


def test_a_run_without_a_loss_ends_where_its_state_is_not_finite(tmp_path):
    problem = hpcopt.Quadratic(workers=2, eigenvalues=[1.0])
    keys = {"rounds": 3000, "evaluate_every": 500, "evaluate": []}
    with pytest.raises(hpcopt.NotFinite, match="the state is not finite at round"):
        hpcopt.run(hpcopt.AllreduceSGD(lr=100.0), problem, out=tmp_path / "run", **keys)
    assert "loss" not in hpcopt.load(tmp_path / "run")["metrics"]
    with pytest.raises(hpcopt.UserError, match=r'target_loss = 0.1: needs "train" in evaluate'):
        hpcopt.simulate(hpcopt.AllreduceSGD(), problem, 1, evaluate=["test"], target_loss=0.1)
