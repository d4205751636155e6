"""A run with all workers in this process: neither MPI nor files, the same loop and the same records."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
import torch

from hpcopt.comm.local_ports import LocalPorts
from hpcopt.config.run import RunTable
from hpcopt.control.wishes import Stop
from hpcopt.engine.build import Built, attributes, begin, bind, set_threads
from hpcopt.engine.determinism import repeatable
from hpcopt.engine.loop import Run, loop, room
from hpcopt.engine.names import config_in_python, filled_in
from hpcopt.engine.own_metrics import Metric, load
from hpcopt.engine.ranks import OneRank
from hpcopt.engine.record import Record
from hpcopt.engine.reporter import Reporter
from hpcopt.errors import UserError
from hpcopt.ground.placement import Placement
from hpcopt.ground.stamps import now
from hpcopt.storage.schema import RECORD, Schema, dtype_of, group_of, missing, unit_of

if TYPE_CHECKING:
    import xarray

    from hpcopt.config import RunConfig
    from hpcopt.methods.base import Method, S
    from hpcopt.problems.base import Recipe
    from hpcopt.state import State


SETTINGS = (
    *("seed", "evaluate_every", "evaluate", "evaluate_rows"),
    *("dtype", "device", "deterministic", "target_loss", "max_seconds"),
)
"""keys of the [run] table that mean something where there are neither ranks nor files"""


@overload
def simulate(
    method: Method[Any, S],
    problem: Recipe,
    rounds: int,
    *,
    metrics: Sequence[Metric | str] = ...,
    progress: bool = ...,
    return_state: Literal[False] = ...,
    **settings: Any,
) -> xarray.DataTree: ...
@overload
def simulate(
    method: Method[Any, S],
    problem: Recipe,
    rounds: int,
    *,
    metrics: Sequence[Metric | str] = ...,
    progress: bool = ...,
    return_state: Literal[True],
    **settings: Any,
) -> tuple[xarray.DataTree, S]: ...
def simulate(
    method: Method[Any, Any],
    problem: Recipe,
    rounds: int,
    *,
    metrics: Sequence[Metric | str] = (),
    progress: bool = False,
    return_state: bool = False,
    **settings: Any,
) -> xarray.DataTree | tuple[xarray.DataTree, State]:
    """Runs a method on a problem in this process, and keeps the records in memory, and no trace.

    Float64 results are those of `hpcopt.run` on one rank, to the bit, where nothing is chosen by measuring
    (``deterministic = True`` chooses nothing). If the loss is no longer finite, the run ends with that record
    and ``stopped_by`` says so; nothing is raised.

    Args:
        method: for example ``hpcopt.DePRL(lr=0.1)``.
        problem: for example ``hpcopt.Network(...)``.
        rounds: to make.
        metrics: functions of your own (see `hpcopt.engine.own_metrics`).
        progress: show it on stderr.
        return_state: give the method's last state, too.
        settings: keys of the [run] table that mean something here: ``seed``, ``evaluate_every``,
            ``evaluate``, ``evaluate_rows``, ``dtype``, ``device``, ``deterministic``, ``target_loss``,
            ``max_seconds``.

    Returns:
        What `hpcopt.load` gives after `hpcopt.run`: a tree with the groups metrics, workers, ports, phases
        and the method's own; config and provenance in its ``attrs``. With ``return_state``: the tree and the
        state, whose model is ``method.model(state)``.

    Raises:
        UserError: a setting is wrong.
    """
    meaningless = sorted((settings.keys() & RunTable.model_fields.keys()) - {*SETTINGS})
    if meaningless:
        names = ", ".join(meaningless)
        raise UserError(f"hpcopt.simulate: {names}: means nothing here; allowed: {', '.join(SETTINGS)}")
    config = config_in_python("hpcopt.simulate", method, problem, metrics, {"rounds": rounds} | settings)
    with _threads(config), repeatable(config.run), filled_in(method, config):
        built = _build(config, method, problem)
        run = Run.of(built, load(config.run.metrics, metrics))
        start, first = now(), run.measure()
        memory = Memory(Reporter(None, rounds, active=progress), lambda: built.method.trace(built.state))
        built.ports.wish = lambda: memory.wish
        stopped_by = loop(run, first, memory)
        memory.end()
    end = {"start": start, "end": now(), "stopped_by": stopped_by, "last_round": built.state.round}
    about = attributes(built, platform.node(), {}) | end
    tree = tree_of(run.recorder.schema(first, room(config.run)), memory.records, about)
    return (tree, built.state) if return_state else tree


class Memory:
    """What surrounds the loop here: the records are kept in a list.

    Args:
        reporter: tells the user.
        trace: gives what the method has kept for a trace, of which it is then free.

    Attributes:
        records: from round 0 on.
        wish: see `hpcopt.comm.ports.Ports`.
    """

    def __init__(self, reporter: Reporter, trace: Callable[[], object]) -> None:
        self.records: list[Record] = []
        self.wish = Stop.NO
        self._reporter, self._trace = reporter, trace
        reporter.start({})

    def beat(self, where: str) -> None:
        """See `Host`; nobody waits."""

    def made(self, round: int) -> None:
        """See `Host`."""
        self._reporter.round(round)

    def stop(self, round: int, late: bool, wish: int | None) -> Stop:
        """See `Host`."""
        self.wish = Stop.TIME if late else Stop.NO
        return self.wish if wish is None else Stop(wish)

    def keep(self, record: Record) -> None:
        """See `Host`."""
        self.records.append(record)
        self._trace()  # there is no file for it
        self._reporter.record(record)

    def save(self) -> None:
        """See `Host`; there are no files."""

    def end(self) -> None:
        """Ends what the user sees."""
        self._reporter.close()


@contextmanager
def _threads(config: RunConfig) -> Iterator[None]:
    """As many threads as a run has; afterwards as many as before."""
    before = torch.get_num_threads()
    set_threads(config.run)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _build(config: RunConfig, method: Method[Any, Any], recipe: Recipe) -> Built:
    ranks = OneRank()
    problem = bind(ranks, Placement.even(config.run.workers), config, recipe)
    ordered = config.run.deterministic
    ports = LocalPorts(config.run.workers, problem.initial(), ordered, timed=not ordered)
    nowhere = replace(config, run=config.run.model_copy(update={"out": None}))
    return begin(ranks, nowhere, problem, ports, method, f"{problem.share.device} (one process)")


def tree_of(schema: Schema, records: list[Record], about: dict[str, Any]) -> xarray.DataTree:
    """The records as `hpcopt.load` gives them."""
    import xarray

    # columns may appear late
    dims_of = {name: schema.dims_like(name, value) for record in records for name, value in record.items()}
    groups: dict[str, xarray.Dataset] = {}
    for column, dims in dims_of.items():
        values = [record.get(column) for record in records]
        array = _array(schema, column, dims, values)
        along = {dims[0]: range(len(array))} | {dim: schema.dimensions[dim] for dim in dims[1:]}
        coordinates = {dim: (dim, values, {"units": "1"}) for dim, values in along.items()}
        data = xarray.DataArray(array, coordinates, dims, attrs={"units": unit_of(column)})
        group = groups.setdefault(group_of(column), xarray.Dataset())
        group[column.rpartition("/")[2]] = data
    return xarray.DataTree.from_dict({"/": xarray.Dataset(attrs=about), **groups})


def _array(schema: Schema, column: str, dims: tuple[str, ...], values: list[Any]) -> np.ndarray[Any, Any]:
    """All of a column: a row of each record, or the last record's array."""
    dtype = dtype_of(column)
    if dims[0] != RECORD:
        return np.asarray(values[-1], dtype)
    shape = tuple(len(schema.dimensions[dim]) for dim in dims[1:])
    array = np.full((len(values), *shape), missing(dtype), dtype)
    for row, value in enumerate(values):
        if value is not None:
            array[row] = value
    return array
