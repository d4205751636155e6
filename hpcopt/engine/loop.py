"""The one loop."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from hpcopt.control.wishes import Stop
from hpcopt.engine.meter import FILES, Clock, Costs
from hpcopt.engine.record import Record, Recorder

if TYPE_CHECKING:
    from hpcopt.config.run import RunTable
    from hpcopt.engine.build import Built
    from hpcopt.engine.meter import Totals
    from hpcopt.engine.own_metrics import Metric
    from hpcopt.methods.base import Method

ROUNDS, METHOD, TIME, TARGET = "rounds", "method", "max_seconds", "target_loss"
"""why a run is over"""
SIGNAL, NOT_FINITE = "signal", "not finite"
"""why it ends before that"""
REASONS = {Stop.NO: "", Stop.TIME: TIME, Stop.SIGNAL: SIGNAL}


class Host(Protocol):
    """What surrounds the loop: a job with files and signals, or a process that keeps records in memory."""

    def beat(self, where: str) -> None:
        """There is progress; what comes next."""

    def made(self, round: int) -> None:
        """A round is made."""

    def stop(self, round: int, late: bool, wish: int | None) -> Stop:
        """Whether to stop early, the same on every rank. Collective, but where a wish is given.

        Args:
            round: just made.
            late: this rank's clock has passed max_seconds.
            wish: what all ranks wish, where the round has brought it; see `hpcopt.methods.base.StepInfo`.
        """

    def keep(self, record: Record) -> None:
        """Takes a record. Collective."""

    def save(self) -> None:
        """Writes a checkpoint, where there are files. Collective."""


@dataclass(frozen=True)
class Run:
    """What the loop moves.

    Attributes:
        settings: of the [run] table.
        method, state: whose rounds are made.
        recorder: makes the records.
        spent: on the optimisation clock of earlier jobs [s].
        watched: names of the state's tensors that are finite where the job begins, and are to stay so.
    """

    settings: RunTable
    method: Method[Any, Any]
    state: Any
    recorder: Recorder
    spent: float = 0.0
    watched: frozenset[str] = frozenset()

    @classmethod
    def of(cls, built: Built, metrics: Mapping[str, Metric], before: Totals | None = None) -> Run:
        """A run that was built, with the user's own metrics, by name, and with what earlier jobs cost."""
        costs = Costs(built.ranks, built.problem, built.ports, Clock(built.problem.share.device), before)
        wanted = built.config.run.evaluate
        recorder = Recorder(built.ranks, built.problem, built.method, built.ports, costs, metrics, wanted)
        spent = before.seconds if before is not None else 0.0
        tensors = built.state.tensors().items()
        watched = frozenset(name for name, (_, tensor) in tensors if bool(tensor.isfinite().all()))
        return cls(built.config.run, built.method, built.state, recorder, spent, watched)

    @property
    def clock(self) -> Clock:
        """The optimisation clock, and what it does not count."""
        return self.recorder.costs.clock

    def rest(self) -> None:
        """Nothing is in flight afterwards, and the clock stands still. Collective."""
        self.method.pause(self.state)
        self.clock.pause()

    def measure(self) -> Record:
        """A record of the state as it is. Collective."""
        self.rest()
        return self.recorder.record(self.state)

    def finite(self) -> bool:
        """Whether there are only finite numbers in what is watched of the state, on all ranks. Collective."""
        tensors = self.state.tensors()
        return self.recorder.finite(tensors[name][1] for name in self.watched)


def loop(run: Run, first: Record, host: Host) -> str:
    """Makes rounds until the run is over, and gives the reason. Collective.

    Args:
        run: what is moved, from the round that its state is in.
        first: a record of that; kept if it is round 0, otherwise an earlier job has kept it.
        host: what surrounds it.
    """
    settings, state = run.settings, run.state
    begins = state.round == 0
    if begins:
        _keep(run, first, host)
        if not _finite(run, first):
            return NOT_FINITE
    ended = _over(settings, state.round) or _reached(settings, first)
    if ended and begins:
        _save(run, host)
    while not ended:
        host.beat(f"round {state.round + 1}")
        run.clock.start()
        info = run.method.step(run.state)
        state.round += 1
        host.made(state.round)
        stop = REASONS[host.stop(state.round, _late(run), info.wish if info else None)]
        ended = _over(settings, state.round, info is not None and info.done, stop)
        saves = stop == SIGNAL or _due(settings.checkpoint_every, state.round)
        evaluates = ended or _due(settings.evaluate_every, state.round)
        if evaluates:
            host.beat(f"the evaluation after round {state.round}")
            record = run.measure()
            _keep(run, record, host)
            if not _finite(run, record):
                return NOT_FINITE
            ended = ended or _reached(settings, record)
        if (ended or saves) and not _save(run, host):
            if not evaluates:
                _keep(run, run.measure(), host)
            return NOT_FINITE
        if stop == SIGNAL and not ended:
            return SIGNAL
    return ended


def _keep(run: Run, record: Record, host: Host) -> None:
    with run.clock.during(FILES):
        host.keep(record)


def _save(run: Run, host: Host) -> bool:
    """Writes a checkpoint, unless the state is not finite: then an earlier one is better."""
    if run.clock.runs:  # after a record it rests already
        run.rest()
    if not run.finite():
        return False
    host.beat(f"the checkpoint of round {run.state.round}")
    with run.clock.during(FILES):
        host.save()
    return True


def _due(every: int, round: int) -> bool:
    return every > 0 and round % every == 0


def _late(run: Run) -> bool:
    most = run.settings.max_seconds
    return most is not None and run.spent + run.clock.now() > most


def room(settings: RunTable) -> int:
    """How many records a job makes at most: the grid's, that of round 0, and the last, off the grid."""
    return settings.rounds // settings.evaluate_every + 3


def _over(settings: RunTable, round: int, done: bool = False, stop: str = "") -> str:
    """Why this is the last round; empty if it is not."""
    if round >= settings.rounds:
        return ROUNDS
    if done:
        return METHOD
    return TIME if stop == TIME else ""


def _reached(settings: RunTable, record: Record) -> str:
    target = settings.target_loss
    return TARGET if target is not None and record["metrics/loss"] <= target else ""


def _finite(run: Run, record: Record) -> bool:
    """Whether the loss is; where it is not measured, whether the state is. Collective."""
    loss = record.get("metrics/loss")
    return run.finite() if loss is None else math.isfinite(loss)
