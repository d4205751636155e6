"""FADL: workers minimise models of the whole objective, whose gradient is right; few rounds, heavy ones.

Mahajan, Agrawal, Keerthi, Sellamanickam & Bottou, "An efficient distributed learning algorithm based on
effective local functional approximations", JMLR 19(74), 2018; first as "A Parallel SGD Method with Strong
Convergence", arXiv 1311.0636.

symbol    name    shape     meaning
w         w       (d,)      the model, replicated
‖g⁰‖      first   (1,)      norm of the first gradient that was computed, 0 before
z, e              (r,)      margins X w and X d of the rows here
g                 (d,)      ∇f(w) = λw + Σ_p X_pᵀ l'(z_p)
d                 (d,)      Σ_p weight_p d_p, d_p what worker p finds from w with its model f̂_p of f
t                           the step along d

A round costs two sums of d numbers, for g and for d, and for each trial of t a sum of two numbers: margins
are linear in w, so f(w + t d) needs z + t e only. f̂_p and how it is minimised: `parts.local_models`,
`parts.local_directions`. With approximation = "adaptive" rounds are other ones: `fadl_adaptive`.

Differs from the paper: with unequal shards the number of nodes in f̂_p is the number of all rows over the
worker's. Wolfe's condition is the strong one. Margins of the new w are computed anew, so that they do not
drift from X w, and w is all there is to carry along. Where f is not lower there, in floating point, w stays
where it is and the run is done. The warm start is kept only if f is not larger there than at 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hpcopt.comm.ports import Ports
from hpcopt.config.methods.linear import FADLTable
from hpcopt.math.linesearch import search
from hpcopt.methods.base import Method, StepInfo
from hpcopt.methods.fadl_adaptive import AdaptiveFADL, AdaptiveState
from hpcopt.methods.parts.linear import linear, linear_in_double
from hpcopt.methods.parts.local_directions import LocalDirections
from hpcopt.methods.parts.local_solvers import check_stochastic
from hpcopt.methods.parts.margin_line import MarginLine
from hpcopt.problems.base import Problem
from hpcopt.state import State, replicated


@dataclass(kw_only=True)
class FADLState(State):
    """The model; and where the stopping rule counts from."""

    w: Tensor = replicated()
    first: Tensor = replicated()


class FADL(Method[FADLTable, FADLState | AdaptiveState]):
    """Averages of what workers make of their own models of f, and a search along them; two passes a round."""

    model_field = "w"

    def prepare(self, problem: Problem) -> None:
        """See `Method`; raises `UserError` if the problem is not linear, or has its rows on a GPU for SGD."""
        settings, problem = self.settings, linear(problem, "fadl")
        if settings.approximation == "adaptive":
            linear_in_double(problem, 'fadl with approximation = "adaptive"')
        if settings.inner_solver in ("svrg", "sgd"):
            check_stochastic(problem, f'inner_solver = "{settings.inner_solver}"')
        if settings.warm_start:
            check_stochastic(problem, f"warm_start = {settings.warm_start}")

    def start(self, problem: Problem, ports: Ports) -> FADLState | AdaptiveState:
        """See `Method`."""
        self._problem = linear(problem, "fadl")
        if self.settings.approximation == "adaptive":
            self._adaptive = AdaptiveFADL(self.settings, self._problem, ports.reduce)
            return self._adaptive.begin()
        self._gradient = ports.reduce.contribution(problem.dim)
        self._local = LocalDirections(self.settings, self._problem, ports.reduce)
        self._line = MarginLine(self._problem, ports.reduce)
        w = problem.initial().clone()
        self._known, self._z, self._f = w[:0], w[:0], 0.0
        return FADLState(w=w, first=w.new_zeros(1))

    def step(self, state: FADLState | AdaptiveState) -> StepInfo:
        """One round: the gradient, what the workers make of it, how far to go."""
        if isinstance(state, AdaptiveState):
            return self._adaptive.step(state)
        if state.round == 0 and self.settings.warm_start:
            return self._warm_start(state)
        problem, w = self._problem, state.w
        # z = X w, f(w): known from the last round, where there was one
        if not torch.equal(self._known, w):
            self._look(w)
        z, f = self._z, self._f
        # g = λw + Σ X_pᵀ l'(z_p)
        slopes = problem.of_rows(problem.loss.slope, z)
        g = self._gradient.add_transposed(problem, slopes).sum().add_(w, alpha=problem.regularisation)
        # stop where ‖g‖ ≤ ε ‖g⁰‖
        if self._small(g, state):
            return StepInfo(done=True)
        # d = Σ weight_p d_p, d_p from k̂ iterations on f̂_p, whose gradient at w is g
        d = self._local.direction(z, g, self.settings.inner_iterations, state.round)
        # e = X d
        e = problem.margins(d)
        # t with f(w + t d) ≤ f(w) + 1e-4 t g·d and |d/dt f(w + t d)| ≤ 0.9 |g·d|, from 1 on
        t = search(self._line.along(w, d, z, e), f, float(torch.dot(g, d)), patient=True).t
        # w ← w + t d, if f is lower there, z being X w and not z + t e
        self._look(torch.add(w, d, alpha=t))
        if self._f >= f:
            return StepInfo(done=True)
        w.copy_(self._known)
        return StepInfo()

    def _warm_start(self, state: FADLState) -> StepInfo:
        """The first round: each worker by itself, once."""
        self._look(state.w)
        f = self._f
        # w = Σ weight_p w_p, w_p from epochs of SGD on f_p, unless f is larger there
        self._look(self._local.warm_start(self.settings.warm_start).clone())
        if self._f <= f:
            state.w.copy_(self._known)
        return StepInfo()

    def _look(self, w: Tensor) -> None:
        """Computes z = X w and f(w), and keeps them; they follow from w, so are no part of the state."""
        self._known, self._z = w, self._problem.margins(w)
        self._f = self._line.value(w, self._z)

    def model(self, state: FADLState | AdaptiveState) -> Tensor:
        """w, (d,). Collective."""
        return self._adaptive.model(state) if isinstance(state, AdaptiveState) else state.w

    def _small(self, g: Tensor, state: FADLState) -> bool:
        """Whether ‖g‖ ≤ ε ‖g⁰‖; remembers ‖g⁰‖."""
        norm = float(g.norm())
        if float(state.first) == 0:
            state.first.fill_(norm)
        return norm <= self.settings.tolerance * float(state.first)
