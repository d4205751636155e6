"""How many entries of a gradient sparsifiers send, and which are the largest.

Density warm-up: Lin et al., "Deep gradient compression", ICLR 2018.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hpcopt.errors import UserError
from hpcopt.math.carried import CarriedLargest
from hpcopt.math.streams import stream

if TYPE_CHECKING:
    from hpcopt.config.methods.first_order import SparsifiedTable
    from hpcopt.math.flat import Layout


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
        self._parts = [CarriedLargest() for _ in count.sizes]

    def __call__(self, scores: Tensor, round: int) -> Tensor:
        """Where each row's k largest magnitudes are, (n, k) int64, ascending, of scores (n, d)."""
        chosen, start = [], 0
        for largest, size, k in zip(self._parts, self._count.sizes, self._count.parts(round), strict=True):
            chosen.append(largest(scores[:, start : start + size], k) + start)
            start += size
        return torch.cat(chosen, dim=1) if len(chosen) > 1 else chosen[0]


class Random:
    """Draws entries that are the same for all workers, of all parameters or of each tensor."""

    def __init__(self, count: EntryCount, seed: int) -> None:
        self._count, self._seed = count, seed

    def __call__(self, round: int) -> Tensor:
        """k entries, (k,) int64, ascending."""
        generator = stream(self._seed, "randomk", round)
        chosen, start = [], 0
        for size, k in zip(self._count.sizes, self._count.parts(round), strict=True):
            draw = generator.choice(size, k, replace=False, shuffle=False)
            chosen.append(torch.from_numpy(draw).sort().values + start)
            start += size
        return torch.cat(chosen)


def _nearest(value: float) -> int:
    """The nearest integer, halves up."""
    return int(value + 0.5)
