"""Problem, ports and method of a config, on all ranks in agreement, ready for the first round."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import torch

from hpcopt.comm.staging import local_device
from hpcopt.control.launcher import local_rank, threads
from hpcopt.engine.determinism import device_name, tf32
from hpcopt.engine.meter import uncounted
from hpcopt.engine.origin import check_problem, check_state
from hpcopt.errors import UserError
from hpcopt.ground.memory import enough
from hpcopt.ground.own_code import load_own
from hpcopt.ground.placement import Placement
from hpcopt.problems.base import Measures, Share
from hpcopt.state import FIXED, State
from hpcopt.storage import provenance

if TYPE_CHECKING:
    from hpcopt.config import RunConfig
    from hpcopt.config.base import Table
    from hpcopt.config.run import RunTable
    from hpcopt.engine.meter import OpenPorts
    from hpcopt.engine.ranks import Ranks
    from hpcopt.methods.base import Method
    from hpcopt.problems.base import Problem, Recipe

BUFFERS = "problem_buffers"
DTYPES = {"float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True)
class Built:
    """What a config comes to on this rank; complete, and not released by itself.

    Attributes:
        config: the whole config.
        ranks: all of the run.
        problem: the workers here.
        ports: what the method communicates through.
        device: where the numbers are, and how they reach MPI, in words.
        method: started.
        state: the method's, of round 0 or as restored.
        places: host and cores of all ranks of the job; if empty, these are ``ranks``.
    """

    config: RunConfig
    ranks: Ranks
    problem: Problem
    ports: OpenPorts
    device: str
    method: Method[Any, Any]
    state: State
    places: Sequence[tuple[str, list[int]]] = ()


def set_threads(run: RunTable) -> None:
    """One torch thread if the bits matter, else as many as the job gives each rank. Local."""
    torch.set_num_threads(1 if run.deterministic else threads())


def place(
    ranks: Ranks, config: RunConfig, method: Method[Any, Any], recipe: Recipe, hosts: int, rank: int
) -> Placement:
    """Which rank hosts which workers, so that all have about equal work in a round. Collective.

    By what all ranks know before anything is bound, so that they come to the same blocks. Nothing that is
    computed depends on them, but for rounding.

    Args:
        ranks: who has to agree.
        config, method, recipe: of the run.
        hosts: how many ranks share the workers.
        rank: this one's number among them.

    Raises:
        UserError: what the recipe describes cannot be had.
    """
    workers = config.run.workers
    sizes = getattr(recipe, "sizes_of_workers", None)
    if sizes is None or getattr(recipe, "workers", workers) != workers:  # which `bind` complains about
        return Placement.even(workers, hosts, rank)
    with ranks.agreed(), enough("the problem"):
        work = [method.settings.rows_a_round(rows, batch) for rows, batch in sizes(config.run.seed) or ()]
    return Placement.balanced(work, hosts, rank) if work else Placement.even(workers, hosts, rank)


def bind(ranks: Ranks, placement: Placement, config: RunConfig, recipe: Recipe) -> Problem:
    """The problem of this rank's workers, the same one everywhere. Collective.

    Raises:
        UserError: there is no such device, what the recipe describes cannot be had, or ranks have been given
            different problems.
    """
    run = config.run
    with ranks.agreed():
        made_for = getattr(recipe, "workers", run.workers)  # a recipe of the user's need not say
        if made_for != run.workers:
            raise UserError(f"[run] workers = {run.workers}, but the problem was made for {made_for} workers")
        device = local_device(run.device, local_rank())
        dtype = DTYPES[run.dtype or "float64"]
        with enough("the problem"):
            problem = recipe.bind(Share(placement.here, placement.total, run.seed, dtype, device))
        problem.measures = Measures("train" in run.evaluate, "test" in run.evaluate, run.evaluate_rows)
    check_problem(ranks, problem)
    return problem


def begin(
    ranks: Ranks,
    config: RunConfig,
    problem: Problem,
    ports: OpenPorts,
    method: Method[Any, Any],
    device: str,
    beat: Callable[[str], None] = lambda where: None,
    everybody: Ranks | None = None,
) -> Built:
    """Starts the method. Collective.

    Args:
        ranks, config, problem, ports, method, device: see `Built`.
        beat: is told what comes next.
        everybody: who has to agree that it can start; ``ranks`` if None.

    Raises:
        UserError: the method's settings do not fit the problem.
    """
    settle(problem, ports)
    beat("the method's start")
    if not config.run.deterministic:
        choose(problem, ports)
    with (everybody or ranks).agreed():
        method.files = read_files(method.settings)
        method.prepare(problem)
    state = method.start(problem, ports)
    _check_state(method, state)
    check_state(ranks, state)
    with uncounted(problem, ports):
        method.rehearse(state)
    return Built(config, ranks, problem, ports, device, method, state)


def read_files(settings: Table) -> dict[str, Any]:
    """What is in the files that a method's settings name, by key.

    Raises:
        UserError: a file is not there, or not what it should be.
    """
    given = settings.model_dump(include=set(settings.files), exclude_none=True)
    return {
        key: load_own(f"method.{key}", settings.files[key], "function")(name) for key, name in given.items()
    }


def _check_state(method: Method[Any, Any], state: Any) -> None:
    """What checkpoints could not hold is told before the first round, not after the last."""
    if not isinstance(state, State):
        raise UserError(f"{type(method).__name__}.start: gave {state!r}; it gives the state of round 0")
    tensors = state.tensors()
    for item in fields(state):
        if item.name not in ("round", *tensors):
            raise UserError(
                f"{type(state).__name__}.{item.name}: how is it spread? Checkpoints hold what is declared by "
                "hpcopt.replicated(), per_worker() or sliced(); what needs none of them belongs to the method"
            )
    for name, (_, tensor) in tensors.items():
        where = f"{type(state).__name__}.{name}"
        if not isinstance(tensor, torch.Tensor) or not tensor.ndim or tensor.dtype is torch.bfloat16:
            raise UserError(
                f"{where}: is {tensor!r}; a state holds tensors of at least one dimension, of NumPy's types"
            )
        if name == BUFFERS or name.startswith(FIXED):
            raise UserError(f"{where}: checkpoints keep what is the problem's under this name; take another")


def attributes(built: Built, host: str, libraries: dict[str, str]) -> dict[str, Any]:
    """The root attributes of a run's results. Collective.

    Args:
        built: the run.
        host: where this rank is.
        libraries: versions that Python does not know, by name.
    """
    places = built.places or built.ranks.each((host, cores()))
    ranks_of = Counter(name for name, _ in places)
    return (
        built.config.identity()
        | provenance.software(libraries)
        | {
            "dim": built.problem.dim,
            "rows": built.problem.total_rows,
            "ranks": len(places),
            "hosts": json.dumps(sorted(ranks_of)),
            "workers_per_rank": json.dumps(built.ranks.each(built.problem.share.n)),
            "ranks_per_host": json.dumps([ranks_of[name] for name in sorted(ranks_of)]),
            "cores": len({(name, core) for name, own in places for core in own}),
            "config": json.dumps(built.config.tables()),
            "chosen": json.dumps(built.ports.chosen),
            "notes": "\n".join(built.method.notes()),
            "device": built.device,
            "device_name": device_name(built.problem.share.device),
            "tf32": tf32(built.problem.share.device),
        }
    )


def cores() -> list[int]:
    """The cores that this process may use; where the system does not say, all."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def settle(problem: Problem, ports: OpenPorts) -> None:
    """Gives the problem the sum of its statistics over all workers; costs no metric anything. Collective."""
    with uncounted(problem, ports):
        sums = [ports.reduce.sum(rows).clone() for rows in problem.statistics()]
        if sums:
            problem.settle(torch.cat(sums))


def choose(problem: Problem, ports: OpenPorts) -> None:
    """Takes the fastest way of each kind of work that the problem can do in several. Collective."""
    with uncounted(problem, ports):
        for kind, ways in problem.ways().items():
            problem.take(kind, ports.fastest(kind, ways))
