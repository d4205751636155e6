"""`hpcopt.spectrum` where no dense Hessian can be had: against SciPy's eigsh."""

from __future__ import annotations

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, eigsh

import hpcopt
from hpcopt.config.problems import NetworkTable
from hpcopt.problems.base import Draw, Share


def test_both_ends_of_a_network_on_fashion_mnist():
    keys = {"dataset": "fashion-mnist", "model": "mlp", "batch_size": 16}
    recipe = NetworkTable(1, **keys).recipe()
    tree = hpcopt.spectrum(recipe, largest=10, smallest=3, dtype="float32", batch=True, probes=0)
    problem = recipe.bind(Share(range(1), 1, 0, torch.float32))
    x, d = problem.initial(), problem.dim
    assert d == tree.attrs["dim"] > 200_000

    def product(v):
        return problem.total_hvp(x, torch.from_numpy(v.ravel()), Draw(0)).numpy()

    H = LinearOperator((d, d), product, dtype=np.float32)
    above, below = (eigsh(H, k, which=which, tol=1e-4)[0] for k, which in ((10, "LA"), (3, "SA")))
    expected = np.concatenate([np.sort(below), np.sort(above)])
    loose = 1e-4 * np.abs(expected).max()
    np.testing.assert_allclose(tree["spectrum/eigenvalue"][0], expected, rtol=0, atol=loose)
