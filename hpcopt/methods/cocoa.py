"""CoCoA+: workers ascend the dual of a linear model on their own rows; what they gain is added up.

Ma, Smith, Jaggi, Jordan, Richtárik & Takáč, "Adding vs. averaging in distributed primal-dual optimization",
ICML 2015; Smith, Forte, Ma, Takáč, Jordan & Jaggi, "CoCoA: a general framework for communication-efficient
distributed optimization", JMLR 18(230), 2018.

symbol    name     shape        meaning
w         w        (d,)         the model, Σ_i α_i x_i/λ, replicated
α_i       alpha    (r here,)    dual variables of a worker's rows
K                               workers that have rows
σ'                              γ K with γ = 1, for sums: as if the workers' rows were the same

    P(w) = λ/2 ‖w‖² + Σ_i l(w·x_i),   D(α) = −Σ_i l*(−α_i) − ‖Σ_i α_i x_i‖²/(2λ)
    P(w) ≥ P(w*) = D(α*) ≥ D(α)

A round costs one pass. P may rise in a round, D does not. ``duality_gap`` is P(w) − D(α), an upper bound of
P(w) − P(w*).

Differs from the papers: losses are summed, not averaged. The local solver is coordinate ascent (SDCA) in a
shuffled order, every row once per local pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from hpcopt.comm.ports import Ports
from hpcopt.config.methods.linear import CoCoATable
from hpcopt.math.streams import stream
from hpcopt.methods.base import Method, StepInfo
from hpcopt.methods.parts.linear import linear
from hpcopt.methods.parts.local_solvers import check_stochastic
from hpcopt.methods.parts.margin_line import MarginLine
from hpcopt.problems.base import Problem
from hpcopt.state import State, per_worker, replicated


@dataclass(kw_only=True)
class CoCoAState(State):
    """The model, and the dual variables of the rows here."""

    w: Tensor = replicated()
    alpha: Tensor = per_worker()


class CoCoA(Method[CoCoATable, CoCoAState]):
    """Local dual ascent, sums of what it moves the model by; one pass per round."""

    model_field = "w"

    def prepare(self, problem: Problem) -> None:
        """See `Method`; raises `UserError` if the problem is not linear, is on a GPU, or numba is missing."""
        linear(problem, "cocoa")
        check_stochastic(problem, f"local_passes = {self.settings.local_passes}")

    def start(self, problem: Problem, ports: Ports) -> CoCoAState:
        """See `Method`."""
        from hpcopt.math.compiled_rows import Rows

        self._problem, self._reduce = linear(problem, "cocoa"), ports.reduce
        self._sum = ports.reduce.contribution(problem.dim)
        self._line = MarginLine(self._problem, ports.reduce)
        self._rows = [Rows(*self._problem.rows_of_worker(i).arrays()) for i in range(problem.share.n)]
        self._squares = [rows.squares() for rows in self._rows]
        # σ' = γ K
        self._safe = float(ports.reduce.scalars((problem.rows > 0).double()[:, None]))
        w = problem.initial().clone()
        return CoCoAState(w=w, alpha=torch.zeros_like(self._problem.y))

    def step(self, state: CoCoAState) -> StepInfo:
        """One round: every worker's ascent, and their sum."""
        problem, w = self._problem, state.w
        gained = torch.empty_like(state.alpha)
        for i in range(problem.share.n):
            # Δα_p about argmax −Σ l*(−α_i − Δα_i) − w·X_pᵀΔα − σ'/(2λ) ‖X_pᵀΔα‖²
            span = problem.span(i)
            gained[span] = self._ascend(i, w, state.alpha[span].clone(), state.round)
        # w ← w + γ Σ X_pᵀ Δα_p/λ: one pass
        w.add_(self._sum.add_transposed(problem, gained).sum(), alpha=1 / problem.regularisation)
        # α ← α + γ Δα
        state.alpha.add_(gained)
        return StepInfo()

    def _ascend(self, i: int, w: Tensor, alpha: Tensor, round: int) -> Tensor:
        """What the dual variables of worker i gain, which is what ``alpha`` was; local."""
        from hpcopt.math.sdca import ascend

        problem, before = self._problem, alpha.clone()
        share, y = problem.share, problem.y[problem.span(i)]
        shuffled = stream(share.seed, "cocoa", share.workers[i], round)
        passes = [shuffled.permutation(len(y)) for _ in range(self.settings.local_passes)]
        scale = self._safe / problem.regularisation
        numbers = (y.numpy(), self._squares[i], alpha.numpy(), w.clone().numpy())
        ascend(self._rows[i], problem.loss, *numbers, np.concatenate(passes), scale)
        problem.samples += len(passes) * len(y)
        return alpha - before

    def metrics(self, state: CoCoAState) -> dict[str, float]:
        """``duality_gap``."""
        from hpcopt.math.sdca import conjugate

        problem, w = self._problem, state.w
        dual = problem.sums(problem.of_rows(partial(conjugate, problem.loss), state.alpha)[:, None])
        penalty = problem.regularisation / 2 * float(torch.dot(w, w))
        primal = self._line.value(w, problem.margins(w))
        return {"duality_gap": primal + float(self._reduce.scalars(dual)) + penalty}
