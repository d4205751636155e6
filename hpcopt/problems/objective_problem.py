"""The workers of an objective: their rows, mini-batches and numbers."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from hpcopt.errors import UserError
from hpcopt.math.fingerprint import digest, fingerprint
from hpcopt.math.flat import aligned, wave
from hpcopt.problems.base import Draw
from hpcopt.problems.batches import Batches
from hpcopt.problems.one_by_one import OneByOne

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from hpcopt.problems.base import Part, Ready, Share
    from hpcopt.problems.groups import Group
    from hpcopt.problems.objective import Objective


class ObjectiveProblem(OneByOne):
    """The workers here.

    Args:
        objective: what each of them computes.
        share: which they are.

    Raises:
        UserError: data, start and loss do not fit together.
    """

    stacks = True

    def __init__(self, objective: Objective, share: Share) -> None:
        rows = [objective.count_rows(worker, share.seed) for worker in range(share.total)]
        super().__init__(share, objective.layout, rows, objective.weights)
        self.objective = objective
        self._batches = Batches(share, self.rows.tolist(), objective.batch_size)
        self._data = [self._read(worker) for worker in share.workers]
        self._common = tuple(self._tensor(value) for value in objective.common(share.seed))
        self.settle(None)
        self._check()

    @cached_property
    def made_of(self) -> dict[str, Any]:
        """See `Problem`: what this rank would give worker 0, and what it makes of that."""
        rows = self._data[0] if 0 in self.share.workers else self._read(0)
        return (
            super().made_of
            | self.objective.made_of()
            | {
                "the rows of worker 0": digest([fingerprint(column) for column in rows]),
                "what all workers have in common": digest([fingerprint(thing) for thing in self._common]),
                "loss and gradient of worker 0 at some point": self._at_some_point(rows + self._common),
            }
        )

    def _at_some_point(self, data: tuple[Tensor, ...]) -> list[float]:
        x, g = wave(self.initial()), self._zeros(self.dim)
        try:
            loss = self.objective.loss(x, *data)
            self.objective.add_gradient(g, 1.0, x, *data)
        except (RuntimeError, ValueError):  # some know which parameters make sense
            return []
        return [float(loss.detach()), float(g.double().norm())]

    def initial(self) -> Tensor:
        """See `Problem`."""
        start = self._tensor(self.objective.initial(self.share.seed))
        return start.clone().to(self.share.dtype)  # who gets it may change it

    def batch_rows(self, i: int, draw: Draw | None) -> int:
        """See `Problem`."""
        return self._batches.count(i, draw)

    def statistics(self) -> Iterator[Tensor]:
        """ω_n / rows times those of the objective, (n, k) float64 on the CPU."""
        scales = self.weights.cpu().double() / self.rows
        # a rank without workers, too, has to know k
        found = [self.objective.statistics(*data) for data in self._data or [self._read(0)]]
        each = [[of] if isinstance(of, Tensor) else of for of in found if of is not None]
        for lines in zip(*each, strict=True):
            rows = torch.stack([line.cpu().double() for line in lines])
            yield rows[: self.share.n].mul_(scales[:, None])

    def settle(self, total: Tensor | None) -> None:
        """Asks the objective for its minimum; ``total`` is None before the sum."""
        minimum = self.objective.minimum(None if total is None else total.cpu().double())
        if minimum is not None:
            self.optimum = torch.as_tensor(minimum[0], dtype=torch.float64, device=self.share.device)
            self.optimal_value = float(minimum[1])

    def _loss(self, i: int, x: Tensor, draw: Draw | None) -> Tensor:
        return self.objective.loss(x, *self._batch(i, draw))

    def _add_gradient(
        self, i: int, x: Tensor, draw: Draw | None, scale: float, out: Tensor, ready: Ready | None = None
    ) -> None:
        self.objective.add_gradient(out, scale, x, *self._batch(i, draw))

    def _hvp(self, i: int, x: Tensor, v: Tensor, draw: Draw | None) -> Tensor:
        return self.objective.hvp(x, v, *self._batch(i, draw))

    def _losses_of(self, group: Group, X: Tensor, draw: Draw | None) -> Tensor:
        return self._map(self.objective.loss, group, draw, self._each_has(group, X))

    def _gradient_of(
        self, group: Group, X: Tensor, draw: Draw | None, part: Part, scales: Tensor, way: str
    ) -> list[Tensor]:
        g = self._map(self.objective.gradient, group, draw, self._each_has(group, X)) * scales[:, None]
        return self.layout.tensors(g if X.ndim > 1 else g.sum(0), part)

    def _products_of(self, group: Group, X: Tensor, V: Tensor, draw: Draw | None, scales: Tensor) -> Tensor:
        points = self._each_has(group, X), self._each_has(group, V)
        products = self._map(self.objective.hvp, group, draw, *points) * scales[:, None]
        return products if X.ndim > 1 else products.sum(0)

    def _map(self, of: Callable[..., Tensor], group: Group, draw: Draw | None, *points: Tensor) -> Tensor:
        """What the objective gives for each worker of a group, at points (g, d)."""
        columns = zip(*(self._rows(i, draw) for i in group.workers), strict=True)
        stacked = [torch.stack(column) for column in columns]
        return torch.vmap(lambda *args: of(*args, *self._common))(*points, *stacked)

    def _each_has(self, group: Group, X: Tensor) -> Tensor:
        return X if X.ndim > 1 else X.expand(len(group.workers), -1)

    def _batch(self, i: int, draw: Draw | None) -> tuple[Tensor, ...]:
        return self._rows(i, draw) + self._common

    def _rows(self, i: int, draw: Draw | None) -> tuple[Tensor, ...]:
        chosen = self._batches.select(i, draw)
        return self._data[i] if chosen is None else tuple(column[chosen] for column in self._data[i])

    def _read(self, worker: int) -> tuple[Tensor, ...]:
        return tuple(self._tensor(column) for column in self.objective.data(worker, self.share.seed))

    def _tensor(self, value: Any) -> Tensor:
        """On the share's device, floating-point numbers in its dtype, aligned by itself: see `base.row`."""
        if isinstance(value, Tensor):
            floating = value.is_floating_point()
            return aligned(value.detach().to(self.share.device, self.share.dtype if floating else None))
        array = np.asarray(value)
        dtype = self.share.dtype if array.dtype.kind == "f" else None
        return torch.tensor(array, dtype=dtype, device=self.share.device)

    def _check(self) -> None:
        kind, d, start = self.objective.kind, self.dim, self.initial()
        if start.shape != (d,):
            raise UserError(
                f"{kind}: the start has shape {tuple(start.shape)}, but the layout {d} parameters"
            )
        for worker, data, rows in zip(self.share.workers, self._data, self.rows.tolist(), strict=True):
            if any(len(column) != rows for column in data):
                lengths = ", ".join(str(len(column)) for column in data)
                raise UserError(f"{kind}: worker {worker} has {rows} rows, but its data have {lengths}")
        if not self.total_rows:
            raise UserError(f"{kind}: no worker has a row")
        if self.share.n:
            try:
                loss = self._loss(0, start, Draw(0))
                if not isinstance(loss, Tensor) or loss.shape != ():
                    raise UserError(f"{kind}: the loss must be a scalar tensor, the mean over the rows")
                self.objective.add_gradient(self._zeros(d), 1.0, start, *self._batch(0, Draw(0)))
            except (RuntimeError, ValueError, TypeError, IndexError) as error:
                shapes = ", ".join(
                    f"{tuple(column.shape)} {column.dtype}" for column in self._batch(0, Draw(0))
                )
                raise UserError(
                    f"{kind}: loss, gradient and data do not fit together: x ({d},), rows {shapes}: {error}"
                ) from error
