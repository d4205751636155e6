"""Runs over MPI: from a config, or from a few lines of Python, to a job; the public `run` and `resume`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mpi4py import MPI

from hpcopt.config import RunConfig, resumable
from hpcopt.config.problems import IN_PYTHON
from hpcopt.config.sweep import Plan
from hpcopt.control.agree import agreed
from hpcopt.control.world import ranks_for
from hpcopt.engine import sweep as sweeping
from hpcopt.engine.job import execute
from hpcopt.engine.names import (
    check_class,
    check_made,
    check_settings,
    config_in_python,
    filled_in,
    method_of,
    settled,
)
from hpcopt.engine.own_metrics import Metric, replaced
from hpcopt.errors import UserError
from hpcopt.ground.files import home
from hpcopt.ground.memory import enough
from hpcopt.methods.base import Method
from hpcopt.problems.base import Recipe


def run(
    method: Method[Any, Any],
    problem: Recipe,
    *,
    comm: MPI.Comm | None = None,
    out: str | Path | None,
    metrics: Sequence[Metric | str] = (),
    **settings: Any,
) -> Path:
    """Runs a method on a problem, as `hpcopt run` does. Collective over ``comm``.

    Args:
        method: for example ``hpcopt.AllreduceSGD(lr=0.1)``, or one of your own.
        problem: for example ``hpcopt.Network(...)``.
        comm: the ranks; all that the launcher started if None.
        out: the run's directory, runs/METHOD-PROBLEM-seedS if None; must not hold a run.
        metrics: functions of your own, or their "package.module:function" (see `hpcopt.engine.own_metrics`).
        settings: keys of the [run] table: ``rounds``, ``seed``, ``evaluate_every``, …

    Returns:
        The path of run.h5.

    Raises:
        UserError: a setting is wrong, on every rank.
        NotFinite: the loss is no longer finite; the metrics are kept.
        Interrupted: a signal came; `resume` goes on from the checkpoint.
    """
    comm = ranks_for(comm)
    with agreed(comm):
        config = config_in_python(
            "hpcopt.run", method, problem, metrics, {"out": out and str(out)} | settings
        )
    with filled_in(method, config):
        return execute(comm, config, Path(config.run.out or "."), method, problem, metrics)


def resume(
    directory: str | Path,
    *,
    method: type[Method[Any, Any]] | Method[Any, Any] | None = None,
    problem: Recipe | None = None,
    metrics: Sequence[Metric | str] = (),
    comm: MPI.Comm | None = None,
    overrides: Sequence[str] = (),
) -> Path:
    """Goes on with a run from its newest intact checkpoint, on any number of ranks. Collective.

    Args:
        directory: the run's directory.
        method: its class, for a run whose own method cannot be imported by its name (it stands in a script);
            or a method of this class, whose settings are then no other ones than the run's.
        problem: what `run` was given, for a run that was started from Python.
        metrics: functions in place of those with the same names, or more of them; needed for those that
            cannot be imported.
        comm: the ranks; all that the launcher started if None.
        overrides: ``"run.rounds=2000"``, or several such.

    Raises:
        NothingToResume: there is no config.toml.
        UserError, NotFinite, Interrupted: as `run`.
    """
    comm, directory = ranks_for(comm), home(directory)
    overrides = (overrides,) if isinstance(overrides, str) else overrides
    with agreed(comm):
        if problem is not None:
            check_made("hpcopt.resume", "problem", problem, "bind")
        config = resumable(directory, overrides, method.table if method else None)
        if problem is None and config.problem.kind == IN_PYTHON:
            raise UserError(
                f"{directory}: this run's problem was made in Python; resume it there, with "
                "hpcopt.resume(directory, problem=...)"
            )
        known = replaced(config.run.metrics, metrics)
        config = replace(config, run=config.run.model_copy(update={"metrics": known}))
        recipe = problem or config.problem.recipe()
        config, way = settled(config, recipe), _way(config, method)
    return execute(comm, config, directory, way, recipe, metrics, resuming=True)


def start(comm: MPI.Comm, config: RunConfig) -> Path:
    """Runs a checked config. Collective; raises as `run`."""
    with agreed(comm), enough("the problem"):
        recipe, method = config.problem.recipe(), method_of(config)
        config = settled(config, recipe)
    return execute(comm, config, Path(config.run.out or "."), method, recipe)


def sweep(
    comm: MPI.Comm,
    plan: Plan,
    out: Path,
    ranks_each: int = 1,
    at_once: int | None = None,
    retry: bool = False,
) -> None:
    """Runs the cases of a checked plan, or goes on with them; see `hpcopt.engine.sweep`. Collective."""

    def run_case(group: MPI.Comm, config: Callable[[], RunConfig], directory: Path) -> None:
        with agreed(group):
            checked = config()
        if group.bcast((directory / "config.toml").is_file()):
            resume(directory, comm=group)
        else:
            start(group, checked)

    sweeping.sweep(comm, plan, out, run_case, ranks_each, at_once, retry)


def _way(config: RunConfig, method: type[Method[Any, Any]] | Method[Any, Any] | None) -> Method[Any, Any]:
    """The run's method, with the run's settings.

    Raises:
        UserError: what was given is another one.
    """
    if method is None:
        return method_of(config)
    kind = method if isinstance(method, type) else type(method)
    check_class(kind, config)
    if not isinstance(method, type):
        check_settings(method, config, "hpcopt.resume")
    return kind(config.method)
