"""DHO2: Newton's step along extreme eigenvectors of the Hessian, a first-order step in the rest of the space.

Sivan, Gabel & Schuster, "FOSI: Hybrid first and second order optimization", ICLR 2024, arXiv 2302.08484,
algorithm 2; Gu, You, Ren, Guo, Luo & Xia, "DHO2", arXiv 2505.00982, v2 with its outer steps (``admm``).

symbol  name  shape        meaning
x       x     (d,)         parameters, replicated: gradients need all of them
g             (d here,)    Σ ω_n ∇f_n(x; batch of worker n); admm: + π
V, λ    V     (d here, q)  eigenvectors and eigenvalues, see `hpcopt.methods.parts.curvature`
c             (q,)         Vᵀg; g_1 = V c is the gradient's part in the span of V, g_2 = g − g_1 the rest
η                          the base's learning rate
b       b     (q,)         s times g_1's momentum, heavy ball, as coefficients along V
m, v    m, v  (d here,)    the base's moments: heavy ball's of s g, so that b = Vᵀm, Adam's of g_2
h             (q,)         |λ|; admm: |λ + σ|; plus the damping, and not below the floor
α, s                       lengths of Newton's step and of the base's, see `hpcopt.methods.parts.hybrid`
π, z    pi, z (d here,)    admm: the multiplier, and x as it was after the last outer step (else empty)

A rank has slices of d/P of everything but x and the buffer in which gradients are added up. A round costs a
reduce-scatter and an allgather, as many bytes as the allreduce of a first-order method, and a sum of q
numbers (Adam: two); a refresh a pass for each product with the Hessian. With q = 0, and in the warm-up, a
round is one of `allreduce_sgd`, to the bit (to rounding with ``clip``).

Differs from FOSI: the warm-up has a learning rate of its own, for the base's later one may be too large
while the steep directions are still its; s multiplies the gradient, not the base's step, so that a momentum
keeps its length where s changes; heavy ball has one momentum, of which V b and the rest are those of g_1
and g_2, so that a round reads V twice. Where V changes, g_1's becomes what is in the new span, and g_2's
what is not. With ``alpha = "auto"`` there is no momentum along V. AdamW shortens all of x, and clipping all
of g, before it is split, and without π. Differs from DHO2: curvature is that of all workers' batches, not of
one's; V is spread over the ranks; outer steps are counted in rounds, and their multiplier may shrink or be
forgotten. ``concurrent`` (its v1) has the pairs of a snapshot of x computed
while rounds go on, on ranks of their own where the run has such, and takes them over a fixed number of
rounds later, so that neither who computes nor how fast changes the trajectory.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from hpcopt.comm.ports import Ports, Task
from hpcopt.config.methods.hybrid import DHO2Table
from hpcopt.math.lanczos import Eigenpairs
from hpcopt.math.optimizers import FirstOrderUpdate, learning_rate
from hpcopt.methods.base import Method, StepInfo
from hpcopt.methods.parts.curvature import Curvature, check
from hpcopt.methods.parts.hybrid import (
    FixedLengths,
    HybridState,
    Lengths,
    MeasuredLengths,
    Refreshes,
    first_lengths,
)
from hpcopt.methods.parts.spectra import AtOnce, OfSnapshots, Spectra, spectrum_task
from hpcopt.problems.base import Draw, Problem
from hpcopt.state import Group, replicated, sliced


@dataclass(kw_only=True)
class DHO2State(HybridState):
    """With the moments; for ADMM its multiplier and its anchor."""

    b: Tensor = replicated()
    m: Tensor = sliced()
    v: Tensor = sliced()
    pi: Tensor = sliced()
    z: Tensor = sliced()


class DHO2(Method[DHO2Table, DHO2State]):
    """The hybrid step on slices; it holds the pairs, where new ones come from, and how long steps are."""

    def prepare(self, problem: Problem) -> None:
        """See `Method`; raises `UserError` if there are fewer parameters than pairs, or no Hessian."""
        check(self.settings, problem)

    def start(self, problem: Problem, ports: Ports) -> DHO2State:
        """See `Method`."""
        settings = self.settings
        self._problem, self._reduce = problem, ports.reduce
        self._part = ports.reduce.contribution(problem.dim)
        own = ports.reduce.own(problem.dim)
        self._own = slice(own.start, own.stop)
        self._table = settings.first_order()
        self._base, self._adam = FirstOrderUpdate(self._table), settings.adaptive
        self._mu = 0.0 if settings.base == "sgd" else settings.momentum
        self._curvature = Curvature(settings, problem, ports.reduce, self._part)
        self._refreshes = Refreshes(settings, self._curvature.cost)
        if settings.alpha == "auto" and settings.pairs:
            self._lengths: Lengths = MeasuredLengths(
                settings, problem, ports.reduce, self._refreshes, self._curvature.whole
            )
        else:
            self._lengths = FixedLengths(settings, self._curvature)
        self._spectra: Spectra = AtOnce(self._curvature, self._refreshes)
        if settings.variant == "concurrent":
            task = spectrum_task(self._curvature, settings, problem, ports.reduce)
            self._spectra = OfSnapshots(settings, self._refreshes, problem, ports.reduce, ports.beside(task))
        x = problem.initial().clone()
        mine = x[self._own]
        m, v = self._base.moments(mine)
        outer = mine if settings.variant == "admm" else x[:0]
        pairs = self._curvature.begin(mine)
        b = x.new_zeros(settings.pairs)
        return DHO2State(
            x=x,
            b=b,
            m=m,
            v=v,
            pi=torch.zeros_like(outer),
            z=outer.clone(),
            lengths=first_lengths(),
            **pairs,
        )

    def beside(self, problem: Problem, ports: Ports) -> Task | None:
        """See `Method`: ``concurrent``'s eigenpairs."""
        settings, reduce = self.settings, ports.reduce
        if settings.variant != "concurrent":
            return None
        curvature = Curvature(settings, problem, reduce, reduce.contribution(problem.dim))
        return spectrum_task(curvature, settings, problem, reduce)

    def notes(self) -> list[str]:
        """See `Method`."""
        return self._refreshes.notes()

    def rehearse(self, state: DHO2State) -> None:
        """See `Method`: a refresh of which nothing is kept."""
        if self.settings.pairs:
            self._spectra.rehearse(state)

    def step(self, state: DHO2State) -> StepInfo:
        """One round; vectors are this rank's slices."""
        settings, x, V = self.settings, state.x[self._own], state.V
        # new V, λ of Σ ω ∇²f at x, or at a snapshot of it some rounds ago; concurrent: the next snapshot
        found = self._spectra.new(state)
        if found is not None:
            self._take_over(state, *found)
        self._spectra.ask(state)
        # how long both parts of a step are
        self._lengths.measure(state)
        # g ← Σ ω ∇f(x): half a pass
        g = self._part.add_gradients(self._problem, state.x, Draw(state.round)).scatter()
        if settings.clip:
            # g ← g min(1, clip/‖g‖)
            norm = self._reduce.slices((g @ g)[None]).sqrt()
            g.mul_((settings.clip / norm).clamp_(max=1.0))
        if settings.variant == "admm":
            # g ← g + π
            g.add_(state.pi)
        if int(state.refreshes) == 0:
            # the base alone: x ← x + base(g), at a rate of its own in the warm-up
            self._lengths.watch(state, g)
            self._first_order(state, x, g)
        else:
            h = self._curvatures(state)
            # c = Vᵀg; b ← μ b + s c
            c, s = self._lengths.split(state, g, h)
            state.b.mul_(self._mu).add_(c, alpha=s)
            newton = self._lengths.newton(state, c, state.b / s, h)
            if self._adam:
                if settings.weight_decay:
                    # x ← (1 − η λ) x, along V, too
                    x.mul_(1 - learning_rate(self._table, state.round) * settings.weight_decay)
                # d_2 = adam(g − V c), a change of x: from 0
                d2 = torch.zeros_like(x)
                self._first_order(state, d2, g.addmv_(V, c, alpha=-1))
                # x ← x + d_2 − V (Vᵀd_2 + α b/h)
                x.add_(d2).addmv_(V, self._curvature.along(state, d2).add_(newton), alpha=-1)
            else:
                # m ← μ m + s g; x ← x − η m + V (η b − α b/(s h)), where b = Vᵀm
                self._first_order(state, x, g.mul_(s))
                eta = learning_rate(self._table, state.round)
                x.addmv_(V, state.b.mul(eta).sub_(newton))
        if settings.variant == "admm":
            self._outer_step(state, x)
        # x, whole, from all slices: half a pass
        state.x.copy_(self._reduce.allgather(x, len(state.x)))
        return StepInfo()

    def _take_over(self, state: DHO2State, found: Eigenpairs, round: int) -> None:
        """The pairs of the x of a round; of g_1's momentum what is in the new span, of g_2's what is not."""
        along, V = self._curvature.along, state.V
        old = V @ state.b
        heavy = self.settings.base == "momentum"
        if heavy:
            # before the first refresh all of m is g_2's
            state.m.sub_(old)
        self._curvature.keep(state, found, round)
        state.b.copy_(along(state, old))
        if heavy:
            state.m.add_(V @ along(state, old - state.m))

    def _outer_step(self, state: DHO2State, x: Tensor) -> None:
        """Every c rounds after the warm-up: π, x and z."""
        settings, since = self.settings, state.round + 1 - self._refreshes.first
        if since <= 0:
            # z = x where the warm-up ends
            state.z.copy_(x)
        elif since % settings.outer_every == 0:
            # π ← (1 − damping) π, or 0 where π·(x − z) < 0
            moved = x - state.z
            state.pi.mul_(1 - settings.outer_damping)
            if settings.outer_reset and float(self._reduce.slices((state.pi @ moved)[None])) < 0:
                state.pi.zero_()
            # π ← π + σ (x − z); x ← x + π/σ; z = x
            state.pi.add_(moved, alpha=settings.sigma)
            x.add_(state.pi, alpha=1 / settings.sigma)
            state.z.copy_(x)

    def _first_order(self, state: DHO2State, x: Tensor, g: Tensor) -> None:
        """x ← x + base(g), and the base's moments."""
        settings = self.settings
        # concurrent: also while the first pairs are computed
        alone = state.round < self._refreshes.first or (settings.beside and not int(state.refreshes))
        warm = settings.warmup_lr is not None and alone
        self._base(x, g, state.m, state.v, state.round, lr=settings.warmup_lr if warm else settings.lr)

    def _curvatures(self, state: DHO2State) -> Tensor:
        """h, (q,), float64 on the CPU."""
        settings = self.settings
        shift = settings.sigma if settings.variant == "admm" else 0.0
        h = (state.eigenvalue[-1] + shift).abs() + settings.damping
        # of all that is known of the spectrum; no step where nothing curves
        return h.clamp(min=settings.floor * max(float(h.max()), float(state.beyond)) or math.inf)

    def metrics(self, state: DHO2State) -> dict[str, float]:
        """``spectrum_age``: rounds since the x that the eigenpairs are of, NaN before there are any."""
        never = int(state.refreshes) == 0
        return {"spectrum_age": math.nan if never else float(state.round - int(state.refreshed))}

    def groups(self, state: DHO2State) -> dict[str, Group]:
        """``spectrum``: eigenvalues and residuals of the last refreshes."""
        return self._curvature.groups(state)
