"""Gossip: workers with models of their own, which they average with their neighbours'; no centre.

symbol    name      shape     meaning
x_i       X         (n, d)    worker i's parameters
          M         (n, d)    its momentum (empty if there is none); never sent
φ_i       X[:, …]   (n, m)    the part of x_i that is mixed: all of it, but the representation in `deprl`
W                   (N, N)    mixing matrix of the round, see `hpcopt.math.mixing`
          before    (n, m)    φ just before it was last mixed (empty unless asked for)

All workers begin at the same point. Statistics of batch normalisation are those of the worker's own rows:
they are never sent, and the mean model is evaluated with their mean. Momentum is kept from round to round.

D-PSGD: Lian et al., "Can decentralized algorithms outperform centralized algorithms?", NeurIPS 2017, arXiv
1705.09056. Differs from the paper: several steps per round; they come first and are mixed too (adapt, then
combine), where the paper adds them to the mixed models, which is what ``overlap`` does: X ← W X + steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, TypeVar

import torch
from torch import Tensor

from hpcopt.comm.ports import Ports, Reducer
from hpcopt.config.methods import DPSGDTable, LocalStepsTable, LocalTable
from hpcopt.errors import UserError
from hpcopt.math.flat import buffer_of_rows
from hpcopt.math.mixing import check, mixing
from hpcopt.methods.base import Method, State, StepInfo, per_worker
from hpcopt.methods.own_steps import OwnSteps, Phase
from hpcopt.problems.base import Part, Problem


@dataclass
class PersonalState(State):
    """Models of the workers' own."""

    X: Tensor = per_worker()
    M: Tensor = per_worker()
    before: Tensor = per_worker()


S = TypeVar("S", bound=State)
P = TypeVar("P", bound=PersonalState)


class Personal(Method[S]):
    """What all methods share whose workers have models of their own, in the state's X."""

    model_field = "X"
    mixed: ClassVar[Part] = "all"
    """what workers mix, and are to agree on"""

    def _open(self, problem: Problem, ports: Ports) -> Tensor:
        """Keeps what is needed; gives X of round 0. Collective."""
        self._problem, self._reduce = problem, ports.reduce
        self._span = problem.layout.part(self.mixed)
        return rows_of(problem, problem.dim).copy_(problem.initial())

    def others(self, state: S) -> dict[str, Tensor]:
        """The mean of the workers' models, as "global"."""
        mean = mean_row(self._reduce, state.tensors()["X"][1], self._problem.share.total)
        return {"global": mean}

    def metrics(self, state: S) -> dict[str, float]:
        """``consensus``: the mean over the workers of ‖φ_i − φ̄‖²."""
        phi, N = state.tensors()["X"][1][:, self._span], self._problem.share.total
        mean = mean_row(self._reduce, phi, N)
        squares = [(phi_i - mean).square_().sum(dtype=torch.float64) for phi_i in phi]
        return {"consensus": float(mean_row(self._reduce, torch.stack(squares)[:, None], N))}


class PersonalSteps(Personal[PersonalState]):
    """And that make steps on their own."""

    def start(self, problem: Problem, ports: Ports) -> PersonalState:
        """See `Method`."""
        X = self._open(problem, ports)
        self._own = OwnSteps(problem, self.settings)
        self._own.assign([self._plan(i) for i in range(problem.share.n)], X, ports)
        M = rows_of(problem, problem.dim if self.settings.momentum else 0).zero_()
        kept = self._span.stop - self._span.start if getattr(self.settings, "before_mixing", False) else 0
        return PersonalState(0, X, M, X[:, self._span][:, :kept].clone())

    def _plan(self, i: int) -> list[Phase]:
        """What worker i (from 0 here) does in a round before it mixes."""
        return local_phase(self._own, i, self.settings)


class Local(PersonalSteps):
    """Every worker trains on its own rows, and nothing is ever sent: what has to be beaten."""

    table = LocalTable

    def step(self, state: PersonalState) -> StepInfo:
        """One round."""
        # x_i ← x_i − η ∇f_i(x_i), local_steps times
        self._own.make_all(state.X, state.M, state.round)
        return StepInfo()


class Mixed(Personal[S]):
    """And that mix them with their neighbours'."""

    needs_mean: ClassVar[bool] = False
    """whether W has to keep the mean over the workers"""
    _prepared: Problem | None = None

    def prepare(self, problem: Problem) -> None:
        """See `Method`.

        Raises:
            UserError: there is no such topology or mixing matrix, it never leads to agreement, or not to
                what the method needs.
        """
        self._prepared, settings, share = None, self.settings, problem.share
        self._mixing = mixing(
            settings.topology,
            settings.mixing,
            share.total,
            probability=settings.probability,
            seed=share.seed,
        )
        self._report = check(self._mixing)
        if not self._report.gap:
            raise UserError(
                f'mixing = "{settings.mixing}": workers would never agree: their weights go round in circles '
                "(|λ₂| = 1). Give some worker a weight of its own, in a weight file a line i i weight"
            )
        if self.needs_mean and not self._report.doubly_stochastic:
            raise UserError(
                f'mixing = "{settings.mixing}": the columns of W do not sum to 1, so mixing does not keep '
                "the mean, which this method needs to end in the right point; take metropolis or laplacian"
            )
        self._prepared = problem

    def notes(self) -> list[str]:
        """The graph, and how fast it mixes."""
        return [f"mixing: {self._report.description}"]

    def _open(self, problem: Problem, ports: Ports) -> Tensor:
        if self._prepared is not problem:  # a run has done so before: a large graph's spectrum takes seconds
            self.prepare(problem)
        X = super()._open(problem, ports)
        self._neighbours = ports.neighbours(X[0, self._span], self._mixing)
        return X


class Gossip(Mixed[PersonalState], PersonalSteps):
    """Own steps, then φ_i ← Σ_j W_ij φ_j."""

    def step(self, state: PersonalState) -> StepInfo:
        """One round."""
        phi = state.X[:, self._span]
        # with overlap: φ of the round's beginning goes to the neighbours
        sent = self._neighbours.begin(phi, state.round) if self.settings.overlap else None
        # x_i ← x_i − η ∇f_i(x_i), several times
        self._own.make_all(state.X, state.M, state.round)
        # φ_i ← Σ_j W_ij φ_j; with overlap: φ_i ← φ_i + Σ_j W_ij sent_j − sent_i
        if len(state.before[0]):
            state.before.copy_(phi)
        if sent is None:
            self._neighbours.mix(phi, state.round)
        else:
            self._neighbours.finish(phi, sent)
        return StepInfo()

    def others(self, state: PersonalState) -> dict[str, Tensor]:
        """And the workers' models before the last mixing, as "before_mixing"."""
        points = super().others(state)
        if len(state.before[0]):
            X = state.X.clone()
            X[:, self._span] = state.before
            points["before_mixing"] = X
        return points


class DPSGD(Gossip):
    """Decentralised SGD: everything is mixed."""

    table = DPSGDTable


def local_phase(own: OwnSteps, i: int, settings: LocalStepsTable) -> list[Phase]:
    """The local_steps or local_epochs of worker i (from 0 here), on all parameters."""
    count = own.count(i, settings.local_steps, settings.local_epochs)
    return [Phase({"all": settings.lr}, range(count), count)]


def rows_of(problem: Problem, d: int) -> Tensor:
    """Room for d numbers of each worker here, (n, d), rows aligned so that gradients need no copy."""
    return buffer_of_rows(problem.share.n, d, like=problem.initial())


def mean_row(reduce: Reducer, rows: Tensor, N: int) -> Tensor:
    """The mean of one row (m,) per worker over all N workers, from the (n, m) here. Collective."""
    part = rows.sum(0) if reduce.form == "sum" else rows.clone(memory_format=torch.contiguous_format)
    return reduce.scalars(part) / N
