"""First-order updates on flat vectors, in place, and learning-rate schedules.

Written out rather than taken from torch.optim because their state has to be plain named tensors that
checkpoints can re-partition, and because importing torch.optim's machinery costs every rank seconds.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

SWEEP = 64
"""entries that a sweep passes in the time of one that is picked out"""

if TYPE_CHECKING:
    from hpcopt.config.base import FirstOrder, LearningRate
    from hpcopt.config.methods.gossip import OwnStepsTable


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
    """

    def __init__(self, table: FirstOrder) -> None:
        self._table = table

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The first and second moments to begin with; empty tensors where the update has none."""
        second = self._table.optimizer != "sgd"
        first = second or self._table.momentum > 0
        nothing = x.new_zeros((*x.shape[:-1], 0))
        return (
            torch.zeros_like(x) if first else nothing.clone(),
            torch.zeros_like(x) if second else nothing.clone(),
        )

    def __call__(
        self,
        x: Tensor,
        g: Tensor,
        m: Tensor,
        v: Tensor,
        round: int,
        support: Tensor | None = None,
        lr: float | None = None,
    ) -> None:
        """x ← x − η · update(g).

        Args:
            x: the point, (…, d); changed.
            g: the gradient at x, same shape; may be overwritten, but with a ``support`` it is left as it is.
            m, v: the moments from `moments`; changed.
            round: counted from 0.
            support: where alone g (d,) may differ from zero, (u,) int64; None: anywhere.
            lr: a rate in place of the table's, on its schedule.
        """
        table, eta = self._table, learning_rate(self._table, round, lr)
        if support is not None and (table.weight_decay or table.nesterov or table.clip):
            g = g.clone()
        if table.clip:
            g.mul_((table.clip / g.norm()).clamp_(max=1.0))
        if table.optimizer == "adamw":
            x.mul_(1 - eta * table.weight_decay)
        elif table.weight_decay:
            g.add_(x, alpha=table.weight_decay)
        if table.optimizer != "sgd":
            t = round + 1
            m.lerp_(g, 1 - table.beta1)
            v.mul_(table.beta2).addcmul_(g, g, value=1 - table.beta2)
            scale = math.sqrt(1 - table.beta2**t)
            x.addcdiv_(m, v.sqrt().div_(scale).add_(table.eps), value=-eta / (1 - table.beta1**t))
        elif table.momentum:
            m.mul_(table.momentum).add_(g)
            x.add_(g.add_(m, alpha=table.momentum) if table.nesterov else m, alpha=-eta)
        elif support is None or table.weight_decay or not scattered(support, x):
            x.add_(g, alpha=-eta)
        else:  # the same bits
            x[support] = x[support].add_(g[support], alpha=-eta)


def sgd(
    table: OwnStepsTable,
    x: list[Tensor],
    g: list[Tensor],
    m: list[Tensor],
    eta: float | Tensor,
    several: bool = False,
) -> None:
    """One step of SGD or heavy ball with a clipped gradient, in place.

    Args:
        table: the settings.
        x: the point, parameter by parameter; changed.
        g: the gradient at x; may be overwritten.
        m: the momentum, or nothing if there is none; changed.
        eta: η; of several points, one for all or one of each, (g,).
        several: whether these are the points of g workers, (g, …).
    """
    if table.clip and several:
        norms = torch.stack([g_p.reshape(len(g_p), -1).norm(dim=1) for g_p in g]).norm(dim=0)
        shorter = (table.clip / norms).clamp_(max=1.0)
        for g_p in g:
            g_p.mul_(_each(shorter, g_p))
    elif table.clip:
        norm = torch.stack([g_p.norm() for g_p in g]).norm()
        shorter = (table.clip / norm).clamp_(max=1.0)
        for g_p in g:
            g_p.mul_(shorter)
    if table.weight_decay:
        for g_p, x_p in zip(g, x, strict=True):
            g_p.add_(x_p, alpha=table.weight_decay)
    if table.momentum:
        g = [m_p.mul_(table.momentum).add_(g_p) for m_p, g_p in zip(m, g, strict=True)]
    for x_p, g_p in zip(x, g, strict=True):
        if isinstance(eta, Tensor):
            x_p.addcmul_(g_p, _each(eta, g_p), value=-1)
        else:
            x_p.add_(g_p, alpha=-eta)


def _each(values: Tensor, like: Tensor) -> Tensor:
    """A number of each worker, (g,), shaped to be multiplied with a tensor (g, …)."""
    return values.view(-1, *(1 for _ in like.shape[1:]))


def scattered(support: Tensor, x: Tensor) -> bool:
    """Whether so few entries of a vector are changed one by one faster than all of it in one sweep."""
    return SWEEP * len(support) < len(x)
