"""Passes through a network: losses, gradients and Hessian-vector products, in turn and of groups."""

from __future__ import annotations

from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hpcopt.math.flat import aligned
from hpcopt.problems.choice import MAPPED, TOGETHER
from hpcopt.problems.one_by_one import OneByOne
from hpcopt.problems.rows import Rows, pieces, standardised

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator, Sequence

    from hpcopt.problems.base import Draw, Part, Ready
    from hpcopt.problems.batches import Batches
    from hpcopt.problems.flat_module import FlatModule, Forward
    from hpcopt.problems.groups import Group
    from hpcopt.problems.rows import Joined, WorkerRows
    from hpcopt.problems.seeds import Seeds
    from hpcopt.problems.stack import Batch, Stack

PIECE = 512
"""most rows that pass through the network at a time, unless its rows are coupled: bounds the memory"""


class NetworkPasses(OneByOne):
    """Training passes of the workers here. One module serves all: its parameters are views of a row of X."""

    stacks = True
    _module: FlatModule
    _stack: Stack
    _seeds: Seeds
    _batches: Batches
    _joined: Joined
    _data: list[WorkerRows]
    _moments: tuple[float, float]
    _spoils: bool = False  # passes change the rows that they are given
    _augment: Callable[[Tensor], Tensor] | None
    _objective: Callable[[Any, Tensor], Tensor]
    _adjustments: Tensor | None
    _decay: float
    _whole: bool  # the loss is no mean over rows
    _forward_over_reverse: bool | None = None  # decided by the first product

    @torch.no_grad()
    def _loss(self, i: int, x: Tensor, draw: Draw | None) -> Tensor:
        total, buffers, module = self._penalty(x), self.buffers[i].clone(), self._module
        module.point(x)
        module.train(True)
        with module.with_buffers(buffers), self._seeds.of(i, draw) as seeded:
            for piece, fraction in self._batch(i, draw):
                once = partial(self._batch_loss, module.module, piece, i)
                total = total + fraction * seeded.run(once, buffers, module.reopen)
        return total

    def _add_gradient(
        self, i: int, x: Tensor, draw: Draw | None, scale: float, out: Tensor, ready: Ready | None = None
    ) -> None:
        if self._decay:
            out.add_(x, alpha=scale * self._decay)
        self._module.point(x)
        with self._module.accumulating("all", out):
            self._backward(i, draw, scale, ready)

    def gradient(self, i: int, x: Tensor, draw: Draw | None, part: Part = "all") -> list[Tensor]:
        """See `Problem`."""
        self.samples += self.batch_rows(i, draw)
        x = aligned(x)
        self._module.point(x)
        with self._module.accumulating(part, None):
            self._backward(i, draw, 1.0, None)
            g = self._module.gradient(part)
        return self._decayed(g, x, part)

    @cached_property
    def ways_together(self) -> tuple[str, ...]:  # type: ignore[override]
        """See `OneByOne`; torch.vmap passes over the padding of the first worker alone (torch 2.13)."""
        layers = (m for m in self._module.module.modules() if isinstance(m, (nn.Embedding, nn.EmbeddingBag)))
        special = any(m.padding_idx is not None or m.scale_grad_by_freq for m in layers)
        return (MAPPED,) if special else (TOGETHER, MAPPED)

    def _able(self) -> bool:
        return not (self._seeds.used or self._whole)

    def _alike(self, i: int, draw: Draw | None) -> Hashable:
        return self._batches.alike(i, draw)

    @torch.no_grad()
    def _losses_of(self, group: Group, X: Tensor, draw: Draw | None) -> Tensor:
        self._module.train(True)
        named, buffers = self.layout.views(X), group.of(self.buffers).clone()

        def compute() -> Tensor:
            total = (0.5 * self._decay * X.square().sum(-1)).expand(len(group.workers))
            for batch, fraction in self._batches_of(group, draw):
                total = total + fraction * self._stack.losses(named, X.ndim > 1, buffers, batch)
            return total

        return self._seeds.refusing(compute)

    def _gradient_of(
        self, group: Group, X: Tensor, draw: Draw | None, part: Part, scales: Tensor, way: str
    ) -> list[Tensor]:
        self._module.train(True)
        buffers, batches = group.of(self.buffers).clone(), self._batches_of(group, draw)
        of = self._stack.mapped if way == MAPPED else self._stack.gradient
        g = self._seeds.refusing(lambda: of(X, buffers, batches, part, scales))
        self.buffers[group.at] = buffers
        return self._decayed(g, X, part, scales[:, None] if X.ndim > 1 else scales.sum())

    def _products_of(self, group: Group, X: Tensor, V: Tensor, draw: Draw | None, scales: Tensor) -> Tensor:
        self._module.train(True)
        buffers, batches = group.of(self.buffers), self._batches_of(group, draw)
        products = self._seeds.refusing(lambda: self._stack.products(X, V, buffers, batches, scales))
        return products.add_(V * (scales[:, None] if V.ndim > 1 else scales.sum()), alpha=self._decay)

    def _batches_of(self, group: Group, draw: Draw | None) -> Iterator[tuple[Batch, float]]:
        """The mini-batches of a group, as `_batch`."""
        numbers = self._batches.together(group.workers, draw)
        count, size = numbers.shape[1], self._rows_in_pass(group.workers[0], draw)
        for start in range(0, count, max(1, size)):
            some = numbers[:, start : start + size]
            yield self._batch_of(group, self._joined.at(group.workers, some)), some.shape[1] / count

    def _batch_of(self, group: Group | None, rows: Rows) -> Batch:
        """What `_loss_of` takes, of all workers of a group; None: logits are as they are."""
        batch = self._input(rows.features), rows.targets
        return batch if self._adjustments is None or group is None else (*batch, group.of(self._adjustments))

    def _input(self, features: Tensor) -> Tensor:
        """Features as the network takes them: not the workers' own, where passes change them."""
        taken = standardised(features, self._moments, self.share.dtype)
        return taken.clone() if self._spoils and taken is features else taken

    def _decayed(self, g: list[Tensor], x: Tensor, part: Part, scale: Tensor | float = 1.0) -> list[Tensor]:
        """g + scale · λ x, in place."""
        if self._decay:
            scaled = x if isinstance(scale, float) else x * scale
            for g_p, x_p in zip(g, self.layout.tensors(scaled, part), strict=True):
                g_p.add_(x_p, alpha=self._decay)
        return g

    def _backward(self, i: int, draw: Draw | None, scale: float, ready: Ready | None) -> None:
        """Adds scale · ∇(loss) to what accumulates."""
        module, buffers, left = self._module, self.buffers[i], 1.0  # of the batch
        module.train(True)
        with module.with_buffers(buffers), self._seeds.of(i, draw) as seeded:
            for piece, fraction in self._batch(i, draw):
                left -= fraction
                once = partial(self._batch_loss, module.module, piece, i)
                loss = seeded.run(once, buffers, module.reopen)
                if not loss.requires_grad:  # where the part has no influence on the output
                    continue
                scaled = loss if scale * fraction == 1 else loss * (scale * fraction)
                if ready is None or left >= 1e-9:
                    scaled.backward()
                else:
                    with module.telling(ready):
                        scaled.backward()

    def _hvp(self, i: int, x: Tensor, v: Tensor, draw: Draw | None) -> Tensor:
        if self._forward_over_reverse is None:
            try:
                product = self._product(i, x, v, draw, forward_over_reverse=True)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError:  # of which NotImplementedError is a kind: an operator has no such rule
                self._forward_over_reverse = False
            else:
                self._forward_over_reverse = True
                return product
        return self._product(i, x, v, draw, self._forward_over_reverse)

    def _product(self, i: int, x: Tensor, v: Tensor, draw: Draw | None, forward_over_reverse: bool) -> Tensor:
        product, buffers = self._decay * v, self.buffers[i]
        self._module.train(True)
        with self._module.with_buffers(buffers), self._seeds.of(i, draw) as seeded:
            for piece, fraction in self._batch(i, draw):
                loss = partial(self._batch_loss, piece=piece, i=i)
                of = partial(self._module.hvp, loss, x, v, forward_over_reverse)
                product.add_(seeded.run(of, buffers, self._module.reopen), alpha=fraction)
        return product

    def _batch_loss(self, forward: Forward, piece: Rows, i: int | None) -> Tensor:
        adjustment = () if self._adjustments is None or i is None else (self._adjustments[i],)
        return self._loss_of(forward, self._input(piece.features), piece.targets, *adjustment)

    def _loss_of(
        self, forward: Forward, features: Tensor, targets: Tensor, adjustment: Tensor | None = None
    ) -> Tensor:
        """The loss of a training pass on rows of one worker, of logits as it sees them."""
        output = forward(features if self._augment is None else self._augment(features))
        return self._objective(output if adjustment is None else output + adjustment, targets)

    def _adjusted(self, output: Tensor, i: int | None) -> Tensor:
        """Logits as worker i sees them; i = None: as they are."""
        return output if self._adjustments is None or i is None else output + self._adjustments[i]

    def _batch(self, i: int, draw: Draw | None) -> Sequence[tuple[Rows, float]]:
        """The mini-batch of a draw in pieces, each with its part of the batch."""
        rows, chosen = self._data[i].train, self._batches.select(i, draw)
        batch = rows if chosen is None else rows.at(chosen)
        size = max(1, self._rows_in_pass(i, draw))
        if 0 < len(batch) <= size:
            return [(batch, 1.0)]
        return [(piece, len(piece) / len(batch)) for piece in pieces(batch, size)]

    def _rows_in_pass(self, i: int, draw: Draw | None) -> int:
        count = self._batches.count(i, draw)
        return count if self._module.couples_rows or self._whole else min(count, PIECE)

    def _penalty(self, x: Tensor) -> Tensor:
        return 0.5 * self._decay * (x @ x)
