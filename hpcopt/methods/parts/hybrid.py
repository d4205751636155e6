"""When eigenpairs are computed, and how long both parts of a hybrid step are: as told, or found out.

symbol  name    meaning
R               rounds that are planned
η, μ            the base's learning rate and momentum; where gradients are noise a step moves by η/(1 − μ)
c, h            Vᵀg and the curvatures along V, (q,)
s       scale   the base's step is that many times as long in the rest of the space
α       alpha   Newton's step is that part of itself along V
E               the energy of gradients: |g|² − |c|² in the rest, Σ c²/h along V
Δ               what the loss fell by while the rounds doubled
θ       beyond  the largest |eigenvalue| that is not among the pairs

**Refreshes.** Curvature changes with the logarithm of time: pairs are computed at rounds R/4ⁿ, …, R/16,
R/4, as many as a twentieth of R gradients pays for. A run that they do not help has lost no more than that.

**Lengths.** Where only noise is left, steps of a rate r along gradients of energy E keep the loss r E/4
above its minimum: SGD's stationary loss, for small steps. Newton's step has α in place of r, and Σ c²/h in
that of E. So much noise is worth having while the loss falls by as much: r = 4 Δ/E. What a run gains in a
doubling of its rounds falls about as 1/t, so in between both lengths do. At a doubling a length grows at
most fourfold, for E and θ are of the steps so far, and halves at most, for Δ has an error, unless E has
grown. The base's step is never shorter than by itself, nor longer than half of what heavy ball diverges
with along θ; Newton's is never longer than FOSI's. A gradient whose energy is above E makes its step so
much shorter.

Δ is measured on four mini-batches, always the same; E in the first ten rounds of a doubling, since where
both fall, as without additive noise, Δ is mostly of those.

All depends on the state and on sums over all workers: neither on the number of ranks nor on a clock.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from hpcopt.math.optimizers import learning_rate
from hpcopt.methods.parts.curvature import Curvature, CurvatureState, along
from hpcopt.problems.base import Draw
from hpcopt.state import replicated

if TYPE_CHECKING:
    from hpcopt.comm.ports import Reducer
    from hpcopt.config.methods.hybrid import DHO2Table
    from hpcopt.problems.base import Problem

SCALES = {"sgd": 3.0, "momentum": 3.0, "adam": 1.0, "adamw": 1.0}
"""by how much the base's step may be longer than by itself: FOSI's numbers"""
ALPHA = 0.1
"""Newton's step at most: FOSI's number; the pairs are those of a part of the rows, and get old"""
SHARE = 0.05
"""of the planned gradients, for curvature"""
APART = 4
"""how many times as many rounds there are at the next refresh; as good as 2, and half the price"""
FIRST = 10
"""rounds that a mean is taken of, and so before the first of all measurements"""
BATCHES = 4
"""mini-batches on which the loss is measured: fewer are too noisy for its fall"""
FASTER, SLOWER = 4.0, 2.0
"""by how much a length may grow and shrink in a doubling of the rounds"""
LOSS_COST = 1 / 3
"""of a loss, in gradients: a forward pass"""
SPAN, REST, COUNT, SPAN_THEN, REST_THEN, SCALE, STEP, LOSS, SINCE = range(9)
"""what `HybridState.lengths` holds: sums of E along V and in the rest, of so many rounds; from the last
measurement their means, s, α, the loss and the round"""


@dataclass(kw_only=True)
class HybridState(CurvatureState):
    """Parameters, eigenpairs, and what lengths are found from, (9,)."""

    x: Tensor = replicated()
    lengths: Tensor = replicated()


def first_lengths() -> Tensor:
    """`HybridState.lengths` of round 0; told lengths have it, too, for a run may go on with found ones."""
    lengths = torch.zeros(9, dtype=torch.float64)
    lengths[SCALE], lengths[STEP] = 1.0, ALPHA
    return lengths


class Refreshes:
    """In which rounds new pairs are computed.

    Args:
        settings: when, or of how many rounds a twentieth may be spent.
        cost: of a refresh, in gradients of a mini-batch.
    """

    def __init__(self, settings: DHO2Table, cost: float) -> None:
        self._settings, self._cost = settings, cost
        self.first = settings.rounds_alone
        """round of the first one; those before are the warm-up"""
        self._planned, affordable = settings.planned_rounds or 1, 1
        if settings.refresh_every == "auto":
            affordable = int((SHARE * self._planned - self._measuring(self._planned)) / cost)
            refreshes = max(0, min(affordable, int(math.log(self._planned, APART))))
            self.first = max(self.first, FIRST, math.ceil(self._planned / APART**refreshes))
        self.too_short = affordable < 1 and settings.pairs > 0
        """whether a twentieth of the planned rounds does not pay for a single one"""

    def due(self, state: CurvatureState) -> bool:
        """Whether this round begins with new pairs."""
        every, last, t = self._settings.refresh_every, int(state.refreshed), state.round
        never = int(state.refreshes) == 0
        if not self._settings.pairs or t < self.first:
            return False
        if every != "auto":
            return never or t >= last + every
        if not never and t < APART * last:
            return False
        # a run may be longer than was planned, and may have had more of them before
        rounds = max(self._planned, t)
        paid = (int(state.refreshes) + 1) * self._cost + self._measuring(rounds)
        return paid <= SHARE * rounds

    def notes(self) -> list[str]:
        """Tells where a run is too short for pairs."""
        if not self.too_short:
            return []
        return [
            f'refresh_every = "auto": a twentieth of {self._planned} rounds does not pay for eigenpairs that '
            f"cost {self._cost:.3g} gradients, so all of these are the base's alone (a smaller "
            "curvature_batch or fewer lanczos_iterations cost less)"
        ]

    def _measuring(self, rounds: int) -> float:
        """What the losses cost by which lengths are found, in gradients."""
        if self._settings.alpha != "auto":
            return 0.0
        return LOSS_COST * BATCHES * (2 + math.log2(max(rounds / FIRST, 1)))


class Lengths(Protocol):
    """How long both parts of a step are."""

    def measure(self, state: HybridState) -> None:
        """At the beginning of a round, after a refresh: what has to be measured at x. Collective."""

    def watch(self, state: HybridState, g: Tensor) -> None:
        """Sees this rank's slice of a gradient before there are pairs. Collective."""

    def split(self, state: HybridState, g: Tensor, h: Tensor) -> tuple[Tensor, float]:
        """c = Vᵀg, (q,), and s. Collective.

        Args:
            state: with V.
            g: this rank's slice of the gradient.
            h: curvatures along V, (q,), float64.
        """

    def newton(self, state: HybridState, c: Tensor, b: Tensor, h: Tensor) -> Tensor:
        """Newton's step along V, (q,), but for its sign; b is c with momentum."""


class FixedLengths:
    """FOSI's: α as the settings say, and s by how far the k largest eigenvalues are apart."""

    def __init__(self, settings: DHO2Table, curvature: Curvature) -> None:
        self._settings, self._curvature = settings, curvature

    def measure(self, state: HybridState) -> None:
        """See `Lengths`."""

    def watch(self, state: HybridState, g: Tensor) -> None:
        """See `Lengths`."""

    def split(self, state: HybridState, g: Tensor, h: Tensor) -> tuple[Tensor, float]:
        """See `Lengths`: s = clip(λ_1/λ_k, 1, 3)."""
        c = self._curvature.along(state, g)
        largest = state.eigenvalue[-1, self._settings.smallest :].tolist()
        if len(largest) < 2 or largest[0] <= 0:
            return c, 1.0
        return c, max(1.0, min(largest[-1] / largest[0], SCALES[self._settings.base]))

    def newton(self, state: HybridState, c: Tensor, b: Tensor, h: Tensor) -> Tensor:
        """See `Lengths`: α b/h."""
        return float(self._settings.alpha) * b / h.to(b)


class MeasuredLengths:
    """See this file's docstring; without a momentum along V, which α would have to know of."""

    def __init__(
        self, settings: DHO2Table, problem: Problem, reduce: Reducer, refreshes: Refreshes, whole: bool
    ) -> None:
        self._settings, self._problem, self._reduce = settings, problem, reduce
        # of all rows there is one loss; and nobody needs one long before there are pairs
        self._batches = 1 if whole else BATCHES
        first = refreshes.first
        self._from = first if refreshes.too_short else 0 if first <= FIRST else first // 2
        self._mu = settings.momentum if settings.base == "momentum" else 0.0
        # a rate per gradient -> s; Adam's step is not one along the gradient
        self._per_rate = 0.0 if settings.adaptive else (1 - self._mu) / settings.lr

    def measure(self, state: HybridState) -> None:
        """See `Lengths`: at round 0, or half-way to the first refresh, then after twice as many rounds."""
        t, now = state.round, state.lengths
        if t < self._from or 0 < t < max(FIRST, 2 * float(now[SINCE])):
            return
        loss = self._loss(state.x)
        if now[COUNT]:
            # r = 4 Δ/E
            fall = max(0.0, float(now[LOSS]) - loss)
            span, rest = (float(now[i] / now[COUNT]) for i in (SPAN, REST))
            rate, step = (4 * fall / energy if energy > 0 else math.inf for energy in (rest, span))
            scale, alpha = float(now[SCALE]), float(now[STEP])
            scale = _near(rate * self._per_rate, scale, _longer(rest, now[REST_THEN]))
            now[SCALE] = max(1.0, min(scale, self._limit(state)))
            now[STEP] = min(ALPHA, _near(step, alpha, _longer(span, now[SPAN_THEN])))
            now[[SPAN_THEN, REST_THEN]] = torch.tensor([span, rest], dtype=now.dtype)
        now[LOSS], now[SINCE] = loss, t
        now[[SPAN, REST, COUNT]] = 0.0

    def watch(self, state: HybridState, g: Tensor) -> None:
        """See `Lengths`."""
        if state.round >= self._from and state.lengths[COUNT] < FIRST:
            # V is zero
            self.split(state, g, torch.ones(state.V.shape[1], dtype=torch.float64))

    def split(self, state: HybridState, g: Tensor, h: Tensor) -> tuple[Tensor, float]:
        """See `Lengths`."""
        # c and |g|² in one sum
        sums = self._reduce.slices(torch.cat([along(state.V, g), (g @ g)[None]]))
        c, now = sums[:-1], state.lengths
        c64 = c.to(h)
        span, rest = float(c64 @ (c64 / h)), float(sums[-1]) - float(c64 @ c64)
        if now[COUNT] < FIRST:
            now[[SPAN, REST, COUNT]] += torch.tensor([span, rest, 1.0], dtype=now.dtype)
        return c, max(1.0, float(now[SCALE]) * self._later(state) / _longer(rest, now[REST_THEN]))

    def newton(self, state: HybridState, c: Tensor, b: Tensor, h: Tensor) -> Tensor:
        """See `Lengths`: α c/h, but no shorter than the base's own step where that is below Newton's α."""
        now, c64 = state.lengths, c.to(h)
        alpha = torch.full_like(h, float(now[STEP]) * self._later(state))
        if self._per_rate:
            alpha = torch.maximum(alpha, (h / self._per_rate).clamp(max=ALPHA))
        # where a schedule wants less noise of the base, it does so here
        alpha *= learning_rate(self._settings, state.round) / self._settings.lr
        alpha /= _longer(float(c64 @ (c64 / h)), now[SPAN_THEN])
        return (alpha * c64 / h).to(c)

    def _later(self, state: HybridState) -> float:
        """By how much a length has shrunk since it was found, as 1/t."""
        return (float(state.lengths[SINCE]) or state.round or 1) / (state.round or 1)

    def _limit(self, state: HybridState) -> float:
        """The largest s: heavy ball diverges where s η θ = 2 (1 + μ)."""
        theta = float(state.beyond) * self._settings.lr
        return (1 + self._mu) / theta if theta > 0 else math.inf

    def _loss(self, x: Tensor) -> float:
        problem = self._problem
        losses = torch.stack([problem.losses(x, Draw(number)) for number in range(self._batches)]).mean(0)
        # of what gradients are of
        return float(self._reduce.scalars((losses * problem.weights)[:, None])) / problem.scale


def _longer(energy: float, then: Tensor) -> float:
    """How many times as large an energy is as its mean was, if that is known; at least 1."""
    return max(1.0, energy / float(then)) if then > 0 else 1.0


def _near(length: float, before: float, longer: float) -> float:
    """A length that differs little enough from the one before: no less than half, with the same energy."""
    return max(before / SLOWER / longer, min(length, before * FASTER))
