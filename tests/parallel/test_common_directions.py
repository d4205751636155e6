"""Common directions, with the workers' own direction and without: the same on any number of ranks."""

import numpy as np
import pytest
import torch

import hpcopt
from hpcopt.api import resume, start
from hpcopt.comm.reduce.mpi_reducer import MPIReducer
from hpcopt.comm.staging import Staging
from hpcopt.config import from_tables
from hpcopt.ground.placement import Placement, block

from .conftest import ON_2_OR_4, first_ranks

pytestmark = [pytest.mark.mpi(min_size=2), ON_2_OR_4]

METHODS = {
    "common_directions": {"keep": 6, "diagonal_every": 4, "margins_every": 5},
    "fadl": {"approximation": "adaptive", "keep": 6, "diagonal_every": 4, "inner_iterations": 2},
}
MEASURED = ("seconds", "bytes_sent", "peak_memory", "bytes_workers")
"""what may depend on the ranks, the last one by the rounding of a sum over them"""


def uneven(workers):
    """Five workers with quite different numbers of rows, one of them with none."""
    draw = np.random.default_rng(8)
    X = draw.standard_normal((260, 23)) * np.logspace(0, -2, 23)
    y = np.sign(X @ draw.standard_normal(23) + 0.3 * draw.standard_normal(260))
    test = X[200:], y[200:]
    rows = np.split(np.arange(200), [20, 20, 110, 117])
    return hpcopt.Logistic((X[:200], y[:200]), test, workers=workers, rows=rows, regularisation=1e-4)


def run(comm, out, method, **keys):
    base = {"workers": 5, "rounds": 9, "evaluate_every": 3, "out": str(out), "dtype": "float64"}
    kind = {"kind": "tests.parallel.test_common_directions:uneven"}
    tables = {"run": base | {"method": method} | keys, "method": METHODS[method], "problem": kind}
    return hpcopt.load(start(comm, from_tables(tables, "test")))


def curves(comm, where, method, counts, **keys):
    """The metrics on some numbers of ranks, on every rank."""
    found = []
    for ranks in counts:
        with first_ranks(comm, ranks) as sub:
            data = run(sub, where / f"{method}{ranks}", method, **keys) if sub is not None else None
        found.append(comm.bcast(data["metrics"].to_dataset() if comm.rank == 0 else None))
    return found


@pytest.mark.parametrize("method", METHODS)
def test_the_same_run_on_any_number_of_ranks(comm, mpi_tmp_path, method):
    """To 1e-8; where sums are ordered to the bit, also where it is interrupted and goes on on other ranks."""
    plain = curves(comm, mpi_tmp_path / "plain", method, [comm.size])
    ordered = curves(comm, mpi_tmp_path / "ordered", method, range(1, comm.size + 1), deterministic=True)
    for other in ordered:
        np.testing.assert_allclose(other["loss"], plain[0]["loss"], rtol=1e-8)
        assert np.array_equal(other["passes"], plain[0]["passes"])
    for other in ordered[1:]:
        for name in ordered[0].data_vars:
            if name not in MEASURED:
                np.testing.assert_array_equal(other[name], ordered[0][name], err_msg=name)
    keys = {"deterministic": True, "keep_checkpoints": 1}
    for before, after in ((1, comm.size), (comm.size, 1)):
        out = mpi_tmp_path / f"{before}-{after}"
        with first_ranks(comm, before) as sub:
            if sub is not None:
                run(sub, out, method, rounds=5, **keys)
        with first_ranks(comm, after) as sub:
            if sub is not None:
                resume(out, comm=sub, overrides=("run.rounds=9",))
        if comm.rank == 0:
            metrics = hpcopt.load(out)["metrics"]
            kept = np.isin(metrics["round"], ordered[0]["round"])
            for name in ("loss", "accuracy", "passes", "gradients"):
                assert np.array_equal(metrics[name][kept], ordered[0][name]), name
        comm.Barrier()


def test_vectors_in_the_workers_blocks(comm):
    """Put together in the order of the workers, whatever ranks they live on; half a pass."""
    x = torch.arange(23, dtype=torch.float64)
    placement = Placement.even(5, comm.size, comm.rank)
    port = MPIReducer(comm, placement, Staging(x.device), x)
    blocks = [block(23, 5, worker) for worker in placement.here]
    mine = torch.cat([x[:0], *(x[b.start : b.stop] for b in blocks)])
    assert torch.equal(port.allgather(mine, 23, by_worker=True), x)
    assert port.counters["gather"].passes == 0.5
    port.free()
