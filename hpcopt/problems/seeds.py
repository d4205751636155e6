"""Torch's generators during training passes: seeded by worker and draw where a pass draws from them.

Whether a pass draws nobody can read off a module; the generators' states before and after tell it. What draws
nothing needs no seed, which costs as much as half a small step. What begins to draw is seeded from its first
such pass on: that pass is made again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import torch

from hpcopt.math.streams import torch_seed

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from hpcopt.problems.base import Draw, Share

T = TypeVar("T")


class Seeds:
    """The generators that training passes of the workers here may draw from.

    Args:
        share: the workers here.

    Attributes:
        used: whether any pass has drawn so far; from then on all are seeded, which changes no others.
    """

    def __init__(self, share: Share) -> None:
        self.used = False
        self._share = share
        self._generators = [torch.default_generator]
        if share.device.type == "cuda":
            torch.cuda.init()  # before, there are no generators
            index = torch.cuda.current_device() if share.device.index is None else share.device.index
            # not torch.manual_seed, which would seed devices that are not restored
            self._generators.append(torch.cuda.default_generators[index])

    def of(self, i: int | None, draw: Draw | None) -> Seeded:
        """The passes of worker i (from 0 here; None: the first of all) in a draw, a context."""
        return Seeded(self, i, draw)

    def states(self) -> list[Tensor]:
        """Of the generators."""
        return [generator.get_state() for generator in self._generators]

    def restore(self, states: list[Tensor]) -> None:
        """Makes the generators what they were."""
        for generator, state in zip(self._generators, states, strict=True):
            generator.set_state(state)

    def drawn(self, since: list[Tensor]) -> bool:
        """Whether anybody has drawn since the generators had these states."""
        return not all(torch.equal(now, then) for now, then in zip(self.states(), since, strict=True))

    def refusing(self, compute: Callable[[], T]) -> T:
        """Passes of several workers at once, which nobody could seed.

        Raises:
            RuntimeError: they draw; the generators are what they were.
        """
        before = self.states()
        result = compute()
        if self.drawn(before):
            self.restore(before)
            self.used = True
            raise RuntimeError("a pass of several workers at once draws random numbers")
        return result

    def seed(self, i: int | None, draw: Draw | None) -> None:
        """Seeds the generators for passes."""
        at = () if draw is None else (draw.round, draw.step)
        worker = 0 if i is None else self._share.workers[i]
        seed = torch_seed(self._share.seed, "training", worker, *at)
        for generator in self._generators:
            generator.manual_seed(seed)


class Seeded:
    """Passes of one worker in a draw, one after the other; afterwards the generators are what they were."""

    def __init__(self, seeds: Seeds, i: int | None, draw: Draw | None) -> None:
        self._seeds, self._at = seeds, (i, draw)
        self._before: list[Tensor] | None = None

    def __enter__(self) -> Seeded:
        """Seeds, if any pass has ever drawn."""
        if self._seeds.used:
            self._seed(self._seeds.states())
        return self

    def __exit__(self, *_: object) -> None:
        """Restores."""
        if self._before is not None:
            self._seeds.restore(self._before)

    def run(self, compute: Callable[[], T], buffers: Tensor, reopen: Callable[[], None]) -> T:
        """One pass; made again, seeded, if it is the first to draw.

        Args:
            compute: the pass.
            buffers: what else the pass may change.
            reopen: see `FlatModule`.
        """
        seeds = self._seeds
        if self._before is not None:
            return compute()
        before, kept = seeds.states(), buffers.clone() if buffers.numel() else None
        result = compute()
        if seeds.drawn(before):
            seeds.restore(before)
            seeds.used = True
            self._seed(before)
            if kept is not None:
                buffers.copy_(kept)
                reopen()
            result = compute()
        return result

    def _seed(self, before: list[Tensor]) -> None:
        self._before = before
        self._seeds.seed(*self._at)
