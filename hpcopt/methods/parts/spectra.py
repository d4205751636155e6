"""Where new eigenpairs come from: x as it is, or a snapshot, of which they are computed beside the rounds.

A snapshot is taken in the round t in which pairs are due; its pairs are in use from round t + h on, until
then the last ones are. These and the snapshot are all that the computation begins with: a run that goes on
from a checkpoint asks again, and nothing but time depends on who computes, or when.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch

from hpcopt.comm.ports import Answer, Task
from hpcopt.math.lanczos import Eigenpairs

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from hpcopt.comm.ports import Beside, Reducer
    from hpcopt.config.methods.hybrid import DHO2Table
    from hpcopt.methods.parts.curvature import Curvature
    from hpcopt.methods.parts.hybrid import HybridState, Refreshes
    from hpcopt.problems.base import Problem


class Spectra(Protocol):
    """Where new eigenpairs come from."""

    def new(self, state: HybridState) -> tuple[Eigenpairs, int] | None:
        """Those to be in use from this round on, if there are any, and the round of their x. Collective."""

    def ask(self, state: HybridState) -> None:
        """Once these are taken over: has the next ones computed, where that goes on beside. Local."""

    def rehearse(self, state: HybridState) -> None:
        """Has pairs computed that nobody keeps. Collective."""


class AtOnce:
    """Of x, in the round in which they are due."""

    def __init__(self, curvature: Curvature, refreshes: Refreshes) -> None:
        self._curvature, self._refreshes = curvature, refreshes

    def new(self, state: HybridState) -> tuple[Eigenpairs, int] | None:
        """See `Spectra`."""
        return (self._found(state), state.round) if self._refreshes.due(state) else None

    def ask(self, state: HybridState) -> None:
        """See `Spectra`."""

    def rehearse(self, state: HybridState) -> None:
        """See `Spectra`."""
        self._found(state)

    def _found(self, state: HybridState) -> Eigenpairs:
        return self._curvature.pairs(state.x, state.V.sum(1), int(state.refreshes))


class OfSnapshots:
    """Of a snapshot, ``handover_rounds`` after it was taken; or once all ranks have them.

    Args:
        settings: when.
        refreshes: tells when pairs are due.
        problem: the workers here, whose samples are counted wherever they are used.
        reduce: sums over all workers.
        beside: computes `spectrum_task`.
    """

    def __init__(
        self, settings: DHO2Table, refreshes: Refreshes, problem: Problem, reduce: Reducer, beside: Beside
    ) -> None:
        self._settings, self._refreshes = settings, refreshes
        self._problem, self._reduce, self._beside = problem, reduce, beside
        own = reduce.own(problem.dim)
        self._own = slice(own.start, own.stop)
        self._under_way = False

    def new(self, state: HybridState) -> tuple[Eigenpairs, int] | None:
        """See `Spectra`."""
        taken = int(state.asked)
        if taken < 0:
            return None
        if not self._under_way:  # another process has asked
            self._hand_over(state)
        if not self._over(state.round - taken):
            return None
        self._under_way = False
        state.asked.fill_(-1)
        return self._take(), taken

    def ask(self, state: HybridState) -> None:
        """See `Spectra`."""
        if int(state.asked) < 0 and self._refreshes.due(state):
            state.snapshot.copy_(state.x[self._own])
            state.asked.fill_(state.round)
            self._hand_over(state)

    def rehearse(self, state: HybridState) -> None:
        """See `Spectra`."""
        self._beside.ask(torch.stack([state.x[self._own], state.V.sum(1)]), 0)
        self._take()

    def _over(self, age: int) -> bool:
        """Whether pairs of a snapshot of such an age, in rounds, are to be taken over. Collective."""
        here, h = self._beside.arrived(), self._settings.handover_rounds
        if h != "ready":
            return age >= h
        missing = torch.tensor([0.0 if here else 1.0], dtype=torch.float64)
        return float(self._reduce.slices(missing)) == 0

    def _hand_over(self, state: HybridState) -> None:
        self._beside.ask(torch.stack([state.snapshot, state.V.sum(1)]), int(state.refreshes))
        self._under_way = True

    def _take(self) -> Eigenpairs:
        answer = self._beside.take()
        self._problem.samples += answer.samples
        numbers, q = answer.numbers, answer.columns.shape[1]
        beyond, products = numbers[2 * q :].tolist()
        return Eigenpairs(numbers[:q], numbers[q : 2 * q], answer.columns, beyond, int(products))


def spectrum_task(curvature: Curvature, settings: DHO2Table, problem: Problem, reduce: Reducer) -> Task:
    """Eigenpairs of the Hessian, as `OfSnapshots` asks for them: x and the sum of the last vectors."""

    def compute(request: Tensor, number: int, going: Callable[[], None]) -> Answer:
        x = reduce.allgather(request[0], problem.dim)
        found = curvature.pairs(x, request[1], number, going)
        more = torch.tensor([found.beyond, found.products], dtype=torch.float64)
        return Answer(found.vectors, torch.cat([found.values, found.residuals, more]))

    q = settings.pairs
    return Task(problem.dim, rows=2, columns=q, numbers=2 * q + 2, compute=compute)
