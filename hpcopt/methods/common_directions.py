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

Margins are linear in w. Whoever keeps the margins E of directions V can minimise the true f over w + span V
by Newton's method in q unknowns, and sends q(q + 3)/2 numbers per Newton step, but no vector. So one pass,
for the gradient, makes a round. Steps that are kept add to it what a conjugate-gradient method has of them,
−g/D what a diagonal preconditioner does, and w is there anyway, with its margins.

Why it converges: −g is a direction, so the first Newton step of a round promises at least what one along −g
alone does, ‖g‖⁴/gᵀ∇²f g ≥ ‖g‖²/Λ, where λ‖v‖² ≤ vᵀ∇²f v ≤ Λ‖v‖²; the search makes a part of that true which
depends on Λ/λ, and ‖g‖² ≥ 2λ (f − f*). So the gap shrinks in every round by a factor that depends on Λ/λ
alone: not on d, nor on N, nor on the split of the rows. f never rises.

Differs from Lee, Wang & Lin: −g/D and w are in the span; D is computed rarely; the small problem is solved by
several Newton steps, each with a search on the true f, as long as they gain something. Eigenvalues of the
small matrix below 1e-9 of the largest are dropped; should that cost the guarantee, the step is along −g.
"""

from __future__ import annotations

from torch import Tensor

from hpcopt.comm.ports import Ports
from hpcopt.config.methods.linear import CommonDirectionsTable
from hpcopt.methods.base import Method, StepInfo
from hpcopt.methods.parts.linear import linear, linear_in_double
from hpcopt.methods.parts.span import Span, SpanState
from hpcopt.problems.base import Problem


class CommonDirections(Method[CommonDirectionsTable, SpanState]):
    """min f over w + span {−g, −g/D, w, the last steps and −g/D}."""

    model_field = "w"

    def prepare(self, problem: Problem) -> None:
        """See `Method`: only linear models have margins; in double precision."""
        linear_in_double(problem, "common_directions")

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
        return StepInfo(done=found.length == 0)

    def model(self, state: SpanState) -> Tensor:
        """w, (d,), put together. Collective."""
        return self._span.whole(state)
