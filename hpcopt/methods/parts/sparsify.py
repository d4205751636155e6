"""What sparsifiers with error feedback hold: how many entries are sent, which, and what stays behind.

Everything that belongs to worker n is kept multiplied by its weight ω_n, so that aggregates are plain sums.

Error feedback: Stich, Cordonnier & Jaggi, NeurIPS 2018. Density warm-up: Lin et al., ICLR 2018.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hpcopt.errors import UserError
from hpcopt.math.flat import Layout, buffer
from hpcopt.math.topk import largest, take
from hpcopt.problems.base import Draw, Problem

if TYPE_CHECKING:
    from hpcopt.comm.ports import Aggregate
    from hpcopt.config.methods import SparsifiedTable

AUTO = (1.0, 0.1, 0.03, 0.01, 0.003, 0.001)
"""densities from which "auto" chooses"""


class EntryCount:
    """k: how many entries each worker sends in a round.

    Args:
        settings: density or k, per_layer and the warm-up.
        layout: of the parameters.
        density: in place of the settings' (for "auto").

    Raises:
        UserError: k is larger than the number of parameters.
    """

    def __init__(self, settings: SparsifiedTable, layout: Layout, density: float | None = None) -> None:
        if settings.k is not None and settings.k > layout.dim:
            raise UserError(
                f"[method] k = {settings.k}: there are {layout.dim} parameters; allowed are 1 to {layout.dim}"
            )
        self.dim = layout.dim
        self.sizes = list(layout.sizes) if settings.per_layer else [layout.dim]
        self._density = density if settings.k is None else settings.k / layout.dim
        self._start, self._warmup = settings.density_start, settings.density_warmup_rounds

    def parts(self, round: int) -> list[int]:
        """Of all parameters, or of each tensor, in a round."""
        assert self._density is not None
        density = self._density
        if round < self._warmup:
            start = max(density, self._start)
            density = start * (density / start) ** (round / self._warmup)
        return [max(1, _nearest(density * size)) for size in self.sizes]

    def at(self, round: int) -> int:
        """k of a round; d where everything is sent."""
        return sum(self.parts(round))

    @property
    def most(self) -> int:
        """The largest k below d of any round, 0 if there is none; k never grows."""
        rounds = range(self._warmup + 1)
        return next((k for k in map(self.at, rounds) if k < self.dim), 0)


class Largest:
    """Selects the largest entries, of all parameters or of each tensor."""

    def __init__(self, count: EntryCount) -> None:
        self._count = count

    def __call__(self, scores: Tensor, round: int) -> Tensor:
        """Where each row's k largest magnitudes are, (n, k) int64, ascending, of scores (n, d)."""
        chosen, start = [], 0
        for size, k in zip(self._count.sizes, self._count.parts(round), strict=True):
            chosen.append(largest(scores[:, start : start + size], k) + start)
            start += size
        return torch.cat(chosen, dim=1) if len(chosen) > 1 else chosen[0]


class ErrorMemory:
    """ε: what workers have accumulated and not sent, in a tensor e (n, d) of the method's state.

    Args:
        problem: the workers here.
    """

    def __init__(self, problem: Problem) -> None:
        self._problem = problem

    def empty(self, dim: int) -> Tensor:
        """Zeros, (n, dim)."""
        return buffer((self._problem.share.n, dim), like=self._problem.initial()).zero_()

    def accumulate(self, e: Tensor, x: Tensor, draw: Draw) -> Tensor:
        """a = ε + g, in place: e, to which ω_n ∇f_n(x) was added."""
        return self._problem.gradients(x, draw, weighted=True, out=e)

    def take(self, a: Tensor, s: Tensor) -> Tensor:
        """The entries s (n, k) of a, which leave it: (n, k); what stays is ε = a − s∘a."""
        return take(a, s)

    def put_back(self, e: Tensor, s: Tensor, sent: Tensor, g: Aggregate) -> None:
        """What the sum g has dropped of ``sent`` goes back to ε, and counts as not sent (0)."""
        dropped = ~g.holds(s)
        e.scatter_(1, s, sent * dropped)
        sent.masked_fill_(dropped, 0)


def entries_sent(counts: Tensor, dim: int) -> tuple[int, int]:
    """Entries that each worker sent last round and entries of their sum; (0, 0) if it was dense."""
    sent, union = counts.tolist()
    return (0, 0) if sent == dim else (sent, union)


def densities(counts: Tensor, dim: int) -> dict[str, float]:
    """Last round's entries as fractions of d: those that each worker sent, and those of the sum."""
    sent, union = counts.tolist()
    return {"density": sent / dim, "density_union": union / dim}


def _nearest(value: float) -> int:
    """The nearest integer, halves up."""
    return int(value + 0.5)
