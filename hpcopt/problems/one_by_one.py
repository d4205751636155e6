"""Problems that compute one worker after the other, or groups of them together where that is faster.

What is left to say is what one worker computes, and, where a problem can, what a group does.
"""

from __future__ import annotations

from abc import abstractmethod
from functools import cached_property, partial
from typing import TYPE_CHECKING, TypeVar

import torch

from hpcopt.math.flat import aligned, wave
from hpcopt.problems.base import Draw, Problem, row
from hpcopt.problems.choice import IN_TURN, KINDS, REFUSED, TOGETHER, alike, only_in_turn, ways_of
from hpcopt.problems.groups import FEWEST, Group, enough, group_of, in_groups, most_together

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence

    from torch import Tensor

    from hpcopt.problems.base import Part, Ready, Way

T = TypeVar("T")


class OneByOne(Problem):
    """Loops over the workers here; i counts them from 0, and a worker's model x is (d,).

    Attributes:
        stacks: whether there are `_losses_of`, `_gradient_of` and `_products_of`, in which a group computes
            together: X is (g, d), a row for each of its workers, or (d,) for all. They may raise
            `REFUSED` and have then changed nothing; workers are computed one by one from then on.
        ways_together: in which `_gradient_of` computes at models of the workers' own; at one model for all
            it is `TOGETHER`.
    """

    stacks = False
    ways_together: tuple[str, ...] = (TOGETHER,)
    _together: Mapping[str, str] = {}  # kind of work -> way
    _untried: frozenset[str] = frozenset()  # kinds for which no group was there to compare ways
    _products_tried = False

    @abstractmethod
    def _loss(self, i: int, x: Tensor, draw: Draw | None) -> Tensor:
        """f_i(x), a scalar."""

    @abstractmethod
    def _add_gradient(
        self, i: int, x: Tensor, draw: Draw | None, scale: float, out: Tensor, ready: Ready | None = None
    ) -> None:
        """out += scale · ∇f_i(x), (d,); may tell ``ready`` what of it is final."""

    @abstractmethod
    def _hvp(self, i: int, x: Tensor, v: Tensor, draw: Draw | None) -> Tensor:
        """∇²f_i(x) v, (d,)."""

    def _losses_of(self, group: Group, X: Tensor, draw: Draw | None) -> Tensor:
        """f_i(x_i) of a group, (g,)."""
        raise NotImplementedError

    def _gradient_of(
        self, group: Group, X: Tensor, draw: Draw | None, part: Part, scales: Tensor, way: str
    ) -> list[Tensor]:
        """scale_i · ∇f_i(x_i) of a group, as `Problem.stacked_gradient`; their sum, where X is (d,)."""
        raise NotImplementedError

    def _products_of(self, group: Group, X: Tensor, V: Tensor, draw: Draw | None, scales: Tensor) -> Tensor:
        """scale_i · ∇²f_i(x_i) v_i of a group, (g, d); their sum, where X and V are (d,)."""
        raise NotImplementedError

    def losses(self, X: Tensor, draw: Draw | None = None) -> Tensor:
        """See `Problem`."""
        losses: dict[int, Tensor] = {}

        def alone(i: int) -> None:
            losses[i] = self._loss(i, row(X, i), draw)

        def together(group: Group, _: str) -> Tensor:
            return self._losses_of(group, _rows(X, group), draw)

        for group, found in self._each("losses", draw, together, alone):
            losses.update(zip(group.workers, found, strict=True))
        return torch.stack([losses[i] for i in range(self.share.n)]) if losses else self._zeros(0)

    def gradients(
        self, X: Tensor, draw: Draw | None = None, *, weighted: bool = False, out: Tensor | None = None
    ) -> Tensor:
        """See `Problem`."""
        out = self._zeros(self.share.n, self.dim) if out is None else out
        scales = self._scales(weighted)

        def alone(i: int) -> None:
            self._add_gradient(i, row(X, i), draw, scales[i], out[i])

        def together(group: Group, way: str) -> list[Tensor]:
            factors = self._factors(group, weighted)
            return self._gradient_of(group, _rows_each(X, group), draw, "all", factors, way)

        for group, g in self._each("gradients", draw, together, alone, samples=1):
            for out_p, g_p in zip(self.layout.views(out).values(), g, strict=True):
                group.add(out_p, g_p)
        return out

    def total_gradient(
        self,
        X: Tensor,
        draw: Draw | None = None,
        *,
        out: Tensor | None = None,
        ready: Ready | None = None,
    ) -> Tensor:
        """See `Problem`; one by one, where somebody waits for what is ready."""
        out = self._zeros(self.dim) if out is None else out.zero_()
        weights, last = self._scales(True), self.share.n - 1

        def alone(i: int) -> None:
            self._add_gradient(i, row(X, i), draw, weights[i], out, ready if i == last else None)

        def together(group: Group, way: str) -> list[Tensor]:
            return self._gradient_of(group, _rows(X, group), draw, "all", self._factors(group, True), way)

        kind = "" if ready else "total_gradient" if X.ndim == 1 else "gradients"
        for _, g in self._each(kind, draw, together, alone, samples=1):
            for out_p, g_p in zip(self.layout.tensors(out), g, strict=True):
                out_p.add_(g_p if X.ndim == 1 else g_p.sum(0))
        return out

    def gradient(self, i: int, x: Tensor, draw: Draw | None, part: Part = "all") -> list[Tensor]:
        """See `Problem`."""
        self.samples += self.batch_rows(i, draw)
        out = torch.zeros_like(x)
        self._add_gradient(i, aligned(x), draw, 1.0, out)
        return self.layout.tensors(out, part)

    def groups(self, keys: Sequence[Hashable]) -> list[Group]:
        """See `Problem`."""
        return self._grouped(Draw(0), keys) if "gradients" in self._together else self._singles

    def stacked_gradient(self, group: Group, X: Tensor, draw: Draw, part: Part = "all") -> list[Tensor]:
        """See `Problem`."""

        def together(group: Group, way: str) -> list[Tensor]:
            return self._gradient_of(group, X, draw, part, self._factors(group, False), way)

        g = self._try("gradients", group, together)
        if g is None:
            return super().stacked_gradient(group, X, draw, part)
        self.samples += sum(self.batch_rows(i, draw) for i in group.workers)
        return g

    def hvps(self, X: Tensor, V: Tensor, draw: Draw | None = None, *, weighted: bool = False) -> Tensor:
        """See `Problem`."""
        out = self._zeros(self.share.n, self.dim)
        scales = self._scales(weighted)

        def alone(i: int) -> None:
            out[i].add_(self._hvp(i, row(X, i), row(V, i), draw), alpha=scales[i])

        def together(group: Group, _: str) -> Tensor:
            points = _rows_each(X, group), _rows_each(V, group)
            return self._products_of(group, *points, draw, self._factors(group, weighted))

        for group, found in self._each(self._products(draw), draw, together, alone, samples=2):
            group.add(out, found)
        return out

    def total_hvp(
        self, X: Tensor, V: Tensor, draw: Draw | None = None, *, out: Tensor | None = None
    ) -> Tensor:
        """See `Problem`."""
        out = self._zeros(self.dim) if out is None else out.zero_()
        weights = self._scales(True)

        def alone(i: int) -> None:
            out.add_(self._hvp(i, row(X, i), row(V, i), draw), alpha=weights[i])

        def together(group: Group, _: str) -> Tensor:
            return self._products_of(
                group, _rows(X, group), _rows(V, group), draw, self._factors(group, True)
            )

        for _, found in self._each(self._products(draw), draw, together, alone, samples=2):
            out.add_(found if X.ndim == 1 else found.sum(0))
        return out

    def ways(self) -> dict[str, dict[str, Way | None]]:
        """See `Problem`."""
        if not self.stacks or not enough(self.share.total):
            return {}
        kinds = {kind: self.ways_together if kind == "gradients" else (TOGETHER,) for kind in KINDS}
        if not self._able():
            return {kind: only_in_turn((IN_TURN, *ways)) for kind, ways in kinds.items()}
        largest = self._largest(self._grouped(Draw(0)), *KINDS)
        X = self._points(largest)
        found = {}
        for kind, ways in kinds.items():
            works = {way: partial(self._stacked, kind, way, X) for way in ways}
            works = {IN_TURN: partial(self._in_turn, kind, X)} | works
            found[kind] = ways_of(largest, works, self.buffers)
        return found

    def take(self, kind: str, way: str) -> None:
        """See `Problem`; Hessian-vector products are made together where gradients are."""
        kinds = (kind, "hvps") if kind == "gradients" and TOGETHER in self.ways_together else (kind,)
        way = IN_TURN if kind in self._untried else way
        self._separate(*kinds)
        if way != IN_TURN:
            self._together = {**self._together, **dict.fromkeys(kinds, way)}

    def _separate(self, *kinds: str) -> None:
        """Has these kinds of work done in turn from now on."""
        self._together = {kind: way for kind, way in self._together.items() if kind not in kinds}

    def _each(
        self,
        kind: str,
        draw: Draw | None,
        together: Callable[[Group, str], T],
        alone: Callable[[int], None],
        samples: int = 0,
    ) -> Iterable[tuple[Group, T]]:
        """What groups compute together, and has what workers compute alone computed.

        Args:
            kind: of work.
            draw: see `Problem`.
            together: computes a group of several workers in a way.
            alone: computes a worker.
            samples: gradients of a row that this takes.
        """
        for i in range(self.share.n) if samples else ():
            self.samples += samples * self.batch_rows(i, draw)
        if kind in self._together:
            return self._each_group(kind, draw, together, alone)
        for i in range(self.share.n):
            alone(i)
        return ()

    def _each_group(
        self,
        kind: str,
        draw: Draw | None,
        together: Callable[[Group, str], T],
        alone: Callable[[int], None],
    ) -> Iterator[tuple[Group, T]]:
        for group in self._groups(draw):
            found = self._try(kind, group, together)
            if found is not None:
                yield group, found
            else:
                for i in group.workers:
                    alone(i)

    def _try(self, kind: str, group: Group, together: Callable[[Group, str], T]) -> T | None:
        """What a group computes together; None where it does not, or cannot any more."""
        if len(group.workers) == 1 or kind not in self._together:
            return None
        try:
            return together(group, self._together[kind])
        except REFUSED:  # an operator that came later, or too little memory
            self._separate(kind)
            return None

    def _products(self, draw: Draw | None) -> str:
        """The kind of work of Hessian-vector products; ways are compared when they are first asked for."""
        kind = "hvps"
        if kind in self._together and not self._products_tried:
            self._products_tried = True
            largest = self._largest(self._groups(draw), kind)
            some = largest and largest.first(FEWEST)
            X = self._points(some)
            V = X.flip(0, 1)
            ones = self.weights.new_ones(len(X))

            def in_turn(group: Group) -> Tensor:
                each = enumerate(group.workers)
                return torch.stack([self._hvp(i, row(X, k), row(V, k), draw) for k, i in each])

            def together(group: Group) -> Tensor:
                return self._products_of(group, X, V, draw, ones)

            works = {IN_TURN: in_turn, TOGETHER: together}
            if some is None or kind in self._untried or TOGETHER not in alike(works, some, self.buffers):
                self._separate(kind)
        return kind

    def _largest(self, groups: Sequence[Group], *kinds: str) -> Group | None:
        """The largest group, in which ways are compared; where there is none, these kinds stay in turn."""
        largest = max(groups, key=lambda group: len(group.workers), default=None)
        if largest is None or len(largest.workers) == 1:
            self._untried |= {*kinds}
        return largest

    def _points(self, group: Group | None) -> Tensor:
        """Where ways are compared, (g, d): each worker at another point."""
        x, count = self.initial(), len(group.workers) if group else 0
        return x + torch.linspace(-2, 3, count).to(x)[:, None] * wave(x)

    def _in_turn(self, kind: str, X: Tensor, group: Group) -> Tensor:
        """Some work of a kind, one worker after the other."""
        if kind == "losses":
            return torch.stack([self._loss(i, row(X, k), Draw(0)) for k, i in enumerate(group.workers)])
        out = self._zeros(len(group.workers) if kind == "gradients" else 1, self.dim)
        for k, i in enumerate(group.workers):
            x = row(X, k) if kind == "gradients" else row(X, 0)
            self._add_gradient(i, x, Draw(0), 1.0, out[k % len(out)])
        return out

    def _stacked(self, kind: str, way: str, X: Tensor, group: Group) -> Tensor:
        """The same, in a way together."""
        n = len(group.workers)
        X = X[0] if kind == "total_gradient" else X[:n]
        if kind == "losses":
            return self._losses_of(group, X, Draw(0))
        g = self._gradient_of(group, X, Draw(0), "all", self._factors(group, False), way)
        return torch.cat([g_p.reshape(1 if X.ndim == 1 else n, -1) for g_p in g], 1)

    def _groups(self, draw: Draw | None) -> list[Group]:
        """Workers that are computed together."""
        rows = None if draw is None else (draw.rows,)
        if rows not in self._known:
            self._known[rows] = self._grouped(draw)
        return self._known[rows]

    def _grouped(self, draw: Draw | None, keys: Sequence[Hashable] | None = None) -> list[Group]:
        """Workers that may be computed together: of as many rows, and of one of ``keys``."""
        alike = [(self._alike(i, draw), keys and keys[i]) for i in range(self.share.n)]
        return in_groups(alike, lambda i: most_together(self._rows_in_pass(i, draw), self.dim))

    @cached_property
    def _singles(self) -> list[Group]:
        return [group_of([i]) for i in range(self.share.n)]

    @cached_property
    def _known(self) -> dict[tuple[int | None] | None, list[Group]]:
        """The groups of draws."""
        return {}

    def _able(self) -> bool:
        """Whether groups can compute together here, where the class `stacks`."""
        return True

    def _alike(self, i: int, draw: Draw | None) -> Hashable:
        """Workers of which this is the same may be in one group."""
        return self.batch_rows(i, draw)

    def _rows_in_pass(self, i: int, draw: Draw | None) -> int:
        """How many rows of worker i are in memory at once."""
        return self.batch_rows(i, draw)

    def _scales(self, weighted: bool) -> list[float]:
        """What each worker's number is multiplied by."""
        return self._weights if weighted else [1.0] * self.share.n

    @cached_property
    def _weights(self) -> list[float]:
        return self.weights.tolist()

    def _factors(self, group: Group, weighted: bool) -> Tensor:
        """The same of a group, (g,)."""
        return group.of(self.weights) if weighted else self.weights.new_ones(len(group.workers))


def _rows(X: Tensor, group: Group) -> Tensor:
    """Models of a group: (g, d), or X (d,) itself."""
    return group.of(X) if X.ndim > 1 else X


def _rows_each(X: Tensor, group: Group) -> Tensor:
    """Models of a group, (g, d)."""
    return group.of(X) if X.ndim > 1 else X.expand(len(group.workers), -1)
