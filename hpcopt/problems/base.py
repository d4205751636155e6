"""The contract between a problem and everything else.

A *recipe* describes a problem for all N workers and is the same everywhere; ``recipe.bind(share)`` makes
the *problem*: the part of the workers that live in this process. The global objective is

    f(x) = Σ_n ω_n f_n(x),   Σ_n ω_n = 1,

and what a problem computes for one worker depends on the seed and on that worker alone, never on which
other workers share its process.

Symbols: N workers in all, n workers here, d parameters, ω_n the worker's weight.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch

from hpcopt.errors import UserError
from hpcopt.math.fingerprint import fingerprint, plain
from hpcopt.math.flat import aligned, buffer_of_rows
from hpcopt.problems.groups import group_of
from hpcopt.problems.words import Draw as Draw
from hpcopt.problems.words import Evaluation as Evaluation
from hpcopt.problems.words import Measures as Measures
from hpcopt.problems.words import Place as Place
from hpcopt.problems.words import Share as Share

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator, Sequence

    from torch import Tensor

    from hpcopt.math.flat import Layout
    from hpcopt.problems.groups import Group
    from hpcopt.problems.newcomers import Newcomers

Part = Literal["all", "shared", "private"]
Ready = Callable[[int, int], None]
Way = Callable[[], object]


class Recipe(Protocol):
    """The description of a problem for all workers; may have a ``default_dtype``, else that is float64.

    And ``sizes_of_workers(seed)``: of each of the N workers its training rows and how many of them are in a
    mini-batch, the same on every rank and before anything is bound. By these, ranks are given about equal
    work; without them, or where it gives None, equal numbers of workers.
    """

    @property
    def workers(self) -> int:
        """N."""

    def bind(self, share: Share) -> Problem:
        """This process's part. Raises `UserError` locally where the description cannot be met."""


class Problem(ABC):
    """The rank's share of a problem, stacked over its n workers, where n may be 0.

    A model X is (d,), one for all N workers and never copied n times, or (n, d), one of each worker here; a
    draw says which mini-batches, None for all rows. How the workers' numbers are computed is the problem's
    business: one by one, as `hpcopt.problems.one_by_one` does, or all at once.

    Attributes:
        share: which workers live here.
        layout: names, shapes and places of the parameters.
        weights: ω_n of the workers here, (n,).
        equal_weights: whether ω_n is the same for all N workers.
        rows: training rows of each worker here, (n,) int64.
        measures: what `evaluate` is to tell.
        test_rows: test rows of its own, (n,) int64; None where there are none.
        uneven: whether means over workers and over rows differ much: numbers of rows by more than one.
        counts: by what workers count, of all N of them: training rows, or 1, (N,) int64.
        total_rows: training rows of all N workers.
        samples: sample gradients computed here so far (a Hessian-vector product counts as two).
        scale: f is as many times what gradients and Hessian-vector products are of: the number of rows where
            f is a sum over rows, so that a learning rate means the same as for a mean.
        buffers: what is neither a parameter nor data, such as BatchNorm statistics: (n, b); part of the
            checkpoint, and averaged over workers before one model for all is evaluated.
        optimum: the known minimiser x*, (d,), or None.
        optimal_value: f(x*), or None.
        newcomers: workers that do not train, by whom the run's one model is evaluated too, or None.
        fixed: what a model has beside parameters and buffers (frozen ones, counts), the same for all workers:
            kind -> values (k,); checkpoints keep it, so that a model can be made of them.
    """

    optimum: Tensor | None = None
    optimal_value: float | None = None
    newcomers: Newcomers | None = None
    test_rows: Tensor | None = None
    measures: Measures = Measures()
    samples: int = 0
    scale: float = 1.0

    def __init__(
        self,
        share: Share,
        layout: Layout,
        rows: Sequence[int],
        weights: Literal["uniform", "rows"] = "uniform",
    ) -> None:
        """Sets what every problem has.

        Args:
            share: which workers live here.
            layout: of the parameters.
            rows: training rows of all N workers.
            weights: ω_n, equal or in proportion to the rows.
        """
        if len(rows) != share.total:
            raise UserError(f"[run] workers = {share.total}, but the problem has rows of {len(rows)} workers")
        self.share, self.layout = share, layout
        every = torch.tensor(rows, dtype=torch.int64)
        self._rows_of_all = fingerprint(every)
        self.rows = every[share.workers.start : share.workers.stop]
        self.total_rows = sum(rows)
        self.uneven = max(rows) > min(rows) + 1
        self.counts = counts = every if weights == "rows" else torch.ones_like(every)
        self.equal_weights = bool((counts == counts[0]).all())
        ours = counts[share.workers.start : share.workers.stop].double() / counts.double().sum()
        self.weights = ours.to(share.device, share.dtype)
        self.buffers = self._zeros(share.n, 0)

    @property
    def dim(self) -> int:
        """The number d of parameters."""
        return self.layout.dim

    @cached_property
    def made_of(self) -> dict[str, Any]:
        """What the problem is made of, by names in words, the same on every rank: texts, or lists of numbers.

        Ranks compare it before round 0, and a run that goes on with what it was begun with; lists are of
        computed numbers, which may differ by rounding. A subclass adds what else its numbers depend on, but
        for the start and what a run may change when it goes on. Raises `UserError` locally.
        """
        layout = self.layout
        return {
            "the parameters, by name and shape,": plain([layout.names, layout.shapes, layout.n_shared]),
            "how many rows each worker has": self._rows_of_all,
        }

    @property
    def fixed(self) -> dict[str, Tensor]:
        """See the class."""
        return {}

    @property
    def named(self) -> list[Place]:
        """Where everything that a model consists of stands, in the order of its state_dict."""
        layout = self.layout
        starts = accumulate(layout.sizes, initial=0)
        places = zip(layout.names, starts, layout.shapes, strict=False)
        return [Place(name, "model", start, shape) for name, start, shape in places]

    @abstractmethod
    def initial(self) -> Tensor:
        """The start, (d,), the same for all workers and on every rank; new memory, which may be changed."""

    @abstractmethod
    def batch_rows(self, i: int, draw: Draw | None) -> int:
        """How many rows worker i (from 0 here) uses in a draw."""

    def batches_per_epoch(self, i: int) -> int:
        """How many mini-batches worker i (from 0 here) has in an epoch."""
        return max(1, int(self.rows[i]) // max(1, self.batch_rows(i, Draw(0))))

    def rows_of(self, d: int) -> Tensor:
        """Room for d numbers of each worker here, (n, d), rows aligned so that gradients need no copy."""
        return buffer_of_rows(self.share.n, d, like=self.initial())

    def evaluate(self, X: Tensor, buffers: Tensor | None = None) -> Evaluation:
        """Training loss over all rows, and what else the problem can tell, per worker.

        By default ``loss``: f_n, with weight ω_n. On every rank the same names, also where n = 0; what
        `measures` does not ask for need not be there.

        Args:
            X: (d,), one model for all N workers, or (n, d), a model of each worker here.
            buffers: (b,) to use with one model in place of the workers' own.
        """
        result = Evaluation()
        if self.measures.train:
            losses = self.losses(X, self.measures.draw)
            result.add("loss", losses, self.weights, self.by_rows())
        return result

    def by_rows(self) -> Tensor | None:
        """The training rows of each worker here, (n,), where a mean by them is another one than by ω."""
        return self.rows if self.uneven and self.equal_weights else None

    def scores(self, X: Tensor, buffers: Tensor | None = None) -> dict[str, Tensor]:
        """What `score` needs for measures that are no mean over workers, such as the area under a curve.

        Args:
            X, buffers: as in `evaluate`.

        Returns:
            name -> (r, k) float64 on the CPU: numbers of each of the rows here, decision value and label,
            say, in the order of the workers. On every rank the same names and k, while r may be 0.
        """
        return {}

    def score(self, name: str, rows: Tensor) -> float:
        """The measure of a name in `scores` from the rows of all N workers, (R, k) in their order."""
        raise NotImplementedError

    @abstractmethod
    def losses(self, X: Tensor, draw: Draw | None = None) -> Tensor:
        """f_n at the worker's model on its mini-batch, (n,)."""

    @abstractmethod
    def gradients(
        self, X: Tensor, draw: Draw | None = None, *, weighted: bool = False, out: Tensor | None = None
    ) -> Tensor:
        """∇f_n of every worker here, or ω_n ∇f_n if ``weighted``, (n, d).

        Args:
            X, draw: see `Problem`.
            weighted: whether each is multiplied by its worker's weight.
            out: (n, d), to which they are added; zeros if None.
        """

    @abstractmethod
    def total_gradient(
        self,
        X: Tensor,
        draw: Draw | None = None,
        *,
        out: Tensor | None = None,
        ready: Ready | None = None,
    ) -> Tensor:
        """Σ ω_n ∇f_n over the workers here, (d,); needs memory for d numbers, not n·d.

        Args:
            X, draw: see `Problem`.
            out: (d,), overwritten; allocated if None.
            ready: called with ranges [start, stop) of ``out`` that have their final values, each element at
                most once, while the rest is still being computed; a problem need not.
        """

    @abstractmethod
    def gradient(self, i: int, x: Tensor, draw: Draw | None, part: Part = "all") -> list[Tensor]:
        """∇f_i, for methods whose workers make several steps on their own.

        Args:
            i: the worker, from 0 here.
            x: its model, (d,).
            draw: see `Problem`.
            part: all, only the shared, or only the private parameters.

        Returns:
            One new tensor for each parameter of the part, as `Layout.tensors`.
        """

    def groups(self, keys: Sequence[Hashable]) -> list[Group]:
        """All workers here, in groups whose gradients are computed together: see `stacked_gradient`.

        Args:
            keys: of each worker here; those of a group have the same.
        """
        return [group_of([i]) for i in range(self.share.n)]

    def stacked_gradient(self, group: Group, X: Tensor, draw: Draw, part: Part = "all") -> list[Tensor]:
        """The gradients of a group, for methods whose workers make several steps on their own.

        Args:
            group: one of `groups`.
            X: the models of its workers, (g, d).
            draw, part: as in `gradient`.

        Returns:
            One new tensor (g, *shape) for each parameter of the part, as `Layout.tensors`.
        """
        each = [self.gradient(i, x, draw, part) for i, x in zip(group.workers, X, strict=True)]
        return [torch.stack(g_p) for g_p in zip(*each, strict=True)]

    def ways(self) -> dict[str, dict[str, Way | None]]:
        """Kinds of work that can be done in several ways: kind -> way -> what to time.

        As `hpcopt.comm.ports.Ports.fastest` takes them; the same kinds and ways on every rank. The first way
        of each is how work is done until another one is taken.
        """
        return {}

    def take(self, kind: str, way: str) -> None:  # noqa: B027  (optional, like `ways`)
        """Takes the way in which a kind of work is done from now on."""

    @abstractmethod
    def hvps(self, X: Tensor, V: Tensor, draw: Draw | None = None, *, weighted: bool = False) -> Tensor:
        """Hessian-vector products ∇²f_n(x_n) v_n, or ω_n times them if ``weighted``, (n, d); V is as X."""

    @abstractmethod
    def total_hvp(
        self, X: Tensor, V: Tensor, draw: Draw | None = None, *, out: Tensor | None = None
    ) -> Tensor:
        """Σ ω_n ∇²f_n(x_n) v_n over the workers here, (d,), shapes as in `hvps`; ``out`` is overwritten."""

    def statistics(self) -> Iterator[Tensor]:
        """Numbers per worker whose sum over all N workers `settle` needs, piece by piece, (n, k) each.

        On every rank pieces of the same lengths k; none where it needs nothing.
        """
        yield from ()

    def settle(self, total: Tensor) -> None:  # noqa: B027  (optional, like `statistics`)
        """Takes the sums of `statistics` over all N workers, (Σ k,), once, before the start."""

    def _zeros(self, *shape: int) -> Tensor:
        return torch.zeros(shape, dtype=self.share.dtype, device=self.share.device)


def row(X: Tensor, i: int) -> Tensor:
    """Worker i's model, (d,): row i of X (n, d), or X (d,) itself. A view, or an aligned copy of that row.

    Rows of an (n, d) tensor are not aligned in general, and a worker's alignment would depend on its place in
    X; so one row at a time is copied where need be, and a worker's numbers are the same in any process.
    """
    return aligned(X[i] if X.ndim > 1 else X)
