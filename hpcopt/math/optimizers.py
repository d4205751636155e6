"""First-order updates on flat vectors, in place, and learning-rate schedules.

Written out rather than taken from torch.optim because their state has to be plain named tensors that
checkpoints can re-partition, and because importing torch.optim's machinery costs every rank seconds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

SWEEP = 64
"""entries that a sweep passes in the time of one that is picked out"""

if TYPE_CHECKING:
    from hpcopt.config.base import FirstOrder, LearningRate


def learning_rate(table: LearningRate, round: int, lr: float | None = None) -> float:
    """The rate η for a round, counted from 0, on the schedule of a table; ``lr`` in place of the table's."""
    rate = table.lr if lr is None else lr
    if round < table.warmup_rounds:
        rate *= (round + 1) / table.warmup_rounds
    if table.schedule == "cosine":
        rate *= 0.5 * (1 + math.cos(math.pi * min(round / (table.lr_horizon or 1), 1.0)))
    elif table.schedule == "exponential":
        rate *= table.lr_decay ** (round / table.lr_decay_rounds)
    elif table.schedule == "step":
        rate *= table.lr_decay ** (round // table.lr_decay_rounds)
    return rate


class FirstOrderUpdate:
    """One step of SGD, heavy ball, Nesterov, Adam or AdamW, in place; gradients clipped.

    Adam: Kingma & Ba, 2015, algorithm 1; AdamW: Loshchilov & Hutter, ICLR 2019, algorithm 2, with the weight
    decay multiplied by the learning rate, as everybody does.

    Args:
        table: the settings.
        clip: the largest norm of a gradient, in place of the table's; 0: none.
    """

    def __init__(self, table: FirstOrder, clip: float | None = None) -> None:
        self._table, self._clip = table, table.clip if clip is None else clip

    def sizes(self, d: int) -> tuple[int, int]:
        """How many numbers the first and the second moments of d parameters are: d or 0."""
        second = self._table.optimizer != "sgd"
        return d * (second or self._table.momentum > 0), d * second

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The first and second moments to begin with; empty tensors where the update has none."""
        first, second = self.sizes(x.shape[-1])
        return x.new_zeros((*x.shape[:-1], first)), x.new_zeros((*x.shape[:-1], second))

    def __call__(
        self,
        x: Tensor,
        g: Tensor,
        m: Tensor,
        v: Tensor,
        round: int,
        support: Tensor | None = None,
        lr: float | None = None,
        keep: bool = False,
    ) -> None:
        """x ← x − η · update(g), one step in each round.

        Args:
            x: the point, (d,); or (n, d), several, each of whose gradients is clipped by itself; changed.
            g: the gradient at x, same shape; may be overwritten, but with a ``support`` it is left as it is.
            m, v: the moments from `moments`; changed.
            round: counted from 0.
            support: where alone g, (d,), may differ from zero, (u,) int64; None: anywhere.
            lr: a rate in place of the table's, on its schedule.
            keep: leave g as it is.
        """
        table, eta = self._table, learning_rate(self._table, round, lr)
        plain = not (table.weight_decay or self._clip or m.numel() or v.numel())
        if plain and support is not None and scattered(support, x):
            x[support] = x[support].add_(g[support], alpha=-eta)
        elif plain:  # the same bits
            x.add_(g, alpha=-eta)
        else:
            keep = keep or support is not None
            self.step([x], [g], [m], [v], round + 1, eta, rows=x.ndim > 1, keep=keep)

    def step(
        self,
        x: Sequence[Tensor],
        g: Sequence[Tensor],
        m: Sequence[Tensor],
        v: Sequence[Tensor],
        t: int,
        eta: float | Tensor,
        *,
        rows: bool = False,
        keep: bool = False,
    ) -> None:
        """The same of parameters that are tensors of their own.

        Args:
            x: the point, tensor by tensor; changed.
            g: the gradient at x, likewise; may be overwritten.
            m, v: the moments, likewise, or whatever is empty where the update has none; changed.
            t: which step this is, counted from 1, since the moments were 0.
            eta: η; of several points, one for all of them or one of each, (g,).
            rows: these are g points, as the first dimension of every tensor says; each gradient is clipped by
                itself.
            keep: leave g as it is.
        """
        table, adaptive = self._table, self._table.optimizer != "sgd"
        decoupled = table.optimizer == "adamw"
        if keep and (self._clip or table.nesterov or (table.weight_decay and not decoupled)):
            g = [g_p.clone() for g_p in g]
        if self._clip:
            shorten(g, self._clip, rows)
        if table.weight_decay:
            for x_p, g_p in zip(x, g, strict=True):
                if decoupled:
                    x_p.mul_(1 - _each(eta, x_p) * table.weight_decay)
                else:
                    g_p.add_(x_p, alpha=table.weight_decay)
        if adaptive:
            root, rest = math.sqrt(1 - table.beta2**t), 1 - table.beta1**t
            for x_p, g_p, m_p, v_p in zip(x, g, m, v, strict=True):
                m_p.lerp_(g_p, 1 - table.beta1)
                v_p.mul_(table.beta2).addcmul_(g_p, g_p, value=1 - table.beta2)
                _descend(x_p, m_p, eta / rest, below=v_p.sqrt().div_(root).add_(table.eps))
        elif table.momentum:
            for x_p, g_p, m_p in zip(x, g, m, strict=True):
                m_p.mul_(table.momentum).add_(g_p)
                _descend(x_p, g_p.add_(m_p, alpha=table.momentum) if table.nesterov else m_p, eta)
        else:
            for x_p, g_p in zip(x, g, strict=True):
                _descend(x_p, g_p, eta)


def shorten(g: Sequence[Tensor], longest: float, rows: bool = False) -> None:
    """g ← g min(1, longest/‖g‖), in place.

    Args:
        g: a gradient, tensor by tensor.
        longest: norm.
        rows: these are several gradients, as many as the first dimension of every tensor says.
    """
    if rows:
        each = [g_p.reshape(len(g_p), math.prod(g_p.shape[1:])).norm(dim=1) for g_p in g]
        norms = torch.stack(each).norm(dim=0)
    else:
        norms = torch.stack([g_p.norm() for g_p in g]).norm()
    shorter = (longest / norms).clamp_(max=1.0)
    for g_p in g:
        g_p.mul_(_each(shorter, g_p) if rows else shorter)


def _descend(x: Tensor, g: Tensor, eta: float | Tensor, below: Tensor | None = None) -> None:
    """x ← x − η g, or x − η g / below, in place; of several points η may be one of each, (g,)."""
    if isinstance(eta, Tensor):
        g, eta = g * _each(eta, g), 1.0
    if below is None:
        x.add_(g, alpha=-eta)
    else:
        x.addcdiv_(g, below, value=-eta)


def _each(values: float | Tensor, like: Tensor) -> Any:
    """A number of each point, (g,), shaped to be multiplied with a tensor (g, …); or one for all as it is."""
    return values.view(-1, *(1 for _ in like.shape[1:])) if isinstance(values, Tensor) else values


def scattered(support: Tensor, x: Tensor) -> bool:
    """Whether so few entries of a vector are changed one by one faster than all of it in one sweep."""
    return SWEEP * len(support) < len(x)
