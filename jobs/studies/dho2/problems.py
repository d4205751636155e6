"""The study's own problems: least squares with outlying eigenvalues, and an autoencoder."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from torch import Tensor, nn

import hpcopt
from hpcopt.math.streams import stream
from hpcopt.problems.data import open_dataset
from hpcopt.problems.models import initialise

OUTLIERS = 10
WIDTHS = (784, 256, 64, 256, 784)


class LeastSquares(hpcopt.Objective):
    """f_n(x) = ½ ‖A_n x − b_n‖² / D, rows of A from N(0, Q diag(λ) Qᵀ), b = A t + noise, t from N(0, I).

    10 eigenvalues λ from 1000 down to 100 (geometric), the others evenly from 1 to 0.1; those of the Hessian
    AᵀA/D are scattered about them as 1/D is. Q is a random rotation: no parameter is steep by itself.
    """

    dim: int = 1000
    """parameters d"""
    rows_per_worker: int = 2000
    """rows D of each worker"""
    noise: float = 1.0
    """standard deviation of the noise on the targets"""

    def count_rows(self, worker: int, seed: int) -> int:
        """D."""
        return self.rows_per_worker

    def data(self, worker: int, seed: int) -> tuple[Any, Any]:
        """A_n (D, d) and b_n (D,)."""
        generator, d = stream(seed, "outlying_least_squares", worker), self.dim
        deviations = np.sqrt([*np.geomspace(1000, 100, OUTLIERS), *np.linspace(1, 0.1, d - OUTLIERS)])
        common = stream(seed, "outlying_least_squares")
        Q, truth = np.linalg.qr(common.standard_normal((d, d)))[0], common.standard_normal(d)
        A = generator.standard_normal((self.rows_per_worker, d)) * deviations @ Q.T
        return A, A @ truth + self.noise * generator.standard_normal(self.rows_per_worker)

    def loss(self, x: Tensor, A: Tensor, b: Tensor) -> Tensor:
        """See `hpcopt.Objective`."""
        return 0.5 * (A @ x - b).square().mean()

    def gradient(self, x: Tensor, A: Tensor, b: Tensor) -> Tensor:
        """See `hpcopt.Objective`."""
        return A.T @ (A @ x - b) / len(b)

    def hvp(self, x: Tensor, v: Tensor, A: Tensor, b: Tensor) -> Tensor:
        """See `hpcopt.Objective`."""
        return A.T @ (A @ v) / len(b)


def autoencoder(workers: int, seed: int = 0, dataset: str = "fashion-mnist", **keys: Any) -> hpcopt.Network:
    """784-256-64-256-784 with ReLU on images with pixels from 0 to 1; mean squared error of a pixel.

    Args:
        workers: N.
        seed: of the start.
        dataset: by name.
        keys: of `hpcopt.Network`.
    """
    data = open_dataset(dataset)
    images = [split.read(np.arange(len(split))).reshape(len(split), -1) for split in (data.train, data.test)]
    train, test = ((pixels, pixels) for pixels in (np.float32(i) / images[0].max() for i in images))
    widths = [images[0].shape[1], *WIDTHS[1:-1], images[0].shape[1]]
    layers = [layer for before, after in pairwise(widths) for layer in (nn.Linear(before, after), nn.ReLU())]
    model = nn.Sequential(*layers[:-1])
    initialise(model, seed)
    return hpcopt.Network(model, nn.functional.mse_loss, train, test, workers=workers, private=[], **keys)


__all__ = ["LeastSquares", "autoencoder"]
