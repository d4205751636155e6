"""Losses of linear models: l(z, y) of a row's margin z = x·w and its target y, with derivatives in z.

All take and give tensors of one shape, (r,) say, and do not overflow for any finite margin.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class MarginLoss(Protocol):
    """l, convex in z, with a Lipschitz continuous derivative."""

    def value(self, z: Tensor, y: Tensor) -> Tensor:
        """l(z, y)."""

    def slope(self, z: Tensor, y: Tensor) -> Tensor:
        """l'(z, y)."""

    def curvature(self, z: Tensor, y: Tensor) -> Tensor:
        """l''(z, y), one of the one-sided ones where there are two."""


class LogisticLoss:
    """log(1 + exp(−y z)), y = ±1."""

    def value(self, z: Tensor, y: Tensor) -> Tensor:
        """See `MarginLoss`."""
        return torch.nn.functional.softplus(-y * z, threshold=40)

    def slope(self, z: Tensor, y: Tensor) -> Tensor:
        """See `MarginLoss`."""
        return torch.sigmoid(-y * z).mul_(-y)

    def curvature(self, z: Tensor, y: Tensor) -> Tensor:
        """See `MarginLoss`."""
        p = torch.sigmoid(z)
        return p * torch.sigmoid(-z)


class SquaredHingeLoss:
    """max(0, 1 − y z)², y = ±1."""

    def value(self, z: Tensor, y: Tensor) -> Tensor:
        """See `MarginLoss`."""
        return _short(z, y).square_()

    def slope(self, z: Tensor, y: Tensor) -> Tensor:
        """See `MarginLoss`."""
        return _short(z, y).mul_(y).mul_(-2)

    def curvature(self, z: Tensor, y: Tensor) -> Tensor:
        """See `MarginLoss`."""
        return 2 * (y * z < 1).to(z.dtype)


class SquaredLoss:
    """½(z − y)²."""

    def value(self, z: Tensor, y: Tensor) -> Tensor:
        """See `MarginLoss`."""
        return (z - y).square_().div_(2)

    def slope(self, z: Tensor, y: Tensor) -> Tensor:
        """See `MarginLoss`."""
        return z - y

    def curvature(self, z: Tensor, y: Tensor) -> Tensor:
        """See `MarginLoss`."""
        return torch.ones_like(z)


def _short(z: Tensor, y: Tensor) -> Tensor:
    """What the margin lacks to 1."""
    return torch.clamp(1 - y * z, min=0)
