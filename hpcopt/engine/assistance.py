"""A rank that hosts no worker: from the config to the end of what it computes beside the rounds."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any

from mpi4py import MPI

from hpcopt.comm.beside.route import Route
from hpcopt.comm.beside.service import Service
from hpcopt.comm.mpi_ports import MPIPorts
from hpcopt.comm.mpi_ranks import MPIRanks
from hpcopt.comm.staging import Staging
from hpcopt.control import signals
from hpcopt.control.agree import in_agreement
from hpcopt.control.crew import BUILD, OPEN, Crew
from hpcopt.engine.build import bind, cores, place, read_files, set_threads, settle
from hpcopt.engine.determinism import repeatable
from hpcopt.errors import HpcoptError

if TYPE_CHECKING:
    from hpcopt.config import RunConfig
    from hpcopt.methods.base import Method
    from hpcopt.problems.base import Problem, Recipe


def assist(
    crew: Crew, config: RunConfig, method: Method[Any, Any], recipe: Recipe, beat: Callable[[str], None]
) -> None:
    """Does what rank 0 says until the run ends. Collective over the ranks beside.

    Signals are left to the ranks that make the rounds: who stops the job sends them to all of it.

    Raises:
        HpcoptError: that of the run.
    """
    with ExitStack() as opened, repeatable(config.run):
        if signals.catch(config.run.stop_signal):
            opened.callback(signals.release)
        beat("the wait for the run's directory")
        word, side = crew.hear(), None
        if word == BUILD:
            beat("building the problem")
            with suppress(HpcoptError):  # everybody's, which rank 0 tells
                side = _Side(crew, config, method, recipe)
                in_agreement(opened, side.ports.free)
            word = crew.hear()
        if word == OPEN:
            assert side is not None
            side.serve(beat)
            word = crew.hear()
    if isinstance(word, HpcoptError):
        raise word


class _Side:
    """All N workers, on the ranks beside. Collective; see `hpcopt.engine.job.build`."""

    def __init__(self, crew: Crew, config: RunConfig, method: Method[Any, Any], recipe: Recipe) -> None:
        everybody, run = MPIRanks(crew.everybody), config.run
        set_threads(run)
        self._crew = crew
        placement = place(everybody, config, method, recipe, crew.beside, crew.comm.rank)
        self._problem: Problem = bind(everybody, placement, config, recipe)
        self._staging = Staging(self._problem.share.device)
        reduction = "ordered" if run.deterministic else run.reduction
        self._like = self._problem.initial()
        self.ports = MPIPorts(crew.comm, placement, self._staging, self._like, reduction, run.overlap, {})
        everybody.each((MPI.Get_processor_name(), cores()))  # those with workers keep it
        settle(self._problem, self.ports)
        with everybody.agreed():
            method.files = read_files(method.settings)
        self._task = method.beside(self._problem, self.ports)

    def serve(self, beat: Callable[[str], None]) -> None:
        """Serves requests until the run ends."""
        if self._task is None:
            raise RuntimeError("the method asks for what its `beside` does not give")
        crew = self._crew
        route = Route(crew.everybody, crew.rounders, self._task, self._staging, self._like)
        Service(route, crew.comm, self._spent, beat).serve()

    def _spent(self) -> list[float]:
        """See `hpcopt.comm.beside.service.Spent`."""
        counters = self.ports.counters().values()
        keys = ("bytes", "bytes_workers", "payload", "passes")
        return [float(self._problem.samples), *(sum(getattr(c, key) for c in counters) for key in keys)]
