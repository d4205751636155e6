"""From a config, or from a few lines of Python, to a job: the public `run` and `resume`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mpi4py import MPI

from hpcopt.comm.agree import agreed
from hpcopt.config import RunConfig, check_table, from_tables, resumable
from hpcopt.config.methods import METHODS
from hpcopt.config.problems import IN_PYTHON
from hpcopt.errors import UserError
from hpcopt.job import Job
from hpcopt.methods.base import Method
from hpcopt.own_code import is_own, load_own, place_of
from hpcopt.problems.base import Recipe


def run(
    method: Method[Any, Any],
    problem: Recipe,
    *,
    comm: MPI.Comm | None = None,
    out: str | Path,
    **settings: Any,
) -> Path:
    """Runs a method on a problem, as `hpcopt run` does. Collective over ``comm``.

    Args:
        method: for example ``hpcopt.AllreduceSGD(lr=0.1)``, or one of your own.
        problem: for example ``hpcopt.Network(...)``.
        comm: the ranks; this process alone if None.
        out: the run's directory; must not hold a run.
        settings: keys of the [run] table: ``rounds``, ``seed``, ``evaluate_every``, …

    Returns:
        The path of run.h5.

    Raises:
        UserError: a setting is wrong, on every rank.
        NotFinite: the loss is no longer finite; the metrics are kept.
        Interrupted: a signal came; `resume` goes on from the checkpoint.
    """
    config = _config_in_python(method, problem, out, settings)
    return Job(comm or MPI.COMM_SELF, config, Path(out), method, problem).execute()


def resume(
    directory: str | Path,
    *,
    method: type[Method[Any, Any]] | None = None,
    problem: Recipe | None = None,
    comm: MPI.Comm | None = None,
    overrides: tuple[str, ...] = (),
) -> Path:
    """Goes on with a run from its newest intact checkpoint, on any number of ranks. Collective.

    Args:
        directory: the run's directory.
        method: its class, for a run whose own method cannot be imported by its name (it stands in a script).
        problem: what `run` was given, for a run that was started from Python.
        comm: the ranks; this process alone if None.
        overrides: ``"run.rounds=2000"`` and the like.

    Raises:
        NothingToResume: there is no config.toml.
        UserError, NotFinite, Interrupted: as `run`.
    """
    comm, directory = comm or MPI.COMM_SELF, Path(directory)
    with agreed(comm):
        config = resumable(directory, overrides, method.table if method else None)
        if problem is None and config.problem.kind == IN_PYTHON:
            raise UserError(
                f"{directory}: this run's problem was made in Python; resume it there, with "
                "hpcopt.resume(directory, problem=...)"
            )
        recipe = problem or _recipe(config)
        way = method(config.method) if method else _method(config)
    return Job(comm, config, directory, way, recipe, resuming=True).execute()


def start(comm: MPI.Comm, config: RunConfig) -> Path:
    """Runs a checked config. Collective; raises as `run`."""
    with agreed(comm):
        recipe, method = _recipe(config), _method(config)
    return Job(comm, config, Path(config.run.out or "."), method, recipe).execute()


def _config_in_python(
    method: Method[Any, Any], problem: Recipe, out: str | Path, settings: dict[str, Any]
) -> RunConfig:
    tables = {
        "run": {"method": _name_of(method), "workers": problem.workers, "out": str(out)} | settings,
        "method": method.settings.model_dump(exclude_none=True),
        "problem": {"kind": IN_PYTHON, "recipe": type(problem).__name__},
    }
    return from_tables(tables, "hpcopt.run", method.table)


def _name_of(method: Method[Any, Any]) -> str:
    """As a config names it."""
    place = place_of(type(method))
    return next((name for name in METHODS if _built_in(name) == place), place)


def _built_in(name: str) -> str:
    return f"hpcopt.methods.{name}:{METHODS[name]}"


def _method(config: RunConfig) -> Method[Any, Any]:
    name = config.run.method
    kind: type[Method[Any, Any]] = load_own("run.method", name if is_own(name) else _built_in(name), "Class")
    if isinstance(config.method, kind.table):
        return kind(config.method)
    # where the config was read its class could not be imported: now it is
    return kind(check_table(kind.table, config.method.model_dump(), "[method]"))


def _recipe(config: RunConfig) -> Recipe:
    return config.problem.recipe()
