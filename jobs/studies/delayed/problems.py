"""The study's problems: one layer with squared errors, and a network, on parts of Fashion-MNIST; their twins.

Twins are two models that are trained at once, on the same mini-batches, by the same method: the second has
another row in place of one of the training rows. As neither's gradient depends on the other, they are what
two runs would be.

symbol     meaning
S, z_r     the training rows, and row r of them
z'_r       what the second twin has in place of z_r
x, x'      the two models
"""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

import hpcopt
from hpcopt.math.streams import stream
from hpcopt.problems.data import open_dataset
from hpcopt.problems.models import build, initialise

Array = np.ndarray[Any, Any]
TRAINING_ROWS, CLASSES = 60_000, 10
MEAN, DEVIATION = np.float32(72.94), np.float32(90.02)
"""of all pixels of the training rows"""
SHAPE = (1, 28, 28)
JUDGES = 2000
"""test rows, the first ones, on which twins are compared"""


def problem(
    workers: int,
    hidden: list[int],
    samples_per_worker: int,
    seed: int = 0,
    twin_row: int | None = None,
    **keys: Any,
) -> hpcopt.Network:
    """A network, or one layer with squared errors (mean over rows and the ten outputs, targets 0 and 1).

    Args:
        workers: N.
        hidden: widths of the hidden layers; without any, squared errors.
        samples_per_worker: rows of each worker, n/N.
        seed: of a network's start, and of which rows of Fashion-MNIST are S.
        twin_row: r, of twins; None: a single model.
        keys: of `hpcopt.Network`.
    """
    model = build("mlp", SHAPE, CLASSES, hidden)
    initialise(model, seed)
    if not hidden:  # of a convex problem the start is 0
        nn.init.zeros_(model.get_parameter("head.weight"))
    n, loss = workers * samples_per_worker, mse_loss if not hidden else cross_entropy
    order = stream(seed, "delayed study").permutation(TRAINING_ROWS)
    rows = order[:n]
    if twin_row is None:
        train, test = _rows("train", rows, hidden), _rows("test", np.arange(10_000), hidden)
        return _plain(model, loss, train, test, workers, keys)
    others = rows.copy()
    others[twin_row] = order[n + twin_row]  # a row that is not in S
    both = [_rows("train", numbers, hidden) for numbers in (rows, others)]
    images, targets = (np.stack(arrays, 1) for arrays in zip(*both, strict=True))
    twins = _plain(Twins(model), _of_both(loss), (images, targets), None, workers, keys)
    return _Remembering(twins, rows[twin_row], others[twin_row])


def _plain(
    model: nn.Module, loss: Any, train: Any, test: Any, workers: int, keys: dict[str, Any]
) -> hpcopt.Network:
    return hpcopt.Network(model, loss, train, test, workers=workers, private=[], **keys)


def _rows(which: str, numbers: Array, hidden: list[int]) -> tuple[Array, Array]:
    """Standardised images with those numbers, and their labels, or 0 and 1 for each class."""
    split = getattr(_fashion(), which)
    images, labels = split.read(numbers).astype(np.float32), split.labels[numbers]
    return (images - MEAN) / DEVIATION, labels if hidden else np.eye(CLASSES, dtype=np.float32)[labels]


@cache
def _fashion() -> Any:
    return open_dataset("fashion-mnist")


# --- twins -----------------------------------------------------------------------------------------------


class Twins(nn.Module):
    """Two equal models, each of which sees its own one of two images: (B, 2, …) to (B, 2, classes)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.each = nn.ModuleList([model, copy.deepcopy(model)])

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return torch.stack([model(x[:, i]) for i, model in enumerate(self.each)], 1)


def _of_both(loss: Any) -> Any:
    """The sum of both losses, so that each has the gradient that it would have by itself."""
    return lambda output, target: sum(loss(output[:, i], target[:, i]) for i in range(2))


class _Remembering(hpcopt.Network):
    """Twins whose problem knows the numbers of z_r and z'_r."""

    def __init__(self, network: hpcopt.Network, *numbers: int) -> None:
        vars(self).update(vars(network))
        self._numbers = numbers

    def bind(self, share: Any) -> Any:
        """See `hpcopt.Network`."""
        bound = super().bind(share)
        vars(bound)["twin_rows"] = self._numbers
        return bound


def stability(problem: Any, model: Tensor) -> dict[str, float]:
    """How much twins differ: a metric.

    ``stability_row``: f(x; z) − f(x'; z) at z'_r, which only x' was trained on, and f(x'; z) − f(x; z) at
    z_r, which only x was; the mean of the two. Its expectation is the generalisation gap.
    ``stability_loss``: the mean of |f(x; z) − f(x'; z)| over test rows. ``stability_distance``: ‖x − x'‖.
    """
    views = problem.layout.views(model)
    each = [
        {key[7:]: value for key, value in views.items() if key.startswith(f"each.{i}.")} for i in range(2)
    ]
    hidden = [len(value) for key, value in each[0].items() if key.startswith("body") and value.ndim == 2]
    rows = [_rows("train", np.array(problem.twin_rows), hidden), _rows("test", np.arange(JUDGES), hidden)]
    images, targets = (np.concatenate(arrays) for arrays in zip(*rows, strict=True))
    first, second = (_losses(x, hidden, images, targets) for x in each)
    at_rows = first[:2] - second[:2]
    distance = sum(float((a - each[1][key]).square().sum()) for key, a in each[0].items()) ** 0.5
    return {
        "row": float(at_rows[1] - at_rows[0]) / 2,
        "loss": float((first - second)[2:].abs().mean()),
        "distance": distance,
    }


@torch.no_grad()
def _losses(x: dict[str, Tensor], hidden: list[int], images: Array, targets: Array) -> Tensor:
    """Of each row, float64."""
    inputs, wanted = torch.from_numpy(images).to(x["head.weight"]), torch.from_numpy(targets)
    output = torch.func.functional_call(build("mlp", SHAPE, CLASSES, hidden), x, inputs).double()
    return cross_entropy(output, wanted, reduction="none") if hidden else (output - wanted).square().mean(1)


__all__ = ["problem", "stability"]
