"""FADL's direction when it pays: `fadl` with approximation = "adaptive".

FADL's average d of what workers find on their own (`fadl`) is one more direction of the span over which
`common_directions` minimises the true f, at the price of a second pass. There it preconditions a method of
conjugate gradients, and the size of the step is no longer its business; and a round can do without it.

symbol    name      shape     meaning
w, z, V, E, D                 as in `common_directions`; V also has the last d
g         g         (d,)      ∇f(w)
d         d         (d,)      Σ_p n_p/n d_p, d_p from k conjugate-gradient iterations on worker p's model of f
k         plan[0]             those iterations
          plan[1]             rounds of kind A that are still to come
          plan[2]             how many there will be next time
          gains     (3, 2)    of the last three rounds: by how much f fell, and passes
‖g⁰‖      first     (1,)      norm of the first gradient, 0 before
ρ                             how much more the first Newton step promises with d than without it
q                             part of the gap that a pass of late closed
c         cost_ratio          what a round with d costs, in rounds without

Two kinds of rounds: A, without d, one pass; B, with it, two. One round A multiplies the gap to f* by 1 − q,
two by (1 − q)²; a round B costs the same two passes and multiplies it by 1 − ρ q. How much more it closes is
known for nothing: the fall that a Newton step promises is half its decrement hᵀK⁻¹h, and in a round with d
the small matrix K gives that without d, too, less a row and a column. So B pays where 1 − ρ q ≤ (1 − q)^c,

    ρ ≥ (1 − (1 − q)^c)/q,   which is 2 − q for c = 2.

q is how fast the gain per pass decays: what shrinks by 1 − q has differences that do so, too. Where d pays it
is asked for in the next round again, with twice the iterations; where it does not, later, each time after
twice as many rounds, and with half as many. f never rises, and the rate of `common_directions` holds, whose
directions are a part of the span.

Goes beyond FADL (Mahajan, Agrawal, Keerthi, Sellamanickam & Bottou, JMLR 19(74), 2018), where d is the whole
step, and beyond SESOP and common directions (Narkiss & Zibulevsky 2005; Lee, Wang & Lin, Math. Prog. Comp.
14, 2022), which have no d. Differs from FADL: a worker whose step is no descent gives nothing, and steps
weigh as much as their workers' rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from hpcopt.comm.ports import Reducer
from hpcopt.config.methods.linear import FADLTable
from hpcopt.math.span_newton import newton_step, without
from hpcopt.methods.base import StepInfo
from hpcopt.methods.parts.local_directions import LocalDirections
from hpcopt.methods.parts.span import Span, SpanState
from hpcopt.methods.parts.subspace import Found
from hpcopt.problems.linear_problem import LinearProblem
from hpcopt.state import replicated

TRIED = 3
"""rounds of kind B at the beginning"""
SOONEST, LATEST = 3, 24
"""rounds until d is asked for again"""
DEEPEST = 4
"""times the settings' iterations: the most that k becomes"""
FASTEST = 0.9
"""the largest q"""


@dataclass(kw_only=True)
class AdaptiveState(SpanState):
    """And what decides whether d is asked for."""

    plan: Tensor = replicated()
    gains: Tensor = replicated()
    first: Tensor = replicated()


class AdaptiveFADL:
    """What `FADL` holds where approximation = "adaptive".

    Args:
        settings: of the method.
        problem: the workers here.
        reduce: sums over all workers. Collective.
    """

    def __init__(self, settings: FADLTable, problem: LinearProblem, reduce: Reducer) -> None:
        self._settings = settings
        self._span = Span(settings, problem, reduce, another=True)
        self._local = LocalDirections(settings, problem, reduce, otherwise="nothing", combination="rows")

    def begin(self) -> AdaptiveState:
        """The state of round 0."""
        plan = torch.tensor([self._settings.inner_iterations, 0, SOONEST])
        gains, first = torch.zeros(TRIED, 2, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
        return AdaptiveState(**self._span.begin(), plan=plan, gains=gains, first=first)

    def step(self, state: AdaptiveState) -> StepInfo:
        """One round: a gradient, the workers' direction if it is asked for, the minimum over the span."""
        # g = λ w + Σ X_pᵀ l'(z_p): one pass
        g = self._span.gradient(state)
        # stop where ‖g‖ ≤ ε ‖g⁰‖
        if state.round == 0:
            state.first.copy_(g.norm())
        if float(g.norm()) <= self._settings.tolerance * float(state.first):
            return StepInfo(done=True)
        # D = λ + Σ (X_p∘X_p)ᵀ l''(z_p) once 4 passes are spent, then rarely: one pass
        self._span.refresh_diagonal(state)
        # V = [kept, −g, −g/D, w], E = X V
        self._span.take_gradient(state, g)
        # B: and d = Σ n_p/n d_p, d_p = k CG iterations on (λI + n/n_p X_pᵀ D_p X_p) d_p = −g: one pass
        k, wait, _ = state.plan.tolist()
        asked = state.round < TRIED or wait <= 0
        self._span.take_another(state, self._local.direction(state.z, g, k) if asked else None)
        # a = argmin f(w + V a), by Newton's method
        found = self._span.minimise(state)
        # w += V a, z += E a; V a, −g/D and d are kept in place of the oldest; every 20 rounds z = X w
        self._span.move(state, found, asked)
        # ρ ≥ (1 − (1 − q)^c)/q: stay in B; else A for some rounds
        self._decide(state, found, asked)
        return StepInfo(done=found.length == 0)

    def model(self, state: AdaptiveState) -> Tensor:
        """w, (d,), put together. Collective."""
        return self._span.whole(state)

    def _decide(self, state: AdaptiveState, found: Found, asked: bool) -> None:
        """What the next rounds are; from numbers that all ranks have."""
        state.gains[:-1] = state.gains[1:].clone()
        state.gains[-1, 0], state.gains[-1, 1] = found.gain, 1 + asked
        k, wait, later = state.plan.tolist()
        fewest = self._settings.inner_iterations
        if not asked:
            wait -= 1
        elif state.round >= TRIED - 1:
            if advantage(found) >= worth(closed(state.gains), self._settings.cost_ratio):
                k, wait, later = min(2 * k, DEEPEST * fewest), 0, SOONEST
            else:
                k, wait, later = max(k // 2, fewest), later, min(2 * later, LATEST)
        state.plan[0], state.plan[1], state.plan[2] = k, wait, later


def advantage(found: Found) -> float:
    """ρ: the first Newton step's decrement over what it is without d; 1 where there is none."""
    h, K = found.small.h, found.small.K
    whole, part = newton_step(h, K), without(h, K, len(h) - 1)
    return whole.decrement / part.decrement if part.decrement > 0 else 1.0


def closed(gains: Tensor) -> float:
    """q: the decay of the gain per pass over some rounds, (rounds, 2), from their gains and passes."""
    fall, passes = gains.T.tolist()
    elapsed = sum(passes) - (passes[0] + passes[-1]) / 2
    if not (fall[0] > 0 and fall[-1] > 0 and elapsed > 0):
        return 0.0
    rate = (fall[-1] / passes[-1]) / (fall[0] / passes[0])
    return min(max(1 - rate ** (1 / elapsed), 0.0), FASTEST)


def worth(q: float, c: float) -> float:
    """The ρ from which a round that costs c others pays: (1 − (1 − q)^c)/q."""
    return -math.expm1(c * math.log1p(-q)) / q if q > 0 else c
