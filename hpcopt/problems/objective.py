"""A problem that is no network: what one worker computes. Imports no torch before it is bound."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from hpcopt.config.base import Count
from hpcopt.config.problems import ProblemTable
from hpcopt.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

    from hpcopt.math.flat import Layout
    from hpcopt.problems.base import Problem, Share


class Objective(ProblemTable):
    """A problem whose f_n is written as a function of one worker's parameters and rows.

    A subclass says what `data` and the `loss` of one worker are; its fields are keys of the [problem] table:

        import numpy as np
        import hpcopt

        class Ridge(hpcopt.Objective):
            \"\"\"f_n(x) = ‖A_n x - b_n‖² / D + λ ‖x‖².\"\"\"

            dim: int = 10
            \"\"\"parameters d\"\"\"
            rows_per_worker: int = 50
            \"\"\"rows D of each worker\"\"\"
            penalty: float = 0.1
            \"\"\"λ\"\"\"

            def data(self, worker, seed):
                generator = np.random.default_rng([seed, worker])
                A = generator.standard_normal((self.rows_per_worker, self.dim))
                return A, A.sum(1) + generator.standard_normal(self.rows_per_worker)

            def loss(self, x, A, b):
                return (A @ x - b).square().mean() + self.penalty * x.square().sum()

    Then ``hpcopt.run(method, Ridge(workers=4, dim=20), …)``, or in a config ``kind = "mine:Ridge"``,
    ``dim = 20``, and ``hpcopt init METHOD --problem mine:Ridge``. Everything else is optional. An objective
    does not change; what costs something may be kept in a `functools.cached_property`. A run that goes on
    has the same keys, but for ``batch_size``; a set ``fixed`` in the class says which if others may change.

    In what follows x and v are (d,) in the run's dtype and on its device, ``rows`` are the entries of `data`
    that belong to a mini-batch (to all rows of the worker at times), followed by what is in `common`.
    """

    batch_size: Count | Literal["full"] = "full"
    """rows per mini-batch and worker"""

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        """A run cannot change what its data and its losses depend on, unless the class says otherwise."""
        if "fixed" not in vars(cls):
            cls.fixed = frozenset(cls.model_fields) - {"kind", "batch_size"}

    def data(self, worker: int, seed: int) -> tuple[Any, ...]:
        """A worker's rows: a tuple of arrays, tensors or lists, one entry per row in each; () if it has none.

        Floating-point numbers get the run's dtype. They depend on the arguments alone, and `workers` is N.
        """
        return ()

    def count_rows(self, worker: int, seed: int) -> int:
        """How many rows any of the N workers has; to be overridden where it costs much to count `data`.

        Where it is, ranks are given about equal work, and else equal numbers of workers.
        """
        data: Any = self.data(worker, seed)
        if not isinstance(data, tuple | list):
            raise UserError(f"{self.kind}: data gave a {type(data).__name__}, not a tuple: (A, b), or (A,)")
        return len(data[0]) if data else 1

    def sizes_of_workers(self, seed: int) -> list[tuple[int, int]] | None:
        """See `hpcopt.problems.base.Recipe`; None where rows would have to be made in order to count them."""
        from hpcopt.problems.batches import sizes

        if type(self).count_rows is Objective.count_rows:
            return None
        return sizes([self.count_rows(worker, seed) for worker in range(self.workers)], self.batch_size)

    def common(self, seed: int) -> tuple[Any, ...]:
        """Arrays, tensors or lists that all workers have in common, kept once."""
        return ()

    def initial(self, seed: int) -> Any:
        """The start, (d,); zeros by default, of which there are ``dim``."""
        if "dim" not in type(self).model_fields:
            raise UserError(f"{self.kind}: has neither a key `dim` nor a start of its own")
        return [0.0] * vars(self)["dim"]

    @cached_property
    def layout(self) -> Layout:
        """Names and shapes of the parameters, and which are private; by default one, the whole start.

        Others are declared by ``Layout.of({"body": (9, 4), "head": (4,)}.items(), private=["head"])`` of
        `hpcopt.math.flat`, and ``self.layout.views(x)["body"]`` is one of them.
        """
        from hpcopt.math.flat import Layout

        return Layout.of([("x", (len(self.initial(0)),))])

    def loss(self, x: Tensor, *rows: Any, **_: Any) -> Tensor:
        """f_n(x), a mean over the rows: a scalar."""
        raise NotImplementedError("the class has no loss(self, x, *rows)")

    def gradient(self, x: Tensor, *rows: Any, **_: Any) -> Tensor:
        """∇f_n(x), (d,); by default what autograd makes of `loss`."""
        from torch.func import grad

        return grad(self.loss)(x, *rows)

    def add_gradient(self, out: Tensor, scale: float, x: Tensor, *rows: Any, **_: Any) -> None:
        """out += scale · ∇f_n(x); to be overridden where it matters how that is rounded."""
        out.add_(self.gradient(x, *rows), alpha=scale)

    def hvp(self, x: Tensor, v: Tensor, *rows: Any, **_: Any) -> Tensor:
        """∇²f_n(x) v, (d,); by default what autograd makes of `gradient`."""
        from torch.func import vjp

        product: Tensor = vjp(lambda at: self.gradient(at, *rows), x)[1](v)[0]
        return product

    def statistics(self, *rows: Any, **_: Any) -> Tensor | Iterable[Tensor] | None:
        """Sums over all rows of one worker, (k,), for `minimum`; None where it needs none.

        Where there are many, a generator may give them in pieces, of which all workers have one at a time.
        """
        return None

    def minimum(self, total: Tensor | None = None) -> tuple[Any, float] | None:
        """x*, (d,), and f(x*), where they are known.

        Args:
            total: Σ_n ω_n · `statistics` / rows over all N workers; None before they are summed.
        """
        return None

    def recipe(self) -> Objective:
        """The objective itself."""
        return self

    def bind(self, share: Share) -> Problem:
        """This process's part.

        Raises:
            UserError: data, start and loss do not fit together.
        """
        from hpcopt.problems.objective_problem import ObjectiveProblem

        return ObjectiveProblem(self, share)
