"""One record per evaluation: what a run has cost until then, and what its state is worth."""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hpcopt.engine.evaluation import OTHERS, Evaluator
from hpcopt.engine.meter import EVALUATION, SPREAD, Costs, Totals, uncounted
from hpcopt.engine.own_metrics import Metric, OwnMetrics, check_names
from hpcopt.errors import UserError
from hpcopt.problems.base import Draw
from hpcopt.storage.schema import Schema

if TYPE_CHECKING:
    from torch import Tensor

    from hpcopt.engine.meter import OpenPorts
    from hpcopt.engine.ranks import Ranks
    from hpcopt.methods.base import Method
    from hpcopt.problems.base import Problem
    from hpcopt.state import Group

Record = dict[str, Any]
"""column -> value, the same on every rank"""

DIMS = {
    "metrics": ("record",),
    "workers": ("record", "worker"),
    "ports": ("record", "port"),
    "phases": ("record", "phase"),
    "rows": ("worker",),
}
PORTS = ("calls", "bytes", "payload", "seconds")


class Recorder:
    """Turns a state into records. Collective.

    Args:
        ranks: all of the run.
        problem, method, ports: what is measured.
        costs: counts what it costs.
        metrics: the user's own, by name.
        wanted: of run.evaluate.
    """

    def __init__(
        self,
        ranks: Ranks,
        problem: Problem,
        method: Method[Any, Any],
        ports: OpenPorts,
        costs: Costs,
        metrics: Mapping[str, Metric],
        wanted: Sequence[str] = OTHERS,
    ) -> None:
        self.costs = costs
        self._ranks, self._problem, self._method, self._ports = ranks, problem, method, ports
        self._evaluator = Evaluator(ranks, problem, method, ports.reduce, wanted)
        self._own = OwnMetrics(ranks, metrics)
        # as they were at the last record
        self._totals = Totals(0.0, 0.0, {})
        self._groups: dict[str, Group] = {}
        self._rows: Record = {}

    def record(self, state: Any) -> Record:
        """Evaluates a state; costs are those until here.

        Raises:
            UserError: one of the user's own metrics is none; on every rank.
        """
        self._totals = totals = self.costs.totals()
        with self.costs.clock.during(EVALUATION), uncounted(self._problem, self._ports):
            model = self._method.model(state)
            values, rows = self._evaluator.evaluate(state, model)
            own_values, own_rows = self._own.measure(self._problem, model)
            self._groups = self._method.groups(state)
            check_groups(self._groups)
            record = {"metrics/round": state.round} | self._costs(totals)
            record |= {f"metrics/{name}": value for name, value in values.items()}
            taken = (name.removeprefix("metrics/") for name in record)
            check_names(own_values, taken)
            record |= {f"metrics/{name}": value for name, value in own_values.items()}
        record |= {f"workers/{name}": row for name, row in (rows | own_rows).items()}
        self._rows = self._rows or self._rows_of_workers()
        record |= self._rows
        record |= _table("ports", totals.ports, PORTS) | _table("phases", totals.phases, SPREAD)
        for name, group in self._groups.items():
            record |= {f"{name}/{column}": group.kept(column) for column in group.columns}
        return record

    def finite(self, tensors: Iterable[Tensor]) -> bool:
        """Whether all numbers in these and in the problem's buffers are finite, on every rank. Collective."""
        bad = not all(bool(tensor.isfinite().all()) for tensor in (*tensors, self._problem.buffers))
        return not self._ranks.largest(np.array([float(bad)]))[0]

    def schema(self, record: Record, records: int) -> Schema:
        """What follows from the last record: columns, room for so many records, coordinates. Local."""
        dims = DIMS | {name: group.dims for name, group in self._groups.items()}
        dimensions: dict[str, list[Any]] = {
            "worker": list(range(self._problem.share.total)),
            "port": list(self._totals.ports),
            "phase": list(self._totals.phases),
        }
        for group in self._groups.values():
            sizes = np.shape(next(iter(group.columns.values())))
            dimensions |= {d: list(range(size)) for d, size in zip(group.dims[1:], sizes[1:], strict=True)}
        return Schema(
            columns={column: dims[column.partition("/")[0]] for column in record},
            capacity={"record": records, "worker": self._problem.share.total}
            | {g.dims[0]: g.capacity for g in self._groups.values()},
            dimensions=dimensions,
        )

    def _rows_of_workers(self) -> Record:
        """How many rows each of the N workers has, and computes gradients of in a round, (N,)."""
        problem = self._problem
        kinds = {"rows/train": problem.rows, "rows/test": problem.test_rows}
        known = {name: rows.double().numpy() for name, rows in kinds.items() if rows is not None}
        work = self._method.settings.rows_a_round
        batches = [problem.batch_rows(i, Draw(0)) for i in range(problem.share.n)]
        each = zip(problem.rows.tolist(), batches, strict=True)
        known["rows/round"] = np.array([work(rows, batch) for rows, batch in each], dtype=np.float64)
        columns = self._ranks.rows(np.stack(list(known.values()), axis=1)).T
        return {name: column.astype(np.int64) for name, column in zip(known, columns, strict=True)}

    def _costs(self, totals: Totals) -> Record:
        ports = totals.ports.values()
        return {
            "metrics/seconds": totals.seconds,
            "metrics/epochs": totals.gradients / self._problem.total_rows,
            "metrics/gradients": totals.gradients,
            "metrics/bytes_sent": sum(port["bytes"] for port in ports),
            "metrics/bytes_workers": sum(port["bytes_workers"] for port in ports),
            "metrics/passes": sum(port["passes"] for port in ports),
            "metrics/peak_memory": float(self._ranks.largest(np.array([_peak_memory()]))[0]),
        }


def check_groups(groups: Mapping[str, Group]) -> None:
    """Raises `UserError` where a method's groups are none, or get into each other's way or into hpcopt's."""
    sizes: dict[str, int] = {}
    for name, group in groups.items():
        shapes = {np.shape(column) for column in group.columns.values()}
        own = len(shapes) == 1 and len(group.dims) == len(next(iter(shapes)))
        hpcopts = {dim for dims in DIMS.values() for dim in dims} & set(group.dims)
        if name in DIMS or hpcopts or not own:
            raise UserError(
                f"the method's group {name}: needs a name, dimensions of its own and columns of that shape; "
                f"it has {group.dims} and {sorted(shapes)}"
            )
        for dim, size in zip(group.dims[1:], next(iter(shapes))[1:], strict=True):
            if sizes.setdefault(dim, size) != size:
                raise UserError(
                    f"the method's group {name}: another one has a dimension {dim} of {sizes[dim]}"
                )


def _table(group: str, rows: Mapping[str, Mapping[str, float]], keys: tuple[str, ...]) -> Record:
    return {f"{group}/{key}": [row[key] for row in rows.values()] for key in keys}


def forget_peak() -> None:
    """From here on `peak_memory` is of what comes, where the system tells; a process may make many runs."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak_memory() -> float:
    """The most memory that this process ever had, or since `forget_peak`, in bytes."""
    status = Path("/proc/self/status")
    if status.is_file():  # getrusage: or that of whoever started this one, if it had more
        return float(status.read_text().partition("VmHWM:")[2].split()[0]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)
