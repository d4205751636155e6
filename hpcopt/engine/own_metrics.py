"""The user's own metrics: functions of the bound problem and the model.

    def sparsity(problem, model):
        return (model == 0).double().mean(-1)

``problem`` has the workers here; ``model`` is what `Method.model` gives, (d,) or (n, d), not to be changed.
The function is called on every rank at every record, outside of the clock and of what is counted. It returns
a number, the same on every rank; or one number per worker here, (n,), whose mean over all workers is recorded
too, and, where these have different numbers of training rows, as NAME_by_rows the mean by these; or a dict of
such, which are recorded as FUNCTION_KEY; or None, where it has nothing to say yet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hpcopt.errors import UserError
from hpcopt.ground.own_code import load_own, place_of

if TYPE_CHECKING:
    from hpcopt.engine.evaluation import Rows, Values
    from hpcopt.engine.ranks import Floats, Ranks
    from hpcopt.problems.base import Problem

Metric = Callable[["Problem", torch.Tensor], Any]
PER_WORKER = "one number per worker"


def places(metrics: Iterable[Metric | str]) -> list[str]:
    """The "module:name" of functions; what is one already stays.

    Raises:
        UserError: a function without a name.
    """
    metrics = [metrics] if isinstance(metrics, str) else metrics
    return [metric if isinstance(metric, str) else _place(metric) for metric in metrics]


def replaced(begun: Iterable[str], metrics: Iterable[Metric | str]) -> list[str]:
    """The places of a run that goes on with these functions: each takes that of its name, or is new."""
    every = [*begun, *places(metrics)]
    return list({_name(place): place for place in every}.values())


def load(wanted: Iterable[str], given: Iterable[Metric | str] = ()) -> dict[str, Metric]:
    """The functions by their names. Local.

    Args:
        wanted: the config's run.metrics.
        given: functions that need not be imported.

    Raises:
        UserError: one cannot be found, or two have the same name.
    """
    here = {_place(metric): metric for metric in given if not isinstance(metric, str)}
    found: dict[str, Metric] = {}
    for place in wanted:
        name = _name(place)
        if name in found:
            raise UserError(f'run.metrics: two metrics are called "{name}"; rename one of the functions')
        found[name] = here[place] if place in here else _imported(place)
    return found


class OwnMetrics:
    """Calls the functions. Collective.

    Args:
        ranks: all of the run.
        functions: by name.
    """

    def __init__(self, ranks: Ranks, functions: Mapping[str, Metric]) -> None:
        self._ranks, self._functions = ranks, functions

    def measure(self, problem: Problem, model: torch.Tensor) -> tuple[Values, Rows]:
        """Numbers of the whole run, and those of every worker, (N,).

        Raises:
            UserError: a function returned what it may not; on every rank.
        """
        values: Values = {}
        rows: Rows = {}
        for name, function in self._functions.items():
            with self._ranks.agreed():
                found = _results(name, function(problem, model), problem.share.n)
            self._check_agreement(name, found)
            check_names(found, values)
            here = {key: value for key, value in found.items() if isinstance(value, np.ndarray)}
            everywhere = {key: self._ranks.rows(value[:, None])[:, 0] for key, value in here.items()}
            rows |= everywhere
            values |= {
                key: float(everywhere[key].mean()) if key in everywhere else float(value)
                for key, value in found.items()
            }
            if problem.uneven:
                by = self._ranks.rows(problem.rows.double().numpy()[:, None])[:, 0]
                values |= {f"{key}_by_rows": float(row @ by / by.sum()) for key, row in everywhere.items()}
        return values, rows

    def _check_agreement(self, name: str, found: Mapping[str, float | Floats]) -> None:
        shown = {key: PER_WORKER if isinstance(v, np.ndarray) else v for key, v in found.items()}
        every = [str(of_rank) for of_rank in self._ranks.each(shown)]  # where nan is nan
        for rank, other in enumerate(every):
            if other != every[0]:
                raise UserError(
                    f"run.metrics: {name} gave {every[0]} on rank 0 and {other} on rank {rank}: a number has "
                    "to be the same on every rank; return one per worker here, (n,), for what differs"
                )


def check_names(own: Iterable[str], others: Iterable[str], whose: str = "run.metrics") -> None:
    """Raises `UserError` where a metric is called as another one is."""
    taken = sorted(set(own) & set(others))
    if taken:
        raise UserError(f'{whose}: a metric "{taken[0]}" is recorded already; give this one another name')


def _place(metric: Metric) -> str:
    if not str(getattr(metric, "__qualname__", "")).rpartition(".")[2].isidentifier():
        raise UserError(f"run.metrics: {metric!r} has no name to record it under; write a function with def")
    return place_of(metric)


def _name(place: str) -> str:
    return place.rpartition(":")[2].rpartition(".")[2]


def _imported(place: str) -> Metric:
    module, _, name = place.partition(":")
    if module == "__main__" or "<locals>" in name:
        raise UserError(
            f'run.metrics = "{place}": this function is in the script that began the run, or inside another '
            f"function; resume it from Python, with hpcopt.resume(directory, metrics=[{_name(place)}])"
        )
    function: Metric = load_own("run.metrics", place, "function")
    return function


def _results(name: str, result: Any, n: int) -> dict[str, float | Floats]:
    """What a function returned, by the names under which it is recorded: a number or (n,)."""
    if result is None:
        return {}
    if isinstance(result, Mapping):
        parts = {f"{name}_{key}": value for key, value in result.items()}
        if len(parts) < len(result):
            raise UserError(f"run.metrics: {name} gave two entries of one name: {list(result)}")
        return {key: _number_or_row(key, value, n) for key, value in parts.items()}
    return {name: _number_or_row(name, result, n)}


def _number_or_row(name: str, value: Any, n: int) -> float | Floats:
    try:
        array = torch.as_tensor(value).detach().to("cpu", torch.float64).numpy()
    except (TypeError, ValueError, RuntimeError):
        raise UserError(f"run.metrics: {name} gave {value!r}, which is no number") from None
    if array.shape not in ((), (n,)):
        raise UserError(
            f"run.metrics: {name} gave numbers of shape {array.shape}; a metric is one number, or one for "
            f"each worker here, ({n},), or a dict of such"
        )
    return array if array.ndim else float(array)
