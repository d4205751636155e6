"""TRON, L-BFGS, averaging and CoCoA+: the same runs on any number of ranks, resumed on another."""

import numpy as np
import pytest

import hpcopt
from hpcopt.api import resume, start
from hpcopt.config import from_tables

from .conftest import ON_2_OR_4, first_ranks

pytestmark = [pytest.mark.mpi(min_size=2), ON_2_OR_4]

METHODS = {
    "tron": {"preconditioner": "diagonal"},
    "lbfgs": {"memory": 3},
    "averaging": {},
    "cocoa": {"local_passes": 2},
}
SAME = ("loss", "accuracy", "auprc", "passes", "gradients", "duality_gap")
ROUNDS = 5


def uneven(workers):
    """Five workers of unequal size, one without rows."""
    draw = np.random.default_rng(8)
    X = draw.standard_normal((263, 23)) * np.logspace(0, -1, 23)
    y = np.sign(X @ draw.standard_normal(23) + 0.3 * draw.standard_normal(263))
    rows = np.split(np.arange(203), [21, 21, 112, 119])
    return hpcopt.Logistic(
        (X[:203], y[:203]), (X[203:], y[203:]), workers=workers, rows=rows, regularisation=1e-3
    )


def run(comm, out, method, **keys):
    base = {"workers": 5, "rounds": ROUNDS, "evaluate_every": ROUNDS, "out": str(out), "method": method}
    tables = {
        "run": base | {"dtype": "float64", "keep_checkpoints": 1} | keys,
        "method": METHODS[method],
        "problem": {"kind": "tests.parallel.test_linear_baselines:uneven"},
    }
    return hpcopt.load(start(comm, from_tables(tables, "test")))


def going_on(comm, out):
    resume(out, comm=comm, overrides=(f"run.rounds={ROUNDS}",))
    return hpcopt.load(out)


def on(comm, ranks, what, *args, **keys):
    """The metrics of a run on the first ranks, on every rank."""
    with first_ranks(comm, ranks) as sub:
        data = what(sub, *args, **keys) if sub is not None else None
    return comm.bcast(data["metrics"].to_dataset() if comm.rank == 0 else None)


@pytest.mark.parametrize("method", METHODS)
def test_the_same_run_on_any_number_of_ranks(comm, mpi_tmp_path, method):
    """To the bit where sums are ordered, also if it is interrupted and goes on elsewhere; else to 1e-8."""
    whole = on(comm, 1, run, mpi_tmp_path / "whole", method, deterministic=True)
    if method == "tron":
        plain = on(comm, comm.size, run, mpi_tmp_path / "plain", method)
        np.testing.assert_allclose(plain["loss"], whole["loss"], rtol=1e-8)
        assert np.array_equal(plain["passes"], whole["passes"])
    if method in ("lbfgs", "cocoa"):
        before, after = (1, comm.size) if method == "lbfgs" else (comm.size, comm.size - 1)
        on(comm, before, run, mpi_tmp_path / "again", method, rounds=2, deterministic=True)
        again = on(comm, after, going_on, mpi_tmp_path / "again")
    else:  # there is nothing but the model to carry along
        again = on(comm, comm.size, run, mpi_tmp_path / "again", method, deterministic=True)
    for name in (name for name in SAME if name in whole):
        kept = np.isin(again["round"], whole["round"])
        assert np.array_equal(again[name][kept], whole[name]), name
