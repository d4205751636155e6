"""The spectrum of a problem's Hessian, at its start or at a trained model; the public `spectrum`."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpi4py import MPI

from hpcopt.comm.mpi_ranks import MPIRanks
from hpcopt.config import RunConfig, check_table
from hpcopt.config.problems import IN_PYTHON
from hpcopt.config.spectrum import SpectrumTable
from hpcopt.control.agree import agreed, in_agreement
from hpcopt.control.crew import Crew
from hpcopt.control.world import ranks_for
from hpcopt.engine.build import attributes, set_threads
from hpcopt.engine.determinism import repeatable
from hpcopt.engine.job import build
from hpcopt.engine.names import config_in_python, settled
from hpcopt.engine.origin import check_config
from hpcopt.engine.rundir import RunDirectory
from hpcopt.engine.simulation import tree_of
from hpcopt.errors import NotFinite, UserError
from hpcopt.ground.files import home
from hpcopt.ground.stamps import now
from hpcopt.math.lanczos import lanczos, random_start
from hpcopt.math.quadrature import quadrature
from hpcopt.methods.allreduce_sgd import AllreduceSGD
from hpcopt.methods.parts.hessian import check_hessian, hessian_products
from hpcopt.problems.base import Draw
from hpcopt.state import Held
from hpcopt.storage import provenance
from hpcopt.storage.checkpoint import Checkpoints
from hpcopt.storage.schema import Schema
from hpcopt.storage.state import restore

if TYPE_CHECKING:
    import xarray
    from torch import Tensor

    from hpcopt.engine.build import Built
    from hpcopt.engine.record import Record
    from hpcopt.problems.base import Recipe

DIMS = {"metrics": ("record",), "spectrum": ("refresh", "pair"), "density": ("probe", "node")}
SETTINGS = ("seed", "dtype", "device", "deterministic", "reduction")
"""keys of the [run] table that mean something here"""


def spectrum(
    problem: Recipe,
    comm: MPI.Comm | None = None,
    *,
    largest: int = 10,
    smallest: int = 0,
    run: str | Path | None = None,
    out: str | Path | None = None,
    **settings: Any,
) -> xarray.DataTree:
    """Extreme eigenvalues of the Hessian of a problem's objective, and the density of all. Collective.

    The basis is spread over the ranks; none has a whole vector of it. All copies of a multiple eigenvalue
    are found. The Hessian is that of what gradients are of: where the objective is a sum over rows, of their
    mean (`Problem.scale`, also in the result's ``attrs``).

    Args:
        problem: for example ``hpcopt.Network(...)``.
        comm: the ranks; all that the launcher started if None.
        largest, smallest: how many eigenvalues at each end.
        run: the directory of a run of this problem, for the Hessian at its last checkpoint's model (the mean
            of the workers', where each has its own); at the problem's start if None.
        out: a directory to write run.h5 to; must not hold a run.
        settings: ``tolerance``, ``iterations``, ``probes``, ``nodes``, ``batch`` (see
            `hpcopt.config.spectrum.SpectrumTable`); of the [run] table ``seed``, ``dtype`` (float64 if not
            given, whatever the problem), ``device``, ``deterministic`` and ``reduction``.

    Returns:
        What `hpcopt.load` gives of the file, on every rank: ``spectrum/eigenvalue`` and ``spectrum/residual``
        (1, pairs), ascending; ``density/eigenvalue`` and ``density/weight`` (probes, nodes), weights of a
        probe of sum 1; ``metrics`` tell what it cost.

    Raises:
        UserError: a setting is wrong, the problem has no Hessian, or there is no such model; on every rank.
        NotFinite: the Hessian is not.
    """
    given = {key: settings.pop(key) for key in settings.keys() & SpectrumTable.model_fields.keys()}
    unknown = sorted(settings.keys() - {*SETTINGS})
    if unknown:
        allowed = sorted({*SETTINGS, *SpectrumTable.model_fields})
        raise UserError(f"hpcopt.spectrum: {', '.join(unknown)}: unknown; allowed: {', '.join(allowed)}")
    wanted = check_table(SpectrumTable, given | {"largest": largest, "smallest": smallest}, "hpcopt.spectrum")
    settings = {"dtype": "float64"} | settings
    comm = ranks_for(comm)
    config = config_in_python("hpcopt.spectrum", AllreduceSGD(), problem, (), settings)
    return measure(comm, config, problem, wanted, _path(run), _path(out))


def of_config(
    comm: MPI.Comm, config: RunConfig, wanted: SpectrumTable, run: Path | None, out: Path | None
) -> xarray.DataTree:
    """The same for a config, as the command does. Collective.

    Args:
        comm: the ranks.
        config: whose problem, seed, dtype and device count.
        wanted: what to compute.
        run, out: see `spectrum`.

    Raises:
        UserError, NotFinite: as `spectrum`.
    """
    with agreed(comm):
        if config.problem.kind == IN_PYTHON:
            raise UserError(
                f"{run}: this run's problem was made in Python; use hpcopt.spectrum(problem, run=…)"
            )
        recipe = config.problem.recipe()
        config = settled(config, recipe)
    return measure(comm, config, recipe, wanted, run, out)


def measure(
    comm: MPI.Comm,
    config: RunConfig,
    recipe: Recipe,
    wanted: SpectrumTable,
    run: Path | None = None,
    out: Path | None = None,
) -> xarray.DataTree:
    """As `of_config`, for a recipe. Collective."""
    begun = now()
    check_config(MPIRanks(comm), config)
    with ExitStack() as opened, repeatable(config.run):
        directory = RunDirectory(comm, out, config) if out is not None else None
        if directory is not None:
            opened.callback(directory.release)
            directory.claim()
            in_agreement(opened, directory.close)
        set_threads(config.run)
        # a method whose start costs nothing
        built = build(opened, Crew(comm), config, AllreduceSGD(), recipe)
        point = _at_start(built) if run is None else _trained(comm, built, run)
        record = {"metrics/round": point.round} | _measure(built, point.x, wanted)
        schema = _schema(record)
        about = attributes(built, MPI.Get_processor_name(), {"mpi": MPI.Get_library_version().split(",")[0]})
        about |= {"model": point.source, "scale": built.problem.scale, "spectrum": wanted.model_dump_json()}
        end = {"end": now(), "stopped_by": "spectrum", "last_round": point.round}
        if directory is not None:
            job = provenance.job() | {"round": point.round, "ranks": comm.size}
            directory.open_metrics(schema, 0, about, job)
            directory.append(record)
            directory.finish("spectrum", point.round)
    return tree_of(schema, [record], about | {"start": begun} | end)


@dataclass(frozen=True)
class _Point:
    """Where the Hessian is taken: x (d,), the round that it is of, and where it comes from, in words."""

    x: Tensor
    round: int
    source: str


def _at_start(built: Built) -> _Point:
    return _Point(built.problem.initial(), 0, "the start")


def _trained(comm: MPI.Comm, built: Built, run: Path) -> _Point:
    """The model of a run's newest intact checkpoint. Collective."""
    found = Checkpoints(comm, run / "checkpoints", built.config.run.keep_checkpoints).newest()
    if found is None:
        raise UserError(f"{run}: no checkpoint there, so there is no trained model")
    path, meta, _ = found
    problem, name, round = built.problem, str(meta.get("model")), int(meta.get("round", 0))
    x, shape = problem.initial().clone(), dict(meta["arrays"]).get(name)
    each = problem.rows_of(problem.dim)  # a model of each worker
    if shape not in ([problem.dim], [problem.share.total, problem.dim]):
        raise UserError(
            f"{path}: its model has the shape {shape}; this problem has {problem.dim} parameters and "
            f"{problem.share.total} workers"
        )
    if len(shape) == 1:
        restore(comm, path, {name: (Held.REPLICATED, x)})
        return _Point(x, round, str(path))
    restore(comm, path, {name: (Held.PER_WORKER, each)})
    return _Point(built.ports.reduce.sum(each) / problem.share.total, round, str(path))


def _measure(built: Built, x: Tensor, wanted: SpectrumTable) -> Record:
    """Eigenpairs and density at x, and what they cost. Collective."""
    problem, reduce, ranks = built.problem, built.ports.reduce, built.ranks
    d, draw = problem.dim, Draw(0) if wanted.batch else None
    if wanted.pairs > d:
        raise UserError(
            f"largest = {wanted.largest} and smallest = {wanted.smallest}: the problem has {d} parameters, "
            "and so no more eigenvalues"
        )
    with ranks.agreed():
        check_hessian(problem, draw)
    own, part = reduce.own(d), reduce.contribution(d)
    product = hessian_products(problem, reduce, part, x, draw)
    seed, dtype, device = problem.share.seed, x.dtype, x.device
    start = random_start(own, seed, dtype, device)
    pairs = lanczos(
        product,
        reduce.slices,
        start[:, None],
        d,
        own,
        largest=wanted.largest,
        smallest=wanted.smallest,
        iterations=wanted.iterations or max(40, 2 * wanted.pairs + 10),
        tolerance=wanted.tolerance,
        copies=True,
        seed=seed,
    )
    fresh = (random_start(own, seed + 1, dtype, device, i) for i in count())
    nodes, weights = quadrature(product, reduce.slices, d, fresh, start, wanted.probes, wanted.nodes)
    if not (pairs.values.isfinite().all() and nodes.isfinite().all()):
        raise NotFinite("the Hessian-vector products are not finite: the model has diverged")
    record = {
        "metrics/products": pairs.products + nodes.numel(),
        "metrics/bytes_sent": sum(ranks.each(sum(c.bytes for c in reduce.counters.values()))),
        "spectrum/eigenvalue": pairs.values[None].numpy(),
        "spectrum/residual": pairs.residuals[None].numpy(),
    }
    density = {"density/eigenvalue": nodes.numpy(), "density/weight": weights.numpy()}
    return record | (density if wanted.probes else {})


def _schema(record: Record) -> Schema:
    """What follows from the record: columns and room."""
    capacity, dimensions = {"record": 1}, {}
    for lead, other, column in (
        ("refresh", "pair", "spectrum/eigenvalue"),
        ("probe", "node", "density/eigenvalue"),
    ):
        if column in record:
            capacity[lead] = len(record[column])
            dimensions[other] = list(range(record[column].shape[1]))
    return Schema({column: DIMS[column.partition("/")[0]] for column in record}, capacity, dimensions)


def _path(given: str | Path | None) -> Path | None:
    return None if given is None else home(given)
