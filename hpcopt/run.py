"""From a config, or from a few lines of Python, to a job: what is registered under which name."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from mpi4py import MPI

from hpcopt.comm.agree import agreed
from hpcopt.config import RunConfig, from_tables, resumable
from hpcopt.config.problems import IN_PYTHON
from hpcopt.errors import UserError
from hpcopt.job import Job
from hpcopt.methods.base import Method
from hpcopt.problems.base import Recipe

METHODS = {
    "allreduce_sgd": "hpcopt.methods.allreduce_sgd:AllreduceSGD",
    "regtopk": "hpcopt.methods.regtopk:RegTopK",
    "topk": "hpcopt.methods.sparsified:TopK",
    "randomk": "hpcopt.methods.sparsified:RandomK",
    "powersgd": "hpcopt.methods.powersgd:PowerSGD",
    "deprl": "hpcopt.methods.deprl:DePRL",
    "dpsgd": "hpcopt.methods.gossip:DPSGD",
    "gradient_tracking": "hpcopt.methods.gradient_tracking:GradientTracking",
    "local": "hpcopt.methods.gossip:Local",
    "fedavg": "hpcopt.methods.fedavg:FedAvg",
}


def run(
    method: Method[Any],
    problem: Recipe,
    *,
    comm: MPI.Comm | None = None,
    out: str | Path,
    **settings: Any,
) -> Path:
    """Runs a method on a problem, as `hpcopt run` does. Collective over ``comm``.

    Args:
        method: for example ``hpcopt.AllreduceSGD(lr=0.1)``.
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
    problem: Recipe | None = None,
    comm: MPI.Comm | None = None,
    overrides: tuple[str, ...] = (),
) -> Path:
    """Goes on with a run from its newest intact checkpoint, on any number of ranks. Collective.

    Args:
        directory: the run's directory.
        problem: what `run` was given, for a run that was started from Python.
        comm: the ranks; this process alone if None.
        overrides: ``"run.rounds=2000"`` and the like.

    Raises:
        NothingToResume: there is no config.toml.
        UserError, NotFinite, Interrupted: as `run`.
    """
    comm, directory = comm or MPI.COMM_SELF, Path(directory)
    with agreed(comm):
        config = resumable(directory, overrides)
        if problem is None and config.problem.kind == IN_PYTHON:
            raise UserError(
                f"{directory}: this run's problem was made in Python; resume it there, with "
                "hpcopt.resume(directory, problem=...)"
            )
        recipe = problem or _recipe(config)
    return Job(comm, config, directory, _method(config), recipe, resuming=True).execute()


def start(comm: MPI.Comm, config: RunConfig) -> Path:
    """Runs a checked config. Collective; raises as `run`."""
    with agreed(comm):
        recipe = _recipe(config)
    return Job(comm, config, Path(config.run.out or "."), _method(config), recipe).execute()


def _config_in_python(
    method: Method[Any], problem: Recipe, out: str | Path, settings: dict[str, Any]
) -> RunConfig:
    name = next((n for n, place in METHODS.items() if place.endswith(f":{type(method).__name__}")), None)
    if name is None:
        raise UserError(f"{type(method).__name__}: not a method of hpcopt; known: {', '.join(METHODS)}")
    tables = {
        "run": {"method": name, "workers": problem.workers, "out": str(out)} | settings,
        "method": method.settings.model_dump(exclude_none=True),
        "problem": {"kind": IN_PYTHON, "recipe": type(problem).__name__},
    }
    return from_tables(tables, "hpcopt.run")


def _method(config: RunConfig) -> Method[Any]:
    method: Method[Any] = _load(METHODS[config.run.method])(config.method)
    return method


def _recipe(config: RunConfig) -> Recipe:
    return config.problem.recipe()


def _load(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)
