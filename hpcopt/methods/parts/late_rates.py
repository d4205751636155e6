"""Learning rates for gradients that come late."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import Tensor

from hpcopt.comm.ports import Ports
from hpcopt.errors import UserError
from hpcopt.math.lanczos import lanczos, random_start
from hpcopt.math.optimizers import learning_rate
from hpcopt.methods.parts.hessian import check_hessian, hessian_products
from hpcopt.problems.base import Problem

if TYPE_CHECKING:
    from hpcopt.config.methods.delayed import DelayedSGDTable

Rate = Callable[[float], float]
"""staleness -> η"""
PRODUCTS = 20
"""with the Hessian, for L"""


class LateRates:
    """η of a round and of a gradient's staleness.

    Args:
        settings: the rule.
    """

    def __init__(self, settings: DelayedSGDTable) -> None:
        self._settings = settings

    def check(self, problem: Problem) -> None:
        """Raises `UserError` if L is needed and cannot be computed."""
        if self._settings.lr_rule != "constant" and self._settings.smoothness is None:
            check_hessian(problem, None)

    def smoothness(self, problem: Problem, ports: Ports, x: Tensor) -> float:
        """L: given, or the largest |λ| of the Hessian at x; 0 where it is not needed. Collective.

        Raises:
            UserError: it is 0.
        """
        if self._settings.lr_rule == "constant":
            return 0.0
        if self._settings.smoothness is not None:
            return self._settings.smoothness
        reduce, d = ports.reduce, len(x)
        own = reduce.own(d)
        products = hessian_products(problem, reduce, reduce.contribution(d), x, None)
        start = random_start(own, problem.share.seed, x.dtype, x.device)[:, None]
        found = lanczos(
            *(products, reduce.slices, start, d, own),
            largest=1,
            smallest=int(d > 1),
            iterations=min(PRODUCTS, d),
        )
        L = float(found.values.abs().max())
        if not L > 0:
            rule = self._settings.lr_rule
            raise UserError(f'[method] lr_rule = "{rule}": the Hessian at the start is {L}; set smoothness')
        return L

    def of(self, L: Tensor, round: int) -> Rate:
        """η of a round, by staleness; L is (1,)."""
        rate = self.base(L, round)
        return lambda staleness: rate * self.slower(staleness)

    def base(self, L: Tensor, round: int) -> float:
        """η of a gradient that is not late."""
        settings, lr = self._settings, self._settings.lr
        if settings.lr_rule != "constant":
            lr = settings.lr_factor / float(L)
        if settings.lr_rule == "stability":
            lr /= self._settings.longest + 1
        return learning_rate(settings, round, lr)

    def slower(self, staleness: float) -> float:
        """By which the rate of one gradient is multiplied."""
        return 1 / (staleness + 1) if self._settings.lr_rule == "adaptive" else 1.0
