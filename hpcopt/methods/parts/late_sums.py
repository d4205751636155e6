"""Gradients that are late by a set number of rounds; those that arrive in one are applied as one sum."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from hpcopt.comm.ports import Ports
from hpcopt.math.optimizers import FirstOrderUpdate
from hpcopt.methods.parts.clock import Clock, DelayedSGDState, Due, Sizes
from hpcopt.methods.parts.delays import Arrival, Delays
from hpcopt.methods.parts.late_rates import LateRates
from hpcopt.problems.base import Draw, Problem

if TYPE_CHECKING:
    from hpcopt.config.methods.delayed import DelayedSGDTable


class LateSums(Clock):
    """ "exact" and "schedule". `apply` is collective, and opening it.

    Args:
        settings: which.
        problem: the workers here.
        rates: η.
        delays: of the settings.
        ports: of the run.
    """

    def __init__(
        self, settings: DelayedSGDTable, problem: Problem, rates: LateRates, delays: Delays, ports: Ports
    ) -> None:
        self._settings, self._problem, self._rates, self._delays = settings, problem, rates, delays
        self._reduce, self._sum = ports.reduce, ports.reduce.contribution(problem.dim)
        self._update = FirstOrderUpdate(settings)
        self._arrivals: list[Arrival] = []
        self._together, self._scale = False, 1.0
        self.sizes = Sizes(past=delays.longest, waiting=0, bins=delays.longest + 1)
        share, self._weights = problem.share, np.zeros(0)
        if settings.mode == "schedule":
            own = problem.weights.new_zeros(share.n, share.total)
            own[list(range(share.n)), list(share.workers)] = problem.weights
            self._weights = ports.reduce.scalars(own).numpy(force=True)

    def turns(self, state: DelayedSGDState) -> Iterator[Iterable[Due]]:
        """See `Clock`: one, with what arrives in this round."""
        self._arrivals, here = self._delays.at(state.round), self._problem.share.workers
        exact = self._settings.mode == "exact"
        # of all workers at one model: the sum of synchronous SGD, to the bit
        one_model = len({one.read for one in self._arrivals}) == 1
        self._together = exact and one_model and not self._settings.compensation
        # exact: Σ ω_n g_n; schedule: Σ N ω_n g_n, or Σ ω_n g_n / Σ ω_n
        if self._arrivals and not exact:
            mean = self._settings.aggregate == "mean"
            total = sum(float(self._weights[one.worker]) for one in self._arrivals)
            self._scale = 1 / total if mean else len(self._weights)
        yield [
            Due(one.worker - here.start, self._model(state, one.read), one.draw, one)
            for one in self._arrivals
            if one.worker in here and not self._together
        ]

    def put(self, state: DelayedSGDState, due: Due, gradient: Sequence[Tensor]) -> None:
        """See `Clock`: added to what the workers here give."""
        layout, strength = self._problem.layout, self._settings.compensation
        weight = self._scale * self._rates.slower(due.event.staleness) * float(self._problem.weights[due.i])
        parts = layout.tensors(self._sum.of(due.i))
        # λ g∘g∘(x_t − x_{t−τ})
        moved = layout.tensors(state.x - due.x) if strength else parts
        for part, piece, difference in zip(parts, gradient, moved, strict=True):
            if strength:
                piece = piece + strength * piece * piece * difference
            part.add_(piece, alpha=weight)

    def apply(self, state: DelayedSGDState) -> None:
        """See `Clock`."""
        # g ← Σ ω_n ∇f_n(x_{t−τ_n}) over those that arrive
        t, g = state.round, self._total(state) if self._arrivals else None
        # x_t is kept for as long as anybody may be late
        if len(state.past):
            state.past[t % len(state.past)] = state.x
        # x_{t+1} ← x_t − η · update(g)
        if g is not None:
            state.updates += 1
            number, rate = int(state.updates[:1].sum()), self._rates.base(state.L, t)
            self._update.step([state.x], [g], [state.m], [state.v], number, rate)
        for one in self._arrivals:
            state.counts[one.worker, one.staleness] += 1

    def _total(self, state: DelayedSGDState) -> Tensor:
        if not self._together:
            return self._sum.sum()
        first = self._arrivals[0]
        g = self._reduce.gradient(self._problem, self._model(state, first.read), Draw(first.draw))
        slower = self._rates.slower(first.staleness)
        return g.mul_(slower) if slower != 1 else g

    def _model(self, state: DelayedSGDState, read: int) -> Tensor:
        """x_read, (d,)."""
        return state.x if read == state.round else state.past[read % len(state.past)]
