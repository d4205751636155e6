"""One-shot averaging: every worker's own minimum, once."""

import numpy as np
import pytest
import torch

import hpcopt
from hpcopt.methods.averaging import minimum

from .linear_cases import KINDS, UNEVEN, begun, passes, recipe


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_the_mean_of_the_workers_minima(kind, sparse):
    """In each of them ∇f_p = 0; the worker without rows takes no part; one pass, and the end."""
    for combination in ("rows", "uniform"):
        method = hpcopt.Averaging(combination=combination, inner_tolerance=1e-10)
        problem, ports, state = begun(method, recipe(kind, sparse))
        counts = np.array([len(mine) for mine in UNEVEN])
        models = [minimum(problem, i, 1e-10) for i in np.flatnonzero(counts)]
        for i, w in zip(np.flatnonzero(counts), models, strict=True):
            (start,) = problem.gradients(torch.zeros_like(w))[i : i + 1]
            assert float(problem.gradients(w)[i].norm()) <= 1e-9 * float(start.norm())
        weights = counts[counts > 0] if combination == "rows" else np.ones(3)
        expected = np.average(np.stack(models), axis=0, weights=weights)
        assert method.step(state).done
        np.testing.assert_allclose(state.w, expected, rtol=1e-9, atol=1e-12)
        assert passes(ports) == 1


def test_one_worker_has_the_optimum():
    logistic = hpcopt.Logistic("digits", workers=1, positive=3, optimum=296.82336058256453)
    data = hpcopt.simulate(hpcopt.Averaging(), logistic, 5)
    assert data.attrs["last_round"] == 1
    assert abs(float(data["metrics/relative_gap"][-1])) < 1e-9
