"""Weights ω of the objective count in every method with models of the workers' own."""

import numpy as np
import pytest

import hpcopt

DRAW = np.random.default_rng(4)
A = DRAW.standard_normal((40, 3))
B = A @ np.array([1.0, -2.0, 0.5]) + DRAW.standard_normal(40)
PARTS = [range(24), range(24, 30), range(30, 40)]
B[:24] += 3  # or the workers would want the same
STRENGTH = 0.01 * 40
ANSWER = np.linalg.solve(A.T @ A + STRENGTH * np.eye(3), A.T @ B)
EQUAL = np.linalg.solve(
    sum(40 / 3 / len(p) * A[p].T @ A[p] for p in map(list, PARTS)) + STRENGTH * np.eye(3),
    sum(40 / 3 / len(p) * A[p].T @ B[p] for p in map(list, PARTS)),
)
KEYS = {"evaluate_every": 400, "return_state": True}


def problem(parts=PARTS, **keys):
    return hpcopt.LeastSquares(
        (A, B), workers=len(parts), rows=parts, bias=False, regularisation=0.01, **keys
    )


def test_gradient_tracking_ends_at_the_minimum_of_the_weighted_objective():
    _, state = hpcopt.simulate(hpcopt.GradientTracking(lr=0.2), problem(), 300, **KEYS)
    np.testing.assert_allclose(state.X.numpy(), np.tile(ANSWER, (3, 1)), rtol=1e-8)
    assert np.abs(EQUAL - ANSWER).max() > 0.05


def test_a_worker_without_rows_follows_the_others():
    _, state = hpcopt.simulate(hpcopt.GradientTracking(lr=0.05), problem([*PARTS, []]), 1200, **KEYS)
    np.testing.assert_allclose(state.X.numpy(), np.tile(ANSWER, (4, 1)), rtol=1e-8)


def test_gossip_ends_there_where_averages_are_exact():
    """On a ring of three; elsewhere a bias that the rate decides remains, as it does with equal weights."""
    _, state = hpcopt.simulate(hpcopt.DPSGD(lr=0.2, local_steps=1), problem(), 300, **KEYS)
    np.testing.assert_allclose(state.X.numpy(), np.tile(ANSWER, (3, 1)), rtol=1e-8)


def test_one_round_of_gossip_is_that_of_scaled_gradients():
    """Against the formulas: x_i = Σ_j W_ij (x_j − η N ω_j ∇f_j(x_j)), with momentum and decay."""
    eta, decay = 0.05, 0.1
    _, state = hpcopt.simulate(
        hpcopt.DPSGD(lr=eta, local_steps=1, weight_decay=decay, topology="complete", momentum=0.5),
        problem(),
        2,
        **KEYS,
    )
    x, m = np.zeros((3, 3)), np.zeros((3, 3))
    for _ in range(2):
        for i, rows in enumerate(map(list, PARTS)):
            # gradients of linear problems are of f / n
            g = (40 / len(rows) * A[rows].T @ (A[rows] @ x[i] - B[rows]) + STRENGTH * x[i]) / 40
            m[i] = 0.5 * m[i] + g + decay * x[i]
            x[i] = x[i] - eta * 3 * len(rows) / 40 * m[i]
        x = np.tile(x.mean(0), (3, 1))
    np.testing.assert_allclose(state.X.numpy(), x, rtol=1e-12)


@pytest.mark.parametrize("topology", ["star", "ring"])
def test_gradient_tracking_with_means_by_weights(topology):
    """Of gradients as they are; on a star no doubly stochastic matrix is needed."""
    four = [PARTS[0], PARTS[1], range(30, 33), range(33, 40)]
    method = hpcopt.GradientTracking(lr=0.1, topology=topology, mixing="weighted")
    _, state = hpcopt.simulate(method, problem(four), 900, **KEYS)
    np.testing.assert_allclose(state.X.numpy(), np.tile(ANSWER, (4, 1)), rtol=1e-8)


def test_one_round_of_gossip_by_weights_is_fedavg_where_all_are_neighbours():
    keys = {"lr": 0.05, "local_steps": 3}
    method = hpcopt.DPSGD(**keys, topology="complete", mixing="weighted")
    _, gossip = hpcopt.simulate(method, problem(), 2, **KEYS)
    _, centre = hpcopt.simulate(hpcopt.FedAvg(**keys), problem(), 2, **KEYS)
    np.testing.assert_allclose(gossip.X.numpy(), np.tile(centre.x.numpy(), (3, 1)), rtol=1e-12)


def test_means_by_weights_need_rows_of_everybody():
    with pytest.raises(hpcopt.UserError, match='mixing = "weighted": worker 3 has no rows'):
        hpcopt.simulate(hpcopt.DPSGD(mixing="weighted"), problem([*PARTS, []]), 1)


def test_matrices_that_do_not_keep_the_mean_are_refused():
    with pytest.raises(hpcopt.UserError, match="workers count by their rows needs to end in the right"):
        hpcopt.simulate(hpcopt.DPSGD(topology="star", mixing="uniform"), problem(), 1)


def test_only_the_representation_of_deprl_is_scaled():
    import torch

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 1))
    loss = lambda o, y: torch.nn.functional.mse_loss(o[:, 0], y)  # noqa: E731
    keys = {"workers": 2, "batch_size": "full", "private": ["1.*"], "partition": "unequal", "weights": "rows"}
    recipe = hpcopt.Network(model, loss, (A, B), **keys)
    method = hpcopt.DePRL(lr=0.01, head_steps=1, body_steps=1, topology="complete")
    _, state = hpcopt.simulate(method, recipe, 1, dtype="float64", **KEYS)
    bound = recipe.bind(hpcopt.Share(range(2), 2, 0))
    sizes = bound.rows.tolist()
    assert sizes[0] != sizes[1]
    X = bound.initial().repeat(2, 1)
    shared, private = bound.layout.shared, bound.layout.private
    for i in range(2):
        g = torch.cat([p.ravel() for p in bound.gradient(i, X[i], None)])
        X[i, private] -= 0.01 * g[private]
    for i in range(2):
        g = torch.cat([p.ravel() for p in bound.gradient(i, X[i], None)])
        X[i, shared] -= 0.01 * 2 * sizes[i] / sum(sizes) * g[shared]
    X[:, shared] = X[:, shared].mean(0)
    torch.testing.assert_close(state.X, X, rtol=1e-12, atol=1e-14)


def test_local_says_what_its_loss_is_of(tmp_path):
    hpcopt.run(hpcopt.Local(lr=0.01), problem(), out=tmp_path, rounds=1)
    assert "no common objective" in hpcopt.load(tmp_path).attrs["notes"]
