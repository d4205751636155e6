"""What a run measures: the optimisation clock, the totals over ranks, and one record per evaluation."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from mpi4py import MPI
from numpy.typing import NDArray

from hpcopt.comm.gather import gather_rows
from hpcopt.comm.mpi_ports import MPIPorts
from hpcopt.methods.base import Method
from hpcopt.problems.base import Evaluation, Problem
from hpcopt.storage.format import digest
from hpcopt.storage.metrics import Schema


class Clock:
    """The optimisation clock of this rank: runs during steps, stands still for evaluation and files."""

    def __init__(self, device: torch.device) -> None:
        self.seconds = 0.0
        self._device = device
        self._started: float | None = None

    def start(self) -> None:
        """Goes on, if it stands still."""
        if self._started is None:
            self._started = time.perf_counter()

    def pause(self) -> None:
        """Stands still, once the device has finished what it was given."""
        if self._started is not None:
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
            self.seconds += time.perf_counter() - self._started
            self._started = None

    def now(self) -> float:
        """Seconds so far, while running too."""
        running = time.perf_counter() - self._started if self._started is not None else 0.0
        return self.seconds + running


@dataclass
class Totals:
    """What a run cost so far, over all ranks and all jobs of its chain.

    Attributes:
        seconds: the optimisation clock of the slowest rank [s].
        gradients: sample gradients of all workers.
        ports: port -> calls, bytes, bytes_workers, seconds, passes.
    """

    seconds: float
    gradients: float
    ports: dict[str, dict[str, float]]


class Recorder:
    """Turns a state into records. All methods but the constructor are collective.

    Args:
        comm: all ranks of the run.
        problem, method, ports, clock: what is measured.
        before: the totals of earlier jobs of the same run.
    """

    def __init__(
        self,
        comm: MPI.Comm,
        problem: Problem,
        method: Method[Any, Any],
        ports: MPIPorts,
        clock: Clock,
        before: Totals | None = None,
    ) -> None:
        self._comm, self._problem, self._method = comm, problem, method
        self._ports, self._clock, self._before = ports, clock, before

    def totals(self) -> Totals:
        """Sums over ranks for bytes and gradients, the largest for times, calls and passes."""
        counters = self._ports.counters()
        sums = np.array(
            [self._problem.samples, *(v for c in counters.values() for v in (c.bytes, c.bytes_workers))],
            dtype=np.float64,
        )
        largest = np.array(
            [self._clock.seconds, *(v for c in counters.values() for v in (c.calls, c.seconds, c.passes))]
        )
        self._comm.Allreduce(MPI.IN_PLACE, sums, MPI.SUM)
        self._comm.Allreduce(MPI.IN_PLACE, largest, MPI.MAX)
        ports = {
            name: {
                "bytes": round(sums[1 + 2 * i]),
                "bytes_workers": round(sums[2 + 2 * i]),
                "calls": largest[1 + 3 * i],
                "seconds": largest[2 + 3 * i],
                "passes": largest[3 + 3 * i],
            }
            for i, name in enumerate(counters)
        }
        return _plus(Totals(float(largest[0]), float(sums[0]), ports), self._before)

    def record(self, round: int, state: Any) -> dict[str, Any]:
        """Evaluates a state: column -> value, the same on every rank, for `RunFile.append`."""
        totals = self.totals()
        ports = totals.ports.values()
        with self._uncounted():
            values, per_worker = self._evaluate(state)
            values |= self._method.metrics(state)
        record: dict[str, Any] = {
            "metrics/round": round,
            "metrics/seconds": totals.seconds,
            "metrics/epochs": totals.gradients / self._problem.total_rows,
            "metrics/gradients": totals.gradients,
            "metrics/bytes_sent": sum(port["bytes"] for port in ports),
            "metrics/bytes_workers": sum(port["bytes_workers"] for port in ports),
            "metrics/passes": sum(port["passes"] for port in ports),
        }
        record |= {f"metrics/{name}": value for name, value in values.items()}
        record |= {f"workers/{name}": row for name, row in per_worker.items()}
        record |= {f"ports/{key}": [port[key] for port in ports] for key in ("calls", "bytes", "seconds")}
        return record

    def schema(self, record: dict[str, Any]) -> Schema:
        """The file's schema that follows from a record."""
        dims = {"metrics": (), "workers": ("worker",), "ports": ("port",)}
        return Schema(
            columns={name: dims[name.partition("/")[0]] for name in record},
            dimensions={
                "worker": list(range(self._problem.share.total)),
                "port": list(self._ports.counters()),
            },
        )

    def _evaluate(self, state: Any) -> tuple[dict[str, float], dict[str, NDArray[np.float64]]]:
        """Numbers of the whole run, and per-worker rows; sums run in the order of the workers."""
        model, others = self._method.model(state), self._method.others(state)
        means, rows = self._evaluate_at(model)
        for name, X in others.items():
            more_means, more_rows = self._evaluate_at(X)
            means |= {f"{name}_{measure}": value for measure, value in more_means.items()}
            rows |= {f"{name}_{measure}": row for measure, row in more_rows.items()}
        if self._problem.newcomers is not None:
            one = model if model.ndim == 1 else others["global"]
            evaluation = self._problem.newcomers.evaluate(one, self._mean_buffers())
            means |= {f"new_worker_{measure}": value for measure, value in self._means(evaluation)[0].items()}
        return means, rows

    def _evaluate_at(self, X: torch.Tensor) -> tuple[dict[str, float], dict[str, NDArray[np.float64]]]:
        problem, common = self._problem, X.ndim == 1
        if common:
            self._check_same(X)
        evaluation = problem.evaluate(X, self._mean_buffers() if common else None)
        if problem.optimum is not None:
            distance = ((X - problem.optimum) ** 2).sum(-1).expand(problem.share.n)
            evaluation.add("distance", distance, torch.ones(problem.share.n))
        means, rows = self._means(evaluation)
        if problem.optimal_value is not None:
            means["gap"] = means["loss"] - problem.optimal_value
        personal = {"loss"} if common else set(rows)
        return means, {name: row for name, row in rows.items() if name in personal}

    @contextmanager
    def _uncounted(self) -> Iterator[None]:
        """What the ports do within costs no metric anything."""
        before = {name: replace(counter) for name, counter in self._ports.counters().items()}
        yield
        for name, counter in self._ports.counters().items():
            vars(counter).update(vars(before[name]))

    def _check_same(self, X: torch.Tensor) -> None:
        """A model that all ranks hold must be the same bits everywhere, or nothing that follows is right."""
        numbers = torch.nan_to_num(X)  # ranks may have different nans: that is for the loss to tell
        digests = self._comm.allgather(digest(numbers.cpu().numpy()))
        different = [rank for rank, other in enumerate(digests) if other != digests[0]]
        if different:
            raise RuntimeError(f"the parameters on ranks {different} are not those of rank 0")

    def _means(self, evaluation: Evaluation) -> tuple[dict[str, float], dict[str, NDArray[np.float64]]]:
        # a rank without any of the workers that evaluated does not know what they measured
        names = next(filter(None, self._comm.allgather(list(evaluation.values))))
        none = torch.empty(0, dtype=torch.float64)
        measured = [
            kind.get(name, none) for name in names for kind in (evaluation.values, evaluation.weights)
        ]
        table = gather_rows(self._comm, torch.stack(measured, dim=1).numpy())
        rows = {name: table[:, 2 * i] for i, name in enumerate(names)}
        weights = {name: table[:, 2 * i + 1] for i, name in enumerate(names)}
        means = {}
        for name, row in rows.items():
            weight = weights[name]
            # a worker of weight 0 has nothing to say, and may say so with NaN
            means[name] = float((np.where(weight > 0, row, 0.0) * weight).sum()) / (
                float(weight.sum()) or math.nan
            )
        return means, rows

    def _mean_buffers(self) -> torch.Tensor | None:
        buffers = self._problem.buffers
        if not buffers.shape[1]:
            return None
        rows = gather_rows(self._comm, buffers.cpu().double().numpy())
        return torch.from_numpy(rows.mean(0)).to(buffers)


def _plus(now: Totals, before: Totals | None) -> Totals:
    if before is None:
        return now
    ports = {
        name: {key: value + before.ports.get(name, {}).get(key, 0.0) for key, value in port.items()}
        for name, port in now.ports.items()
    }
    return Totals(now.seconds + before.seconds, now.gradients + before.gradients, ports)
