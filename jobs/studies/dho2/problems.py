"""The study's own problems: least squares with outlying eigenvalues, an autoencoder, and classifiers."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from torch import Tensor, nn

import hpcopt
from hpcopt.math.streams import stream
from hpcopt.problems.data import open_dataset
from hpcopt.problems.models import build, initialise

OUTLIERS = 10
ROWS = 20_000
"""of Fashion-MNIST, the first ones: the loss of all rows is known at every record, which has a price"""
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
    data_seed: int = 0
    """of A, t and the noise: runs with another run.seed differ in their mini-batches alone"""

    def count_rows(self, worker: int, seed: int) -> int:
        """D."""
        return self.rows_per_worker

    def data(self, worker: int, seed: int) -> tuple[Any, Any]:
        """A_n (D, d) and b_n (D,)."""
        generator, d = stream(self.data_seed, "outlying_least_squares", worker), self.dim
        deviations = np.sqrt([*np.geomspace(1000, 100, OUTLIERS), *np.linspace(1, 0.1, d - OUTLIERS)])
        common = stream(self.data_seed, "outlying_least_squares")
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


def autoencoder(workers: int, seed: int = 0, rows: int = ROWS, **keys: Any) -> hpcopt.Network:
    """784-256-64-256-784 with ReLU on images with pixels from 0 to 1; mean squared error of a pixel.

    Args:
        workers: N.
        seed: of the start.
        rows: images.
        keys: of `hpcopt.Network`.
    """
    images, _ = _fashion(rows)
    pixels = images.reshape(rows, -1) / images.max()
    layers = [layer for before, after in pairwise(WIDTHS) for layer in (nn.Linear(before, after), nn.ReLU())]
    return _network(
        nn.Sequential(*layers[:-1]), nn.functional.mse_loss, (pixels, pixels), seed, workers, keys
    )


def classifier(
    workers: int, model: str = "mlp", seed: int = 0, rows: int = ROWS, **keys: Any
) -> hpcopt.Network:
    """One of the package's networks; cross-entropy.

    Args:
        workers: N.
        model: its name.
        seed: of the start.
        rows: images.
        keys: of `hpcopt.Network`.
    """
    images, labels = _fashion(rows)
    train = (images - images.mean()) / images.std(), labels
    network = build(model, (1, 28, 28), 10)
    return _network(network, nn.functional.cross_entropy, train, seed, workers, keys)


def _fashion(rows: int) -> tuple[Any, Any]:
    train = open_dataset("fashion-mnist").train
    return np.float32(train.read(np.arange(rows))), train.labels[:rows]


def _network(
    model: nn.Module, loss: Any, train: tuple[Any, Any], seed: int, workers: int, keys: dict[str, Any]
) -> hpcopt.Network:
    """Without test rows: the study is about the training loss."""
    initialise(model, seed)
    return hpcopt.Network(model, loss, train, workers=workers, private=[], **keys)


__all__ = ["LeastSquares", "autoencoder", "classifier"]
