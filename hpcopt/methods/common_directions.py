"""The true objective of a linear model, minimised over a few common directions; one pass per round.

Narkiss & Zibulevsky, "Sequential subspace optimization method for large-scale unconstrained problems", CCIT
559, Technion, 2005 (SESOP); Lee, Wang & Lin, "Limited-memory common-directions method for large-scale
optimization: convergence, parallelization, and distributed optimization", Math. Prog. Comp. 14, 2022.

symbol    name      shape        meaning
w         w         (d here,)    parameters, of every worker here its block of them
z = X w   z         (r,)         margins of the rows here
V         V         (d here, m)  kept directions: the last steps and the last −g/D
E = X V   E         (r, m)       their margins
D         D         (d,)         diagonal of the Hessian of f as it was some rounds ago, replicated
a                   (q,)         how far along each of the kept and the new directions

    f(w) = λ/2 ‖w‖² + Σ_p L_p(X_p w)

Margins are linear in w. Whoever keeps the margins E of directions V can minimise the true f over w + span V by
Newton's method in q unknowns, and sends q(q + 3)/2 numbers per Newton step, none of them as long as d. So one
pass, for the gradient, makes a round.

Why it converges: V has −g, so a round gains at least what a step along −g with an exact search gains: with
λ‖v‖² ≤ vᵀ∇²f v ≤ Λ‖v‖² the gap shrinks by 1 − λ/Λ or better, whatever d, N and the split of the rows are. The
last steps add what a conjugate-gradient method makes of them, −g/D what a diagonal preconditioner does; the step
is the best combination of all, at no further pass. w is a direction, too: its margins are there anyway.

Differs from Lee, Wang & Lin: −g/D and w are in the span; D is computed rarely; the small problem is solved by
Newton steps, each with a search on the true f, as long as they gain something, not by one of them. Eigenvalues
of the small matrix below 1e-9 of the largest are dropped; a plain step along −g is taken should that cost the
guarantee.
"""

from __future__ import annotations

from torch import Tensor

from hpcopt.comm.ports import Ports
from hpcopt.config.methods import CommonDirectionsTable
from hpcopt.methods.base import Method, StepInfo
from hpcopt.methods.parts.linear import linear
from hpcopt.methods.parts.span import Span, SpanState
from hpcopt.problems.base import Problem


class CommonDirections(Method[CommonDirectionsTable, SpanState]):
    """min f over w + span {−g, −g/D, w, the last steps and −g/D}."""

    model_field = "w"

    def prepare(self, problem: Problem) -> None:
        """See `Method`: only linear models have margins."""
        linear(problem, "common_directions")

    def start(self, problem: Problem, ports: Ports) -> SpanState:
        """See `Method`."""
        self._span = Span(self.settings, linear(problem, "common_directions"), ports.reduce, another=False)
        return SpanState(**self._span.begin())

    def step(self, state: SpanState) -> StepInfo:
        """One round: a gradient, the minimum over the span, what is kept of it."""
        # g = λ w + Σ X_pᵀ l'(z_p): one pass
        g = self._span.gradient(state)
        # D = λ + Σ (X_p∘X_p)ᵀ l''(z_p) once 4 passes are spent, then rarely: one pass
        self._span.refresh_diagonal(state)
        # V = [kept, −g, −g/D, w], E = X V
        self._span.take_gradient(state, g)
        # a = argmin f(w + V a), by Newton's method
        found = self._span.minimise(state)
        # w += V a, z += E a; V a and −g/D are kept in place of the oldest; every 20 rounds z = X w
        self._span.move(state, found)
        return StepInfo()

    def model(self, state: SpanState) -> Tensor:
        """w, (d,), put together. Collective."""
        return self._span.whole(state)
