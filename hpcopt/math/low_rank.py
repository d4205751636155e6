"""Parameter tensors as matrices, and where their factors of low rank lie in flat vectors."""

from __future__ import annotations

from math import prod

from torch import Tensor

from hpcopt.math.flat import Layout


def packed(layout: Layout, rank: int) -> tuple[Layout, Layout]:
    """What is sent in a round's first and second allreduce.

    Args:
        layout: of the parameters.
        rank: r.

    Returns:
        P (a, r) of every tensor that is sent as two factors, and all other tensors; Q (b, r) of the former.
    """
    first: list[tuple[str, tuple[int, ...]]] = []
    second: list[tuple[str, tuple[int, ...]]] = []
    for name, shape in zip(layout.names, layout.shapes, strict=True):
        a, b = shape[0] if shape else 1, prod(shape[1:])
        if len(shape) >= 2 and rank * (a + b) < a * b:
            first.append((name, (a, rank)))
            second.append((name, (b, rank)))
        else:
            first.append((name, shape))
    return Layout.of(first), Layout.of(second)


def matrix(tensor: Tensor) -> Tensor:
    """A parameter tensor as a matrix (shape[0], everything else), a view."""
    return tensor.view(len(tensor), -1)
