"""CoCoA+: a round written out in NumPy, each step of the dual ascent, the duality gap."""

import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import hpcopt
from hpcopt.math import compiled_rows, sdca
from hpcopt.math.compiled_rows import Rows
from hpcopt.math.losses import LogisticLoss, SquaredHingeLoss, SquaredLoss
from hpcopt.math.streams import stream

from .linear_cases import KINDS, UNEVEN, begun, objective, passes, recipe

LOSSES = {"logistic": LogisticLoss(), "squared_hinge": SquaredHingeLoss(), "squares": SquaredLoss()}


def ascent(kind, before, y, z, q):
    """The α that maximises −l*(−α) − α z − q (α − before)²/2, by SciPy."""
    loss = LOSSES[kind]

    def falls(a):
        alpha, of = torch.tensor(y * a), torch.tensor(float(y))
        return float(sdca.conjugate(loss, alpha, of)) + y * a * z + q / 2 * (y * a - before) ** 2

    low, high = {"logistic": (0, 1), "squared_hinge": (0, 1e3), "squares": (-1e3, 1e3)}[kind]
    return y * scipy.optimize.minimize_scalar(falls, bounds=(low, high), options={"xatol": 1e-11}).x


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60)
@given(st.floats(0, 1), st.sampled_from([-1.0, 1.0]), st.floats(-30, 30), st.floats(-3, 3))
def test_a_step_is_the_maximum(kind, a, y, z, size):
    q = 10.0**size
    row, margin = np.array([[np.sqrt(q)]]), np.array([z / np.sqrt(q)])
    alpha = np.array([y * a])
    sdca.ascend(Rows(row), LOSSES[kind], np.array([y]), np.array([q]), alpha, margin, np.array([0]), 1.0)
    assert alpha[0] == pytest.approx(ascent(kind, y * a, y, z, q), rel=1e-5, abs=1e-5)
    assert margin[0] == pytest.approx(z / np.sqrt(q) + np.sqrt(q) * (alpha[0] - y * a), abs=1e-9)


def test_extreme_margins():
    """No overflow, nothing outside of [0, 1]."""
    for z in (-1e6, -800.0, 0.0, 800.0, 1e6):
        for q in (0.0, 1e-12, 1.0, 1e12):
            found = sdca._best(compiled_rows.LOGISTIC, 0.3, 1.0, z, q)
            assert 0 <= found <= 1


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_round(kind, sparse):
    """σ' counts the workers that have rows; two local passes, in the order of the worker's own stream."""
    method = hpcopt.CoCoA(local_passes=2)
    problem, ports, state = begun(method, recipe(kind, sparse))
    lam, loss, y = problem.regularisation, LOSSES[kind], problem.y.numpy()
    X = np.concatenate([problem.rows_of_worker(i).times(torch.eye(8, dtype=torch.float64)) for i in range(4)])
    w, alpha = np.zeros(8), np.zeros(90)
    for state.round in range(2):
        move, before = np.zeros(8), alpha.copy()
        for i, mine in enumerate(UNEVEN):
            v, shuffled = w.copy(), stream(0, "cocoa", i, state.round)
            for _ in range(2):
                for row in mine[shuffled.permutation(len(mine))]:
                    squares = X[row] @ X[row]
                    after = sdca._best.py_func(
                        compiled_rows.kind_of(loss), alpha[row], y[row], X[row] @ v, 3 / lam * squares
                    )
                    v += 3 / lam * (after - alpha[row]) * X[row]
                    alpha[row] = after
            move += X[mine].T @ (alpha - before)[mine]
        w += move / lam
        method.step(state)
    np.testing.assert_allclose(state.alpha, alpha, atol=1e-10)
    np.testing.assert_allclose(state.w, w, atol=1e-10)
    np.testing.assert_allclose(state.w, X.T @ alpha / lam, atol=1e-10)
    assert passes(ports) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_the_dual_rises_and_the_gap_closes(kind):
    """It bounds how far f is above its minimum."""
    method = hpcopt.CoCoA()
    problem, _, state = begun(method, recipe(kind, regularisation=0.03))
    best = hpcopt.TRON()
    _, _, there = begun(best, recipe(kind, regularisation=0.03))
    for _ in range(12):
        best.step(there)
    lowest, dual = objective(problem, there.w), -np.inf
    for state.round in range(300):
        method.step(state)
        gap, primal = method.metrics(state)["duality_gap"], objective(problem, state.w)
        assert primal - gap >= dual - 1e-10 * lowest
        assert gap >= primal - lowest - 1e-10 * lowest
        dual = primal - gap
        if gap < 1e-6 * lowest:
            return
    pytest.fail(f"gap {gap}")
