"""The trace of free workers that average with their neighbours, in an order in which it can be made again.

A worker's step needs what it averaged before, an average the neighbour's step whose model it takes. So what
can be computed next follows from the trace alone, on any number of ranks the same.

A round has the workers' steps of that round, and what is averaged after them: workers are not in the same
round at the same time, so some of it may have to wait for a model of a later one. Where the run was at rest,
all that was before is done.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from hpcopt.math.mixing import Mixing
from hpcopt.methods.parts.async_mixing import links
from hpcopt.methods.parts.stretch import APPLIED, Stretch, within

if TYPE_CHECKING:
    from hpcopt.storage.trace import Rows

Weights = Sequence[dict[tuple[int, int], float]]
"""of each step of a period: (origin, to) -> W_to,origin"""


class Step(NamedTuple):
    """A worker's.

    Attributes:
        worker: whose.
        number: which of the worker's, and so its mini-batch.
        round: when.
        late: of each worker that got the model then, how many it had not yet taken.
    """

    worker: int
    number: int
    round: int
    late: tuple[int, ...]


class Averaged(NamedTuple):
    """A neighbour's model, that of a step of the neighbour's, in a worker's average."""

    worker: int
    neighbour: int
    step: int
    weight: float


@dataclass
class Wave:
    """Steps that can be made at once, the models that somebody takes, and what can be averaged then.

    Attributes:
        steps: one of a worker's at most.
        taken: of these, whose model is averaged by anybody, (worker, number).
        averaged: in the order of each worker.
        spent: models (worker, number) that nobody takes any more.
    """

    steps: list[Step] = field(default_factory=list)
    taken: list[tuple[int, int]] = field(default_factory=list)
    averaged: list[Averaged] = field(default_factory=list)
    spent: list[tuple[int, int]] = field(default_factory=list)


class MixingWalk:
    """Through a stretch, round by round.

    Args:
        stretch: of workers with models of their own.
        mixing: W of each step.

    Raises:
        UserError: a row cannot be.

    Attributes:
        changes: the rounds in which anything happens.
        kept: models (worker, number) that are still to be taken.
    """

    def __init__(self, stretch: Stretch, mixing: Mixing) -> None:
        self._stretch, self._weights = stretch, [links(W) for W in mixing.matrices]
        graph = f'topology = "{mixing.topology}", mixing = "{mixing.weights}"'
        done = _checked(stretch, self._weights, graph)
        self._rows = [np.flatnonzero(done[:, 0] == n) for n in range(len(stretch.drawn))]
        self._averaged = [done[rows, 1:4].tolist() for rows in self._rows]
        self._made, self._done = stretch.drawn.tolist(), [0] * len(stretch.drawn)
        self._receivers = [Counter(origin for origin, _ in every) for every in self._weights]
        self._readers = Counter((m, step) for mine in self._averaged for _, m, step in mine)
        self.changes = np.unique(np.concatenate([made[:, 1] for made in stretch.gradients]))
        self.kept: set[tuple[int, int]] = set()

    def waves(self, round: int) -> Iterator[Wave]:
        """See `hpcopt.methods.parts.plan.Way`."""
        while True:
            wave = Wave()
            for n in range(len(self._made)):
                self._step(n, round, wave)
            for n in range(len(self._made)):
                self._average(n, wave)
            if not (wave.steps or wave.averaged):
                break
            yield wave
        if round == self._stretch.rounds.stop - 1:
            for n, mine in enumerate(self._averaged):
                if self._done[n] < len(mine):
                    this = self._rows[n][self._done[n]] == np.arange(len(self._stretch.applied))
                    text = "refers to the future: the model cannot be there before it is averaged itself"
                    self._stretch.refuse(APPLIED, this, text)

    def sizes(self) -> tuple[int, ...]:
        """How many models."""
        return (len(self.kept),)

    def _due(self, n: int) -> tuple[int, int] | None:
        """The model that a worker averages before its next step."""
        if self._done[n] == len(self._averaged[n]):
            return None
        made, neighbour, step = self._averaged[n][self._done[n]]
        return (neighbour, step) if made == self._made[n] else None

    def _step(self, n: int, round: int, wave: Wave) -> None:
        mine, number = self._stretch.gradients[n], self._made[n]
        at = number - int(self._stretch.drawn[n])
        if at == len(mine) or mine[at, 1] > round or self._due(n) is not None:
            return
        self._made[n] += 1
        there = self._receivers[number % len(self._receivers)][n]
        wave.steps.append(Step(n, number, int(mine[at, 1]), tuple(mine[at, 2 : 2 + there].tolist())))
        if self._readers[n, number]:
            wave.taken.append((n, number))
            self.kept.add((n, number))

    def _average(self, n: int, wave: Wave) -> None:
        """As many of a worker's as there are models."""
        while (model := self._due(n)) in self.kept:
            assert model is not None
            m, step = model
            wave.averaged.append(Averaged(n, m, step, self._weights[step % len(self._weights)][m, n]))
            self._done[n] += 1
            self._readers[model] -= 1
            if not self._readers[model]:
                self.kept.remove(model)
                wave.spent.append(model)


def _checked(stretch: Stretch, weights: Weights, graph: str) -> Rows:
    """What was averaged, (k, 5): worker, after how many of its steps, neighbour, its step, weight."""
    rounds = f"of rounds {stretch.rounds.start} to {stretch.rounds.stop - 1} only, and in order"
    for n, mine in enumerate(stretch.gradients):
        wrong = ~within(mine[:, 1], stretch.rounds) | (np.diff(mine[:, 1], prepend=0) < 0)
        stretch.refuse_of(n, wrong, rounds)
    worker, made, neighbour, step, weight = stretch.applied.T
    stretch.check_workers(APPLIED, worker)
    stretch.check_workers(APPLIED, neighbour)
    first, end = stretch.drawn, stretch.drawn + [len(mine) for mine in stretch.gradients]
    never = (
        (made < first[worker]) | (made > end[worker]) | (step < first[neighbour]) | (step >= end[neighbour])
    )
    stretch.refuse(APPLIED, never, "there are no such steps of these workers between two rests")
    for n in range(len(first)):
        rows = np.flatnonzero(worker == n)
        late = np.diff(made[rows], prepend=0) < 0
        stretch.refuse(APPLIED, late, "comes after what the worker averaged later", rows)
    pairs = zip(step % len(weights), neighbour.tolist(), worker.tolist(), strict=True)
    ours = np.array([weights[k].get((m, n), -1.0) for k, m, n in pairs], np.float64)
    stretch.refuse(APPLIED, ours.view(np.int64) != weight, f"was not averaged so on this graph: {graph}")
    return stretch.applied
